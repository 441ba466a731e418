"""The reference model: a small trained MiniCPM-V that reads text, shipped with the package."""

from pathlib import Path


def reference_dir() -> Path:
    """The directory that holds the checkpoint, in the layout of a published one."""
    return Path(__file__).parent
