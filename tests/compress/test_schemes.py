import pytest
from hypothesis import given
from hypothesis import strategies as st

from pocketport.compress.schemes import Granularity, Scheme
from pocketport.errors import UsageError

TAILS = st.sampled_from(["a8", "a16", "fp16", "fp32"])
KINDS = st.one_of(st.sampled_from(["", "t", "c"]), st.integers(1, 512).map("b{}".format))


@given(st.sampled_from(["1", "2", "3", "4", "5", "6", "7", "8", "16"]), KINDS, TAILS)
def test_spelling_round_trips(bits: str, kind: str, tail: str) -> None:
    scheme = Scheme.parse(f"w{bits}{kind}{tail}")
    assert Scheme.parse(str(scheme)) == scheme
    assert scheme.weight_bits == int(bits)
    assert (scheme.activation_bits is None) == tail.startswith("fp")


def test_examples_of_the_grammar() -> None:
    assert Scheme.parse("w4b32a16") == Scheme(4, Granularity.BLOCK, 32, 16)
    assert Scheme.parse("w8tfp32") == Scheme(8, Granularity.TENSOR, float_bits=32)
    assert str(Scheme.parse("w8ca8")) == "w8a8"
    assert str(Scheme.parse("float")) == "float"


@pytest.mark.parametrize("text", ["", "w", "w9a8", "w4b0a16", "w4a12", "w8", "W8A8", "w4q8a8", "float16"])
def test_what_is_not_in_the_grammar(text: str) -> None:
    with pytest.raises(UsageError, match="is not a scheme"):
        Scheme.parse(text)
