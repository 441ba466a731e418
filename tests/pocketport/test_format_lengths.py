"""Calibration sequences of models whose context is short."""

from pathlib import Path

import pytest

from pocketport.compress.sources.source import Source
from pocketport.request import Request
from pocketport.stages.weights import sequence_length


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"max_position_embeddings": 512}, 256),
        ({"text_config": {"max_position_embeddings": 700}}, 350),
        ({"max_position_embeddings": 4096}, 512),
        ({}, 512),
    ],
)
def test_sequences_leave_half_of_the_context(config: dict[str, object], expected: int) -> None:
    request = Request(source="somewhere", sequence_length=512, formats=["gguf:q8_0"])
    assert sequence_length(Source(Path("somewhere"), config, {}), request) == expected
