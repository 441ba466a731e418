"""How long a graph takes on an NPU that is not here: a roofline of its ops, and the vendor compiler's own estimate."""
