"""Pocketport: take a multimodal model to a phone chip, and know what it will cost there."""

__version__ = "0.1.0"
