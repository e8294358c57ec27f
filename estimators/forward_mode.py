"""Which operations torch differentiates rightly in reverse over forward mode.

Backward through a tangent is silently wrong in torch 2.13 for operations whose forward-mode formula reads saved
statistics that autograd takes for constants: layer_norm (relative error 0.6), batch_norm in training, linalg.solve
(2.3), det. Others raise obscure errors (softmax, silu). So `reverse_over_forward` looks at the graph of the loss and
goes on only if every operation between the wanted leaves and the loss is in `VERIFIED`.

`tests/test_forward_mode.py` holds every name of the list to double backward; a name without a test fails there.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

VERIFIED = frozenset(
    [
        "Abs",
        "AccumulateGrad",
        "AdaptiveAvgPool2D",
        "AdaptiveMaxPool2D",
        "Add",
        "Addcdiv",
        "Addcmul",
        "Addmm",
        "Addmv",
        "Amax",
        "AsStrided",
        "Atan",
        "AvgPool2D",
        "Baddbmm",
        "BinaryCrossEntropyWithLogits",
        "Bmm",
        "Cat",
        "Clamp",
        "ClampMin",
        "Clone",
        "ConstantPadNd",
        "Convolution",
        "Cos",
        "Cosh",
        "Cumprod",
        "Cumsum",
        "DiagEmbed",
        "Diagonal",
        "Div",
        "Dot",
        "Elu",
        "Embedding",
        "Erf",
        "Exp",
        "Expand",
        "Expm1",
        "Flip",
        "Gather",
        "Gelu",
        "Hardswish",
        "Hardtanh",
        "Im2Col",
        "Index",
        "IndexAdd",
        "IndexSelect",
        "LeakyRelu",
        "Lerp",
        "LinalgCholeskyEx",
        "LinalgInvEx",
        "LinalgVectorNorm",
        "Log",
        "Log10",
        "Log1P",
        "Log2",
        "LogSigmoid",
        "MaskedFill",
        "Max",
        "MaxPool2DWithIndices",
        "Maximum",
        "Mean",
        "Minimum",
        "Mm",
        "MseLoss",
        "Mul",
        "Mv",
        "NativeGroupNorm",
        "Neg",
        "Permute",
        "Pow",
        "PreluKernel",
        "Prod",
        "Reciprocal",
        "Relu",
        "Repeat",
        "ReshapeAlias",
        "Roll",
        "Rsqrt",
        "Rsub",
        "ScatterAdd",
        "Select",
        "Sigmoid",
        "Sin",
        "Sinh",
        "Slice",
        "SmoothL1Loss",
        "Softplus",
        "Sort",
        "Split",
        "Sqrt",
        "Squeeze",
        "Stack",
        "Std",
        "StdMean",
        "Sub",
        "Sum",
        "T",
        "Tanh",
        "ToCopy",
        "Trace",
        "Transpose",
        "Tril",
        "Triu",
        "Unbind",
        "UnsafeView",
        "Unsqueeze",
        "UpsampleBilinear2D",
        "View",
        "Where",
    ]
)
"""Names of autograd nodes, without "Backward" and its version number."""


def node_names(value: Tensor) -> set[str]:
    """The operations between ``value`` and the leaves that require grad."""
    found: set[str] = set()
    seen: set[Any] = set()
    todo: list[Any] = [value.grad_fn]
    while todo:
        node = todo.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        found.add(type(node).__name__.rstrip("0123456789").removesuffix("Backward"))
        todo += [following for following, _ in node.next_functions]
    return found
