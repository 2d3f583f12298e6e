"""Checkpoints of runs, as trainer/src/checkpoint writes them: found, compared with their hashes, and read tile by tile.

A local file is mapped and each tile of 128 features is hashed when it is first looked at; from object storage the tiles that are asked for
are fetched. Nothing is taken from a file before its manifest, which COMMIT confirms, says how large it is and what its head is.
"""

from __future__ import annotations

import json
import mmap
import re
import warnings
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import xxhash

from ._errors import DamagedError
from ._store import Store

TILE = 128
# Formats of checkpoints that are understood, as in trainer/src/checkpoint/format.rs.
FORMATS = range(1, 3)
_MANIFEST_BYTES = 1 << 30
_HEADER_BYTES = 1 << 20
# What is kept of files that cannot be mapped, and how many of the others are mapped at once: each takes a file descriptor.
_KEPT_BYTES = 256 << 20
_MAPS = 64
_DTYPES: dict[str, np.dtype[Any]] = {"F32": np.dtype("<f4"), "F64": np.dtype("<f8"), "U64": np.dtype("<u8"), "I64": np.dtype("<i8"), "F16": np.dtype("<f2"), "BF16": np.dtype("<u2")}

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Tensor:
    """Where a tensor of a file lies, counted from the file's start."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int

    @property
    def numpy(self) -> np.dtype[Any]:
        """Its dtype; that of bf16 is the one of its bits."""
        return _DTYPES[self.dtype]


def parse_header(text: bytes, start: int, end: int, place: str) -> dict[str, Tensor]:
    """The tensors that the JSON of a safetensors file names, whose data lie from `start` to `end`.

    Raises:
        DamagedError: when it is no such JSON, or names what lies outside the file or has another size.
    """
    try:
        content = json.loads(text)
        found = {}
        for name, entry in content.items():
            if name == "__metadata__":
                continue
            first, last = (int(at) for at in entry["data_offsets"])
            tensor = Tensor(str(entry["dtype"]), tuple(int(n) for n in entry["shape"]), start + first, start + last)
            numbers = 1
            for dimension in tensor.shape:
                numbers *= dimension
            inside = 0 <= first <= last and tensor.end <= end and min(tensor.shape, default=0) >= 0
            if not inside or tensor.dtype not in _DTYPES or numbers * tensor.numpy.itemsize != last - first:
                raise ValueError(f"{name} has impossible bounds or an unknown dtype, {tensor.dtype}")
            found[name] = tensor
        return found
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DamagedError(f"{place} is no file of tensors: {error}") from error


class Files:
    """The files of a checkpoint that hold one kind of tensors, which have a row for each feature."""

    def __init__(self, store: Store, folder: str, entries: Sequence[dict[str, Any]], expected: dict[str, int], verify: bool) -> None:
        self._store, self._folder, self._verify = store, folder, verify
        self._expected = expected
        self._entries = sorted(entries, key=lambda entry: int(entry["first_feature"]))
        self._headers: dict[str, dict[str, Tensor]] = {}
        self._maps: OrderedDict[str, Array] = OrderedDict()
        self._verified: dict[str, npt.NDArray[np.bool_]] = {}
        self._kept: OrderedDict[tuple[str, int], dict[str, Array]] = OrderedDict()
        self._kept_bytes = 0

    def name(self, entry: dict[str, Any]) -> str:
        """A file's name in the store, checked: it lies in the checkpoint's folder."""
        return f"{self._folder}/{entry['name']}" if self._folder else str(entry["name"])

    def spans(self, first: int, end: int) -> Iterator[tuple[int, int, dict[str, Array]]]:
        """The features from `first` to `end`, a file at a time: which they are, and the rows of each tensor. Local ones are views.

        Raises:
            DamagedError: naming the file, when it is not what its manifest says.
        """
        for entry in self._entries:
            from_, count = int(entry["first_feature"]), int(entry["features"])
            lowest, highest = max(first, from_), min(end, from_ + count)
            if lowest >= highest:
                continue
            if self._store.local("") is not None:
                yield lowest, highest, self._mapped_rows(entry, lowest - from_, highest - from_)
                continue
            # A few tiles at a time, so that memory stays bounded whatever is asked for.
            for tile in range((lowest - from_) // TILE, -(-(highest - from_) // TILE)):
                at, until = max(lowest, from_ + tile * TILE), min(highest, from_ + (tile + 1) * TILE)
                rows = self._fetched_tile(entry, tile)
                inside = slice(at - from_ - tile * TILE, until - from_ - tile * TILE)
                yield at, until, {name: values[inside] for name, values in rows.items()}

    def header(self, entry: dict[str, Any]) -> dict[str, Tensor]:
        """The tensors of a file, once its size and its head are those of the manifest."""
        name = self.name(entry)
        if name not in self._headers:
            place, size = self._store.url_of(name), int(entry["bytes"])
            found = self._store.size(name)
            if found != size:
                raise DamagedError(f"{place} {'is missing' if found is None else f'has {found} bytes and should have {size}'}")
            length = int.from_bytes(self._store.get_range(name, 0, 8), "little") if size >= 8 else size
            if length > min(_HEADER_BYTES, size - 8):
                raise DamagedError(f"{place} has no header")
            header = self._store.get_range(name, 0, 8 + length)
            if xxhash.xxh3_128_hexdigest(header) != entry["header_hash"]:
                raise DamagedError(f"{place} does not have the hashes of its manifest")
            tensors = parse_header(header[8:], 8 + length, size, place)
            features = int(entry["features"])
            for tensor, per_feature in self._expected.items():
                shape = (features,) if per_feature == 1 else (features, per_feature)
                if tensor not in tensors or tensors[tensor].shape != shape:
                    raise DamagedError(f"{place} has no tensor {tensor} of shape {list(shape)}")
            self._headers[name] = tensors
            self._verified[name] = np.zeros(-(-features // TILE), bool)
        return self._headers[name]

    def _mapped_rows(self, entry: dict[str, Any], first: int, end: int) -> dict[str, Array]:
        tensors, name = self.header(entry), self.name(entry)
        if name not in self._maps:
            path = self._store.local(name)
            assert path is not None
            with open(path, "rb") as file:
                self._maps[name] = np.frombuffer(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ), np.uint8)
            if len(self._maps) > _MAPS:
                self._maps.popitem(last=False)
        self._maps.move_to_end(name)
        data = self._maps[name]
        if self._verify:
            for tile in range(first // TILE, -(-end // TILE)):
                if not self._verified[name][tile]:
                    self._check_tile(entry, tile, [data[start:stop] for start, stop in _tile_bytes(tensors, entry, tile)])
                    self._verified[name][tile] = True
        rows = {}
        for tensor in self._expected:
            of = tensors[tensor]
            rows[tensor] = data[of.start : of.end].view(of.numpy).reshape(of.shape)[first:end]
        return rows

    def _fetched_tile(self, entry: dict[str, Any], tile: int) -> dict[str, Array]:
        key = (self.name(entry), tile)
        if key not in self._kept:
            tensors = self.header(entry)
            parts = [np.frombuffer(self._store.get_range(key[0], *at), np.uint8) for at in _tile_bytes(tensors, entry, tile)]
            if self._verify:
                self._check_tile(entry, tile, parts)
            names = sorted(tensors, key=lambda tensor: tensors[tensor].start)
            rows = {
                tensor: part.view(tensors[tensor].numpy).reshape(-1, *tensors[tensor].shape[1:])
                for tensor, part in zip(names, parts)
                if tensor in self._expected
            }
            self._kept[key] = rows
            self._kept_bytes += sum(part.nbytes for part in parts)
            while self._kept_bytes > _KEPT_BYTES and len(self._kept) > 1:
                _, dropped = self._kept.popitem(last=False)
                self._kept_bytes -= sum(values.nbytes for values in dropped.values())
        self._kept.move_to_end(key)
        return self._kept[key]

    def _check_tile(self, entry: dict[str, Any], tile: int, parts: Sequence[Array]) -> None:
        digest = xxhash.xxh3_128()
        for part in parts:
            digest.update(part.data)
        hashes = entry["tile_hashes"]
        if tile >= len(hashes) or digest.hexdigest() != hashes[tile]:
            place = self._store.url_of(self.name(entry))
            raise DamagedError(f"{place} does not have the hashes of its manifest: load an earlier checkpoint of the run")


def _tile_bytes(tensors: dict[str, Tensor], entry: dict[str, Any], tile: int) -> Iterator[tuple[int, int]]:
    """Where a tile's rows of each tensor lie in a file, in the order of their offsets."""
    features = int(entry["features"])
    first, end = tile * TILE, min((tile + 1) * TILE, features)
    for tensor in sorted(tensors.values(), key=lambda tensor: tensor.start):
        per_feature = (tensor.end - tensor.start) // features
        yield tensor.start + first * per_feature, tensor.start + end * per_feature


@dataclass(frozen=True)
class Found:
    """A committed checkpoint: its store, its folder there, and its manifest."""

    store: Store
    folder: str
    manifest: dict[str, Any]

    @property
    def place(self) -> str:
        """As it is called in messages."""
        return self.store.url_of(self.folder) if self.folder else self.store.url

    def files(self, holds: str, expected: dict[str, int], verify: bool) -> Files:
        """Its files of a kind, with the numbers that each tensor has for a feature. Their heads are looked at."""
        entries = [entry for entry in self.manifest["files"] if entry["holds"] == holds]
        files = Files(self.store, self.folder, entries, expected, verify)
        covered = 0
        for entry in sorted(entries, key=lambda entry: int(entry["first_feature"])):
            if int(entry["first_feature"]) != covered or int(entry["features"]) < 1:
                raise DamagedError(f"{self.place}/manifest.json: files of {holds} do not hold every feature once")
            covered += int(entry["features"])
        if covered != self.manifest["features"]:
            raise DamagedError(f"{self.place}/manifest.json: files of {holds} hold {covered} of {self.manifest['features']} features")
        return files

    def shared(self) -> Array:
        """`b_dec`, verified, from the file of what belongs to no feature."""
        entry = next((entry for entry in self.manifest["files"] if entry["holds"] == "shared"), None)
        if entry is None:
            raise DamagedError(f"{self.place}/manifest.json names no file of b_dec")
        name = f"{self.folder}/{entry['name']}" if self.folder else str(entry["name"])
        place = self.store.url_of(name)
        try:
            data = self.store.get(name, int(entry["bytes"]))
        except FileNotFoundError as error:
            raise DamagedError(str(error)) from error
        length = int.from_bytes(data[:8], "little")
        if len(data) != entry["bytes"] or length > len(data) - 8:
            raise DamagedError(f"{place} has {len(data)} bytes and should have {entry['bytes']}")
        header, rest = data[: 8 + length], data[8 + length :]
        if xxhash.xxh3_128_hexdigest(header) != entry["header_hash"] or [xxhash.xxh3_128_hexdigest(rest)] != entry["tile_hashes"]:
            raise DamagedError(f"{place} does not have the hashes of its manifest: load an earlier checkpoint of the run")
        tensor = parse_header(header[8:], 8 + length, len(data), place).get("b_dec")
        if tensor is None or tensor.dtype != "F32" or tensor.shape != (self.manifest["width"],):
            raise DamagedError(f"{place} has no b_dec of {self.manifest['width']} numbers")
        return np.frombuffer(data[tensor.start : tensor.end], "<f4")


_NAME = re.compile(r"[A-Za-z0-9._-]+")
_ATTEMPT = re.compile(r"checkpoints/step-(\d+)/attempt-(\d+)/COMMIT")


def find(path: str, which: str | int) -> Found:
    """The checkpoint that a path names: a run's folder (`which` of its checkpoints: `"last"`, `"best"`, or a step), one of a step or an attempt
    in it, or a copy of an attempt's.

    Raises:
        FileNotFoundError: when there is none, or not that one.
        DamagedError: when all that it could be are damaged.
    """
    trimmed = path.rstrip("/")
    inside = re.fullmatch(r"(?:(.*)/)?checkpoints/step-(\d+)(?:/(attempt-\d+))?", trimmed)
    if inside:
        _refuse_choice(path, which)
        store = Store(inside[1] or ("/" if trimmed.startswith("/") else "."))
        return _first(store, _attempts(store, inside[3] and trimmed[len(inside[1] or "") :].lstrip("/"), int(inside[2])), path)
    store = Store(path)
    if store.size("COMMIT") is not None:
        _refuse_choice(path, which)
        return _read(store, "")
    found = _attempts(store, None, which if isinstance(which, int) else None)
    if not found and isinstance(which, int):
        steps = sorted({step for step, _, _ in _attempts(store, None, None)})
        raise FileNotFoundError(f"{path} holds no committed checkpoint of step {which}; it has: {', '.join(map(str, steps)) or 'none'}")
    return _best(store, found, path) if which == "best" else _first(store, found, path)


def _refuse_choice(path: str, which: str | int) -> None:
    if which != "last":
        raise ValueError(f"{path} is a checkpoint already: name its run's folder to choose another, or leave the choice out")


def _attempts(store: Store, folder: str | None, step: int | None) -> list[tuple[int, int, str]]:
    """Committed attempts, newest first: step, number, folder; those of a step or a folder alone."""
    found = [(int(match[1]), int(match[2]), name.rpartition("/")[0]) for name in store.list("checkpoints") if (match := _ATTEMPT.fullmatch(name))]
    found = [attempt for attempt in found if step in (None, attempt[0]) and folder in (None, attempt[2])]
    return sorted(found, reverse=True)


def _first(store: Store, attempts: Sequence[tuple[int, int, str]], path: str) -> Found:
    """The newest that is not damaged, as far as its manifest and the heads of its files show."""
    damage: DamagedError | None = None
    for _, _, folder in attempts:
        try:
            return _read(store, folder)
        except DamagedError as error:
            warnings.warn(f"{error}; trying the checkpoint before it", stacklevel=4)
            damage = error
    if damage is not None:
        raise DamagedError(f"no intact checkpoint is left: {damage}") from damage
    raise FileNotFoundError(f"{path} holds no committed checkpoint: name a run's folder, a checkpoints/step-… folder inside it, or an export")


def _best(store: Store, attempts: Sequence[tuple[int, int, str]], path: str) -> Found:
    best: tuple[float, Found] | None = None
    for _, _, folder in attempts:
        try:
            found = _read(store, folder)
        except DamagedError as error:
            warnings.warn(f"{error}; looking for the best of the others", stacklevel=4)
            continue
        held_out = found.manifest.get("held_out")
        # Newest first: of equals the last, as training chooses.
        if isinstance(held_out, dict) and (best is None or held_out["loss"] < best[0]):
            best = held_out["loss"], found
    if best is None:
        raise FileNotFoundError(f"{path} holds no checkpoint that was evaluated during training, so none is the best: take the last, or a step")
    return best[1]


def _read(store: Store, folder: str) -> Found:
    """A checkpoint whose manifest has the hash that COMMIT names."""
    at = (lambda name: f"{folder}/{name}") if folder else (lambda name: name)
    place = store.url_of(folder) if folder else store.url
    try:
        seal, text = store.get(at("COMMIT"), 1 << 12), store.get(at("manifest.json"), _MANIFEST_BYTES)
    except FileNotFoundError as error:
        raise DamagedError(str(error)) from error
    if seal.decode(errors="replace").strip() != xxhash.xxh3_128_hexdigest(text):
        raise DamagedError(f"{place}: manifest.json does not have the hash that COMMIT names")
    try:
        manifest = json.loads(text)
        if manifest["format"] not in FORMATS:
            raise NotImplementedError(
                f"{place} was written by {manifest['software']} in checkpoint format {manifest['format']}, and this package reads formats up "
                f"to {FORMATS[-1]}: use that of the program that wrote it"
            )
        _check_manifest(manifest)
    except (ValueError, KeyError, TypeError) as error:
        raise DamagedError(f"{place}/manifest.json is no manifest of a checkpoint: {error}") from error
    sizes = store.list(folder)
    for entry in manifest["files"]:
        size = sizes.get(at(entry["name"]))
        if size != entry["bytes"]:
            what = "is missing" if size is None else f"has {size} bytes and should have {entry['bytes']}"
            raise DamagedError(f"{store.url_of(at(entry['name']))} {what}")
    return Found(store, folder, manifest)


def _check_manifest(manifest: dict[str, Any]) -> None:
    """What later code relies on. The manifest has the hash of its COMMIT, so this is for what others have made."""
    width, features, scale = manifest["width"], manifest["features"], manifest["scale"]
    if not (isinstance(width, int) and 1 <= width <= 1 << 20 and isinstance(features, int) and features >= 1):
        raise ValueError(f"a dictionary of {features!r} features of width {width!r}")
    if not (isinstance(scale, (int, float)) and 0 < scale < float("inf")):
        raise ValueError(f"rows times {scale!r}")
    for entry in manifest["files"]:
        if not _NAME.fullmatch(entry["name"]) or entry["name"] in (".", ".."):
            raise ValueError(f"a file called {entry['name']!r}")
        if entry["holds"] not in ("weights", "optimizer", "shared") or min(entry["bytes"], entry["first_feature"], entry["features"]) < 0:
            raise ValueError(f"an impossible entry of {entry['name']}")
        if not isinstance(entry["tile_hashes"], list) or not isinstance(entry["header_hash"], str):
            raise ValueError(f"no hashes of {entry['name']}")
