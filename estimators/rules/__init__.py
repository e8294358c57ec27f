"""Inner optimizers as pure functions of one leaf: one rule a file, registered in `RULES`."""

from .adadelta import Adadelta
from .adafactor import Adafactor
from .adagrad import Adagrad
from .adam import Adam
from .adamax import Adamax
from .adamw import AdamW
from .amsgrad import AMSGrad
from .base import Rule, Slots, declares, in_pieces
from .clip_norm import ClipNorm
from .groups import Groups
from .in_place import Owned, step_in_place, unshared
from .lamb import LAMB
from .lion import Lion
from .momentum import Momentum
from .muon import Muon
from .nadam import NAdam
from .radam import RAdam
from .rmsprop import RMSprop
from .scheduled import Scheduled
from .sgd import SGD
from .whole import (
    AnyRule,
    Wrapper,
    can_rewind,
    check_leaves,
    init_tree,
    is_linear,
    is_rule,
    is_wrapper,
    leaf_rule,
    leaf_rules,
    leaf_steps,
    parts,
    rewind_tree,
    step_tree,
)

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

WRAPPERS: dict[str, type] = {"groups": Groups, "scheduled": Scheduled, "clip-norm": ClipNorm}
"""Rules around rules by name."""

__all__ = [
    "LAMB", "RULES", "SGD", "WRAPPERS", "AMSGrad", "Adadelta", "Adafactor", "Adagrad", "Adam", "AdamW", "Adamax",
    "AnyRule", "ClipNorm", "Groups", "Lion", "Momentum", "Muon", "NAdam", "Owned", "RAdam", "RMSprop", "Rule",
    "Scheduled", "Slots", "Wrapper", "can_rewind", "check_leaves", "declares", "in_pieces", "init_tree", "is_linear", "is_rule",
    "is_wrapper", "leaf_rule", "leaf_rules", "leaf_steps", "parts", "rewind_tree", "step_in_place", "step_tree",
    "unshared",
]  # fmt: skip
