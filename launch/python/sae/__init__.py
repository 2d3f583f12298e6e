"""The Python side of `sae`: from a model to shards, and from a run to its dictionary.

    sae.ShardWriter   rows of torch or numpy to shards that `sae train` reads fastest
    sae.harvest       residual streams of a `transformers` model to shards
    sae.load          a run's weights, read from its checkpoint as they are indexed
    sae.encode        which features fire on rows

Training is the program's: `sae train recipe.toml`. launch/python/README.md has more of all.
"""

from __future__ import annotations

try:
    import numpy as _numpy
    import pyarrow as _pyarrow
    import xxhash as _xxhash
except ImportError as _error:
    raise ImportError(f"{_error}: the Python side of sae needs numpy, pyarrow and xxhash: pip install 'sae[python]', or these") from _error

from ._encode import Activations, encode
from ._errors import DamagedError, StoreError
from ._harvest import Harvested, harvest
from ._weights import Block, Matrix, Weights, load
from ._writer import ShardWriter

__all__ = [
    "Activations",
    "Block",
    "DamagedError",
    "Harvested",
    "Matrix",
    "ShardWriter",
    "StoreError",
    "Weights",
    "encode",
    "harvest",
    "load",
]
del _numpy, _pyarrow, _xxhash
