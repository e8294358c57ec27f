"""What an exception of the user's code means, and what to write instead."""

from __future__ import annotations

import functools
import inspect
import re
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from estimators import HypergradientError

from . import Finding

UNDIFFERENTIABLE = re.compile(r"not differentiable with respect to argument")

ADVICE = (
    (
        UNDIFFERENTIABLE,
        "torch has no derivative of that function by that argument: write it out of others, such as class weights as "
        "(weights[y] * cross_entropy(logits, y, reduction='none')).sum() / weights[y].sum()",
    ),
    (
        re.compile(
            r"same dtype|expected scalar type|Found dtype|expected m1 and m2|dtypes? .* but got|must have the same dtype",
            re.I,
        ),
        "tensors of different dtypes meet: write x.to(params['w'].dtype) where the loss uses its data, or make all in one dtype",
    ),
    (
        re.compile(
            r"same device|two devices|Expected all tensors to be on|is on cpu|Input type .* and weight type", re.I
        ),
        "tensors on different devices meet: move data, start and hparams to one device with .to(...)",
    ),
    (
        re.compile(r"StopIteration"),
        "the stream ended: keep the batches in a list and write stream=lambda t: batches[t % len(batches)]",
    ),
    (
        re.compile(r"in-place operation|a leaf Variable that requires grad|modified by an inplace", re.I),
        "something is changed in place: write x = x + y where there is x += y, and change no parameter, batch or buffer inside a loss",
    ),
    (
        re.compile(r"does not require grad and does not have a grad_fn"),
        "the loss is cut from params and hparams: look for .detach(), .item(), torch.tensor(...) and torch.no_grad()",
    ),
    (
        re.compile(r"missing 1 required positional argument|positional arguments? but|takes \d+ positional"),
        "a function is called with other arguments than it takes: loss(params, hparams, batch), outer(params, hparams), stream(step)",
    ),
    (
        re.compile(r"\.numpy\(\)|can't call numpy|Can't convert|__array__", re.I),
        "a tensor of the graph goes through NumPy, which cuts it: write the same in torch",
    ),
)
"""(what torch's message says, what to change)."""


def explained(error: BaseException, function: Callable[..., Any]) -> Finding:
    """An exception as an error finding.

    Args:
        error: that was raised.
        function: of the user's, to know which lines are theirs.
    """
    if isinstance(error, HypergradientError):
        what, _, change = str(error).rpartition(": ")
        return Finding("error", what, change) if what else Finding("error", str(error))
    text = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    change = next((advice for pattern, advice in ADVICE if pattern.search(text)), "")
    return Finding("error", f"{text.splitlines()[0]}{where(error, function)}", change)


def where(error: BaseException, function: Callable[..., Any]) -> str:
    """ " (my_problem.py:12 in loss)", the innermost line of the user's; "" if there is none."""
    while isinstance(function, functools.partial):
        function = function.func
    file = inspect.getsourcefile(function)
    mine = [f for f in traceback.extract_tb(error.__traceback__) if file and Path(f.filename) == Path(file)]
    return f" ({Path(mine[-1].filename).name}:{mine[-1].lineno} in {mine[-1].name})" if mine else ""
