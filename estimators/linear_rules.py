"""The pullback of a step that is the same few numbers in every coordinate: gradient descent, momentum."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import torch
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes

from .adaptation import RulePullback, SlotCotangents, of_numbers
from .rules import Rule, declares, is_linear, leaf_rules
from .stage import Stage
from .state import State
from .tree import Tree

Coefficients = dict[str, dict[str, float]]
"""Input of an update -> output -> derivative."""


def pull_linear(
    stage: Stage, state: State, names: Collection[str], cotangent: Tree, slot_cotangents: SlotCotangents
) -> tuple[RulePullback, float] | None:
    """As `adaptation.pull_rule`, without a graph and without gradients; None if the rule is not one of these.

    The cotangents on the gradients come with a number that they are still to be multiplied with: for gradient descent they are
    ``cotangent`` itself, and no tree of that size is made.

    The numbers are the derivatives of the rule's own ``update``, asked in one coordinate: there is no second formula.

    Args:
        stage, state, cotangent, slot_cotangents: as for `pull_rule`.
        names: the leaves that the step moved.
    """
    if stage.rule_reads_hparams or not is_linear(stage.rule, names, state.step):
        return None
    rules = leaf_rules(stage.bind({}), names, state.step)
    if not all(declares(r, "diagonal") and of_numbers(r) for r in rules.values()):
        return None
    found, known = RulePullback({}, {}, {}), dict[tuple[int, int], Coefficients]()
    keys = {k: (id(rule), state.update_number(k)) for k, rule in rules.items()}  # a rule need not be hashable
    for k, key in keys.items():
        if key not in known:
            known[key] = _coefficients(rules[k], list(state.slots[k]), key[1])
    rows = [row["grad"] for row in known.values()]
    alike = all(row == rows[0] and row.keys() == {"change"} for row in rows)
    factor = rows[0]["change"] if rows and alike else None
    for k, key in keys.items():
        outputs = {"change": cotangent[k]} | {f"slot {s}": c for s, c in slot_cotangents.get(k, {}).items()}
        coefficients = known[key] | ({"grad": {"change": 1.0}} if factor is not None else {})
        pulled = {name: _combined(row, outputs) for name, row in coefficients.items()}
        there = {name: x for name, x in pulled.items() if x is not None}
        found.slots[k] = {s: there[f"slot {s}"] for s in state.slots[k] if f"slot {s}" in there}
        found.grads.update({k: there["grad"]} if "grad" in there else {})
        found.params.update({k: there["param"]} if "param" in there else {})
    return found, 1.0 if factor is None else factor


def _coefficients(rule: Rule, slots: list[str], t: int) -> Coefficients:
    """Derivatives of ``update`` in one coordinate; an output that does not depend on an input is missing."""
    with _disable_current_modes(), torch.enable_grad():  # numbers, even where tensors are predicted to have none
        inputs = {
            k: torch.ones((), dtype=torch.float64, device="cpu").requires_grad_()
            for k in ("grad", "param", *(f"slot {s}" for s in slots))
        }
        change, after = rule.update(inputs["grad"], {s: inputs[f"slot {s}"] for s in slots}, t, inputs["param"])
        outputs = {"change": change} | {f"slot {s}": x for s, x in after.items()}
        found: Coefficients = {name: {} for name in inputs}
        for out, value in outputs.items():
            if value.requires_grad:
                slopes = torch.autograd.grad(value, list(inputs.values()), allow_unused=True, retain_graph=True)
                for name, slope in zip(inputs, slopes, strict=True):
                    if slope is not None:
                        found[name][out] = float(slope)
    return found


def _combined(row: Mapping[str, float], outputs: Mapping[str, Tensor]) -> Tensor | None:
    """The sum of ``row[name] * outputs[name]``, a tensor of its own unless it is one of them; None if there is no term."""
    if row == {"change": 1.0}:
        return outputs["change"]
    total: Tensor | None = None
    for name, factor in row.items():
        if name in outputs:
            total = outputs[name] * factor if total is None else total.add_(outputs[name], alpha=factor)
    return total
