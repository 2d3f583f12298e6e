"""Arguments of callers, checked: what is wrong is said by the argument's name."""

from __future__ import annotations

import operator
from typing import Any

import numpy as np


def integer(name: str, value: Any, least: int, most: int | None = None) -> int:
    """A whole number within bounds; one of numpy or torch will do, `True` and `1.0` will not.

    Raises:
        ValueError: for anything else.
    """
    try:
        number = None if isinstance(value, (bool, np.bool_)) else operator.index(value)
    except TypeError:
        number = None
    if number is None or number < least or most is not None and number > most:
        bounds = f"{least} or more" if most is None else f"{least} to {most}"
        raise ValueError(f"{name} {value!r}: a whole number is needed, {bounds}")
    return number


def boolean(name: str, value: Any) -> bool:
    """`True` or `False`: of other things not everybody means the same.

    Raises:
        ValueError: for anything else.
    """
    if not isinstance(value, (bool, np.bool_)):
        raise ValueError(f"{name} {value!r}: True or False is needed")
    return bool(value)
