"""The weights of a dictionary, from a run's checkpoint or an export, without reading more of them than is asked for."""

from __future__ import annotations

import json
import math
import mmap
import os
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from . import _checkpoint
from ._arguments import boolean, integer
from ._arrays import Floats, widened
from ._checkpoint import Found, Tensor, parse_header
from ._errors import DamagedError
from ._settle import Schedule, settled
from ._store import Store

# What is read at once where all features are gone through.
_BLOCK_BYTES = 64 << 20


# Factors on decoder rows, as SAELens once stored what it tuned last, and the one tensor of a file that says which features an export holds.
_FACTORS = ("scaling_factor", "finetuning_scaling_factor")
_MAP, _MAP_HEADER_BYTES = "features.safetensors", 4096


# What of a block is read; the rest of it is empty.
_ALL = ("W_enc", "b_enc", "W_dec")


class Block(NamedTuple):
    """Some consecutive features, for raw rows: `a = ReLU(x @ W_enc + b_enc)`."""

    first: int
    """The first of them."""
    W_enc: Floats
    """`[D, n]`"""
    b_enc: Floats
    """`[n]`"""
    W_dec: Floats
    """`[n, D]`"""


class _Source(Protocol):
    width: int
    features: int

    def read(self, first: int, end: int, names: Sequence[str]) -> Block: ...

    def b_dec(self) -> Floats: ...


class _OfCheckpoint:
    """A checkpoint's weights, as `sae export` writes them: with the scale of the data folded in."""

    def __init__(self, found: Found, unit_norm: bool, verify: bool) -> None:
        manifest = found.manifest
        self.width, self.features = int(manifest["width"]), int(manifest["features"])
        self._found, self._unit_norm = found, unit_norm
        self._scale = np.float32(manifest["scale"])
        matrices = {"W_dec": self.width, "W_enc": self.width, "b_enc": 1}
        self._weights = found.files("weights", matrices, verify)
        self._owed: Schedule | None = None
        if manifest["recipe"]["train"].get("adam") == "catchup":
            self._owed = Schedule(manifest)
            moments = {f"{name}.{moment}": count for name, count in matrices.items() for moment in "mv"}
            self._moments = found.files("optimizer", moments | {"last_update": 1}, verify)

    def read(self, first: int, end: int, names: Sequence[str]) -> Block:
        # Norms of decoder rows scale all.
        names = _ALL if self._unit_norm else names
        count = end - first
        shapes = {"W_enc": (count, self.width), "b_enc": (count,), "W_dec": (count, self.width)}
        # Copied where they belong: a mapped file is read once, and what is handed out is its owner's.
        to = {name: np.empty(shape if name in names else (0, *shape[1:]), np.float32) for name, shape in shapes.items()}
        for at, until, rows in self._weights.spans(first, end):
            for name in names:
                to[name][at - first : until - first] = rows[name]
        if self._owed is not None:
            for at, until, rows in self._moments.spans(first, end):
                for name in names:
                    own = to[name][at - first : until - first]
                    own[...] = settled(self._owed, own, rows[f"{name}.m"], rows[f"{name}.v"], rows["last_update"])
        if self._unit_norm:
            return self._of_unit_norm(first, to["W_enc"], to["b_enc"], to["W_dec"])
        to["W_enc"] *= self._scale
        to["W_dec"] /= self._scale
        return Block(first, to["W_enc"].T, to["b_enc"], to["W_dec"])

    def _of_unit_norm(self, first: int, w_enc_fd: Floats, b_enc_f: Floats, w_dec_fd: Floats) -> Block:
        """In double precision and in the order of trainer/src/export.rs, so that rows are rounded once."""
        scale = float(self._scale)
        squares = np.square(w_dec_fd.astype(np.float64))
        norm_f = np.sqrt(np.add.accumulate(squares, axis=1)[:, -1])
        norm_f[norm_f == 0.0] = scale
        w_enc = (w_enc_fd.astype(np.float64) * norm_f[:, None]).astype(np.float32)
        b_enc = (b_enc_f.astype(np.float64) * norm_f / scale).astype(np.float32)
        w_dec = (w_dec_fd.astype(np.float64) / norm_f[:, None]).astype(np.float32)
        return Block(first, w_enc.T, b_enc, w_dec)

    def b_dec(self) -> Floats:
        return np.asarray(self._found.shared() / self._scale)


class _File:
    """The tensors of an exported file, mapped or fetched."""

    def __init__(self, store: Store, name: str) -> None:
        self._store, self._name, self.place = store, name, store.url_of(name)
        size = store.size(name)
        if size is None:
            raise FileNotFoundError(f"{self.place} is missing")
        length = int.from_bytes(store.get_range(name, 0, 8), "little") if size >= 8 else size
        if length > min(size - 8, 1 << 20):
            raise DamagedError(f"{self.place} is no file of tensors: it has no header")
        self.tensors = parse_header(store.get_range(name, 8, 8 + length), 8 + length, size, self.place)
        self._map: npt.NDArray[np.uint8] | None = None
        path = store.local(name)
        if path is not None:
            with open(path, "rb") as file:
                self._map = np.frombuffer(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ), np.uint8)

    def tensor(self, name: str, shape: tuple[int, ...]) -> Tensor:
        found = self.tensors.get(name)
        if found is None or found.shape != shape or found.dtype not in ("F32", "F16", "BF16"):
            raise DamagedError(f"{self.place} has no tensor {name} of shape {list(shape)}")
        return found

    def first_of(self, names: Sequence[str]) -> str | None:
        """The first of these tensors that the file has."""
        return next((name for name in names if name in self.tensors), None)

    def rows(self, tensor: Tensor, first: int, end: int) -> Floats:
        """Rows of a tensor, or values of one of one dimension."""
        per_row = (tensor.end - tensor.start) // max(tensor.shape[0], 1)
        start, stop = tensor.start + first * per_row, tensor.start + end * per_row
        data = self._map[start:stop] if self._map is not None else np.frombuffer(self._store.get_range(self._name, start, stop), np.uint8)
        return widened(data.view(tensor.numpy).reshape(end - first, *tensor.shape[1:]), tensor.dtype.lower())

    def columns(self, tensor: Tensor, first: int, end: int) -> Floats:
        """Columns of a matrix."""
        if self._map is not None:
            whole = self._map[tensor.start : tensor.end].view(tensor.numpy).reshape(tensor.shape)
            return widened(np.ascontiguousarray(whole[:, first:end]), tensor.dtype.lower())
        size = tensor.numpy.itemsize
        parts = []
        for row in range(tensor.shape[0]):
            at = tensor.start + row * tensor.shape[1] * size
            parts.append(np.frombuffer(self._store.get_range(self._name, at + first * size, at + end * size), tensor.numpy))
        return widened(np.stack(parts), tensor.dtype.lower())


class _OfExport:
    """A SAELens folder: one file, or the parts that its index names."""

    def __init__(self, store: Store, config: dict[str, Any]) -> None:
        place = store.url_of("cfg.json")
        self.width, self.features = _count(config, "d_in", place), _count(config, "d_sae", place)
        _refuse_other_functions(config, place)
        self.subtracts_b_dec = config.get("apply_b_dec_to_input", True) is not False
        self._parts: list[tuple[int, int, _File]] = []
        at = 0
        for name in _names(store):
            file = _File(store, name)
            shape = file.tensors["W_dec"].shape if "W_dec" in file.tensors else (0, 0)
            count = shape[0]
            file.tensor("W_dec", (count, self.width))
            file.tensor("W_enc", (self.width, count))
            file.tensor("b_enc", (count,))
            _refuse_other_tensors(file)
            if factors := file.first_of(_FACTORS):
                file.tensor(factors, (count,))
            self._parts.append((at, at + count, file))
            at += count
        if at != self.features:
            raise DamagedError(f"{place} says {self.features} features, and its files hold {at}")
        self.feature_ids = _feature_ids(store, self.features)

    def read(self, first: int, end: int, names: Sequence[str]) -> Block:
        found: dict[str, list[Floats]] = {"W_enc": [np.empty((self.width, 0), np.float32)], "b_enc": [], "W_dec": []}
        found["b_enc"].append(np.empty(0, np.float32))
        found["W_dec"].append(np.empty((0, self.width), np.float32))
        for at, until, file in self._parts:
            lowest, highest = max(first, at) - at, min(end, until) - at
            if lowest >= highest:
                continue
            count = until - at
            if "W_enc" in names:
                found["W_enc"].append(file.columns(file.tensor("W_enc", (self.width, count)), lowest, highest))
            for name, shape in (("b_enc", (count,)), ("W_dec", (count, self.width))):
                if name in names:
                    found[name].append(file.rows(file.tensor(name, shape), lowest, highest))
            factors = file.first_of(_FACTORS)
            if factors and "W_dec" in names:
                found["W_dec"][-1] *= file.rows(file.tensor(factors, (count,)), lowest, highest)[:, None]
        return Block(first, np.concatenate(found["W_enc"], axis=1), np.concatenate(found["b_enc"]), np.concatenate(found["W_dec"]))

    def b_dec(self) -> Floats:
        # It lies in the first part; others hold zeros.
        file = self._parts[0][2]
        return file.rows(file.tensor("b_dec", (self.width,)), 0, self.width)


def _count(config: dict[str, Any], key: str, place: str) -> int:
    value = config.get(key)
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise DamagedError(f"{place}: {key} is {value!r}")
    return value


def _refuse_other_functions(config: dict[str, Any], place: str) -> None:
    """Only a ReLU dictionary of raw rows computes what is computed here."""
    function = config.get("activation_fn", config.get("activation_fn_str", "relu"))
    said = {"architecture": config.get("architecture", "standard"), "activation": function}
    for key, known in (("architecture", "standard"), ("activation", "relu")):
        if said[key] != known:
            raise ValueError(f"{place}: {key} {said[key]!r}: only ReLU dictionaries are read (standard, relu)")
    if config.get("normalize_activations", "none") not in ("none", None, False):
        raise ValueError(f"{place}: normalize_activations = {config['normalize_activations']!r}: only weights that take raw rows are read (none)")


def _refuse_other_tensors(file: _File) -> None:
    """What has a tensor besides those of a ReLU dictionary is another function."""
    known = {*_ALL, "b_dec", *_FACTORS}
    if others := sorted(file.tensors.keys() - known):
        what = f"{file.place} holds {others[0]} besides W_enc, b_enc, W_dec and b_dec"
        raise ValueError(f"{what}: only ReLU dictionaries are read, and they have no such tensor")


def _feature_ids(store: Store, features: int) -> npt.NDArray[np.int64] | None:
    """What the features of an export are called in the run, `[F]` ascending; `None` where it holds all of them."""
    place, size = store.url_of(_MAP), store.size(_MAP)
    if size is None:
        return None
    again = "export the dictionary again"
    if size > 8 * features + _MAP_HEADER_BYTES:
        raise DamagedError(f"{place} has {size} bytes, more than a map of {features} features: {again}")
    data = store.get(_MAP, size)
    length = int.from_bytes(data[:8], "little")
    if size < 8 or length > size - 8:
        raise DamagedError(f"{place} is no map of features: it has no header: {again}")
    tensor = parse_header(data[8 : 8 + length], 8 + length, size, place).get("feature")
    if tensor is None or tensor.dtype != "I64" or tensor.shape != (features,):
        raise DamagedError(f"{place} holds no tensor feature, I64 [{features}]: {again}")
    ids = np.frombuffer(data[tensor.start : tensor.end], "<i8").astype(np.int64)
    if (np.diff(ids) <= 0).any() or ids[0] < 0 or ids[-1] >= 1 << 32:
        raise DamagedError(f"{place} holds features that do not ascend: {again}")
    return ids


def _names(store: Store) -> list[str]:
    """The files of an export, in the order of their features."""
    index, weights = "sae_weights.safetensors.index.json", "sae_weights.safetensors"
    try:
        content = json.loads(store.get(index, 64 << 20))
    except FileNotFoundError:
        return [weights]
    except ValueError as error:
        raise DamagedError(f"{store.url_of(index)} is no index of weights: {error}") from error
    names = content.get("weight_map", {}).get("W_enc") if isinstance(content, dict) else None
    inside = lambda name: isinstance(name, str) and not any(part in ("", ".", "..") for part in name.split("/"))  # noqa: E731
    if not isinstance(names, list) or not names or not all(map(inside, names)):
        raise DamagedError(f"{store.url_of(index)} names no files of W_enc in the folders below it, as an export in parts does")
    return names


class Matrix:
    """A matrix of a dictionary that is read where it is indexed, and nowhere else.

    `W_dec[features]` is rows `[n, D]` and `W_enc[:, features]` columns `[D, n]`, for an int, a slice, a list or an array of them, or a mask;
    two indices choose rows and columns each for itself, as with `numpy.ix_`. What comes is a numpy array of f32 of its own. `numpy.asarray(matrix)` and `matrix.torch()` read it whole.
    """

    dtype = np.dtype(np.float32)
    ndim = 2

    def __init__(self, source: _Source, name: str) -> None:
        self._source, self._name = source, name
        self._features_first = name == "W_dec"
        self.shape = (source.features, source.width) if self._features_first else (source.width, source.features)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: Any) -> Any:
        given = index if isinstance(index, tuple) else (index,)
        if len(given) > 2:
            raise IndexError(f"{len(given)} indices for a matrix")
        axes = [_chosen(of, length) for of, length in zip((*given, slice(None))[:2], self.shape)]
        features, others = axes if self._features_first else reversed(axes)
        taken = self._read(np.atleast_1d(features), np.atleast_1d(others))
        taken = taken if self._features_first else taken.T
        return taken[tuple(0 if axis.ndim == 0 else slice(None) for axis in axes)]

    def _read(self, features: npt.NDArray[np.int64], others: npt.NDArray[np.int64]) -> Floats:
        """Features `[n, m]` with some of their numbers, whichever way the matrix lies."""
        out = np.empty((len(features), len(others)), np.float32)
        every = slice(None) if len(others) == self._source.width and (np.diff(others) == 1).all() else others
        if len(features) and (np.diff(features) == 1).all():
            start = int(features[0])
            for block in _blocks(self._source, start, start + len(features), (self._name,)):
                some = self._of(block)
                out[block.first - start :][: len(some)] = some[:, every]
            return out
        tiles = features // _checkpoint.TILE
        for tile in np.unique(tiles):
            first = int(tile) * _checkpoint.TILE
            block = self._source.read(first, min(first + _checkpoint.TILE, self._source.features), (self._name,))
            of = tiles == tile
            out[of] = self._of(block)[features[of] - first][:, every]
        return out

    def _of(self, block: Block) -> Floats:
        return block.W_dec if self._features_first else block.W_enc.T

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> npt.NDArray[Any]:
        if copy is False:
            raise ValueError(f"{self._name} is read when it is asked for: it cannot be an array without a copy")
        whole = self[:] if self._features_first else np.ascontiguousarray(self[:, :])
        return np.asarray(whole, dtype)

    def numpy(self) -> Floats:
        """All of it, in memory."""
        return np.asarray(self)

    def torch(self) -> Any:
        """All of it as a tensor of float32 on the processor."""
        import torch

        return torch.from_numpy(self.numpy())

    def __repr__(self) -> str:
        return f"Matrix({self._name}, {list(self.shape)})"


def _chosen(index: Any, length: int) -> npt.NDArray[np.int64]:
    """The places that an index means, of no dimension for a single one.

    Raises:
        IndexError: for what is no index, or lies outside.
    """
    if isinstance(index, slice):
        return np.arange(*index.indices(length))
    chosen = np.asarray(index.detach().cpu() if hasattr(index, "detach") else index)
    if chosen.dtype == bool:
        if chosen.shape != (length,):
            raise IndexError(f"a mask of shape {list(chosen.shape)} for {length}")
        return np.flatnonzero(chosen)
    if chosen.size == 0:
        return np.empty(0, np.int64)
    if chosen.dtype.kind not in "iu" or chosen.ndim > 1:
        raise IndexError(f"{index!r} is no index: give integers, a slice or a mask")
    chosen = chosen.astype(np.int64)
    if int(chosen.min()) < -length or int(chosen.max()) >= length:
        raise IndexError(f"index {int(chosen.max()) if chosen.max() >= length else int(chosen.min())} of {length}")
    return np.asarray(np.where(chosen < 0, chosen + length, chosen))


def _blocks(source: _Source, first: int, end: int, names: Sequence[str] = _ALL) -> Iterator[Block]:
    at_once = max(_BLOCK_BYTES // (8 * source.width) // _checkpoint.TILE, 1) * _checkpoint.TILE
    while first < end:
        until = min((first // at_once + 1) * at_once, end)
        yield source.read(first, until, names)
        first = until


class Weights:
    """A dictionary: `a = ReLU(x @ W_enc + b_enc)`, `x̂ = a @ W_dec + b_dec`, for rows as they are stored.

    The numbers are those that `sae export` writes of the same checkpoint, bit by bit. `W_enc` and `W_dec` are read as they are indexed, the
    biases at once.
    """

    def __init__(self, source: _Source, place: str, manifest: dict[str, Any] | None) -> None:
        self._source = source
        self.width = source.width
        """D, the numbers of a row."""
        self.features = source.features
        """F, the features of the dictionary."""
        self.feature_ids: npt.NDArray[np.int64] | None = getattr(source, "feature_ids", None)
        """`[F]`, ascending: what each feature is called in its run, where an export holds some of a run's features only (`sae export
        --alive-only`). `None` where feature `f` is `f`. `W_enc`, `b_enc` and `W_dec` are indexed by place."""
        self.place = place
        """The checkpoint or the export that was found."""
        self.manifest = manifest
        """The manifest of the checkpoint (`step`, `scale`, `recipe`, …); `None` of an export."""
        self.W_enc = Matrix(source, "W_enc")
        """`[D, F]`"""
        self.W_dec = Matrix(source, "W_dec")
        """`[F, D]`"""
        self.b_dec: Floats = source.b_dec()
        """`[D]`"""
        self._b_enc: Floats | None = None

    @property
    def b_enc(self) -> Floats:
        """`[F]`, read when it is first asked for. Of a checkpoint that is verified all of its weights are read for it."""
        if self._b_enc is None:
            self._b_enc = np.concatenate([block.b_enc for block in _blocks(self._source, 0, self.features, ("b_enc",))])
        return self._b_enc

    @property
    def apply_b_dec_to_input(self) -> bool:
        """Whether the encoder takes `x − b_dec`, as in some exports of other tools. Never in those of `sae`."""
        return bool(getattr(self._source, "subtracts_b_dec", False))

    def blocks(self) -> Iterator[Block]:
        """All features, about 64 MiB at a time, in their order: for what has to go through a dictionary that memory does not hold."""
        return _blocks(self._source, 0, self.features)

    def encoder_blocks(self) -> Iterator[Block]:
        """As `blocks`, with `W_dec` left empty: half of the bytes."""
        return _blocks(self._source, 0, self.features, ("W_enc", "b_enc"))

    def torch(self, device: Any = "cpu", dtype: Any = None) -> dict[str, Any]:
        """All weights in memory, as tensors by their names."""
        import torch

        named = {"W_enc": self.W_enc.numpy(), "b_enc": self.b_enc, "W_dec": self.W_dec.numpy(), "b_dec": self.b_dec}
        return {name: torch.from_numpy(np.ascontiguousarray(values)).to(device=device, dtype=dtype) for name, values in named.items()}

    def __repr__(self) -> str:
        return f"Weights({self.place!r}, width={self.width}, features={self.features})"


def load(
    run: str | os.PathLike[str], checkpoint: str | int = "last", *, unit_norm: bool = False, verify: bool = True
) -> Weights:
    """Opens the dictionary of a run without an export.

    ```python
    weights = sae.load("runs/my")
    direction = weights.W_dec[4242]                  # [D]; only its tile is read, whatever the size of the dictionary
    some = weights.W_enc[:, [1, 5, 9]]               # [D, 3]
    ```

    Args:
        run: the folder of a run, on a disk, `s3://`, `gs://` or `az://`; one of a checkpoint in it (`…/checkpoints/step-…`), or a copy of one; or a
            folder that `sae export` or SAELens wrote, in parts too.
        checkpoint: of a run: `"last"`, `"best"` (the least held-out loss) or a number of steps. As `sae export --checkpoint`.
        unit_norm: scale decoder rows to norm 1 with the same reconstructions, as `sae export --unit-norm`.
        verify: compare each tile of a checkpoint with its hash when it is first read.

    Returns:
        Weights that are read as they are indexed.

    Raises:
        FileNotFoundError: when there is no such checkpoint.
        DamagedError: (a ValueError) when a file is not what its manifest says, now or when it is read.
        ValueError: for an export that is no ReLU dictionary of raw rows, or whose files hold tensors that such a one does not have.
        StoreError: when the store does not answer.
    """
    try:
        checkpoint = checkpoint if checkpoint in ("last", "best") else integer("checkpoint", checkpoint, 0)
    except ValueError:
        raise ValueError(f"checkpoint {checkpoint!r}: choose \"last\", \"best\" or the number of a step") from None
    unit_norm, verify = boolean("unit_norm", unit_norm), boolean("verify", verify)
    store = Store(run)
    path = os.fspath(run)
    try:
        config = json.loads(store.get("cfg.json", 64 << 20))
    except FileNotFoundError:
        found = _checkpoint.find(path, checkpoint)
        try:
            return Weights(_OfCheckpoint(found, unit_norm, verify), found.place, found.manifest)
        except (KeyError, TypeError) as error:
            raise DamagedError(f"{found.place}/manifest.json lacks {error}") from error
    except ValueError as error:
        raise DamagedError(f"{store.url_of('cfg.json')} is not JSON: {error}") from error
    if not isinstance(config, dict):
        raise DamagedError(f"{store.url_of('cfg.json')} is no JSON object")
    if checkpoint != "last" or unit_norm:
        raise ValueError(f"{path} is an export: it holds one dictionary, as it was written")
    return Weights(_OfExport(store, config), store.url, None)
