"""Activations beyond the budget lie in a file, and come back to the bit."""

import tempfile
from pathlib import Path

import torch
from hypothesis import given
from hypothesis import strategies as st

from pocketport.compress.blockwise.activations import Activations

CPU = torch.device("cpu")


@given(
    budget=st.sampled_from([0, 300, 1 << 20]),
    steps=st.lists(st.tuples(st.sampled_from("ab"), st.integers(0, 3), st.integers(1, 40), st.booleans()), max_size=40),
)
def test_what_was_put_last_is_what_comes_back(budget: int, steps: list[tuple[str, int, int, bool]]) -> None:
    expected: dict[tuple[str, int], torch.Tensor] = {}
    with tempfile.TemporaryDirectory() as folder, Activations(Path(folder) / "spill", budget) as activations:
        for count, (name, sample, size, drop) in enumerate(steps):
            if drop:
                activations.drop(name, sample)
                expected.pop((name, sample), None)
            else:
                value = torch.full((size, 2), float(count))
                activations.put(name, sample, value)
                expected[name, sample] = value
        for (name, sample), value in expected.items():
            assert torch.equal(activations.get(name, sample, CPU), value)
        for sample in range(4):
            assert activations.names(sample) == {n for n, s in expected if s == sample}


def test_freed_places_are_used_again(tmp_path: Path) -> None:
    with Activations(tmp_path / "spill", 0) as activations:
        for _ in range(10):
            for sample in range(3):
                activations.put("x", sample, torch.ones(100))
        assert activations.spilled == 3 * 400  # nothing more than what is alive at once
    assert not (tmp_path / "spill").exists()


def test_a_budget_of_memory_is_kept(tmp_path: Path) -> None:
    with Activations(tmp_path / "spill", 1000) as activations:
        for sample in range(5):
            activations.put("x", sample, torch.full((100,), float(sample)))  # 400 bytes each: two fit
        assert activations.spilled == 3 * 400
        assert [float(activations.get("x", s, CPU)[0]) for s in range(5)] == [0, 1, 2, 3, 4]
