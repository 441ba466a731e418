"""Qualcomm: Hexagon Tensor Processor contexts."""

from pocketport.targets.qualcomm.backend import QualcommBackend

backend = QualcommBackend()
