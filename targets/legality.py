"""What a chip takes, as tested data: each backend's ``legality.toml``, in the model that planning reads."""

from pocketport.compress.planning.legality import ActivationRule, Legality, OpRule, TableRule, WeightRule

__all__ = ["ActivationRule", "Legality", "OpRule", "TableRule", "WeightRule"]
