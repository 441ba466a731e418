"""x86 processors: one pivot, two engines (onnxruntime and OpenVINO), the faster of them chosen by measuring."""

from pocketport.targets.x86.backend import X86Backend

backend = X86Backend()
