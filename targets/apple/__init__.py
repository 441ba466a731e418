"""Apple chips through Core AI and Core ML."""

from pocketport.targets.apple.backend import AppleBackend

backend = AppleBackend()

__all__ = ["AppleBackend", "backend"]
