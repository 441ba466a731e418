import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from small_models import block_bundle

from pocketport.calibration.encodings import INTEGER_RANGES, encoding_for_range
from pocketport.compress.pivot.qdq import STORAGE, QdqWriter, integer_tensor
from pocketport.errors import VerificationError


@settings(max_examples=80, deadline=None)
@given(st.data(), st.sampled_from(sorted(STORAGE)), hnp.array_shapes(min_dims=0, max_dims=3, max_side=5))
def test_integers_survive_packing(data: st.DataObject, dtype: str, shape: tuple[int, ...]) -> None:
    low, high = INTEGER_RANGES[dtype]
    values = data.draw(hnp.arrays(np.int64, shape, elements=st.integers(low, high)))
    proto = ir.to_proto(integer_tensor(values, dtype, "t"))
    bits = max(2, (high - low).bit_length())
    assert tuple(proto.dims) == shape
    assert len(proto.raw_data) == -(-values.size * bits // 8)
    assert np.array_equal(onnx.numpy_helper.to_array(proto).astype(np.int64), values)


def test_a_graph_output_keeps_its_name_and_consumers_read_the_dequantized() -> None:
    graph = block_bundle()[0]["main"].graph
    writer = QdqWriter(graph)
    values = {v.name: v for node in graph.graph for v in node.outputs}
    encoding = encoding_for_range(-1.0, 1.0, "uint16", symmetric=False)
    writer.activation(values["logits"], encoding)
    writer.activation(values["norm"], encoding)
    assert writer.count == 4
    assert graph.graph.outputs[0].name == "logits" and values["logits"].name == "logits/float"
    readers = {node.op_type for node, _ in values["norm"].uses()}
    assert readers == {"QuantizeLinear"}
    with pytest.raises(VerificationError, match="already has a value"):
        writer.activation(values["norm"], encoding)
