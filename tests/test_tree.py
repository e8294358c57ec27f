"""Arithmetic on dictionaries of tensors."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch._subclasses.fake_tensor import FakeTensorMode

from estimators import HypergradientError, tree

F64 = torch.float64


def randn(*shape, seed=0):
    return torch.randn(shape, dtype=F64, generator=torch.Generator().manual_seed(seed))


def example(seed=0):
    return {
        "m": randn(2, 3, seed=seed),
        "s": randn(seed=seed + 1),
        "empty": randn(0, seed=seed),
        "t": randn(4, 2, seed=seed + 2).T,  # not contiguous
    }


def numbers(a):
    return [v for x in a.values() for v in x.reshape(-1).tolist()]


def test_arithmetic_leaf_by_leaf():
    a, b = example(0), example(10)
    for found, expected in [
        (tree.add(a, b), [x + y for x, y in zip(numbers(a), numbers(b), strict=True)]),
        (tree.sub(a, b), [x - y for x, y in zip(numbers(a), numbers(b), strict=True)]),
        (tree.scale(a, -2.5), [-2.5 * x for x in numbers(a)]),
        (tree.axpy(3.0, a, b), [3 * x + y for x, y in zip(numbers(a), numbers(b), strict=True)]),
        (tree.zeros_like(a), [0.0] * len(numbers(a))),
        (tree.map_tree(torch.abs, a), [abs(x) for x in numbers(a)]),
    ]:
        assert numbers(found) == pytest.approx(expected, rel=1e-15)
        assert {k: x.shape for k, x in found.items()} == {k: x.shape for k, x in a.items()}


def test_keys_are_those_of_the_first_argument():
    a, b = {"x": torch.ones(2)}, {"y": torch.ones(3), "x": torch.ones(2)}
    assert list(tree.add(a, b)) == ["x"]
    with pytest.raises(KeyError):
        tree.add(b, a)


def test_union_add_fill_and_select():
    a, b = {"x": torch.ones(2), "z": torch.ones(1)}, {"y": torch.ones(3), "x": torch.full((2,), 2.0)}
    found = tree.union_add(a, b)
    assert {k: x.tolist() for k, x in found.items()} == {"x": [3.0, 3.0], "z": [1.0], "y": [1.0, 1.0, 1.0]}
    assert a["x"].tolist() == [1.0, 1.0], "an argument was changed"
    filled = tree.fill({"x": torch.ones(2)}, b)
    assert list(filled) == ["y", "x"]
    assert filled["y"].tolist() == [0.0, 0.0, 0.0]
    assert list(tree.select(b, {"x", "y", "not there"})) == ["y", "x"]


def test_dot_norm_largest_size_nbytes():
    a, b = example(0), example(10)
    assert float(tree.dot(a, b)) == pytest.approx(
        sum(x * y for x, y in zip(numbers(a), numbers(b), strict=True)), rel=1e-13
    )
    assert float(tree.norm(a)) == pytest.approx(sum(x * x for x in numbers(a)) ** 0.5, rel=1e-14)
    assert float(tree.largest(a)) == max(abs(x) for x in numbers(a))
    assert tree.size(a) == 15
    assert tree.nbytes(a) == 120
    assert tree.norm(a).shape == tree.dot(a, b).shape == ()


@pytest.mark.parametrize("dtype", [F64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("scale", [1e-38, 1e-30, 1e-20, 1e20, 1e30, 1e37])
def test_norm_neither_underflows_nor_overflows(dtype, scale):
    a = {"x": torch.tensor([3.0, 0.0], dtype=dtype) * scale, "y": torch.tensor(4.0, dtype=dtype) * scale}
    assert float(tree.norm(a)) == pytest.approx(5 * scale, rel=1e-2 if dtype == torch.bfloat16 else 1e-5)


def test_pieces_hold_every_entry_and_without_values_three_of_them_stand_for_all():
    x = torch.arange(4 * 2**15 + 5.0)
    assert torch.equal(torch.cat([p for (p,) in tree.pieces(x)]), x)
    assert [len(p) for (p,) in tree.pieces(x)] == [2**15] * 4 + [5]
    with FakeTensorMode():
        for n, lengths in ((4 * 2**15 + 5, [2**15, 2**15, 5]), (4 * 2**15, [2**15] * 3), (3 * 2**15, [2**15] * 3)):
            assert [len(p) for (p,) in tree.pieces(torch.empty(n))] == lengths


def test_norm_of_zero_is_zero_and_of_nan_is_nan():
    assert float(tree.norm({"x": torch.zeros(3)})) == 0.0
    assert torch.isnan(tree.norm({"x": torch.tensor([1.0, torch.nan])}))


def test_half_precision_sums_are_accumulated_in_float32():
    """100 000 ones: bfloat16 alone stops counting at 256."""
    ones = {"x": torch.ones(100_000, dtype=torch.bfloat16)}
    assert float(tree.dot(ones, ones)) == 100_000
    assert float(tree.norm(ones)) == pytest.approx(100_000**0.5, rel=1e-6)


@settings(derandomize=True, deadline=None, max_examples=40)
@given(st.lists(st.lists(st.integers(0, 3), max_size=3), min_size=1, max_size=4))
def test_flatten_and_unflatten_are_inverse(shapes):
    a = {str(i): randn(*s, seed=i) for i, s in enumerate(shapes)}
    vector = tree.flatten(a)
    assert vector.shape == (tree.size(a),)
    back = tree.unflatten(vector, a)
    assert list(back) == list(a)
    assert all(torch.equal(back[k], x) for k, x in a.items())


def test_detach_shares_storage_and_cuts_the_graph():
    x = torch.ones(2, requires_grad=True)
    found = tree.detach({"x": x * 2, "y": x})
    assert not any(v.requires_grad for v in found.values())
    assert found["y"].data_ptr() == x.data_ptr()


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_all_finite(bad):
    assert tree.all_finite({})
    assert tree.all_finite(example())
    assert not tree.all_finite({**example(), "bad": torch.tensor([1.0, bad])})


@pytest.mark.parametrize(
    ("a", "like", "message"),
    [
        ([torch.ones(2)], None, r"thing must be a dict of tensors.*got list"),
        (torch.ones(2), None, r"thing must be a dict of tensors.*got Tensor"),
        ({"x": 1.0}, None, r"thing must be a dict of tensors"),
        ({}, None, r"thing is empty.*at least one tensor"),
        ({"x": torch.ones(2, dtype=torch.int64)}, None, r"thing\['x'\] has dtype torch.int64.*\.float\(\)"),
        ({"x": torch.ones(2), "y": torch.ones(2, dtype=F64)}, None, r"thing mixes dtypes.*float32.*float64.*\.to\("),
        ({"x": torch.ones(2), "y": torch.ones(2, device="meta")}, None, r"thing mixes devices.*cpu.*meta.*\.to\("),
        ({"x": torch.ones(2)}, {"y": torch.ones(2)}, r"thing has the keys \['x'\], expected \['y'\]"),
        ({"x": torch.ones(2)}, {"x": torch.ones(2, 1)}, r"thing\['x'\] has shape \(2,\), expected \(2, 1\)"),
        (
            {"x": torch.ones(2)},
            {"x": torch.ones(2, dtype=F64)},
            r"thing\['x'\] is torch.float32.*expected torch.float64",
        ),
        ({"x": torch.ones(2)}, {"x": torch.ones(2, device="meta")}, r"thing\['x'\] is.*cpu, expected.*meta"),
    ],
)
def test_check_says_what_is_wrong_and_where(a, like, message):
    with pytest.raises(HypergradientError, match=message):
        tree.check(a, "thing", like)


def test_check_accepts_what_is_right():
    tree.check(example(), "thing", example(5))
