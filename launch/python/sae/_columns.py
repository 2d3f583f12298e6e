"""Columns beside the activations: one value a row, whole in every shard, always of one type."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from ._arrays import to_numpy
from ._manifest import COLUMN

# What other commands of `sae` know, in the types that they write. Their numbers begin at 0.
KNOWN: dict[str, Any] = {"token_id": pa.int32(), "doc_id": pa.int64(), "pos": pa.int32(), "context_id": pa.uint64()}

Array = npt.NDArray[Any]


def declared(columns: Mapping[str, str] | None) -> dict[str, str]:
    """Types by the names of columns, as a caller says them.

    Raises:
        ValueError: for names that no column has, and types that none has.
    """
    if columns is not None and not isinstance(columns, Mapping):
        raise ValueError(f'columns {columns!r}: types by names are needed, such as {{"label": "string"}}')
    for name, kind in (columns or {}).items():
        _check_name(name)
        parsed_type(name, kind)
    return dict(columns or {})


def _check_name(name: Any) -> None:
    if not isinstance(name, str) or not name:
        raise ValueError(f"a column cannot be called {name!r}: names are text")
    if name == COLUMN:
        raise ValueError(f"a column cannot be called {name!r}: that is the column of the rows")


def parsed_type(column: str, name: str) -> Any:
    """An Arrow type by the name that it has in a plan.

    Raises:
        ValueError: for one that no column has.
    """
    allowed = {"string", "bool", "halffloat", "float", "double"} | {f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)}
    if name not in allowed:
        raise ValueError(f"column {column}: no column has the type {name!r}: {', '.join(sorted(allowed))}")
    return pa.string() if name == "string" else pa.bool_() if name == "bool" else pa.float16() if name == "halffloat" else pa.type_for_alias(name)


def given(columns: Mapping[str, Any], shape: tuple[int, ...]) -> dict[str, Array]:
    """Values of columns as numpy has them, one for each of the rows, which have this shape; a single value stands for all of them.

    Raises:
        ValueError: naming the column whose values are none, or of another shape: they would go to other rows.
    """
    return {name: _given(name, value, shape) for name, value in columns.items()}


def _given(name: str, value: Any, shape: tuple[int, ...]) -> Array:
    _check_name(name)
    found = to_numpy(value) if hasattr(value, "dtype") else value
    array = found if getattr(found, "dtype", object) != object else _of_objects(name, found)
    if array.dtype.kind not in "iufbUO":
        raise ValueError(f"column {name} is {array.dtype}: integers, floats, booleans and strings are written")
    array = array.astype(array.dtype.newbyteorder("="), copy=False)
    rows = int(np.prod(shape))
    if array.ndim == 0:
        return np.repeat(array, rows)
    if array.ndim > 1 and array.shape != shape:
        raise ValueError(f"column {name} has the shape {list(array.shape)}, and the rows have {list(shape)}")
    if array.size != rows:
        raise ValueError(f"column {name} has {array.size} values for {rows} rows")
    return array.reshape(-1)


def _of_objects(name: str, value: Any) -> Array:
    """Values of Python's own, which numpy would turn into something else where they do not fit each other."""
    try:
        objects = np.array(value, dtype=object)
    except ValueError as error:
        raise ValueError(f"column {name} is lists of several lengths: {error}") from error
    kinds = {type(of) for of in objects.flat}
    if type(None) in kinds:
        raise ValueError(f"column {name} has rows without a value: every row needs one")
    if kinds & {list, tuple}:
        raise ValueError(f"column {name} is lists of several lengths: one value for each row is needed")
    if len(kinds) > 1 and kinds & {str, bool}:
        raise ValueError(f"column {name} mixes {' and '.join(sorted(kind.__name__ for kind in kinds))}: its values have to be of one type")
    if kinds == {int}:
        least, most = min(objects.flat), max(objects.flat)
        if least < -(1 << 63) or most >= 1 << (64 if least >= 0 else 63):
            raise ValueError(f"column {name} holds {most if most >= 1 << 63 else least}, and whole numbers have 64 bits at most")
        return np.array(objects.tolist(), np.int64 if most < 1 << 63 else np.uint64)
    # An array of numpy's own texts gives each the room of the longest.
    return objects if kinds == {str} else np.array(objects.tolist())


def types_of(columns: Mapping[str, Array], types: Mapping[str, str]) -> dict[str, Any]:
    """The types of columns by what was declared, what is known of a name, or what is given.

    Raises:
        ValueError: when a column that was declared is not there.
    """
    if missing := sorted(set(types) - set(columns)):
        raise ValueError(f"columns declares {', '.join(missing)}, and rows come without: leave it out there, or hand its values over")
    return {name: parsed_type(name, types[name]) if name in types else KNOWN.get(name) or _type_of(name, array) for name, array in columns.items()}


def _type_of(name: str, array: Array) -> Any:
    if array.dtype.kind in "UO":
        return pa.string()
    try:
        return parsed_type(name, str(pa.from_numpy_dtype(array.dtype)))
    except pa.ArrowException as error:
        raise ValueError(f"column {name} is {array.dtype}: integers, floats, booleans and strings are written") from error


def arrays(columns: Mapping[str, Array], types: Mapping[str, Any]) -> dict[str, Any]:
    """Arrow arrays of columns.

    Raises:
        ValueError: when columns are missing or come in addition, or have values that their type does not hold.
    """
    if set(columns) != set(types):
        missing, more = sorted(set(types) - set(columns)), sorted(set(columns) - set(types))
        what = [f"without {', '.join(missing)}"] if missing else []
        what += [f"with {', '.join(more)}"] if more else []
        raise ValueError(f"rows come {' and '.join(what)}: every row has the same columns")
    return {name: _array(name, columns[name], kind) for name, kind in types.items()}


def _array(name: str, array: Array, kind: Any) -> Any:
    fitting = "iu" if pa.types.is_integer(kind) else "b" if pa.types.is_boolean(kind) else "UO" if pa.types.is_string(kind) else "iuf"
    if array.dtype.kind not in fitting:
        raise ValueError(f"column {name} is {array.dtype}, and has to be {kind}")
    if pa.types.is_integer(kind) and array.size:
        _check_range(name, int(array.min()), int(array.max()), kind)
    try:
        made = pa.array(array.tolist() if array.dtype.kind in "UO" else array)
        return made if made.type == kind else made.cast(kind, safe=False)
    except pa.ArrowException as error:
        raise ValueError(f"column {name} does not fit its type, {kind}: {error}") from error


def _check_range(name: str, least: int, most: int, kind: Any) -> None:
    """Refuses whole numbers that a type does not hold, and those below 0 of what is counted from there."""
    if name in KNOWN and least < 0:
        raise ValueError(f"column {name} holds {least}: its numbers begin at 0")
    bounds = np.iinfo(kind.to_pandas_dtype())
    if least < bounds.min or most > bounds.max:
        wrong = most if most > bounds.max else least
        wider = next((of for of in ("int64", "uint64") if np.iinfo(of).min <= least and most <= np.iinfo(of).max and name not in KNOWN), None)
        remedy = f': declare a wider type, columns={{"{name}": "{wider}"}}' if wider else ""
        raise ValueError(f"column {name} holds {wrong}, and {kind} goes from {bounds.min} to {bounds.max}{remedy}")
