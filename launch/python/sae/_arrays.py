"""Rows as callers hold them (torch on any device, numpy, ml_dtypes, bits as uint16) and as shards hold them."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Bytes = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]

SIZES = {"f32": 4, "f16": 2, "bf16": 2}
_LONG = {
    "f32": "f32", "float32": "f32", "float": "f32",
    "f16": "f16", "float16": "f16", "half": "f16",
    "bf16": "bf16", "bfloat16": "bf16",
}  # fmt: skip


def dtype_name(dtype: Any) -> str:
    """`f32`, `f16` or `bf16`, of a name or a dtype of numpy, ml_dtypes or torch.

    Raises:
        ValueError: for any other.
    """
    text: str = dtype if isinstance(dtype, str) else str(dtype) if is_torch(dtype) else _numpy_name(dtype)
    name = _LONG.get(text.rpartition(".")[2].lower())
    if name is None:
        raise ValueError(f"rows of {text} are not written: choose f32, f16 or bf16")
    return name


def _numpy_name(dtype: Any) -> str:
    try:
        return str(np.dtype(dtype).name)
    except TypeError:
        return str(dtype)


def is_torch(value: Any) -> bool:
    """Whether something is torch's. Asked without importing it, which takes seconds and may not be possible."""
    return type(value).__module__.partition(".")[0] == "torch"


def to_numpy(value: Any) -> npt.NDArray[Any]:
    """A copy in ordinary memory, of a tensor of integers or floats."""
    if hasattr(value, "detach"):
        value = (value.float() if str(value.dtype) == "torch.bfloat16" else value).detach().cpu().numpy()
    array = np.array(value, copy=True)
    # numpy has no bf16 of its own: as f32 its numbers are the same.
    return array.astype(np.float32) if array.dtype.name == "bfloat16" else array


def as_array(rows: Any) -> Any:
    """Rows as a tensor or an array.

    Raises:
        ValueError: for what is neither, and is no lists of numbers.
    """
    if is_torch(rows) and hasattr(rows, "detach"):
        return rows
    try:
        return np.asarray(rows)
    except (TypeError, ValueError) as error:
        raise ValueError(f"rows are no array of rows of one width: {error}") from error


def stored(rows: Any, width: int, dtype: str) -> Bytes:
    """Rows as they are stored: `[n, width · size]` bytes, little endian, of rows `[…, width]`. Numbers are rounded to the nearest.

    Raises:
        ValueError: for another width, numbers that are no floats, and rows that are not finite or become so in `dtype`.
    """
    array = as_array(rows)
    if is_torch(array):
        return _stored_torch(array, width, dtype)
    _check_width(array.shape, width)
    array = array.reshape(-1, width)
    if array.dtype.kind == "u" and array.dtype.itemsize == 2 and dtype != "f32":
        bits = array.astype("<u2", copy=False)  # bits, as views of bf16 are handed around
    else:
        bits = _narrowed(array, dtype)
    finite = _finite(bits, dtype)
    if not finite.all():
        _refuse(int(np.argmin(finite)), _was_finite(array, int(np.argmin(finite))), dtype)
    return np.ascontiguousarray(bits).view(np.uint8).reshape(len(array), width * SIZES[dtype])


def _check_width(shape: tuple[int, ...], width: int) -> None:
    if not shape or shape[-1] != width:
        raise ValueError(f"rows of shape {list(shape)}: the last dimension has to be the width, {width}")


def _refuse(row: int, was_finite: bool, dtype: str) -> None:
    if was_finite:
        raise ValueError(f"row {row} holds a number that {dtype} cannot: write bf16 or f32, which hold larger ones")
    raise ValueError(f"row {row} is not finite, and no dictionary can be trained on it: leave such rows out")


def _stored_torch(rows: Any, width: int, dtype: str) -> Bytes:
    import torch

    if not rows.is_floating_point():
        raise ValueError(f"rows are {rows.dtype}: activations are floats{_hint(rows.dtype)}")
    _check_width(tuple(rows.shape), width)
    given = rows.detach().reshape(-1, width)
    # Narrowed where it lies, so that half of the bytes go to the host.
    wanted = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}[dtype]
    bits: Bytes = given.to(wanted).contiguous().cpu().view(torch.uint8).numpy().reshape(-1, width * SIZES[dtype])
    # On a processor numpy looks at bits faster than torch at floats.
    finite = _finite(bits.view("<f4" if dtype == "f32" else "<u2"), dtype)
    if not finite.all():
        row = int(np.argmin(finite))
        _refuse(row, bool(torch.isfinite(given[row]).all()), dtype)
    return bits


def _narrowed(array: npt.NDArray[Any], dtype: str) -> npt.NDArray[Any]:
    """Floats of any format in the stored one: `<f4`, `<f2`, or the bits of bf16 as `<u2`."""
    if array.dtype.name == "bfloat16":
        if dtype == "bf16":
            return array.view("<u2") if array.flags.c_contiguous else np.ascontiguousarray(array).view("<u2")
    elif array.dtype.kind != "f":
        raise ValueError(f"rows are {array.dtype}: activations are floats{_hint(array.dtype)}")
    with np.errstate(over="ignore", invalid="ignore"):
        if dtype == "bf16":
            bits = np.ascontiguousarray(array, dtype="<f4").view("<u4")
            # To the nearest, ties to even. A NaN of all ones would carry into the sign: it is refused either way.
            carry = ((bits >> np.uint32(16)) & np.uint32(1)) + np.uint32(0x7FFF)
            narrow = ((bits + carry) >> np.uint32(16)).astype("<u2")
            return np.where(np.isnan(array), np.uint16(0x7FC0), narrow) if np.isnan(array).any() else narrow
        return array.astype({"f32": "<f4", "f16": "<f2"}[dtype])


def _hint(dtype: Any) -> str:
    """What to do with numbers that may be bits of activations."""
    return "; bits of bf16 or f16 are handed over as numpy's uint16, with that dtype" if "int16" in str(dtype) else ""


def _finite(bits: npt.NDArray[Any], dtype: str) -> npt.NDArray[np.bool_]:
    """For each row whether all its numbers are."""
    if bits.dtype.kind == "f":
        return np.asarray(np.isfinite(bits).all(axis=1))
    exponent = np.uint16(0x7F80 if dtype == "bf16" else 0x7C00)
    return np.asarray((bits & exponent).max(axis=1, initial=0) != exponent)


def _was_finite(array: npt.NDArray[Any], row: int) -> bool:
    return array.dtype.kind != "u" and bool(np.isfinite(array[row].astype(np.float64)).all())


def widened(bits: npt.NDArray[Any], dtype: str) -> Floats:
    """A copy of numbers of a stored format as f32, exactly: of arrays of `<f4`, `<f2`, or bits of bf16 as `<u2`."""
    if dtype == "bf16":
        return (bits.astype(np.uint32) << np.uint32(16)).view(np.float32)
    return bits.astype(np.float32)


def as_f32(rows: Any, width: int) -> Floats:
    """Rows `[…, width]` of any float format as f32 `[n, width]`.

    Raises:
        ValueError: for another width, numbers that are no floats, and rows that are not finite.
    """
    return stored(rows, width, "f32").view("<f4").astype(np.float32, copy=False)
