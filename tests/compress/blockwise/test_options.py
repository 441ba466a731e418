"""Options of block-wise GPTQ: read, and refused with the nearest name."""

import pytest

from pocketport.compress.blockwise.options import GptqOptions
from pocketport.errors import UsageError


def test_what_is_not_said_has_its_default() -> None:
    assert GptqOptions.of({}) == GptqOptions(damping=0.01, propagation=0.0, sweeps=0)
    assert GptqOptions.of({"sweeps": 2.0, "propagation": 0.5}) == GptqOptions(propagation=0.5, sweeps=2)


def test_unknown_names_and_values_out_of_range_are_errors() -> None:
    with pytest.raises(UsageError, match="no option 'dampening'") as error:
        GptqOptions.of({"dampening": 0.1})
    assert "damping" in error.value.fix
    with pytest.raises(UsageError, match="damping_search chooses it"):
        GptqOptions.of({"damping": 0.01, "damping_search": 4})
    assert GptqOptions.of({"damping_search": 4}).damping_search == 4
    for options in (
        {"damping": 0.0},
        {"damping_search": 1.0},
        {"damping_search": -2.0},
        {"propagation": 1.5},
        {"propagation": -0.1},
        {"sweeps": -1.0},
    ):
        with pytest.raises(UsageError, match="out of range"):
            GptqOptions.of(options)
