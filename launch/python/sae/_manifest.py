"""manifest.json beside shards, as loader/src/dataset/manifest.rs reads it: what the shards are, with checksums and an identity."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any, TypedDict

import xxhash

FILE_NAME = "manifest.json"
FORMAT, VERSION = "sae-shards", 1
COLUMN = "activation"
# The order of the formats in loader/src/dtype.rs.
_DTYPES = ["f32", "f16", "bf16"]
# A piece of a column chunk that can be fetched and verified alone has so many bytes at least, as in loader/src/parquet/decode.rs.
PIECE_BYTES = 3 << 20
# What is kept of where rows came from: more than this is no description.
SOURCE_BYTES = 64 << 10


class RowGroup(TypedDict):
    """The chunk of the activation column in a row group; each piece is its rows, bytes and xxh3-64."""

    rows: int
    offset: int
    length: int
    pieces: list[tuple[int, int, str]]


class Shard(TypedDict):
    """A Parquet file."""

    path: str
    size: int
    rows: int
    raw: bool
    row_groups: list[RowGroup]


def pieces(chunk: bytes | memoryview, pages: Sequence[tuple[int, int]]) -> list[tuple[int, int, str]]:
    """The pieces of a chunk whose pages have so many rows, and end at such a byte of it."""
    cut: list[tuple[int, int, str]] = []
    rows = start = 0
    for number, (in_page, end) in enumerate(pages):
        rows += in_page
        last = number + 1 == len(pages)
        end = len(chunk) if last else end
        if last or end - start >= PIECE_BYTES:
            cut.append((rows, end - start, xxhash.xxh3_64_hexdigest(chunk[start:end])))
            rows, start = 0, end
    return cut


def identity(width: int, dtype: str, shards: Iterable[Shard]) -> str:
    """The hash of a manifest that has all its checksums."""
    digest = xxhash.xxh3_128()

    def word(number: int) -> None:
        digest.update((number & 0xFFFF_FFFF_FFFF_FFFF).to_bytes(8, "little"))

    for number in (VERSION, width, _DTYPES.index(dtype), 1):
        word(number)
    for shard in shards:
        word(xxhash.xxh3_64_intdigest(shard["path"].encode()))
        word(shard["size"])
        for group in shard["row_groups"]:
            word(group["rows"])
            word(group["offset"])
            word(group["length"])
            for rows, length, checksum in group["pieces"]:
                turned = ((length << 32) | (length >> 32)) & 0xFFFF_FFFF_FFFF_FFFF
                word(xxhash.xxh3_64_intdigest(checksum.encode()) ^ rows ^ turned)
    return digest.hexdigest()


def to_json(width: int, dtype: str, shuffled: bool, shards: Iterable[Shard], source: dict[str, Any] | None) -> bytes:
    """A manifest of these shards; `source` says where the rows came from and is no part of the identity."""
    ordered = sorted(shards, key=lambda shard: shard["path"].encode())
    manifest: dict[str, Any] = {
        "format": FORMAT,
        "version": VERSION,
        "width": width,
        "dtype": dtype,
        "prepared": shuffled,
        "checksummed": True,
        "column": COLUMN,
        "identity": identity(width, dtype, ordered),
    }
    if source:
        manifest["source"] = source
    return json.dumps(manifest | {"shards": ordered}, separators=(",", ":"), ensure_ascii=False).encode() + b"\n"
