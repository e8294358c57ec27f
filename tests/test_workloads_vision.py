"""What is specific to the image workloads: the networks, BatchNorm, the average of the weights."""

from __future__ import annotations

import inspect
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from benchmarks.measure import memory_of, peak_bytes
from benchmarks.meta_step import MetaStep, PlainTraining, settled
from benchmarks.workloads import WORKLOADS
from benchmarks.workloads.resnet import drawn_weights, resnet
from estimators import SAMA, CentralDifference, Dense, Implicit, Neumann, NotApplicableError, Unroll, run
from estimators.products import reverse_over_forward, reverse_over_reverse

PRUNING = ["resnet18_pruning", "resnet50_pruning"]
NAMES = [*PRUNING, "omniglot_imaml"]


def made(name, **settings):
    return WORKLOADS[name].make(**{"dtype": torch.float64, **settings})


def count(net):
    return sum(p.numel() for p in net.parameters())


def test_the_networks_have_as_many_weights_as_the_published_ones():
    with torch.device("meta"):
        # He et al. 2016 with 1000 classes, as every released copy of them; CIFAR's ResNet-18 of Kuangliu's and others
        assert count(resnet(50, width=64, classes=1000, small=False)) == 25_557_032
        assert count(resnet(18, width=64, classes=1000, small=False)) == 11_689_512
        cifar = resnet(18, width=64, classes=10, small=True)
        assert count(cifar) == 11_173_962
    assert not list(cifar.buffers()), "a running statistic would move with every evaluation"


@pytest.mark.parametrize("depth", [18, 50])
def test_the_networks_compute_what_transformers_do(depth):
    transformers = pytest.importorskip("transformers")
    width = 4
    sizes = [width * 2**i * (1 if depth == 18 else 4) for i in range(4)]
    config = transformers.ResNetConfig(
        embedding_size=width, hidden_sizes=sizes, depths=[2, 2, 2, 2] if depth == 18 else [3, 4, 6, 3],
        layer_type="basic" if depth == 18 else "bottleneck", num_labels=5,
    )  # fmt: skip
    theirs = transformers.ResNetForImageClassification(config).double().train()
    ours = resnet(depth, width=width, classes=5, small=False).double()
    # both hold the same tensors; theirs list a block's shortcut before its branch, as ours do once sorted by "branch" last
    names = [k for k, _ in ours.named_parameters()]
    order = sorted(names, key=lambda k: (int(k.split(".")[0]), "branch" in k))
    given = list(theirs.parameters())
    assert len(order) == len(given)
    ours.load_state_dict({k: p.detach() for k, p in zip(order, given, strict=True)})
    images = torch.randn(3, 3, 64, 64, dtype=torch.float64)
    torch.testing.assert_close(ours(images), theirs(images).logits, rtol=1e-9, atol=1e-9)


def test_weights_are_drawn_as_he_says():
    with torch.device("meta"):
        net = resnet(18, width=16, classes=10, small=True)
    start = drawn_weights(net, torch.Generator().manual_seed(0), torch.float64, "cpu")
    assert start.keys() == {k for k, _ in net.named_parameters()}
    kernel = start["9.branch.2.0.weight"]  # the last 3x3 convolution: 128 x 128 x 3 x 3
    assert kernel.shape == (128, 128, 3, 3)
    assert float(kernel.std()) == pytest.approx((2 / (128 * 9)) ** 0.5, rel=0.02)
    assert all(bool((start[k] == 1).all()) for k in start if k.endswith(".1.weight"))


def softmax(z):
    e = np.exp(z - z.max(1, keepdims=True))
    return e / e.sum(1, keepdims=True)


def network(workload):
    s = workload.settings
    return resnet(s["depth"], width=s["width"], classes=s["classes"], small=s["depth"] == 18).double()


def forward(workload, params, images, prefix=""):
    """Logits by the module itself, in NumPy."""
    net = network(workload)
    net.load_state_dict({k: params[prefix + k] for k, _ in net.named_parameters()})
    return net(images).detach().numpy()


def weight_of(hparams, each, uncertainty):
    """The Meta-Weight-Net by its formula, in NumPy."""
    h = {k: x.numpy() for k, x in hparams.items()}
    features = np.stack([each, uncertainty], 1)
    hidden = np.maximum(features @ h["weight.0.weight"].T + h["weight.0.bias"], 0)
    return 1 / (1 + np.exp(-(hidden @ h["weight.2.weight"].T + h["weight.2.bias"])[:, 0]))


@pytest.mark.parametrize("name", PRUNING)
def test_the_loss_is_the_formula(name):
    w = made(name)
    state = w.between(settled(w))  # the average is neither the start nor the end
    params, (images, labels) = state.params, w.stage.stream(3)
    now, before = (softmax(forward(w, params, images, prefix)) for prefix in ("", "ema."))
    each = -np.log(now[np.arange(len(labels)), labels.numpy()])
    uncertainty = (before * np.log(before / now)).sum(1)
    assert uncertainty.min() > 1e-6, "current and averaged predictions must differ, or nothing is tested"
    weights = weight_of(w.problem.hparams, each, uncertainty)
    found = w.stage.loss(params, w.problem.hparams, (images, labels))
    assert float(found) == pytest.approx((weights * each).mean(), rel=1e-9)
    assert float(w.plain(params, (images, labels))) == pytest.approx(each.mean(), rel=1e-9)


def test_a_detached_weight_is_a_constant_of_the_gradient():
    """What released code trains on: the mean of w_i grad l_i, with w_i worked out in NumPy."""
    w = made("resnet18_pruning", detach=True)
    params, h, (images, labels) = w.between(settled(w)).params, w.problem.hparams, w.stage.stream(0)
    theta = {k: x.clone().requires_grad_() for k, x in params.items()}
    trained = [theta[k] for k in w.stage.trained(params)]
    found = torch.autograd.grad(w.stage.loss(theta, h, (images, labels)), trained)
    now, before = (forward(w, params, images, prefix) for prefix in ("", "ema."))
    each = -np.log(softmax(now)[np.arange(len(labels)), labels.numpy()])
    uncertainty = (softmax(before) * np.log(softmax(before) / softmax(now))).sum(1)
    weight = weight_of(h, each, uncertainty)
    assert np.ptp(weight) > 1e-3
    net = network(w)
    net.load_state_dict({k: params[k] for k, _ in net.named_parameters()})
    losses = torch.nn.functional.cross_entropy(net(images), labels, reduction="none")
    expected = torch.autograd.grad(losses @ torch.as_tensor(weight / len(labels)), list(net.parameters()))
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-7, atol=1e-10)


def test_the_average_follows_the_weights_between_meta_steps():
    w = made("resnet18_pruning", ema=0.75)
    before = settled(w)
    copies = {k: x.clone() for k, x in before.params.items()}
    after = w.between(before)
    for k, x in copies.items():
        assert torch.equal(before.params[k], x), f"{k}: the state that is handed in is not changed"
        if k.startswith("ema."):
            expected = 0.75 * x + 0.25 * copies[k.removeprefix("ema.")]
            torch.testing.assert_close(after.params[k], expected, rtol=1e-12, atol=1e-14)
        else:
            assert after.params[k] is before.params[k]
    assert after.step == before.step and after.slots is before.slots
    end = run(w.stage, after, w.problem.hparams).end.params
    assert all(torch.equal(end[k], x) for k, x in after.params.items() if k.startswith("ema.")), "frozen inside a stage"


def test_nothing_differentiates_by_the_average_and_central_differences_evaluate_twice():
    w = made("resnet18_pruning")
    params, h, batch = settled(w).params, w.problem.hparams, w.stage.stream(0)
    trained = w.stage.trained(params)
    tangent = {k: torch.randn_like(params[k]) for k in trained}
    calls = []

    def loss(p, lam):
        calls.append(None)
        return w.stage.loss(p, lam, batch)

    rows, mixed = reverse_over_reverse(loss, params, h, tangent, wrt_params=params, wrt_hparams=h)
    assert rows.keys() == set(trained) and mixed.keys() == h.keys()
    calls.clear()
    CentralDifference(alpha=1e-3)(loss, params, h, tangent, wrt_hparams=h)
    assert len(calls) == 2, "a third one would be the price of holding what a loss detaches"


@pytest.mark.parametrize("name", PRUNING)
def test_plain_training_has_no_average(name):
    w = made(name)
    plain = PlainTraining(w, settled(w))
    assert plain.params.keys() == {k for k, _ in network(w).named_parameters()}
    plain()
    assert memory_of(plain).split["parameters"] == 8 * count(network(w))


def test_images_are_drawn_apart_from_the_weights():
    w = made("resnet18_pruning", width=32)
    patterns = inspect.getclosurevars(w.stage.stream).nonlocals["shared"].flatten().double()
    weights = w.problem.start["0.0.weight"].flatten()
    n = min(len(patterns), len(weights)) - 16
    assert n > 500
    assert abs(float(torch.corrcoef(torch.stack([patterns[:n], weights[:n]]))[0, 1])) < 0.2


def test_the_average_keeps_no_activations_alive():
    """Its forward pass is over before the trained network's begins, so that a weighted step peaks where a plain one does."""
    with FakeTensorMode():  # at the real size: a matter of shapes
        w = WORKLOADS["resnet18_pruning"].make(size="base", batch=8)
        params, h, batch = w.problem.start, w.problem.hparams, w.stage.stream(0)
        theta = {k: x.requires_grad_(not k.startswith("ema.")) for k, x in params.items()}
        trained = [theta[k] for k in w.stage.trained(params)]
        plain = peak_bytes(lambda: torch.autograd.grad(w.plain(theta, batch), trained))
        weighted = peak_bytes(lambda: torch.autograd.grad(w.stage.loss(theta, h, batch), trained))
    assert 2**20 < plain <= weighted < 1.01 * plain


@pytest.mark.parametrize("name", PRUNING)
def test_products_through_batch_norm_are_right_or_refused(name):
    w = made(name)
    params, h, batch = w.between(settled(w)).params, w.problem.hparams, w.stage.stream(0)
    trained = w.stage.trained(params)
    tangent = {k: torch.randn_like(params[k]) for k in trained}

    def loss(p, lam):
        return w.stage.loss(p, lam, batch)

    with pytest.raises(NotApplicableError, match=r"NativeBatchNorm.*reverse_over_reverse"):
        reverse_over_forward(loss, params, h, tangent, wrt_params=trained)
    exact = reverse_over_reverse(loss, params, h, tangent, wrt_params=trained, wrt_hparams=h)
    # differences of gradients by hand, small enough a step to stay on one side of almost every kink of a ReLU
    eps, ends = 1e-7, []
    for sign in (1, -1):
        theta = {
            k: (x + sign * eps * tangent[k] if k in tangent else x).clone().requires_grad_(k in tangent)
            for k, x in params.items()
        }
        lam = {k: x.clone().requires_grad_() for k, x in h.items()}
        ends.append(torch.autograd.grad(loss(theta, lam), [*(theta[k] for k in trained), *lam.values()]))
    numeric = torch.cat([((a - b) / (2 * eps)).flatten() for a, b in zip(*ends, strict=True)])
    found = torch.cat([x.flatten() for x in [*(exact[0][k] for k in trained), *(exact[1][k] for k in h)]])
    assert float((numeric - found).norm() / found.norm()) < 1e-4
    # for the hyperparameters alone nothing is differentiated twice by what lies before them
    _, light = reverse_over_forward(loss, params, h, tangent, wrt_hparams=h)
    for k in h:
        torch.testing.assert_close(light[k], exact[1][k], rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("name", ["resnet18_pruning", "omniglot_imaml"])
def test_evaluating_moves_nothing(name):
    w = made(name)
    state = settled(w)
    before = {k: x.clone() for k, x in state.params.items()}
    estimators = (Unroll(), SAMA(), Implicit(Neumann(steps=2)))
    first = [MetaStep(w, e, state)().hparams for e in estimators]
    PlainTraining(w, state)()
    again = [MetaStep(w, e, state)().hparams for e in reversed(estimators)][::-1]
    for a, b in zip(first, again, strict=True):
        assert all(torch.equal(x, b[k]) for k, x in a.items())
    assert all(torch.equal(x, before[k]) for k, x in state.params.items())


@pytest.mark.parametrize("name", NAMES)
def test_made_and_run_over_fake_tensors(name):
    with FakeTensorMode():
        w = made(name, dtype=torch.float32)
        params, batch = w.problem.start, w.stage.stream(0)
        theta = {k: x.clone().requires_grad_() for k, x in params.items()}
        value = w.stage.loss(theta, w.problem.hparams, batch)
        torch.autograd.grad(value, [theta[k] for k in w.stage.trained(params)])
        assert value.shape == w.problem.outer(params, w.problem.hparams).shape == w.plain(params, batch).shape == ()
        assert len(batch[0]) == w.samples


@pytest.mark.parametrize("name", PRUNING)
@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"size": "huge"}, "choose one of tiny"),
        ({"batch": 1}, "BatchNorm needs at least 2"),
        ({"batch": 0}, "batch=0"),
        ({"unroll": 0}, "unroll=0"),
        ({"ema": 1.0}, "ema=1.0"),
        ({"lr": 0.0}, "lr=0.0"),
        ({"weight_decay": -1.0}, "weight_decay"),
    ],
)
def test_bad_settings_are_refused(name, settings, says):
    with pytest.raises(ValueError, match=says):
        made(name, **settings)


# iMAML


def four_blocks(theta, images):
    """The CNN again, from the formulas: convolution as a sum over unfolded patches, BatchNorm by its moments."""
    x = images
    for i in range(4):
        kernel = theta[f"{2 * i}.0.weight"]
        side = (x.shape[-1] + 1) // 2
        patches = torch.nn.functional.unfold(x, 3, padding=1, stride=2)
        x = (kernel.flatten(1) @ patches).unflatten(2, (side, side))
        mean, variance = x.mean((0, 2, 3), keepdim=True), x.var((0, 2, 3), keepdim=True, correction=0)
        scale, shift = (theta[f"{2 * i}.1.{k}"][:, None, None] for k in ("weight", "bias"))
        x = ((x - mean) / (variance + 1e-5).sqrt() * scale + shift).clamp(min=0)
    return x.mean((2, 3)) @ theta["10.weight"].T + theta["10.bias"]


def negative_log_likelihood(logits, labels):
    return (logits.exp().sum(1).log() - logits[torch.arange(len(labels)), labels]).mean()


def flat(a, like):
    return torch.cat([a[k].flatten() for k in like])


@pytest.mark.parametrize("lam", [2.0, 7.0])
def test_the_implicit_gradient_is_that_of_the_imaml_paper(lam):
    """Rajeswaran et al. 2019, eq. 6: (I + H/lam)^-1 c with the Hessian H of the cross-entropy, without the proximal term."""
    w = made("omniglot_imaml", width=2, ways=3, shots=2, lam=lam)
    state = settled(w)
    found = MetaStep(w, Implicit(Dense()), state)()
    end = run(w.stage, state, w.problem.hparams).end.params
    names = list(end)
    sizes, shapes = [end[k].numel() for k in names], [end[k].shape for k in names]

    def unpacked(vector):
        return {k: v.reshape(s) for k, v, s in zip(names, vector.split(sizes), shapes, strict=True)}

    def of(images, labels):
        return lambda vector: negative_log_likelihood(four_blocks(unpacked(vector), images), labels)

    at = flat(end, names)
    h = torch.autograd.functional.hessian(of(*w.stage.stream(0)), at)
    query = inspect.getclosurevars(w.problem.outer).nonlocals["query"]
    theta = at.clone().requires_grad_()
    (c,) = torch.autograd.grad(of(*query)(theta), theta)
    expected = np.linalg.solve(np.eye(len(at)) + h.numpy() / lam, c.numpy())
    assert float(h.norm()) > 0.1 * lam, "or nothing but the identity is tested"
    np.testing.assert_allclose(flat(found.hparams, names).numpy(), expected, rtol=1e-8, atol=1e-10)


def test_imaml_loss_and_plain_loss():
    w = made("omniglot_imaml", lam=3.0)
    theta, init, (images, labels) = settled(w).params, w.problem.hparams, w.stage.stream(0)
    fit = float(negative_log_likelihood(four_blocks(theta, images), labels))
    apart = sum(((theta[k] - init[k]).numpy() ** 2).sum() for k in init)
    assert apart > 1e-4
    assert float(w.plain(theta, (images, labels))) == pytest.approx(fit, rel=1e-10)
    assert float(w.stage.loss(theta, init, (images, labels))) == pytest.approx(fit + 1.5 * apart, rel=1e-10)
    assert theta.keys() == init.keys() and all(init[k] is not x for k, x in w.problem.start.items())


def test_a_task_has_as_many_examples_of_each_class_as_it_says():
    w = made("omniglot_imaml", ways=4, shots=3, queries=2)
    images, labels = w.stage.stream(0)
    assert images.shape == (12, 1, 28, 28) and w.samples == 12
    assert torch.bincount(labels).tolist() == [3, 3, 3, 3]
    assert made("omniglot_imaml", ways=4, batch=12).settings["shots"] == 3


def test_inner_steps_by_adam():
    w = made("omniglot_imaml", optimizer="adam", lam=0.0)
    assert (w.settings["optimizer"], w.settings["lr"]) == ("adam", 1e-3)
    theta = {k: x.clone().requires_grad_() for k, x in w.problem.start.items()}
    optimizer = w.optimizer(list(theta.values()))
    assert type(optimizer) is torch.optim.Adam
    for _ in range(3):
        optimizer.zero_grad()
        w.plain(theta, w.stage.stream(0)).backward()
        optimizer.step()
    end = run(replace(w.stage, steps=3), w.problem.start, w.problem.hparams).end.params
    for k, x in end.items():
        torch.testing.assert_close(theta[k].detach(), x, rtol=0, atol=1e-9)


def test_imaml_learns_its_task_and_the_width_is_a_knob():
    w = made("omniglot_imaml", width=8, lam=0.0)
    before = float(w.plain(w.problem.start, w.stage.stream(0)))
    assert float(w.plain(settled(w).params, w.stage.stream(0))) < 0.8 * before
    sizes = [sum(x.numel() for x in made("omniglot_imaml", width=n).problem.start.values()) for n in (8, 16)]
    # 9 n + 3 * 9 n^2 kernels, 8 n of BatchNorm, and n * 5 + 5 of the last layer
    assert sizes == [9 * n + 27 * n * n + 8 * n + 5 * n + 5 for n in (8, 16)]


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"batch": 7}, "multiple of ways=5"),
        ({"batch": 10, "shots": 3}, "give one"),
        ({"ways": 0}, "ways=0"),
        ({"shots": 0}, "shots=0"),
        ({"ways": 1, "shots": 1}, "BatchNorm needs at least 2"),
        ({"lam": -1.0}, "lam=-1.0"),
        ({"optimizer": "lion"}, "choose sgd or adam"),
        ({"lr": 0.0}, "lr=0.0"),
    ],
)
def test_bad_settings_of_imaml_are_refused(settings, says):
    with pytest.raises(ValueError, match=says):
        made("omniglot_imaml", **settings)
