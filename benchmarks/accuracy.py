"""How far an estimate is from the truth. All in float64, whatever the estimate was computed in."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor


def compare(estimate: Mapping[str, Tensor], truth: Mapping[str, Tensor]) -> dict[str, float]:
    """Errors of one vector against another; both 0 agree, one 0 has no direction (NaN).

    Returns:
        cosine, relative_error (||e - t|| / ||t||), direction_error (the sine of the angle between them: the relative
        error that the best rescaling would leave; accurate where 1 - cosine is not), angle in degrees, norm_ratio
        (||e|| / ||t||) and truth_norm.
    """
    e, t = (torch.cat([a[k].detach().double().cpu().reshape(-1) for k in truth]) for a in (estimate, truth))
    size_e, size_t = (float(torch.linalg.vector_norm(x)) for x in (e, t))
    error = float(torch.linalg.vector_norm(e - t))
    if size_e == 0 or size_t == 0 or not math.isfinite(size_e * size_t):
        same = size_e == size_t == 0
        cosine, sine = (1.0, 0.0) if same else (math.nan, math.nan)
        relative = 0.0 if same else (error / size_t if size_t else math.inf)
        return _named(cosine, relative, sine, math.nan, size_t)
    u, v = e / size_e, t / size_t
    cosine = max(-1.0, min(1.0, float(u @ v)))
    sine = min(1.0, float(torch.linalg.vector_norm(u - (u @ v) * v)))
    return _named(cosine, error / size_t, sine, size_e / size_t, size_t)


def _named(cosine: float, relative: float, sine: float, ratio: float, size: float) -> dict[str, float]:
    return {
        "cosine": cosine,
        "relative_error": relative,
        "direction_error": sine,
        "angle": math.degrees(math.atan2(sine, cosine)),
        "norm_ratio": ratio,
        "truth_norm": size,
    }
