import pytest
from hypothesis import given
from hypothesis import strategies as st

from pocketport.compress.schemes import Granularity, Scheme
from pocketport.errors import UsageError

TAILS = st.sampled_from(["a8", "a16", "fp16", "fp32"])
BITS = st.sampled_from(["1", "2", "3", "4", "5", "6", "7", "8", "16"])
KINDS = st.one_of(st.sampled_from(["", "t", "c"]), st.integers(1, 512).map("b{}".format))
PALETTES = st.tuples(st.sampled_from(["1", "2", "3", "4", "6", "8"]), st.integers(0, 512).map(lambda n: f"p{n or ''}"))


@given(st.one_of(st.tuples(BITS, KINDS), PALETTES), TAILS)
def test_spelling_round_trips(width: tuple[str, str], tail: str) -> None:
    bits, kind = width
    scheme = Scheme.parse(f"w{bits}{kind}{tail}")
    assert Scheme.parse(str(scheme)) == scheme
    assert scheme.weight_bits == int(bits)
    assert (scheme.activation_bits is None) == tail.startswith("fp")


def test_examples_of_the_grammar() -> None:
    assert Scheme.parse("w4b32a16") == Scheme(4, Granularity.BLOCK, 32, 16)
    assert Scheme.parse("w8tfp32") == Scheme(8, Granularity.TENSOR, float_bits=32)
    assert str(Scheme.parse("w8ca8")) == "w8a8"
    assert str(Scheme.parse("float")) == "float"
    assert Scheme.parse("w3p16fp16") == Scheme(3, Granularity.PALETTE, float_bits=16, group=16)
    assert str(Scheme.parse("w4pa8")) == "w4pa8"


@pytest.mark.parametrize(
    "text", ["", "w", "w9a8", "w4b0a16", "w4a12", "w8", "W8A8", "w4q8a8", "float16", "w5pfp16", "w4p0fp16", "w16pa8"]
)
def test_what_is_not_in_the_grammar(text: str) -> None:
    with pytest.raises(UsageError, match="is not a scheme"):
        Scheme.parse(text)
