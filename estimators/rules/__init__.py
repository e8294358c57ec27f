"""Inner optimizers as pure functions of one leaf: one rule a file, registered in `RULES`."""

from .adam import Adam
from .adamw import AdamW
from .base import Rule, Slots, is_linear
from .momentum import Momentum
from .sgd import SGD

RULES: dict[str, type] = {"sgd": SGD, "momentum": Momentum, "adam": Adam, "adamw": AdamW}
"""Every rule by name: adding one here is what lists and tests it."""

__all__ = ["RULES", "SGD", "Adam", "AdamW", "Momentum", "Rule", "Slots", "is_linear"]
