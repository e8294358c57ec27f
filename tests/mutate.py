"""Can the suite fail? Break one formula at a time in a copy of the library, and see that a test notices.

    python -m tests.mutate                # all of them; writes docs/mutations.md
    python -m tests.mutate cg-old-residual neumann-one-term-less    # these, and their lines

Every mutation is one textual replacement that must match exactly once, so that a stale one is an error and not a
mutation that "survives". Not part of the fast suite: each one costs a run of the tests until the first failure.
"""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import date
from pathlib import Path
from queue import Queue
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
RECORD = ROOT / "docs" / "mutations.md"
TESTS = ["test_gate", "test_unroll", "test_linear_system", "test_in_place", "test_run_memory", "test_adapted", "test_wrappers", "test_greedy", "test_tartan", "test_baselines", "test_torch_optimizer",
         "test_rules_derivatives", "test_definitions", "test_solvers", "test_products", "test_adaptation", "test_rules",
         "test_composed", "test_truth", "test_error_bound", "test_randomness", "test_properties", "test_contract", "test_bad_input", "test_edge_cases",
         "test_sharded"]  # fmt: skip


class Mutation(NamedTuple):
    name: str
    file: str
    before: str
    after: str
    what: str


MUTATIONS = [
    Mutation("implicit-sign", "implicit.py", "hparams=tree.scale(mixed, -1.0)", "hparams=mixed",
             "sign of -M'H^-1 c (TARTAN's eqs. 8 and 9)"),
    Mutation("implicit-frozen-sign", "implicit.py", "tree.scale(stage.reduce(rows), -1.0)", "stage.reduce(rows)",
             "sign of the frozen leaves' cotangent"),
    Mutation("implicit-no-decay", "linear_system.py", "tree.plus(hv[k], self._decay[k], v[k]) if k in self._decay else hv[k]", "hv[k]",
             "coupled weight decay left out of the system"),
    Mutation("implicit-decoupled", "implicit.py", "for k, d in decays.items() if k not in decoupled}", "for k, d in decays.items()}",
             "decoupled decay taken for a part of the loss"),
    Mutation("implicit-sum-of-batches", "linear_system.py",
             "return tree.scale(rows, 1 / len(pulls)), tree.scale(mixed, 1 / len(pulls))", "return rows, mixed",
             "sum instead of mean over batches"),
    Mutation("bound-other-end", "lanczos.py", "vectors[-1, i].abs()", "vectors[0, i].abs()",
             "a Ritz value's residual from the wrong end of its eigenvector"),
    Mutation("bound-no-spread", "lanczos.py", "room / (spread + 2 * room)", "room / spread * 4",
             "the probability that a small curvature was not seen, too small"),
    Mutation("bound-end-for-optimum", "error_bound.py", "_apart(found, self.optimum) + self.slack, solve + gap", "_apart(found, self.end) + self.slack, solve + gap",
             "the gap between the end of the run and the optimum left out of the error bound"),
    Mutation("bound-no-decay", "error_bound.py", "rows[k] + self._decays[k] * at[k] if k in self._decays else rows[k]", "rows[k]",
             "coupled weight decay left out of the bound's system"),
    Mutation("bound-damped-residual", "error_bound.py", "return relative + damping * (1 + relative) / (mu + damping)", "return relative",
             "the residual of the damped system taken for that of the system"),
    Mutation("bound-other-batches", "error_bound.py", "if estimator.batches != self.batches:", "if False:",
             "the residual of a solve over other batches taken for that of the system"),
    Mutation("cg-old-residual", "solvers/cg.py", "torch.addcmul(z[k], v, beta.to(dtype), out=v)\n",
             "torch.addcmul((locals().get('old') or z)[k], v, beta.to(dtype), out=v)\n            old = tree.scale(z, 1.0)\n",
             "direction from the old residual (betty 0.1.1, moskomule/hypergrad)"),
    Mutation("cg-stale-iterate", "solvers/cg.py", "            x.add(a, p)\n            tree.add_(r, -a, hp)\n",
             "            tree.add_(r, -a, hp)\n            if not float(tree.norm(r)) < 1e-10:\n                x.add(a, p)\n",
             "the iterate before convergence is returned (hypertorch, BOAT)"),
    Mutation("cg-absolute-tolerance", "solvers/cg.py", "unit, dtype = tree.power_of_two(b), tree", "unit, dtype = torch.ones_like(tree.power_of_two(b)), tree", "tolerance no longer relative (hypertorch)"),
    Mutation("cg-damping-twice", "solvers/cg.py", "v, alpha=self.damping)", "v, alpha=2 * self.damping)",
             "damping added twice (NeuralBo)"),
    Mutation("sum-stale-image", "linear_system.py", "if fresh is not None and fresh[0] is v:", "if fresh is not None:",
             "the image of another vector is summed"),
    Mutation("sum-no-last-scale", "linear_system.py", "                x.mul_(c)\n", "                pass\n",
             "summed images are not scaled with the solution"),
    Mutation("pull-factor", "products.py", "factor = factor * node._saved_other", "pass",
             "a factor of an L2 penalty left out of the product"),
    Mutation("pull-any-power", "products.py", 'case "PowBackward0" if node._saved_exponent == 1:', 'case "PowBackward0":',
             "every power taken for a square's derivative"),
    Mutation("pull-shared-terms", "products.py", "                    self._multiples.append(multiple)\n", "                    pass\n",
             "L2 penalties left out of the product"),
    Mutation("cg-negative-curvature", "solvers/cg.py", "indefinite = indefinite | (active & (php <= 0))", "pass",
             "negative curvature not reported"),
    Mutation("neumann-one-term-less", "solvers/neumann.py", "self.lr, self.steps, 0.0", "self.lr, self.steps - 1, 0.0",
             "K for K + 1 terms"),
    Mutation("neumann-no-final-lr", "solvers/series.py", "    total.scale(rate)\n", "",
             "final learning rate left out (implicit-hyper-opt)"),
    Mutation("series-silent", "solvers/series.py", "    if grows or any(lr * c >= 1 for c in stalls):", "    if False:",
             "divergence not reported"),
    Mutation("fixed-point-one-more", "solvers/fixed_point.py", "self.steps - 1, self.rtol", "self.steps, self.rtol",
             "T + 1 for T terms"),
    Mutation("nystrom-rho", "solvers/nystrom.py", "inside / (eigenvalues + self.rho)", "inside / eigenvalues",
             "regularisation left out inside the sketch"),
    Mutation("ror-cotangent", "products.py", "[tangent[k] for k, _ in given]", "[torch.ones_like(tangent[k]) for k, _ in given]",
             "tangent of all ones (gradhpo's T1T2)"),
    Mutation("rof-unverified", "products.py", "        if unverified:", "        if False:",
             "torch's wrong tangents (layer_norm, batch_norm, solve) let through"),
    Mutation("tangents-through-no-grad", "products.py", "torch._C._set_fwd_grad_enabled(args[0])", "pass",
             "forward mode goes through torch.no_grad()"),
    Mutation("stages-lose-slots", "estimator.py", "if i > 0 and ends[i].step != stages[i].steps and", "if False and",
             "optimizer state carried between stages without its cotangent"),
    Mutation("rof-cotangent", "products.py", "value = loss({k: _dual(x, tangent[k]) if k in tangent else x",
             "value = loss({k: _dual(x, torch.ones_like(x)) if k in tangent else x", "tangent of all ones (gradhpo's T1T2)"),
    Mutation("difference-step", "products.py", "per_step = length / (2 * radius)", "per_step = length / radius",
             "factor 2 of the central difference"),
    Mutation("difference-precedence", "products.py", "per_step = length / (2 * radius)", "per_step = radius / (2 * length)",
             "(p - n) / 2 * eps (DARTS forks)"),
    Mutation("difference-detach", "products.py", "        return value\n", "        return out\n",
             "detached inputs move with the perturbation"),
    Mutation("difference-randomness", "products.py", "        with torch.random.fork_rng(devices=devices):", "        if True:",
             "other random draws at the two points"),
    Mutation("adam-pull-square", "rules/adam.py", "value=float(2 * (1 - b2))", "value=float(1 - b2)",
             "factor 2 of the square's derivative in the closed pullback"),
    Mutation("unroll-sign", "unroll.py", "self.params.add(stage.reduce(hessian), factor, others)",
             "self.params.add(stage.reduce(hessian), -factor, others)",
             "sign of H c_g in the sweep"),
    Mutation("unroll-detached-buffer", "unroll.py", "pulled.slots[k] if k in names", "{} if k in names",
             "cotangent of the optimizer state dropped (moskomule/hypergrad's detached buffer, and Adam's moments)"),
    Mutation("unroll-off-by-one", "unroll.py", "held.append(self._ahead(state, steps.start - state.step))",
             "held.append(self._ahead(state, steps.start - state.step + 1))",
             "a step left out of the sweep"),
    Mutation("t1t2-end", "one_step.py", "params=before.params,", "params=record.end.params,",
             "mixed derivative at the end instead of before the last step"),
    Mutation("t1t2-no-lr", "one_step.py", "_scaled(c, -rates[k], overwrite)", "_scaled(c, -1.0, overwrite)",
             "inner learning rate left out (betty's DARTS)"),
    Mutation("adam-beta", "rules/parts.py", 'slots["exp_avg_sq"], beta2)', 'slots["exp_avg_sq"], beta1)',
             "beta1 for beta2 (SAMA's Appendix C as extracted)"),
    Mutation("adam-bias-correction", "rules/adam.py", "(root(square) / (1 - self.beta2**t) ** 0.5 + self.eps)",
             "(root(square) + self.eps)", "bias correction of the second moment"),
    Mutation("adam-eps-inside", "rules/adam.py", "ratio = mean / (root(square) / (1 - self.beta2**t) ** 0.5 + self.eps)",
             "ratio = mean / ((root(square) + self.eps) / (1 - self.beta2**t) ** 0.5)", "eps before the bias correction (higher 0.2.1)"),
    Mutation("adam-dead-coordinates", "rules/adam.py", "where_live(square > 0, ratio)", "ratio",
             "derivative 1/eps where no gradient ever came"),
    Mutation("adam-rewind-pre-step", "rules/adam.py", "        param = param - self._step(slots, t)\n", "",
             "coupled decay with the parameter after the step"),
    Mutation("momentum-dampening", "rules/momentum.py", "        if t == 1:\n", "        if t == 0:\n",
             "dampening on the first step"),
    Mutation("nesterov", "rules/momentum.py", "direction = grad + self.momentum * buffer if self.nesterov else buffer\n        return -self.lr",
             "direction = buffer\n        return -self.lr", "Nesterov's look-ahead left out of the update"),
    Mutation("forward-mixed", "forward.py", "(state.params, hparams), (z, direction)", "(state.params, hparams), (z, tree.zeros_like(direction))",
             "M left out of the forward recursion"),
    Mutation("fold-no-direct", "estimator.py", "hparams=tree.add(direct, indirect)", "hparams=indirect",
             "direct outer gradient left out (NeuralBo)"),
    Mutation("fold-lost-start", "estimator.py", "        if held[0] is None:\n", "        if held[0] is None:\n            break\n        if False:\n",
             "a lost start read as zero"),
    Mutation("fold-no-reduce", "linear_system.py", "hv = self._reduce(tree.fill(rows, v))", "hv = tree.fill(rows, v)",
             "each rank solves with its own Hessian (betty under DDP)"),
    Mutation("adam-derivative-correction", "rules/adam.py", "mul_(rate * (1 - self.beta2) / correction)", "mul_(rate * (1 - self.beta2))",
             "bias correction of the second moment, in the derivative alone"),
    Mutation("mean-of-sum", "estimator.py", "return found / len(parts) if len(parts) > 1 else found", "return found",
             "micro-batches summed, not averaged"),
    Mutation("used-up-unnoticed", "estimator.py", "if record.grad is not None and not record.grad:", "if False:",
             "a record that was used up read as one without gradients"),
    Mutation("overwrites-a-neighbour", "products.py", "torch._C._storage_Use_Count(storage._cdata) == 2", "True",
             "gradients that share memory written over"),
    Mutation("product-one-sided", "products.py", "point[k].neg_().add_(params[k], alpha=2)", "point[k].copy_(params[k])",
             "a difference of one side taken for a central one"),
    Mutation("nan-to-zero", "estimator.py", "    if throw and not tree.all_finite(a):", "    if False:",
             "NaN passes silently (BOAT)"),
    Mutation("adapted-series-plain", "solvers/series.py", "        h_term = matvec(adapted)\n", "        h_term = matvec(term)\n",
             "D at the end of the series only: q = D sum (I - H)^j c"),
    Mutation("adapted-cg-plain-inner", "solvers/cg.py", "new = torch.where(active, tree.dot(r, z), rr)",
             "new = torch.where(active, tree.dot(r, r), rr)", "<r, r> for <r, Dr> in preconditioned CG"),
    Mutation("adapted-negative", "solvers/cg.py", "negative = negative | (rr < 0)", "pass",
             "a preconditioner that is not positive goes unreported"),
    Mutation("adapted-sign", "adaptation.py", "diagonal = tree.scale(adapt(stage, record, hparams, ones), -1.0)",
             "diagonal = adapt(stage, record, hparams, ones)", "sign of the adaptation as a preconditioner"),
    Mutation("adapted-as-diagonal", "adaptation.py",
             'if getattr(rule, "transforms", False) or not all(declares(r, "diagonal") for r in rules.values()):', "if False:",
             "every rule's adaptation taken for a diagonal"),
    Mutation("young-silent", "adaptation.py", 'record.end.update_number(k) - 1 <= getattr(r, "settles", 0)', "False",
             "the first steps after a reset are not flagged"),
    Mutation("extra-update-sign", "one_step.py", "change = tree.scale(tangent, scale)",
             "change = tree.scale(tangent, -scale)", "SAMA's extra update goes uphill"),
    Mutation("clip-constant-norm", "rules/clip_norm.py", "square = tree.dot(grads, grads)",
             "square = tree.dot(grads, grads).detach()", "the norm of a clipped gradient taken for a constant"),
    Mutation("clip-each-leaf", "rules/clip_norm.py", "{k: g * scale.to(g.dtype) for k, g in grads.items()}",
             "{k: g * (self.max_norm / (g.norm() + 1e-6)).clamp(max=1.0) for k, g in grads.items()}",
             "each leaf clipped by its own norm"),
    Mutation("schedule-off-by-one", "rules/scheduled.py", "self.factor(step)", "self.factor(step + 1)", "the next step's rate"),
    Mutation("schedule-first-steps-asked", "adaptation.py", 'if getattr(rule, "varies", False) else (0,)', "if False else (0,)",
             "hyperparameters of a schedule's later pieces overlooked"),
    Mutation("groups-last-pattern", "rules/groups.py", "(pattern for pattern in self.rules if", "(pattern for pattern in reversed(self.rules) if",
             "the last pattern wins"),
    Mutation("greedy-no-moments", "greedy.py", "before = recorded_before_last(record)",
             "before = record.end._replace(step=record.end.step - 1)", "moments after the step for those before it"),
    Mutation("tartan-sign", "tartan.py", "slopes = -agreement.to(", "slopes = agreement.to(",
             "the minus that eqs. 7 to 9 have lost"),
    Mutation("tartan-heads", "tartan.py", "found = [k for k in moved if all(k in g for g in grads)]", "found = list(moved)",
             "heads in the cosine (TARTAN's released code)"),
    Mutation("difference-one-sided", "baselines.py", "ahead, behind = x + shift, x - shift", "ahead, behind = x + shift, x",
             "forward instead of central differences"),
    Mutation("evolution-one-sigma", "baselines.py", "/ (2 * self.sigma * self.pairs)", "/ (self.sigma * self.pairs)",
             "factor 2 of antithetic pairs"),
    Mutation("live-subclass", "torch_optimizer.py", "kind = type(optimizer)\n    if kind not in",
             "kind = next((t for t in TORCH_OPTIMIZERS if isinstance(optimizer, t)), type(optimizer))\n    if kind not in",
             "a subclass read as its base (betty reads any name with Adam in it as Adam)"),
    Mutation("live-first-group", "torch_optimizer.py", "settings = {k: v for k, v in group.items() if",
             "settings = {k: v for k, v in optimizer.param_groups[0].items() if", "parameter groups ignored (betty's patch_optimizer)"),
    Mutation("live-counts", "torch_optimizer.py", "return step, {k: step - n for k, n in taken.items() if n < step}", "return step, {}",
             "one step count for all leaves"),
    Mutation("in-place-recorded", "stage.py", "state = _in_own_dicts(state)\n            owned.clear()", "state = _in_own_dicts(state)",
             "steps write over the states that were recorded"),
    Mutation("in-place-kept", "stage.py", "hparams)\n        owned.clear()", "hparams)",
             "a step writes over what the graph kept of it holds"),
    Mutation("in-place-start", "stage.py", "    if not donate:\n", "    if False:\n", "the caller's start is written over"),
    Mutation("in-place-strides", "rules/in_place.py", "return x.layout is torch.strided and x.is_contiguous()", "return True",
             "fused kernels handed tensors whose strides they do not look at"),
    Mutation("in-place-subclass", "rules/in_place.py", 'if "step_" not in vars(type(rule)):', 'if not hasattr(rule, "step_"):',
             "a subclass with another update takes its parent's step in place"),
    Mutation("in-place-slot", "rules/in_place.py", "    owned.release({leaf: state.params[leaf]}, state.slots[leaf].values())", "    pass",
             "a leaf that has become a slot is written over"),
    Mutation("in-place-gradient", "rules/in_place.py", "    owned.release(state.params, grads.values())\n", "",
             "a leaf that a gradient shares memory with is written over"),
    Mutation("in-place-counter", "rules/in_place.py", "dtype=torch.float32, ", "", "the number of an update in the default dtype"),
    Mutation("in-place-first", "rules/momentum.py", "is_first_step=t == 1", "is_first_step=False",
             "dampening on the first step in place"),
    Mutation("lamb-ratio-constant", "rules/lamb.py", "trust = torch.where(scaled, size / torch.where(scaled, length, 1.0), 1.0)",
             "trust = torch.where(scaled, size / torch.where(scaled, length, 1.0), 1.0).detach()",
             "LAMB's trust ratio taken for a constant: a diagonal"),
    Mutation("lamb-dead", "rules/lamb.py", "where_live(square > 0, mean / (root(square) + self.eps))", "mean / (root(square) + self.eps)",
             "derivative 1/eps where no gradient ever came, in LAMB"),
    Mutation("adafactor-clip", "rules/adafactor.py", "step = step / larger(rms(step) / self.d, 1.0)",
             "step = step / larger(rms(step) / self.d, 1.0).detach()", "Adafactor's clipping taken for a constant"),
    Mutation("adafactor-momentum-order", "rules/adafactor.py", "slots[\"exp_avg\"], self.momentum)",
             "slots[\"exp_avg\"], 1 - self.momentum)", "weights of Adafactor's momentum exchanged"),
    Mutation("rmsprop-centred", "rules/rmsprop.py", 'square - slots["grad_avg"] ** 2 if self.centered', "square if self.centered",
             "centring left out"),
    Mutation("nadam-product", "rules/nadam.py", 'after["mu_product"] = slots["mu_product"] * self._mu(t)',
             'after["mu_product"] = slots["mu_product"] * self._mu(t).detach() if isinstance(self._mu(t), torch.Tensor) else slots["mu_product"] * self._mu(t)',
             "NAdam's product of momenta taken for a constant"),
    Mutation("adadelta-order", "rules/adadelta.py", 'step = self._scaled(grad, square, slots["acc_delta"])',
             'step = self._scaled(grad, square, average(grad * grad, slots["acc_delta"], self.rho))', "Adadelta's second average, one step late"),
    Mutation("adamax-eps", "rules/adamax.py", "norm = larger(self.beta2 * slots[\"exp_inf\"], grad.abs() + self.eps)",
             "norm = larger(self.beta2 * slots[\"exp_inf\"], grad.abs())", "eps left out of Adamax's norm"),
]  # fmt: skip


def _run(copy: Path, first: str = "") -> tuple[bool, str]:
    """Run the tests up to the first failure, ``first`` before the others."""
    tests = [f"tests/{t}.py" for t in sorted(TESTS, key=lambda t: t != first) if (copy / f"tests/{t}.py").exists()]
    out = _pytest(copy, tests)
    failed = [line for line in out.stdout.splitlines() if line.startswith(("FAILED", "ERROR"))]
    return out.returncode == 1, failed[0].split(" - ")[0].removeprefix("FAILED ") if failed else out.stdout[-300:]


def _pytest(copy: Path, tests: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *tests],
        cwd=copy, env={**os.environ, "PYTHONPATH": str(copy), "OMP_NUM_THREADS": "1"}, capture_output=True, text=True,
    )  # fmt: skip


def _copy(folder: Path) -> Path:
    for part in ("estimators", "benchmarks", "analysis", "tests", "docs"):
        shutil.copytree(ROOT / part, folder / part, ignore=shutil.ignore_patterns("__pycache__", "images"))
    shutil.copy(ROOT / "pyproject.toml", folder)
    return folder


def _noticed() -> dict[str, str]:
    """Mutation -> the test file that noticed it last time."""
    text = RECORD.read_text() if RECORD.exists() else ""
    return dict(re.findall(r"^\| `([\w-]+)` .*`tests/(\w+)\.py", text, re.M))


def _try(m: Mutation, copies: Queue[Path], first: str) -> tuple[bool, str, str]:
    """Whether a test noticed, the row of the report, and which test."""
    copy, begin = copies.get(), time.monotonic()
    target = copy / "estimators" / m.file
    original = target.read_text()
    target.write_text(original.replace(m.before, m.after))
    caught, by = _run(copy, first)
    target.write_text(original)
    copies.put(copy)
    verdict = "caught  " if caught else "SURVIVED"
    print(f"{verdict} {m.name:26s} {time.monotonic() - begin:5.1f} s  {by}", flush=True)
    return caught, f"| `{m.name}` | `{m.file}` | {m.what} | {verdict.strip().lower()} | `{by}` |", by


def main(names: list[str]) -> int:
    chosen = [m for m in MUTATIONS if not names or m.name in names]
    for m in chosen:
        count = (ROOT / "estimators" / m.file).read_text().count(m.before)
        if count != 1:
            raise SystemExit(f"{m.name}: {m.before!r} stands {count} times in {m.file}; update it")
    jobs = os.cpu_count() or 1
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(jobs) as pool:
        copies: Queue[Path] = Queue()
        for i in range(jobs):  # made at once: what is edited meanwhile has no influence
            copies.put(_copy(Path(folder) / str(i)))
        if not names:
            failed, by = _run(whole := copies.get())
            copies.put(whole)
            if failed:
                raise SystemExit(f"the suite fails without any mutation: {by}")
        known = _noticed()
        found = list(pool.map(lambda m: _try(m, copies, known.get(m.name, f"test_{Path(m.file).stem}")), chosen))
        if names:  # what noticed them must pass without them
            passing = [by for caught, _, by in found if caught]
            if passing and (out := _pytest(copies.get(), passing)).returncode:
                raise SystemExit(f"these fail without any mutation, too: {out.stdout[-2000:]}")
    survivors = sum(not caught for caught, *_ in found)
    print(f"{len(chosen) - survivors} of {len(chosen)} caught")
    _report({m.name: row for m, (_, row, _) in zip(chosen, found, strict=True)}, whole=not names)
    return 1 if survivors else 0


def _report(new: dict[str, str], whole: bool) -> None:
    """Write the rows; those of other mutations stay as they are."""
    import torch

    text = RECORD.read_text() if RECORD.exists() else ""
    rows = dict(re.findall(r"^(?=\| `([\w-]+)`)(.*)$", text, re.M)) | new
    kept = [rows[m.name] for m in MUTATIONS if m.name in rows]
    caught = sum("| caught |" in row for row in kept)
    last = re.search(r"all of them last on ([\d-]+)", text)
    day = str(date.today()) if whole else last[1] if last else "an earlier day"
    lines = [
        "# Mutations", "",
        "Can the suite fail? `python -m tests.mutate` breaks one formula at a time in a copy of the library and runs the",
        "correctness tests until the first failure. This file is what it wrote; a run of some names replaces their lines alone.", "",
        f"Python {platform.python_version()}, torch {torch.__version__}: {caught} of {len(kept)} caught; all of them last on {day}, "
        f"some on {date.today()}.", "",
        "| mutation | file | what is broken | result | first test that noticed |", "|---|---|---|---|---|", *kept, "",
    ]  # fmt: skip
    RECORD.write_text("\n".join(lines))


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
