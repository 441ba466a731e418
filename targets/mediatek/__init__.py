"""MediaTek: QDQ ONNX lowered to .tflite, executed by LiteRT, compiled or linted by MediaTek's plugin."""

from pocketport.targets.mediatek.backend import MediatekBackend

backend = MediatekBackend()

__all__ = ["MediatekBackend", "backend"]
