"""Writing rows of activations as shards."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from types import TracebackType
from typing import Any

import numpy as np
import pyarrow as pa

from . import _columns
from ._arguments import boolean, integer
from ._arrays import Bytes, as_array, dtype_name, stored
from ._manifest import SOURCE_BYTES
from ._parts import Marker, Parts, shard_name
from ._shard import Layout, ShardFile
from ._store import Store

# The widest rows that the loader takes.
_MOST_WIDTH = 1 << 20


def checked_width(width: int) -> int:
    """A width that the loader takes.

    Raises:
        ValueError: for any other.
    """
    return integer("width", width, 1, _MOST_WIDTH)


def checked_source(metadata: Mapping[str, Any] | None) -> dict[str, Any]:
    """What is said of where rows came from, as JSON gives it back.

    Raises:
        ValueError: when it is more than 64 KiB, or not JSON.
    """
    try:
        text = json.dumps(dict(metadata or {}), allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ValueError(f"metadata is kept as JSON, and this is none: {error}") from error
    if len(text) > SOURCE_BYTES:
        raise ValueError(f"metadata has {len(text)} bytes, and at most {SOURCE_BYTES} are kept")
    source: dict[str, Any] = json.loads(text)
    return source


class Buffered:
    """A shard with the row group that is being filled: cuts rows, whatever they come in, as the layout says."""

    def __init__(self, store: Store, name: str, layout: Layout, types: Mapping[str, Any]) -> None:
        self._layout = layout
        self._file = ShardFile(store, name, layout, types)
        self._rows: Bytes = np.empty((layout.group_rows, layout.row_bytes), np.uint8)
        self._columns: dict[str, list[Any]] = {name: [] for name in types}
        self._held = 0

    @property
    def rows(self) -> int:
        """Rows so far."""
        return self._file.rows + self._held

    def write(self, rows: Bytes, columns: Mapping[str, Any]) -> None:
        """Appends stored rows, and an Arrow array of each other column."""
        at = 0
        while at < len(rows):
            take = min(len(rows) - at, self._layout.group_rows - self._held)
            self._rows[self._held : self._held + take] = rows[at : at + take]
            for name, values in columns.items():
                self._columns[name].append(values.slice(at, take))
            self._held += take
            at += take
            if self._held == self._layout.group_rows:
                self._flush()

    def _flush(self) -> None:
        if self._held:
            columns = {name: pa.concat_arrays(values) for name, values in self._columns.items()}
            self._file.write(self._rows[: self._held], columns)
            self._columns = {name: [] for name in columns}
            self._held = 0

    def finish(self) -> Any:
        """Ends the shard and returns its entry in the manifest."""
        self._flush()
        return self._file.finish()

    def abort(self) -> None:
        """Leaves the shard unwritten."""
        self._file.abort()


class ShardWriter:
    """Streams rows into a folder of shards that `sae train` reads fastest, and ends with a manifest.

    ```python
    about = {"model": "…", "hook_name": "blocks.11.hook_resid_post", "dataset": "…", "context_size": 512, "prepend_bos": True}
    with sae.ShardWriter("s3://bucket/layer12", width=4096, dtype="bf16", metadata=about) as writer:
        for tokens, hidden in batches:                       # hidden [batch, seq, 4096], on any device
            writer.write(hidden, token_id=tokens)            # any columns, the same in every call
    ```

    Rows are cut into shards of `shard_rows`, each committed by a marker once it is complete. A writer that is killed loses the shard that
    it was filling: made again with the same arguments it goes on after `rows_committed` rows, and the caller hands over what comes
    behind them. Left by an exception (Ctrl-C too) it is the same; left without one it writes the rest and the manifest.
    One writer at a time writes a folder: of two the one that began first stops with an error. Several processes write a folder each, and
    `data.train` lists them.

    Memory: about 140 MiB, whatever is written. In object storage a shard is complete in a temporary file (`TMPDIR`) before it is sent, and is held in
    memory while it is.

    Args:
        url: a folder by its path or URL (`s3://`, `gs://`, `az://`); made if it is not there. It holds nothing, or what such a writer began.
        width: numbers in a row, 1 to 2^20.
        dtype: how they are stored: `"bf16"`, `"f16"` or `"f32"`, or such a dtype of numpy or torch. Numbers that come in another format are
            rounded to the nearest.
        metadata: where the rows came from, as JSON of any keys; goes into the manifest. At most 64 KiB. `sae export` tells other tools what it finds under
            `model`, `hook_name`, `dataset` (texts), `context_size` (a whole number) and `prepend_bos` (`True` or `False`), where its flags say nothing.
        columns: types of columns by name, as Arrow calls them (`"int64"`, `"string"`); `token_id` and `pos` are int32, `doc_id`
            is int64 and `context_id` uint64 where nothing else is said, and all others what they are in the first `write`.
        shard_rows: rows in a shard; about 256 MiB by default.
        shuffled: say that the rows are shuffled over all of the data set: they are trained on in their order.

    Raises:
        ValueError: for arguments that are none, a folder that holds other shards, or one that was begun with other arguments.
        StoreError: when the store does not answer.
    """

    def __init__(
        self,
        url: str | os.PathLike[str],
        width: int,
        dtype: Any = "bf16",
        metadata: Mapping[str, Any] | None = None,
        *,
        columns: Mapping[str, str] | None = None,
        shard_rows: int | None = None,
        shuffled: bool = False,
    ) -> None:
        self._layout = Layout(checked_width(width), dtype_name(dtype), boolean("shuffled", shuffled))
        self._shard_rows = 8 * self._layout.group_rows if shard_rows is None else integer("shard_rows", shard_rows, 1)
        self._source = checked_source(metadata)
        self._declared = _columns.declared(columns)
        self._parts = Parts(Store.of(url))
        self._types: dict[str, Any] | None = None
        if self._parts.plan is not None:
            self._types = self._planned_types(self._parts.plan.get("columns"))
            self._parts.begin(self._plan())
        leading = self._parts.leading()
        self._done = len(leading)
        self._rows_committed = sum(marker.rows for marker in leading)
        self._is_finished = self._parts.is_finished
        self._open: Buffered | None = None
        self._is_over = False

    def _planned_types(self, columns: Any) -> dict[str, Any]:
        if not isinstance(columns, dict):
            raise ValueError(f"{self._parts.store.url} was begun by another command: name an empty folder")
        return {name: _columns.parsed_type(name, str(kind)) for name, kind in columns.items()}

    def _plan(self) -> dict[str, Any]:
        return {
            "command": "ShardWriter",
            "version": 2,
            "width": self._layout.width,
            "dtype": self._layout.dtype,
            "shard_rows": self._shard_rows,
            "shuffled": self._layout.shuffled,
            "columns": {name: str(kind) for name, kind in (self._types or {}).items()},
            "metadata": self._source,
        }

    @property
    def rows_committed(self) -> int:
        """Rows that no crash takes away any more: those of complete shards. What was handed over behind them comes again after a crash."""
        return self._rows_committed

    @property
    def rows(self) -> int:
        """Rows that were handed over, those of earlier writers of the folder included."""
        return self._rows_committed + (self._open.rows if self._open else 0)

    @property
    def is_finished(self) -> bool:
        """Whether the manifest is written: nothing more is taken."""
        return self._is_finished

    def write(self, rows: Any, /, **columns: Any) -> None:
        """Appends rows.

        Args:
            rows: `[…, width]`, a torch tensor on any device, a numpy array of floats, bf16 of ml_dtypes included, or lists of them; `uint16` arrays are
                taken for the bits of bf16 or f16, as `dtype` says. The dimensions before the last are rows in their order.
            **columns: for each name a value for each row, as a tensor or an array of one dimension or of those that the rows have before the last, or a
                list; or a single one for all of them. Integers, floats, booleans or strings; in `token_id`, `doc_id`, `pos` and `context_id`
                numbers from 0 on.

        Raises:
            ValueError: for another width, rows that are not finite (training would be refused at them) or that the format does not hold,
                other columns than in earlier calls, and values that do not fit. Nothing of such a call is written.
            ValueError: also when another writer has begun to write to the folder since. This writer takes nothing more then.
            StoreError: when the store refuses. This writer takes nothing more then; a new one goes on after `rows_committed`.
        """
        self._refuse_if_over()
        if self._is_finished:
            raise ValueError(f"{self._parts.store.url} is finished: its manifest is written, and no rows are added to it")
        given = as_array(rows)
        bits = stored(given, self._layout.width, self._layout.dtype)
        of_rows = _columns.given(columns, tuple(given.shape[:-1]))
        types = self._types if self._types is not None else _columns.types_of(of_rows, self._declared)
        values = _columns.arrays(of_rows, types)
        if self._types is None:
            self._types = types
            self._parts.begin(self._plan())
        self._parts.claim()
        try:
            self._append(bits, values, types)
        except BaseException:
            # Some of the rows may be in the shard: as after a crash, they all come again.
            self._is_over = True
            self.abort()
            raise

    def _append(self, bits: Bytes, values: Mapping[str, Any], types: Mapping[str, Any]) -> None:
        at = 0
        while at < len(bits):
            if self._open is None:
                self._open = Buffered(self._parts.store, shard_name(self._done), self._layout, types)
            take = min(len(bits) - at, self._shard_rows - self._open.rows)
            self._open.write(bits[at : at + take], {name: array.slice(at, take) for name, array in values.items()})
            at += take
            if self._open.rows == self._shard_rows:
                self._commit()

    def _refuse_if_over(self) -> None:
        if self._is_over:
            raise ValueError(f"this writer of {self._parts.store.url} has failed: make a new one, which goes on after rows_committed")

    def _commit(self) -> None:
        """Ends the open shard."""
        if self._open is not None:
            self._parts.check_claim()
            shard = self._open.finish()
            # Another may have begun while the shard was sent.
            self._parts.check_claim()
            self._parts.commit(self._done, Marker({"": shard}, {}))
            self._done, self._rows_committed = self._done + 1, self._rows_committed + int(shard["rows"])
            self._open = None

    def finish(self) -> int:
        """Writes the last shard and the manifest, with which the data set is complete. Returns its rows.

        Raises:
            ValueError: when no rows were written, and when another writer has begun to write to the folder.
        """
        self._refuse_if_over()
        if not self._is_finished:
            try:
                if self._open is not None or self._done > 0:
                    # A writer that has written nothing ends no folder that another is writing.
                    self._parts.claim()
                    self._parts.check_claim()
                self._commit()
            except BaseException:
                self._is_over = True
                self.abort()
                raise
            if self._done == 0:
                raise ValueError(f"no rows were written to {self._parts.store.url}")
            self._parts.finish(self._done, self._layout, {"": self._source})
            self._is_finished = True
        return self._rows_committed

    def abort(self) -> None:
        """Leaves the shard that is being filled unwritten. Another writer goes on from what is committed."""
        if self._open is not None:
            self._open.abort()
            self._open = None

    def __enter__(self) -> ShardWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if error is None:
            self.finish()
        else:
            self.abort()

    def __repr__(self) -> str:
        return f"ShardWriter({self._parts.store.url!r}, width={self._layout.width}, dtype={self._layout.dtype!r}, rows={self.rows})"
