"""The paper's numbers, and that what is called fitted was fitted to them."""

import sys
from pathlib import Path

import pytest

from pocketport.profiles.timeline.description import ModelDescription

sys.path.insert(0, str(Path(__file__).parents[3] / "benchmarks"))
import paper_figures


@pytest.fixture(scope="module")
def model() -> ModelDescription:
    return ModelDescription.model_validate_json(paper_figures.DESCRIPTION.read_text("utf-8"))


def test_parameters_meet_the_numbers_they_were_fitted_to(model: ModelDescription) -> None:
    for name, (now, best) in paper_figures.refitted(model).items():
        assert now == pytest.approx(best, rel=paper_figures.LEFT / 100), name
    fitted = [row for row in paper_figures.rows(model) if row.origin != "predicted"]
    assert len(fitted) == 8
    assert all(abs(row.error_percent) < 1 for row in fitted), "seven numbers, seven parameters; the eighth follows"


def test_the_papers_own_sums_agree() -> None:
    published = {(p.step, p.figure): p.value for p in paper_figures.PUBLISHED if p.device == paper_figures.XIAOMI}
    saved = published["as is", "image_encode"] - published["sequential loading", "image_encode"]
    total = published["as is", "encode_latency"] - saved
    assert total == pytest.approx(published["sequential loading", "encode_latency"])


def test_the_description_is_the_published_models(model: ModelDescription) -> None:
    language = model.parts["language"]
    # Llama 3 8B: 8.03 billion parameters; its Q4_K_M file has 4.92 GB (llama.cpp)
    assert language.linear.elements + language.table.elements + language.other == pytest.approx(8.03e9, rel=1e-3)
    assert language.weight_bytes("q4_k_m") == pytest.approx(4.92e9, rel=2e-3)
    assert language.cache_elements == 2 * 32 * 8 * 128, "32 layers, 8 heads of 128, keys and values"
    # SigLIP SO400M without its pooling head: 0.41 to 0.43 billion
    assert model.parts["vision"].linear.elements == pytest.approx(4.17e8, rel=0.02)
    assert language.row_macs == pytest.approx(6.98e9, rel=1e-3), "all matrices but the head, once a token"
