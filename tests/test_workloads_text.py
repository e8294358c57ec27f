"""The text workloads: that they are the models they are called after, use the kernels they should, and mean something."""

from __future__ import annotations

import math
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.meta_step import MetaStep, PlainTraining, settled
from benchmarks.workloads import WORKLOADS, Workload, transformer, weigh, with_autocast
from estimators import Tree, registry

F64 = torch.float64
TEXT = ("bert_noisy", "roberta_auxiliary", "gpt_mixture")


def start_of(w: Workload) -> Tree:
    assert isinstance(w.problem.start, dict)
    return w.problem.start


def slope(loss: Any, params: Tree) -> list[Tensor]:
    leaves = {k: x.detach().clone().requires_grad_() for k, x in params.items()}
    return list(torch.autograd.grad(loss(leaves), list(leaves.values())))


@cache
def parameters(name: str, size: str) -> int:
    with FakeTensorMode():
        return sum(x.numel() for x in start_of(WORKLOADS[name].make(size=size)).values())


# What the published checkpoints hold: bert-base-uncased, bert-large-uncased, roberta-base, roberta-large, gpt2, gpt2-medium.
PUBLISHED = [
    ("bert_noisy", "base", 109_482_240 + 4 * (768 + 1)),
    ("bert_noisy", "large", 335_141_888 + 4 * (1024 + 1)),
    ("roberta_auxiliary", "base", 124_697_433 + 768 * (768 + 1) + 4 * (768 + 1)),
    ("roberta_auxiliary", "large", 355_412_057 + 1024 * (1024 + 1) + 4 * (1024 + 1)),
    ("gpt_mixture", "base", 124_439_808),
    ("gpt_mixture", "large", 354_823_168),
]


@pytest.mark.parametrize(("name", "size", "count"), PUBLISHED)
def test_parameters_are_those_of_the_published_model(name: str, size: str, count: int) -> None:
    assert parameters(name, size) == count


@pytest.mark.parametrize("name", TEXT)
def test_sizes_span_sixty_million_to_a_billion(name: str) -> None:
    assert 50e6 < parameters(name, "small") < 70e6
    assert 950e6 < parameters(name, "xl") < 1050e6


class Fused(TorchDispatchMode):
    """Counts passes of fused attention."""

    forward = backward = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if "scaled_dot_product" in func.__name__:
            if "backward" in func.__name__:
                self.backward += 1
            else:
                self.forward += 1
        return func(*args, **(kwargs or {}))


def fused(call: Any) -> tuple[int, int]:
    with Fused() as seen:
        call()
    return seen.forward, seen.backward


@pytest.mark.parametrize("name", TEXT)
def test_attention_is_fused_where_it_can_be(name: str) -> None:
    """Two layers and two steps. A difference, and all first-order passes, can; an exact product cannot."""
    w = WORKLOADS[name].make(size="tiny", unroll=2)
    state = settled(w)

    def step(estimator: str, kernel: Any) -> tuple[int, int]:
        return fused(MetaStep(w, registry[estimator].estimator, state, kernel=kernel))

    steps = (4, 4)
    assert fused(PlainTraining(w, state)) == steps
    # then the outer gradient, and two points of a difference that need not go back beyond the weights
    assert step("sama", "best") == (4 + 2 + 4, 4 + 2)
    assert step("cg", "best") == step("sama-exact", "best") == (4 + 2, 4 + 2)  # the run and the outer gradient
    assert step("unroll", "best") == (2, 2)  # its steps are differentiated again
    for estimator in ("sama", "cg", "unroll", "sama-exact"):
        assert step(estimator, "math") == (0, 0)


def test_fused_attention_has_no_second_derivative() -> None:
    """Why exact products choose the kernel. If this fails, torch has learned it: `estimators.products` can let it."""
    x = torch.randn(1, 2, 4, 8, requires_grad=True)
    y = torch.nn.functional.scaled_dot_product_attention(x, x, x)
    (g,) = torch.autograd.grad(y.square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="not implemented"):
        torch.autograd.grad(g.square().sum(), x)


@pytest.mark.parametrize("name", TEXT)
def test_kernels_agree(name: str) -> None:
    w = WORKLOADS[name].make(size="tiny", unroll=2, dtype=F64)
    state = settled(w)
    a, b = (MetaStep(w, registry["sama"].estimator, state, kernel=k)() for k in ("best", "math"))
    for k, x in a.hparams.items():
        torch.testing.assert_close(x, b.hparams[k], rtol=1e-6, atol=1e-9 * float(x.abs().max()))


@pytest.mark.parametrize(("name", "settings"), [("bert_noisy", {"correction": False}), ("roberta_auxiliary", {})])
@pytest.mark.parametrize("detach", [True, False])
def test_detached_weights_are_constants(name: str, settings: dict[str, Any], detach: bool) -> None:
    """With ``detach`` the gradient is the weighted sum of the examples' gradients; without, it is not."""
    w = WORKLOADS[name].make(size="tiny", batch=2, dtype=F64, detach=detach, **settings)
    params, hparams, pair = start_of(w), w.problem.hparams, w.stage.stream(0)
    none = {k: torch.zeros_like(x) for k, x in hparams.items()}
    none["weight.2.bias"] = torch.tensor([-1e3], dtype=F64)  # weight 0 for all: what is left is the end task's loss

    def of(one: tuple[Tensor, ...]) -> list[Tensor]:
        weight = float(weigh.weights(hparams, (w.plain(params, one) - w.stage.loss(params, none, one)).detach()[None]))
        task = slope(lambda p: w.stage.loss(p, none, one), params)
        whole = slope(lambda p: w.plain(p, one), params)
        return [t + weight * (g - t) for t, g in zip(task, whole, strict=True)]

    one, two = (of(tuple(x[i : i + 1] for x in pair)) for i in range(2))
    found = slope(lambda p: w.stage.loss(p, hparams, pair), params)
    apart = max(float((g - (a + b) / 2).abs().max()) for g, a, b in zip(found, one, two, strict=True))
    size = max(float(g.abs().max()) for g in found)
    assert (apart < 1e-12 * size) if detach else (apart > 1e-4 * size)


@pytest.mark.parametrize(("name", "most"), [("bert_noisy", 0.2), ("roberta_auxiliary", 0.01)])
def test_autocast_spares_the_small_networks(name: str, most: float) -> None:
    """In bfloat16 they would leave a central difference wrong by a quarter and by half."""
    w = WORKLOADS[name].make(size="tiny", unroll=2)
    state = settled(w)
    exact, cast = (MetaStep(x, registry["sama"].estimator, state)().hparams for x in (w, with_autocast(w)))
    apart = torch.stack([(cast[k] - x).square().sum() for k, x in exact.items()]).sum().sqrt()
    size = torch.stack([x.square().sum() for x in exact.values()]).sum().sqrt()
    assert 0 < float(apart / size) < most


def test_label_correction_is_optional_and_begins_near_the_given_labels() -> None:
    w = WORKLOADS["bert_noisy"].make(size="tiny", dtype=F64)
    without = WORKLOADS["bert_noisy"].make(size="tiny", dtype=F64, correction=False)
    assert without.problem.hparams.keys() == {f"weight.{i}.{k}" for i in (0, 2) for k in ("weight", "bias")}
    assert w.problem.hparams.keys() - without.problem.hparams.keys() == {
        f"correct.{i}.{k}" for i in (0, 2) for k in ("weight", "bias")
    }
    batch = w.stage.stream(0)
    a, b = (v.stage.loss(start_of(v), v.problem.hparams, batch) for v in (w, without))
    assert a != b
    torch.testing.assert_close(a, b, rtol=0.05, atol=0)


def test_gpt_begins_with_the_plain_loss() -> None:
    w = WORKLOADS["gpt_mixture"].make(size="tiny", dtype=F64)
    batch = w.stage.stream(3)
    loss = w.stage.loss(start_of(w), w.problem.hparams, batch)
    torch.testing.assert_close(loss, w.plain(start_of(w), batch), rtol=1e-12, atol=0)


def hand(model: nn.Module, params: Tree, *prefixes: str) -> nn.Module:
    """The library's model with these weights; its keys may have a prefix there."""
    own = {k: next(params[p + k] for p in ("", *prefixes) if p + k in params) for k, _ in model.named_parameters()}
    model.load_state_dict(own, strict=False)
    return model.eval()


def test_gpt_is_that_of_transformers() -> None:
    """With its own eager attention and its own shifted loss, of examples of one domain."""
    w = WORKLOADS["gpt_mixture"].make(size="tiny", batch=3, length=9)
    config = transformers.GPT2Config(
        vocab_size=512, n_embd=32, n_layer=2, n_head=2, bos_token_id=0, eos_token_id=0, attn_implementation="eager"
    )
    tokens, domains = w.stage.stream(0)
    expected = hand(transformers.GPT2LMHeadModel(config), start_of(w))(tokens, labels=tokens).loss
    torch.testing.assert_close(w.plain(start_of(w), (tokens, domains)), expected, rtol=1e-6, atol=0)

    lam = torch.linspace(-1, 1, 8)
    each = torch.stack([w.plain(start_of(w), (x[None], d[None])) for x, d in zip(tokens, domains, strict=True)])
    weights = [8 * math.exp(lam[d]) / sum(math.exp(x) for x in lam) for d in domains]
    weighted = w.stage.loss(start_of(w), {"logits": lam}, (tokens, domains))
    torch.testing.assert_close(weighted, (torch.tensor(weights) * each).mean(), rtol=1e-6, atol=0)


def encoder(config: type, **more: Any) -> Any:
    return config(
        vocab_size=512, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=128,
        attn_implementation="eager", **more,
    )  # fmt: skip


def test_bert_is_that_of_transformers() -> None:
    w = WORKLOADS["bert_noisy"].make(size="tiny")
    model = transformers.BertForSequenceClassification(encoder(transformers.BertConfig, num_labels=4))
    own = {k.replace("body.", "bert."): x for k, x in start_of(w).items()}
    tokens, labels = w.stage.stream(0)
    expected = hand(model, own)(tokens, labels=labels).loss
    torch.testing.assert_close(w.plain(start_of(w), (tokens, labels)), expected, rtol=1e-6, atol=0)


def test_roberta_is_that_of_transformers() -> None:
    """The masked-language-model loss, by the library's own: all places projected, all but the masked ones ignored."""
    w = WORKLOADS["roberta_auxiliary"].make(size="tiny", batch=3)
    config = encoder(transformers.RobertaConfig, max_position_embeddings=514, type_vocab_size=1)
    params = start_of(w)
    language = hand(transformers.RobertaForMaskedLM(config), params, "language.")
    task, labels, texts, masked, targets = w.stage.stream(0)
    wanted = torch.full_like(texts, -100).scatter(1, masked, targets)
    guessed = language(texts, labels=wanted).loss
    first = language.roberta(task).last_hidden_state[:, 0]
    hidden = torch.tanh(first @ params["classifier.0.weight"].T + params["classifier.0.bias"])
    logits = hidden @ params["classifier.2.weight"].T + params["classifier.2.bias"]
    expected = guessed + nn.functional.cross_entropy(logits, labels)
    torch.testing.assert_close(w.plain(params, w.stage.stream(0)), expected, rtol=1e-6, atol=0)
    outer = nn.functional.cross_entropy(logits, labels)
    nowhere = {k: torch.zeros_like(x) for k, x in w.problem.hparams.items()} | {"weight.2.bias": torch.tensor([-1e3])}
    torch.testing.assert_close(w.stage.loss(params, nowhere, w.stage.stream(0)), outer, rtol=1e-6, atol=0)


def test_the_mixture_learns_which_domains_the_target_is_of() -> None:
    """Descent raises the weights of the two domains that the target mixes, and of no other."""
    w = WORKLOADS["gpt_mixture"].make(size="tiny", unroll=5, batch=32, dtype=F64)
    found = MetaStep(w, registry["unroll"].estimator, settled(w))().hparams["logits"]
    assert (found[:2] < 0).all() and (found[2:] > 0).all()


def test_a_part_of_the_generated_labels_is_wrong() -> None:
    """Classes prefer a quarter of the vocabulary each: where most of a text's tokens lie tells its right class."""
    w = WORKLOADS["bert_noisy"].make(size="tiny", batch=64, length=128)
    tokens, labels = (torch.cat(x) for x in zip(*(w.stage.stream(t) for t in range(32)), strict=True))
    quarter = (tokens[:, 1:-1] - transformer.FIRST) // ((512 - transformer.FIRST) // 4)
    right = torch.stack([(quarter == c).sum(1) for c in range(4)]).argmax(0)
    assert 0.35 < float((right != labels).double().mean()) < 0.45
    assert (tokens[:, 0] == 101).all() and (tokens[:, -1] == 102).all()


def test_masked_tokens_can_be_put_back() -> None:
    w = WORKLOADS["roberta_auxiliary"].make(size="tiny", batch=64, length=100)
    task, _, texts, masked, targets = (torch.cat(x) for x in zip(*(w.stage.stream(t) for t in range(32)), strict=True))
    assert masked.shape[1] == 15 and masked.min() >= 1 and masked.max() <= 98
    assert (masked.sort(1).values.diff(dim=1) > 0).all()  # fifteen different places
    shown = texts.gather(1, masked)
    shares = [float(x.double().mean()) for x in (shown == 511, shown == targets)]
    assert abs(shares[0] - 0.8) < 0.02 and abs(shares[1] - 0.1) < 0.02
    whole = texts.scatter(1, masked, targets)
    assert (whole[:, 0] == 0).all() and (whole[:, -1] == 2).all() and (whole[:, 1:-1] >= transformer.FIRST).all()
    assert (whole < 511).all() and (task < 511).all()


def test_a_stream_wraps_round() -> None:
    pool = (torch.arange(7), torch.arange(7) * 10)
    stream = transformer.in_order(pool, 3)
    assert [stream(t)[0].tolist() for t in range(5)] == [[0, 1, 2], [3, 4, 5], [6, 0, 1], [2, 3, 4], [5, 6, 0]]
    assert stream(2)[1].tolist() == [60, 0, 10]
    with pytest.raises(ValueError, match="batch=8: there are only 7 examples"):
        transformer.in_order(pool, 8)


def test_sequences_too_long_or_short_are_refused() -> None:
    with pytest.raises(ValueError, match="length=513: from 4 to 512"):
        WORKLOADS["bert_noisy"].make(length=513)
    with pytest.raises(ValueError, match="length=1025: from 4 to 1024"):
        WORKLOADS["gpt_mixture"].make(length=1025)
    with pytest.raises(ValueError, match="length=3"):
        WORKLOADS["roberta_auxiliary"].make(length=3)
    with pytest.raises(ValueError, match="domains=1: from 2 to 408"):
        WORKLOADS["gpt_mixture"].make(domains=1)


def test_an_unknown_buffer_is_not_left_empty() -> None:
    class Odd(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("table", torch.ones(3))

    with pytest.raises(NotImplementedError, match="Odd has a buffer 'table'"):
        transformer.without_weights(Odd, "cpu")


def test_softmax_is_torch_s() -> None:
    x = 50 * torch.randn(3, 5, dtype=F64)
    torch.testing.assert_close(weigh.softmax(x), x.softmax(-1), rtol=1e-12, atol=0)


def test_the_sizes_in_the_docs_are_those_of_the_code() -> None:
    page = (Path(__file__).parents[1] / "docs" / "workloads.md").read_text(encoding="utf-8")
    rows = {x[1].strip(" `"): x for line in page.splitlines() if len(x := line.split("|")) == 8}
    for size in WORKLOADS["bert_noisy"].sizes:
        for name, cell in zip(TEXT, rows[size][3:6], strict=True):
            count = parameters(name, size)
            assert cell.strip() == (f"{count / 1e6:.0f} M" if count > 1e6 else f"{count / 1e3:.0f} k")
