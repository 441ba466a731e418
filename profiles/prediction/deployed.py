"""What a public model's deployment computes that the model's file does not show, as the layers that devices counted tell.

Qualcomm AI Hub Models, whose latencies predictions are fitted to, hand pictures of 0 to 1 to classifiers, which normalize them inside the
graph (`qai_hub_models/models/templates/imagenet_classifier`; the regressors of hands' and faces' landmarks do not): a subtraction and a division of three channels, for which an accelerator that keeps channels by 32 takes as long as for all of a small
model (MobileNetV2 in ``w8a16``: 0.40 of 0.64 ms by the compiler's estimate; 0.90 ms measured on a chip alike). And a batch normalization that
no product before it takes up stays float in their quantized graphs, between two conversions (DenseNet-121 has 2·62 layers more than in float).
"""

import math
from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from pocketport.compress.graph import constant, shape_of
from pocketport.compress.passes.rewriting import add_initializer, replace_node
from pocketport.compress.structure import is_float
from pocketport.profiles.prediction.features import COLOURS

MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet's
SCORES = 400  # that a classifier gives at least (Kinetics' classes; ImageNet has 1000, embeddings 512): what gives fewer numbers regresses them


def normalizes(picture: Sequence[int], outputs: Sequence[Sequence[int]]) -> bool:
    """Whether a deployment normalizes an input of this shape: colours, in a model that gives scores of classes or an embedding, not maps,
    boxes or landmarks."""
    vectors = all(len(shape) <= 2 for shape in outputs) and max(math.prod(shape) for shape in outputs) >= SCORES
    return len(picture) >= 4 and picture[1] == COLOURS and vectors


def normalized_pictures(model: ir.Model) -> list[ir.Value]:
    """The inputs that a deployment of this model normalizes: nothing but convolutions reads them."""
    outputs = [shape_of(value) for value in model.graph.outputs]
    return [
        value
        for value in model.graph.inputs
        if is_float(value)
        and {node.op_type for node, _ in value.uses()} == {"Conv"}
        and normalizes(shape_of(value), outputs)
    ]


def normalize_pictures(model: ir.Model) -> None:
    """Put the normalization between every such input and what reads it, in place."""
    for picture in normalized_pictures(model):
        users = [node for node, _ in picture.uses()]
        value = picture
        for op, numbers in (("Sub", MEAN), ("Div", DEVIATION)):
            value = _by_channel(model.graph, value, op, numbers)
        for node in users:
            node.replace_input_with(0, value)


def _by_channel(graph: ir.Graph, value: ir.Value, op: str, numbers: Sequence[float]) -> ir.Value:
    shape, name = shape_of(value), f"{value.name}.{op.lower()}"
    array = np.array(numbers, np.float32).reshape(1, -1, *[1] * (len(shape) - 2))
    node = ir.node(op, [value, add_initializer(graph, f"{name}.by", array)], name=name)
    out = node.outputs[0]
    out.name, out.shape, out.type = f"{name}.out", ir.Shape(shape), value.type
    producer = value.producer()
    if producer is None:
        graph.insert_before(graph[0], node)
    else:
        graph.insert_after(producer, node)
    return out


def shifted(product: ir.Node) -> ir.Node | None:
    """The addition that makes a multiplication by constants of channels a batch normalization, as ingestion writes one that no
    product takes up; None where there is none."""
    users = [node for node, index in product.outputs[0].uses() if index == 0]
    if product.op_type != "Mul" or len(product.outputs[0].uses()) != 1 or not users or users[0].op_type != "Add":
        return None
    shape = shape_of(product.outputs[0])
    wanted = (shape[1], *[1] * (len(shape) - 2)) if len(shape) >= 4 else None
    constants = [constant(node.inputs[1]) for node in (product, users[0])]
    return users[0] if all(a is not None and a.shape == wanted for a in constants) else None


def whole_normalizations(model: ir.Model) -> None:
    """Make such a pair one BatchNormalization, in place. No integer kernel takes it, so it stays float in a quantized graph."""
    graph = model.graph
    for product in list(graph):
        total = shifted(product)
        if total is None:
            continue
        scale, shift = (np.asarray(constant(node.inputs[1]), np.float32).reshape(-1) for node in (product, total))
        vectors = {"gamma": scale, "beta": shift, "mean": np.zeros_like(scale), "variance": np.ones_like(scale)}
        parameters = [add_initializer(graph, f"{total.name}.{part}", v) for part, v in vectors.items()]
        inputs = [product.inputs[0], *parameters]
        whole = ir.node("BatchNormalization", inputs, attributes={"epsilon": 0.0}, name=f"{total.name}.whole")
        replace_node(graph, total, whole)
        graph.remove(product, safe=True)
