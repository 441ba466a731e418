"""The options of block-wise GPTQ, as recipes give them."""

from collections.abc import Mapping
from dataclasses import dataclass, fields

from pocketport.errors import UsageError
from pocketport.suggest import nearest


@dataclass(frozen=True)
class GptqOptions:
    """What a recipe's ``algorithm_options`` may say to ``gptq`` in checkpoint formats.

    Attributes:
        damping: share of the Hessian's mean diagonal that is added to it, greater than 0.
        damping_search: every so many-th calibration sample is held out to choose the damping by, for each input that
            weights share; see `damping.searched_damping`. 0: none is, and the damping is as given.
        propagation: 0 … 1, the part of the error of earlier weights that each weight takes over; see `drift.Drift`.
        sweeps: of `refine.refined` over integers and scales after rounding.
        distillation: passes over the calibration data in which all scales follow the float model's predictions once every
            weight is rounded; see `distillation.scales`.
    """

    damping: float = 0.01
    damping_search: int = 0
    propagation: float = 0.0
    sweeps: int = 0
    distillation: int = 0

    @classmethod
    def of(cls, options: Mapping[str, float]) -> "GptqOptions":
        """Read a recipe's options.

        Raises:
            UsageError: there is no such option, its value is out of range, or a damping is both given and searched.
        """
        known = [f.name for f in fields(cls)]
        for name in options:
            if name not in known:
                raise UsageError(
                    f"gptq has no option {name!r}", where="recipe, algorithm_options", fix=nearest(name, known)
                )
        made = cls(
            float(options.get("damping", cls.damping)),
            int(options.get("damping_search", cls.damping_search)),
            float(options.get("propagation", cls.propagation)),
            int(options.get("sweeps", cls.sweeps)),
            int(options.get("distillation", cls.distillation)),
        )
        if "damping" in options and made.damping_search:
            raise UsageError(
                "damping is given, and damping_search chooses it", where="recipe, algorithm_options",
                fix="leave one of them out",
            )  # fmt: skip
        searches = made.damping_search == 0 or made.damping_search >= 2
        if not (
            searches and made.damping > 0 and 0 <= made.propagation <= 1 and made.sweeps >= 0 and made.distillation >= 0
        ):
            raise UsageError(
                f"the options {dict(options)} are out of range",
                where="recipe, algorithm_options",
                fix="give a damping above 0, a damping_search of 2 or more, a propagation from 0 to 1, 0 or more sweeps and passes",
            )
        return made
