"""Which function lowers which ONNX op."""

from collections.abc import Callable, Mapping
from typing import TypeAlias

import onnx_ir as ir

from pocketport.targets.mediatek.lowering import Lowering

Handler: TypeAlias = Callable[[Lowering, ir.Node], None]
_HANDLERS: dict[str, Handler] = {}


def lowers(*op_types: str) -> Callable[[Handler], Handler]:
    """Register a handler for ONNX op types."""

    def register(handler: Handler) -> Handler:
        _HANDLERS.update(dict.fromkeys(op_types, handler))
        return handler

    return register


def handlers() -> Mapping[str, Handler]:
    """ONNX op type → handler, of every ``lower_*`` module."""
    from pocketport.targets.mediatek import (  # noqa: F401  (importing registers)
        lower_convolution,
        lower_elementwise,
        lower_linear,
        lower_movement,
        lower_normalization,
        lower_quantization,
        lower_spatial,
    )

    return _HANDLERS
