"""What a checkpoint of `train.adam = "catchup"` owes: rows that did not fire skip updates, and are looked at as if those had been made.

The arithmetic is that of kernels/src/cpu/ops/adam.rs, operation by operation in f32 with fused multiply-adds, so that the bits are those of
an export.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from ._arrays import Floats

_BETA1, _BETA2, _EPSILON = 0.9, 0.999, np.float32(1e-8)


def fma(a: Floats, b: Any, c: Any) -> Floats:
    """`a·b + c` of f32, rounded once.

    The product is exact in f64. The sum is rounded to odd there, so that rounding it again to f32 is as rounding once.
    """
    product = a.astype(np.float64) * np.float64(b) if np.ndim(b) == 0 else a.astype(np.float64) * b.astype(np.float64)
    c = np.asarray(c, np.float64)
    total = product + c
    shadow = total - product
    rest = (product - (total - shadow)) + (c - shadow)
    even = (total.view(np.int64) & 1) == 0
    inexact = (rest != 0) & even & np.isfinite(total)
    odd = np.where(inexact, np.nextafter(total, np.where(rest > 0, np.inf, -np.inf)), total)
    result: Floats = odd.astype(np.float32)
    return result


class Schedule:
    """The learning rate of a run by its recipe, as trainer/src/schedule.rs has it."""

    def __init__(self, manifest: dict[str, Any]) -> None:
        train, steps = manifest["recipe"]["train"], float(manifest["steps"])
        self.step = int(manifest["step"])
        self._base, self._steps = float(train["lr"]), steps
        self._decay_from = (1.0 - float(train["lr_decay"])) * steps

    def lr(self, step: int) -> float:
        """At a step, counted from 0."""
        if step < self._decay_from:
            return self._base
        return self._base * (self._steps - step) / (self._steps - self._decay_from)

    def skipped(self, last_update: int) -> tuple[np.float32, np.float32] | None:
        """The factors of what a row owes that was last updated then: `lr / c₁ · Σ r^j` and `1 / √c₂`."""
        count = self.step - last_update
        if last_update == 0 or count <= 0:
            return None
        c1, c2 = 1.0 - _BETA1 ** float(last_update), 1.0 - _BETA2 ** float(last_update)
        r = _BETA1 / math.sqrt(_BETA2)
        total = r * (1.0 - r ** float(count)) / (1.0 - r)
        return np.float32(self.lr(last_update) / c1 * total), np.float32(1.0 / math.sqrt(c2))


def settled(schedule: Schedule, value: Floats, first: Floats, second: Floats, last_update_f: npt.NDArray[np.uint64]) -> Floats:
    """Rows `[n]` or `[n, D]` with the updates that they owe, from their moments."""
    result = value.copy()
    # Rows that were last updated at the same step owe the same.
    for last_update in np.unique(last_update_f):
        factors = schedule.skipped(int(last_update))
        if factors is None:
            continue
        step, root = factors
        of = last_update_f == last_update
        divisor = fma(np.sqrt(second[of]), root, _EPSILON)
        result[of] = fma(first[of] / divisor, -step, value[of])
    return result
