"""Inner optimizers as pure functions of one leaf: one rule a file, registered in `RULES`."""

from .adadelta import Adadelta
from .adafactor import Adafactor
from .adagrad import Adagrad
from .adam import Adam
from .adamax import Adamax
from .adamw import AdamW
from .amsgrad import AMSGrad
from .base import Rule, Slots, is_linear
from .lamb import LAMB
from .lion import Lion
from .momentum import Momentum
from .muon import Muon
from .nadam import NAdam
from .radam import RAdam
from .rmsprop import RMSprop
from .sgd import SGD

RULES: dict[str, type] = {
    "sgd": SGD,
    "momentum": Momentum,
    "adam": Adam,
    "adamw": AdamW,
    "amsgrad": AMSGrad,
    "nadam": NAdam,
    "radam": RAdam,
    "adamax": Adamax,
    "rmsprop": RMSprop,
    "adagrad": Adagrad,
    "adadelta": Adadelta,
    "adafactor": Adafactor,
    "lamb": LAMB,
    "lion": Lion,
    "muon": Muon,
}
"""Every rule by name: adding one here is what lists and tests it."""

__all__ = [
    "LAMB",
    "RULES",
    "SGD",
    "AMSGrad",
    "Adadelta",
    "Adafactor",
    "Adagrad",
    "Adam",
    "AdamW",
    "Adamax",
    "Lion",
    "Momentum",
    "Muon",
    "NAdam",
    "RAdam",
    "RMSprop",
    "Rule",
    "Slots",
    "is_linear",
]
