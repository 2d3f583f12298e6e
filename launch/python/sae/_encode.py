"""Which features fire on rows, and how strongly."""

from __future__ import annotations

import numbers
import os
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from ._arrays import as_f32
from ._weights import Weights, load

# Activations that are looked at at once: rows times features.
_DENSE_BYTES = 64 << 20
_ROWS = 16_384


class Activations(NamedTuple):
    """Active pairs, sorted by row and then by feature."""

    row: npt.NDArray[np.int64]
    """`[n]`, counted from 0 in the rows that were given."""
    feature: npt.NDArray[np.int64]
    """`[n]`, by their numbers in the run."""
    activation: npt.NDArray[np.float32]
    """`[n]`, all positive."""
    shape: tuple[int, int]
    """Rows and features of the dictionary that encoded them."""
    feature_ids: npt.NDArray[np.int64] | None = None
    """As `Weights.feature_ids`."""

    def dense(self) -> npt.NDArray[np.float32]:
        """`[rows, features]`, zero where nothing fires. Columns are the dictionary's: of an export of some features, column `f` is of
        feature `feature_ids[f]`."""
        dense = np.zeros(self.shape, np.float32)
        places = self.feature if self.feature_ids is None else np.searchsorted(self.feature_ids, self.feature)
        dense[self.row, places] = self.activation
        return dense


def encode(run: str | os.PathLike[str] | Weights, rows: Any, *, checkpoint: str | int = "last", threshold: float = 0.0) -> Activations:
    """Encodes rows by a run's dictionary: `a = ReLU(x @ W_enc + b_enc)`, kept as lists of active pairs.

    Features are gone through in blocks, so the dictionary need not fit into memory; a dictionary of millions of features is read once for
    each 16,384 rows. Sums are in f32, in numpy's order: they agree with `sae eval` and with numpy on the export up to rounding.
    For whole data sets `sae encode` does the same in Rust. As there, features are called by their numbers in the run, also where an export
    holds some of them only.

    Args:
        run: as for `sae.load`, or what it returned.
        rows: `[…, D]`, raw rows as they are stored: a torch tensor or numpy array of any float format.
        checkpoint: as for `sae.load`, where `run` is a path.
        threshold: activations that are not above it are left out.

    Raises:
        ValueError: for rows of another width or that are not finite; what `sae.load` raises.
    """
    if isinstance(threshold, bool) or not isinstance(threshold, numbers.Real) or not threshold >= 0.0:
        raise ValueError(f"threshold {threshold!r}: a number from 0 on is needed, since activations of 0 are none")
    weights = run if isinstance(run, Weights) else load(run, checkpoint)
    x_bd = as_f32(rows, weights.width)
    if weights.apply_b_dec_to_input:
        x_bd = x_bd - weights.b_dec
    found: list[tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.float32]]] = []
    for first in range(0, len(x_bd), _ROWS):
        found.append(_of_rows(weights, x_bd[first : first + _ROWS], first, threshold))
    row, feature, activation = (np.concatenate(of) for of in zip(*found)) if found else (np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0, np.float32))
    ids = weights.feature_ids
    return Activations(row, feature if ids is None else ids[feature], activation, (len(x_bd), weights.features), ids)


def _of_rows(weights: Weights, x_bd: npt.NDArray[np.float32], first_row: int, threshold: float) -> Any:
    """Row, feature and activation of the active pairs of some rows."""
    rows, features, values = [], [], []
    at_once = max(_DENSE_BYTES // (4 * len(x_bd)), 1)
    for block in weights.encoder_blocks():
        for at in range(0, len(block.b_enc), at_once):
            a_bf = x_bd @ block.W_enc[:, at : at + at_once] + block.b_enc[at : at + at_once]
            row, feature = np.nonzero(a_bf > threshold)
            rows.append(row + first_row)
            features.append(feature + (block.first + at))
            values.append(a_bf[row, feature])
    row, feature, value = (np.concatenate(of) for of in (rows, features, values))
    order = np.argsort(row, kind="stable")  # blocks ascend already
    return row[order], feature[order], value[order]
