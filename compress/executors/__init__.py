"""Running graphs here: in onnxruntime for exactness, in torch for gradients."""
