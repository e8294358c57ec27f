"""Inner optimizers as pure functions of one leaf: one rule a file, registered in `RULES`."""

from .adafactor import Adafactor
from .adam import Adam
from .adamw import AdamW
from .base import Rule, Slots, is_linear
from .lamb import LAMB
from .momentum import Momentum
from .sgd import SGD

RULES: dict[str, type] = {
    "sgd": SGD,
    "momentum": Momentum,
    "adam": Adam,
    "adamw": AdamW,
    "lamb": LAMB,
    "adafactor": Adafactor,
}
"""Every rule by name: adding one here is what lists and tests it."""

__all__ = ["LAMB", "RULES", "SGD", "Adafactor", "Adam", "AdamW", "Momentum", "Rule", "Slots", "is_linear"]
