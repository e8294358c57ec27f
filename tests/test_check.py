"""Every fault that `hypergradbench check` knows, once: it is found, at its level, in words that say what to change."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from benchmarks.check import Report, show
from benchmarks.check.look import look
from benchmarks.check.watch import Noted, drawing, same
from benchmarks.cli import main
from benchmarks.own_run import Refused, report_on

FILE = Path(__file__).resolve().parent / "faulty_problems.py"


def check(name: str, **options: object) -> Report:
    return look(f"{FILE}:{name}", {}, dtype=None, device="cpu", full=True, **options)  # type: ignore[arg-type]


def text(report: Report, level: str) -> str:
    return "\n".join(f"{f.what} -> {f.change}" for f in report.findings if f.level == level)


ERRORS = {
    "weights_detached": r"'0.weight', '0.bias', '2.weight', '2.bias': it changes the value.*cut off.*weighting network",
    "by_item": r"no influence of 'lam': it changes the value of the loss, but is cut off.*calls of item.*\.item\(\)",
    "unread": "no influence of 'other': neither a loss nor the rule reads it",
    "additive": "no influence of 'bias': it adds a term to the loss that does not depend on the parameters",
    "rate_as_float": "no influence of 'lr': it is read, but cut off the graph",
    "outer_reads_nothing": "outer loss depends on neither params nor hparams",
    "outer_reads_hparams_only": "outer loss reads no params: training has no influence on it",
    "loss_reads_no_params": r"inner loss depends on none of the parameters \['w'\]",
    "dropout": r"draws random numbers \(dropout\), and the stage has no seed.*Stage\(..., seed=0\)",
    "dropout_outside": r"outer loss draws random numbers \(dropout\).*eval\(\)",
    "iterator": r"stream\(\d\) of stage 0 gives another batch.*batches\[t % len\(batches\)\]",
    "short_iterator": r"has run out: an iterator.*batches\[t % len\(batches\)\]",
    "stream_by_torch": r"stream of stage 0 draws random numbers.*Stage\(..., seed=0\)",
    "stream_by_numpy": "NumPy's global generator, which Stage.seed does not fix",
    "counter": "where it gave.*for the same step.*keep no state between calls",
    "another_first_order": "Stage.first_order gives .* where the inner loss gives",
    "unseeded": r"other values in start at every call.*manual_seed\(seed\)",
    "batch_norm_that_leaks": "outer loss was .* after the inner one was evaluated.*running statistics.*from_module",
    "vector_loss": r"returned shape \(16,\), not a scalar -> end it with .mean\(\)",
    "part_as_float": r"part 1 of the outer loss returned float, not a scalar -> leave out .item\(\)",
    "hparams_in_a_list": "hparams must be a dict of tensors .*got list",
    "bare_hparams": "hparams must be a dict of tensors .*got Tensor",
    "class_weights": r"'weight'.*faulty_problems.py:\d+ in loss.*reduction='none'",
    "mixed_in_loss": r"same dtype.*faulty_problems.py:\d+ in <lambda>.*different dtypes meet",
    "mixed_leaves": "start mixes dtypes",
    "mixed_trees": "start has the dtype torch.float64, hparams torch.float32",
    "mixed_devices": "start has the device meta, hparams cpu",
    "infinite": "inner loss is .*inf.* at the start.*log, sqrt or division",
    "root_at_zero": r"gradient of the inner loss is NaN or infinite in \['w'\]",
    "diverging": "inner loss became .* at step .* of 200.*lower the learning rate",
    "missing_key": r"reads 'lamda', but params hold \['w'\] and hparams \['lam'\]",
    "no_problem": "returned int: return a Problem",
    "needs_width": "needs width -> give it a default, or a value: width=...",
}
WARNINGS = {
    "bias_before_batch_norm": r"by \['first.bias'\] is zero but for rounding.*bias=False",
    "few_examples_a_step": r"last step's batch says nothing of 12 of the 16 entries of 'weights'.*batches=K",
    "partly_detached": "not that of the run, as differences of whole runs show, for 'lam'.*calls of detach",
    "switched_off": "'lam': the hypergradient is exactly zero at this point, though not at others",
    "idle_leaf": r"reads the leaves \['extra'\] of start in no step.*frozen",
    "batch_norm": "BatchNorm in training mode.*eval mode would see those of the start.*GroupNorm",
    "fused_attention_alone": "cannot be differentiated twice.*flash.*MATH",
    "rising": "rises from .* -> lower the learning rate",
}
NOTES = {
    "dropout_with_seed": r"draws \(dropout\): the same numbers whenever",
    "attention": "fused attention: second-order products evaluate it by torch's plain kernel",
    "layer_norm": "takes no seed: it is one point",
    "some_entries": "8 of the 16 entries of 'weights' have no influence on the run",
}


@pytest.mark.parametrize("name", ERRORS)
def test_an_error(name: str) -> None:
    report = check(name)
    assert report.errors
    _matches(ERRORS[name], text(report, "error"))


@pytest.mark.parametrize("name", WARNINGS)
def test_a_warning(name: str) -> None:
    report = check(name)
    assert not report.errors
    _matches(WARNINGS[name], text(report, "warning"))


@pytest.mark.parametrize("name", NOTES)
def test_a_note(name: str) -> None:
    report = check(name)
    assert not report.errors and not text(report, "warning")
    _matches(NOTES[name], text(report, "note"))


def _matches(pattern: str, found: str) -> None:
    assert re.search(pattern, found, re.S), found


def test_a_sound_problem_has_nothing_but_good_news(capsys: pytest.CaptureFixture[str]) -> None:
    report = check("sound")
    assert {f.level for f in report.findings} == {"ok", "note"}  # it takes no seed
    assert report.survey is not None
    assert report.survey.hparams == {"lam": 5}
    assert report.survey.references == ("unroll", "cg")
    show(report)
    said = capsys.readouterr().out
    assert "6 steps, 5 parameters, 5 hyperparameters (lam 5), float32" in said
    assert "agree with differences of whole runs" in said
    show(report, quiet=True)
    assert "agree with differences" not in capsys.readouterr().out


@pytest.mark.parametrize("name", ["log_ridge", "two_stage_quadratic", "noisy_quadratic"])
def test_registered_problems_are_sound(name: str) -> None:
    report = look(name, {}, dtype=None, device="cpu", full=True)
    assert [f for f in report.findings if f.level != "ok"] == []


def test_the_command_and_its_exit_status(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("benchmarks.own_run.aside", lambda f, *args, seconds, on, **more: f(*args, **more))
    assert main(["check", f"{FILE}:unread"]) == 1
    assert "1 error, 0 warnings" in capsys.readouterr().out
    file = tmp_path / "own.py"
    file.write_text(f"import sys; sys.path.insert(0, {str(FILE.parent)!r})\nfrom faulty_problems import rising as make")
    assert main(["check", str(file)]) == 0  # warnings do not fail
    said = capsys.readouterr().out
    assert "0 errors, 1 warning" in said
    assert f"Next: hypergradbench run {file}:make --estimators all" in said
    for wrong in ([str(FILE)], ["nonsense"], [f"{FILE}:sound", "steps=3"], [f"{FILE}:sound", "--device", "gpu"]):
        assert main(["check", *wrong]) == 2
    assert main(["check", str(file), "--timeout", "0"]) == 2


def test_a_problem_that_hangs_or_kills_its_process_is_said(tmp_path: Path) -> None:
    file = tmp_path / "wild.py"
    file.write_text(
        "import os, signal, time\ndef hangs():\n    time.sleep(60)\ndef dies():\n    os.kill(os.getpid(), signal.SIGSEGV)\n"
    )
    options = {"dtype": None, "device": "cpu", "full": True}
    with pytest.raises(Refused, match="it took more than 0.5 s"):
        report_on(f"{file}:hangs", {}, seconds=0.5, **options)  # type: ignore[arg-type]
    with pytest.raises(Refused, match="killed by SIGSEGV"):
        report_on(f"{file}:dies", {}, seconds=60.0, **options)  # type: ignore[arg-type]


def test_what_was_read_and_drawn() -> None:
    noted = Noted({"a": torch.ones(1), "b": torch.ones(1)})
    noted["a"]
    assert noted.read == {"a"}
    list(noted.values())
    assert noted.read == {"a", "b"}
    before = torch.get_rng_state()
    with drawing() as draws:
        torch.rand(1)
    assert draws.torch and draws.others == []
    assert torch.equal(torch.get_rng_state(), before)  # put back
    assert same({"x": [torch.ones(2), 3]}, {"x": [torch.ones(2), 3]})
    assert not same((torch.ones(2),), (torch.zeros(2),))
    assert not same([1], [1, 2])
