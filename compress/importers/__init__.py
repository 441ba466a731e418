"""Programs that others wrote, as bundles: ONNX files and folders, and torch's exported programs."""
