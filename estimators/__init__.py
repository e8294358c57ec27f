"""Hypergradient estimators behind one interface. An estimator is an approximate pullback of a stage."""

from .adaptation import adapt, adaptation
from .baselines import Direct, Evolution, FiniteDifference, Plain, Random
from .error_bound import Certificate, ErrorBound, NoBound, certify, error_bound
from .errors import HypergradientError, NonFiniteError, NotApplicableError
from .estimate import estimate, per_stage
from .estimator import Cost, Estimator, ExtraUpdate, Hypergradient, MeanOf, Pullback, hypergradient, run_stages
from .forward import Forward
from .greedy import Greedy
from .implicit import Implicit
from .loaders import from_loaders
from .meta_head import MetaHead, RidgeFit, StepsFit
from .module import ModuleLoss, from_module
from .multitask import MultiTask
from .one_step import SAMA, T1T2
from .problem import Problem
from .products import (
    PRODUCTS,
    CentralDifference,
    Product,
    gradients,
    reverse_over_forward,
    reverse_over_reverse,
)
from .registry import Claim, Entry, registry
from .rules import (
    LAMB,
    RULES,
    SGD,
    WRAPPERS,
    Adadelta,
    Adafactor,
    Adagrad,
    Adam,
    Adamax,
    AdamW,
    AMSGrad,
    ClipNorm,
    Groups,
    Lion,
    Momentum,
    Muon,
    NAdam,
    RAdam,
    RMSprop,
    Rule,
    Scheduled,
    Wrapper,
)
from .solvers import (
    CG,
    SOLVERS,
    Dense,
    FixedPoint,
    Identity,
    Neumann,
    Nystrom,
    Outcome,
    Solution,
    Solver,
)
from .stage import Record, Stage, run
from .state import State
from .tartan import Tartan
from .torch_optimizer import Live, from_torch_optimizer
from .tree import Tree
from .unroll import Unroll

__all__ = [
    "CG", "LAMB", "PRODUCTS", "RULES", "SAMA", "SGD", "SOLVERS", "T1T2", "WRAPPERS", "AMSGrad", "Adadelta",
    "Adafactor", "Adagrad", "Adam", "AdamW", "Adamax", "CentralDifference", "Certificate", "Claim", "ClipNorm", "Cost",
    "Dense", "Direct", "Entry", "ErrorBound", "Estimator", "Evolution", "ExtraUpdate", "FiniteDifference",
    "FixedPoint", "Forward", "Greedy", "Groups", "Hypergradient", "HypergradientError", "Identity", "Implicit", "Lion",
    "Live", "MeanOf", "MetaHead", "ModuleLoss", "Momentum", "MultiTask", "Muon", "NAdam", "Neumann", "NoBound", "NonFiniteError",
    "NotApplicableError", "Nystrom", "Outcome", "Plain", "Problem", "Product", "Pullback", "RAdam", "RMSprop",
    "Random", "Record", "RidgeFit", "Rule", "Scheduled", "Solution", "Solver", "Stage", "State", "StepsFit", "Tartan",
    "Tree", "Unroll", "Wrapper", "adapt", "adaptation", "certify", "error_bound", "estimate", "from_loaders", "from_module",
    "from_torch_optimizer", "gradients", "hypergradient", "per_stage", "registry", "reverse_over_forward",
    "reverse_over_reverse", "run", "run_stages",
]  # fmt: skip
