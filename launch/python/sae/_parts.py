"""A data set in numbered parts, each written once: how writers go on after a crash, and how several share the work.

A part is a shard in each output folder and whatever else belongs to it. Its files are written under their own names, then the part is
committed by one small file, `parts/000012.json`, which holds the shards' entries in the manifest. What lies there without a marker does
not count and is written again. `parts/plan.json` says what decides the bytes: a writer with another plan is refused, and so are markers of
another, which name their plan by its hash.

Where parts follow from what was written before, one writer at a time has a folder: `parts/writer` holds a token of the last that began, and one
that finds another's there stops before its next part.
"""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import xxhash

from ._errors import DamagedError, StoreError
from ._manifest import FILE_NAME, Shard, to_json
from ._shard import Layout
from ._store import Store

PLAN = "parts/plan.json"
_WRITER = "parts/writer"
_MARKER = re.compile(r"parts/(\d{6,})\.json")
_OF_PART = re.compile(r"shard-\d{6,}\.parquet")
_SHARD = re.compile(r"(?:.*/)?[^/]+\.(?:parquet|pq)", re.IGNORECASE)
# A marker holds the checksums of a shard: 30 bytes for each 4 MiB.
_MARKER_BYTES = 64 << 20
_READERS = 16


def _marker_name(part: int) -> str:
    return f"parts/{part:06}.json"


def shard_name(part: int) -> str:
    """The file of a part, the same in every output folder."""
    return f"shard-{part:06}.parquet"


@dataclass(frozen=True)
class Marker:
    """What a committed part is: its shard in each output folder (`""` is the data set's own), and what its writer wants to remember."""

    shards: dict[str, Shard]
    note: dict[str, Any]

    @property
    def rows(self) -> int:
        """Rows of the part, in each folder."""
        return next(iter(self.shards.values()))["rows"]


class Parts:
    """The parts of a data set, whose writer goes by `plan`.

    Raises:
        ValueError: when the folder is a file, or holds shards that were not written in parts, or parts of another plan.
    """

    def __init__(self, store: Store, plan: Mapping[str, Any] | None = None) -> None:
        self.store = store
        store.refuse_file()
        # Shards that are seen here were there before the plan is looked for: another worker writes that first.
        there = store.list()
        self.plan = self._read_plan()
        self.markers: dict[int, Marker] = {}
        self._token: bytes | None = None
        if self.plan is None:
            self._refuse_others(there)
        elif "format" in self.plan:
            raise ValueError(f"{self.store.url} was begun by a command of the program sae: name an empty folder")
        else:
            self.markers = self._read_markers()
        if plan is not None:
            self.begin(plan)

    def begin(self, plan: Mapping[str, Any]) -> None:
        """Says what will decide the bytes, before anything is written."""
        if self.plan is None:
            self.store.put_new(PLAN, json.dumps(plan, indent=1, ensure_ascii=False).encode() + b"\n")
            # Of writers that begin together the one that was first decides.
            self.plan = self._read_plan()
            if self.plan is None:
                raise StoreError(f"{self.store.url_of(PLAN)} is not there, though it was written: was the folder taken away?")
        differing = [key for key in sorted({*self.plan, *plan}) if self.plan.get(key) != plan.get(key)]
        if differing:
            said = ", ".join(f"{key} was {self.plan.get(key)!r} and is {plan.get(key)!r}" for key in differing)
            raise ValueError(f"{self.store.url} was begun with another plan: {said}: go on as it was begun, or name an empty folder")

    @property
    def hash(self) -> str:
        """Of the plan, in whichever order it is written."""
        return xxhash.xxh3_64_hexdigest(json.dumps(self.plan, sort_keys=True).encode())

    @property
    def is_finished(self) -> bool:
        """Whether the manifest is written."""
        return self.plan is not None and all(self.store.below(folder).size(FILE_NAME) is not None for folder in self.folders)

    @property
    def folders(self) -> list[str]:
        """Output folders, relative to the data set's."""
        return list((self.plan or {}).get("folders", [""]))

    def leading(self) -> list[Marker]:
        """The committed parts before the first that is not."""
        found: list[Marker] = []
        while len(found) in self.markers:
            found.append(self.markers[len(found)])
        return found

    def renew(self) -> dict[int, Marker]:
        """The committed parts, those of other writers too."""
        self.markers = self._read_markers()
        return self.markers

    def claim(self) -> None:
        """Makes this the only writer of the folder, if it is not yet.

        Raises:
            ValueError: when parts were committed since this looked.
        """
        if self._token is not None:
            return
        token = secrets.token_hex(16).encode()
        # Before the token is written, so that one that is refused stops nobody, and behind it, since until then another writer may commit.
        self._refuse_more_parts()
        self.store.put(_WRITER, token)
        self._refuse_more_parts()
        self._token = token

    def check_claim(self) -> None:
        """
        Raises:
            ValueError: when another writer has claimed the folder since this one did, or has finished it.
        """
        try:
            holds = self._token is None or self.store.get(_WRITER, 1 << 10) == self._token
        except FileNotFoundError:
            holds = False
        if not holds:
            raise ValueError(f"another writer has begun to write to {self.store.url}: one at a time writes a folder, so give each a folder of its own")

    def commit(self, part: int, marker: Marker) -> None:
        """Makes a part count. Its files are complete."""
        content = {"plan": self.hash, "shards": marker.shards, "note": marker.note}
        self.store.put(_marker_name(part), json.dumps(content, separators=(",", ":")).encode() + b"\n")
        self.markers[part] = marker

    def finish(self, count: int, layout: Layout, sources: Mapping[str, dict[str, Any]]) -> None:
        """Writes the manifests of the first `count` parts, which are all committed.

        Raises:
            DamagedError: for a shard that is gone or of another size, one of no part, and a part beyond the last. No manifest is written then.
        """
        if beyond := [part for part in self.markers if part >= count]:
            place = self.store.url_of(_marker_name(min(beyond)))
            raise DamagedError(f"{place} is a part beyond the last, which is {count - 1}: are the texts those that it was begun with?")
        sizes = {folder: self.store.below(folder).list() for folder in self.folders}
        for folder in self.folders:
            for part in range(count):
                shard = self.markers[part].shards[folder]
                found = sizes[folder].get(shard["path"])
                if found != shard["size"]:
                    place, marker = self.store.below(folder).url_of(shard["path"]), self.store.url_of(_marker_name(part))
                    there = "is gone" if found is None else f"has {found} bytes"
                    raise DamagedError(f"{place} {there}, and its part was committed with {shard['size']} bytes: delete {marker}, and the part is made again")
            known = {shard_name(part) for part in range(count)}
            if others := sorted(name for name in sizes[folder] if _OF_PART.fullmatch(name) and name not in known):
                place = self.store.below(folder).url_of(others[0])
                raise DamagedError(f"{place} is of no part: a writer that was killed has left it, and readers would take it for rows: delete it and run again")
        for folder in self.folders:
            store = self.store.below(folder)
            shards = [self.markers[part].shards[folder] for part in range(count)]
            store.put(FILE_NAME, to_json(layout.width, layout.dtype, layout.shuffled, shards, sources.get(folder)))
        self.store.delete(_WRITER)

    def _refuse_more_parts(self) -> None:
        if self._read_markers().keys() != self.markers.keys() or self.is_finished:
            raise ValueError(f"{self.store.url} was written to by another writer since this one began: make a new one, which goes on behind that")

    def _read_plan(self) -> dict[str, Any] | None:
        try:
            return _object(self.store.get(PLAN, 1 << 24), self.store.url_of(PLAN))
        except FileNotFoundError:
            return None

    def _read_markers(self) -> dict[int, Marker]:
        names = [match for name in self.store.list("parts") if (match := _MARKER.fullmatch(name))]

        expected = self.hash

        def read(match: re.Match[str]) -> tuple[int, Marker]:
            name = match[0]
            content = _object(self.store.get(name, _MARKER_BYTES), self.store.url_of(name))
            if content.get("plan") != expected:
                raise DamagedError(f"{self.store.url_of(name)} marks a part of another plan: take it away, and its part is written again")
            return int(match[1]), _marker(content, int(match[1]), self.folders, self.store.url_of(name))

        with ThreadPoolExecutor(_READERS) as readers:
            return dict(readers.map(read, names))

    def _refuse_others(self, names: Iterable[str]) -> None:
        if any(name == FILE_NAME or _SHARD.fullmatch(name) for name in names):
            raise ValueError(f"{self.store.url} already holds shards: name an empty folder")


def _object(data: bytes, place: str) -> dict[str, Any]:
    try:
        content = json.loads(data)
    except ValueError as error:
        raise DamagedError(f"{place} is not JSON: {error}") from error
    if not isinstance(content, dict):
        raise DamagedError(f"{place} is no JSON object")
    return content


def _marker(content: dict[str, Any], part: int, folders: list[str], place: str) -> Marker:
    shards = content.get("shards")
    if not isinstance(shards, dict) or sorted(shards) != sorted(folders) or not shards:
        raise DamagedError(f"{place} does not name the shards of {folders}: take it away, and its part is written again")
    for shard in shards.values():
        is_entry = isinstance(shard, dict) and {"size", "raw", "row_groups"} <= shard.keys() and shard.get("path") == shard_name(part)
        if not is_entry or not isinstance(shard.get("rows"), int):
            raise DamagedError(f"{place} holds no entry of a shard: take it away, and its part is written again")
    note = content.get("note")
    return Marker(shards, note if isinstance(note, dict) else {})
