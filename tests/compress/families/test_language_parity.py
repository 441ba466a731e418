"""Every decoder against an independent implementation: transformers, and for MiniCPM its equations in torch."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from decoder_models import MODELS, save_decoder, save_minicpm

from pocketport.calibration.metrics import sqnr_db
from pocketport.compress.bundle import ModelBundle
from pocketport.compress.families.language.load import language_host, load_language
from pocketport.compress.families.language.parity import compare
from pocketport.compress.families.registry import Lengths
from pocketport.compress.sources.open import open_source
from pocketport.compress.sources.source import Source

LENGTHS = Lengths(prompt=72, cache=96)
LEAST_SQNR_DB = 60.0

MINICPM4 = {
    "rope_type": "longrope", "original_max_position_embeddings": 512,
    "short_factor": [1.0 + 0.1 * i for i in range(16)], "long_factor": [1.0 + 0.3 * i for i in range(16)],
}  # fmt: skip
MINICPMS: dict[str, dict[str, Any]] = {
    "minicpm": {},
    "minicpm-own-head": {"tie_word_embeddings": False, "num_key_value_heads": 4},
    "minicpm4": {"rope_scaling": MINICPM4, "head_dim": 32},
    "minicpm4-long": {"rope_scaling": {**MINICPM4, "original_max_position_embeddings": 64}, "head_dim": 32},
}


@pytest.fixture(scope="session")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Path]]:
    """Checkpoints by name, made once."""
    pytest.importorskip("transformers")
    root = tmp_path_factory.mktemp("decoders")
    yield {
        **{name: save_decoder(root / name, name) for name in MODELS},
        **{name: save_minicpm(root / name, **changes) for name, changes in MINICPMS.items()},
    }


def opened(folder: Path, lengths: Lengths = LENGTHS) -> tuple[ModelBundle, Source]:
    source = open_source(folder)
    return load_language(source, folder.name, lengths), source


@pytest.mark.parametrize("name", [*MODELS, *MINICPMS])
def test_it_computes_what_the_reference_computes(saved: dict[str, Path], name: str) -> None:
    worst: dict[str, float] = {}
    seen: set[tuple[str, str]] = set()
    for component, tensor, expected, found in compare(*opened(saved[name])):
        seen.add((component, tensor))
        if tensor == "token_ids":
            np.testing.assert_array_equal(expected, found)
            continue
        assert expected.shape == found.shape
        kind = f"{component} {tensor.rsplit('_', 1)[0] if tensor[-1].isdigit() else tensor}"
        worst[kind] = min(worst.get(kind, np.inf), sqnr_db(expected, found))
    print(name, {kind: round(value, 1) for kind, value in worst.items()})
    assert min(worst.values()) >= LEAST_SQNR_DB
    states = language_host(load_language(open_source(saved[name]), name, LENGTHS)).config.state_names()
    caches = {(c, f"present_{state}") for c in ("prefill", "decode") for state in states}
    assert seen == caches | {("prefill", "logits"), ("decode", "logits"), ("decode", "token_ids")}
