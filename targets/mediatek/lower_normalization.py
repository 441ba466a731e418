"""Normalizations, spelled out in float between DEQUANTIZE and QUANTIZE: LiteRT has no integer kernels.

The plugin's composites (``odml.rms_norm``, ``odml.group_norm``) are not used: its translation of
``odml.rms_norm`` puts float32's machine epsilon in the place of the model's.
"""

import math

import numpy as np
import onnx_ir as ir

from pocketport.targets.mediatek.emit import Tensor
from pocketport.targets.mediatek.lower_elementwise import inputs_of
from pocketport.targets.mediatek.lowering import Lowering, Order, Refused, attribute
from pocketport.targets.mediatek.registry import lowers


@lowers("LayerNormalization")
def layer_normalization(context: Lowering, node: ir.Node) -> None:
    """(x − mean) · rsqrt(mean((x − mean)²) + epsilon) · gamma + beta."""
    x, order = _last_dimension_last(context, node)
    average = _mean(context, x)
    centred = context.internal("SUB", [x, average], x.shape, table="SubOptions")
    _scaled(context, node, centred, order)


@lowers("RMSNormalization")
def rms_normalization(context: Lowering, node: ir.Node) -> None:
    """x · rsqrt(mean(x²) + epsilon) · gamma."""
    x, order = _last_dimension_last(context, node)
    _scaled(context, node, x, order)


@lowers("InstanceNormalization")
def instance_normalization(context: Lowering, node: ir.Node) -> None:
    """(x − mean) · rsqrt(mean((x − mean)²) + epsilon) · gamma + beta, over all that belongs to one channel."""
    source, output = inputs_of(node)[0], node.outputs[0]
    weights = [context.weight(v) for v in node.inputs[1:3]]
    if any(w is None for w in weights):
        raise Refused("its gamma or beta is not a constant", "make it an initializer")
    shape = context.shape(source)
    x = context.reshaped(context.as_float(context.read(source)), (*shape[:2], math.prod(shape[2:])))
    centred = context.internal("SUB", [x, _mean(context, x)], x.shape, table="SubOptions")
    gamma, beta = (context.emitter.constant(w.real().reshape(-1, 1)) for w in weights if w is not None)
    unit = _unit(context, node, centred)
    stretched = context.internal("MUL", [unit, gamma], x.shape, table="MulOptions")
    context.define(
        output, context.reshaped(context.internal("ADD", [stretched, beta], x.shape, table="AddOptions"), shape)
    )


def _last_dimension_last(context: Lowering, node: ir.Node) -> tuple[Tensor, Order]:
    source = inputs_of(node)[0]
    held = context.value(source)
    rank = len(held.order)
    if int(attribute(node, "axis", -1)) % rank != rank - 1:
        raise Refused("normalizing over more than the last dimension is not taken", "flatten those dimensions first")
    if len(node.outputs) > 1 and any(o.uses() for o in node.outputs[1:]):
        raise Refused("its mean and deviation outputs are used", "compute them apart")
    order = held.order if held.order[-1] == rank - 1 else tuple(range(rank))
    return context.as_float(context.reordered(held, order)), order


def _mean(context: Lowering, x: Tensor) -> Tensor:
    last = context.indices([len(x.shape) - 1])
    return context.internal("MEAN", [x, last], (*x.shape[:-1], 1), table="ReducerOptions", keepDims=True)


def _scaled(context: Lowering, node: ir.Node, x: Tensor, order: Order) -> None:
    """x · rsqrt(mean(x²) + epsilon) · gamma (+ beta)."""
    output = node.outputs[0]
    parameters = [context.weight(v) for v in node.inputs[1:3]]
    if any(p is None for p in parameters):
        raise Refused("its gamma or beta is not a constant", "make it an initializer")
    gamma, *beta = [context.emitter.constant(p.real()) for p in parameters if p is not None]
    unit = _unit(context, node, x)
    if not beta:
        context.emit("MUL", [unit, gamma], output, order=order, table="MulOptions")
        return
    stretched = context.internal("MUL", [unit, gamma], x.shape, table="MulOptions")
    context.emit("ADD", [stretched, beta[0]], output, order=order, table="AddOptions")


def _unit(context: Lowering, node: ir.Node, x: Tensor) -> Tensor:
    """x · rsqrt(mean(x²) + epsilon) over the last dimension."""
    epsilon = context.emitter.scalar(attribute(node, "epsilon", 1e-5))
    square = context.internal("MUL", [x, x], x.shape, table="MulOptions")
    power = _mean(context, square)
    safe = context.internal("ADD", [power, epsilon], power.shape, table="AddOptions")
    factor = context.internal("RSQRT", [safe], power.shape)
    return context.internal("MUL", [x, factor], x.shape, table="MulOptions")


@lowers("BatchNormalization")
def batch_normalization(context: Lowering, node: ir.Node) -> None:
    """x · a + b per channel, in float (one that follows a Conv is folded into it when ingesting)."""
    source, output = inputs_of(node)[0], node.outputs[0]
    weights = [context.weight(v) for v in node.inputs[1:5]]
    if any(w is None for w in weights):
        raise Refused("its statistics are not constant", "export the model in inference mode")
    gamma, beta, average, variance = (w.real() for w in weights if w is not None)
    held = context.value(source)
    factor = gamma / np.sqrt(variance + np.float32(attribute(node, "epsilon", 1e-5)))
    shape = [-1 if d == 1 else 1 for d in held.order]
    x = context.as_float(held.tensor)
    scaled = context.internal("MUL", [x, context.emitter.constant(factor.reshape(shape))], x.shape, table="MulOptions")
    shift = context.emitter.constant((beta - average * factor).reshape(shape))
    context.emit("ADD", [scaled, shift], output, order=held.order, table="AddOptions")
