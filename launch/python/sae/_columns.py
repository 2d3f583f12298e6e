"""Columns beside the activations: one value a row, whole in every shard, always of one type."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa

from ._arrays import to_numpy
from ._manifest import COLUMN

# What other commands of `sae` know, in the types that they write.
KNOWN: dict[str, Any] = {"token_id": pa.int32(), "doc_id": pa.int64(), "pos": pa.int32(), "context_id": pa.uint64()}


def types_of(columns: Mapping[str, Any], declared: Mapping[str, str]) -> dict[str, Any]:
    """The types of columns by what is declared, what is known of a name, or what is given."""
    found: dict[str, Any] = {}
    for name, value in columns.items():
        if name == COLUMN or not name:
            raise ValueError(f"a column cannot be called {name!r}: that is the column of the rows")
        if name in declared:
            found[name] = parsed_type(declared[name])
        else:
            found[name] = KNOWN.get(name) or _type_of(name, value)
    return found


def parsed_type(name: str) -> Any:
    """An Arrow type by the name that it has in a plan.

    Raises:
        ValueError: for one that no column has.
    """
    allowed = {"string", "bool", "halffloat", "float", "double"} | {f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)}
    if name not in allowed:
        raise ValueError(f"no column has the type {name!r}: {', '.join(sorted(allowed))}")
    return pa.string() if name == "string" else pa.bool_() if name == "bool" else pa.float16() if name == "halffloat" else pa.type_for_alias(name)


def _type_of(name: str, value: Any) -> Any:
    array = _values(value)
    if array.dtype.kind in "UO":
        return pa.string()
    try:
        kind = pa.from_numpy_dtype(array.dtype)
    except pa.ArrowException as error:
        raise ValueError(f"column {name} is {array.dtype}: integers, floats, booleans and strings are written") from error
    parsed_type(str(kind))
    return kind


def _values(value: Any) -> Any:
    """Values as numpy has them, one-dimensional or a single one."""
    array = to_numpy(value)
    return array.reshape(-1) if array.ndim else array


def check_shapes(columns: Mapping[str, Any], shape: tuple[int, ...]) -> None:
    """Refuses a column of more than one dimension whose shape is not that of the rows: its values would go to other rows.

    Raises:
        ValueError: with both shapes.
    """
    for name, value in columns.items():
        own = tuple(getattr(value, "shape", ()))
        if len(own) > 1 and own != shape:
            raise ValueError(f"column {name} has the shape {list(own)}, and the rows have {list(shape)}")


def arrays(columns: Mapping[str, Any], types: Mapping[str, Any], rows: int) -> dict[str, Any]:
    """Arrow arrays of the columns of some rows; a single value stands for all of them.

    Raises:
        ValueError: when columns are missing or come in addition, have another length, or values that their type does not hold.
    """
    if set(columns) != set(types):
        missing, more = sorted(set(types) - set(columns)), sorted(set(columns) - set(types))
        what = [f"without {', '.join(missing)}"] if missing else []
        what += [f"with {', '.join(more)}"] if more else []
        raise ValueError(f"rows come {' and '.join(what)}: every row has the same columns")
    return {name: _array(name, columns[name], kind, rows) for name, kind in types.items()}


def _array(name: str, value: Any, kind: Any, rows: int) -> Any:
    array = _values(value)
    if array.ndim == 0:
        array = np.repeat(array, rows)
    if len(array) != rows:
        raise ValueError(f"column {name} has {len(array)} values for {rows} rows")
    if pa.types.is_integer(kind) and array.dtype.kind not in "iu" or pa.types.is_boolean(kind) and array.dtype.kind != "b":
        raise ValueError(f"column {name} is {array.dtype}, and has to be {kind}")
    try:
        made = pa.array(array.tolist() if array.dtype.kind in "UO" else array, type=None if array.dtype.kind in "iuf" else kind)
        made = made if made.type == kind else made.cast(kind, safe=pa.types.is_integer(kind))
    except (pa.ArrowException, TypeError) as error:
        raise ValueError(f"column {name} does not fit its type, {kind}: {error}") from error
    if made.null_count:
        raise ValueError(f"column {name} has rows without a value: every row needs one")
    return made
