"""One shard in the layout that is read fastest, that of loader/src/make/writer.rs: required FixedSizeBinary, PLAIN, uncompressed, pages of
whole rows of about 4 MiB, row groups of about 32 MiB, offset index; dtype, width and byte order in the metadata.

pyarrow writes the file. Where its pages lie it does not say, and checksums need it: the heads of pages are read back from what it wrote,
by the little that is needed of Thrift's compact protocol. A Parquet writer of our own was rejected: columns beside the rows may have
any type, and those who handle Parquet in Python have pyarrow already.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ._arrays import SIZES, Bytes
from ._manifest import COLUMN, RowGroup, Shard, pieces
from ._store import Store

ROW_GROUP_BYTES = 32 << 20
PAGE_BYTES = 4 << 20


class Layout:
    """How rows of a width and format are cut."""

    def __init__(self, width: int, dtype: str, shuffled: bool = False) -> None:
        self.width, self.dtype, self.shuffled = width, dtype, shuffled
        self.row_bytes = width * SIZES[dtype]
        self.page_rows = max(PAGE_BYTES // self.row_bytes, 1)
        self.group_rows = max(ROW_GROUP_BYTES // self.row_bytes // self.page_rows, 1) * self.page_rows

    def schema(self, columns: Mapping[str, Any]) -> Any:
        """The Arrow schema with other columns of these types; what the loader looks for is in the metadata of file and field."""
        numbers = {"sae.dtype": self.dtype, "sae.width": str(self.width), "sae.byte_order": "little"}
        numbers |= {"sae.order": "shuffled"} if self.shuffled else {}
        fields = [pa.field(COLUMN, pa.binary(self.row_bytes), nullable=False, metadata=numbers)]
        fields += [pa.field(name, kind, nullable=False) for name, kind in columns.items()]
        return pa.schema(fields, metadata=numbers)


class _Tail:
    """What a Parquet writer writes, taken away by row groups."""

    def __init__(self) -> None:
        self._held = bytearray()
        self._at = 0
        self.closed = False

    def write(self, data: bytes) -> int:
        self._held += data
        self._at += len(data)
        return len(data)

    def tell(self) -> int:
        return self._at

    def flush(self) -> None:
        """Nothing is held back."""

    def close(self) -> None:
        self.closed = True

    def readable(self) -> bool:
        return False

    def writable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return False

    def take(self) -> bytearray:
        taken, self._held = self._held, bytearray()
        return taken


class ShardFile:
    """A shard that is being written: row groups go to the store as they are filled."""

    def __init__(self, store: Store, name: str, layout: Layout, columns: Mapping[str, Any]) -> None:
        self._layout, self._name = layout, name
        self._schema = layout.schema(columns)
        self._output = store.open(name)
        self._tail = _Tail()
        self._groups: list[RowGroup] = []
        self._size = 0
        options: dict[str, Any] = {
            "compression": "none",
            "use_dictionary": False,
            "write_statistics": False,
            "write_page_index": True,
            "data_page_version": "1.0",
            "data_page_size": layout.page_rows * layout.row_bytes,
            "write_batch_size": layout.page_rows,
        }
        if int(pa.__version__.split(".")[0]) >= 22:
            # Later versions end a page at 20,000 rows where nothing is said.
            options["max_rows_per_page"] = layout.page_rows
        self._parquet = pq.ParquetWriter(pa.PythonFile(self._tail, mode="w"), self._schema, **options)

    def write(self, rows: Bytes, columns: Mapping[str, Any]) -> None:
        """Writes a row group: rows `[n, row_bytes]`, and an Arrow array of n values for each other column."""
        count = len(rows)
        kind = self._schema.field(COLUMN).type
        activation = pa.FixedSizeBinaryArray.from_buffers(kind, count, [None, pa.py_buffer(rows)])
        arrays = [activation, *(columns[name] for name in self._schema.names[1:])]
        self._parquet.write_table(pa.Table.from_arrays(arrays, schema=self._schema), row_group_size=count)
        data = self._tail.take()
        # The activations are the first column, and before the first row group stand four bytes.
        start = 4 if self._size == 0 else 0
        pages = _pages(memoryview(data)[start:], count, self._layout.row_bytes)
        length = pages[-1][1]
        chunk = memoryview(data)[start : start + length]
        self._groups.append(
            {"rows": count, "offset": self._size + start, "length": length, "pieces": pieces(chunk, pages)}
        )
        self._size += len(data)
        self._output.write(data)

    @property
    def rows(self) -> int:
        """Rows in row groups."""
        return sum(group["rows"] for group in self._groups)

    def finish(self) -> Shard:
        """Ends the file; from here on it is there under its name."""
        self._parquet.close()
        data = self._tail.take()
        self._output.write(data)
        self._output.commit()
        rows, size = self.rows, self._size + len(data)
        return {"path": self._name, "size": size, "rows": rows, "raw": True, "row_groups": self._groups}

    def abort(self) -> None:
        """Leaves the file unwritten."""
        self._output.abort()


def _pages(data: memoryview, rows: int, row_bytes: int) -> list[tuple[int, int]]:
    """The rows of each page at the start of `data`, up to so many in all, and where it ends."""
    found: list[tuple[int, int]] = []
    at = 0
    while rows > 0:
        at, header = _struct(data, at)
        # Fields 3 and 5.1 of PageHeader: the bytes behind it, and its values.
        size, values = header.get(3, 0), header.get(5, {}).get(1, 0)
        if values * row_bytes != size or values == 0 or values > rows:
            raise RuntimeError("pyarrow has written pages that are not plain rows: this version of it is not understood")
        at += size
        rows -= values
        found.append((values, at))
    return found


def _struct(data: memoryview, at: int) -> tuple[int, dict[int, Any]]:
    """Behind a struct, and its fields: numbers, structs, and nothing of others that a page header may have."""
    fields: dict[int, Any] = {}
    field = 0
    while data[at] != 0:
        kind, step = data[at] & 0x0F, data[at] >> 4
        at += 1
        if step:
            field += step
        else:
            at, field = _number(data, at)
        if kind == 12:
            at, fields[field] = _struct(data, at)
        elif kind in (4, 5, 6):
            at, fields[field] = _number(data, at)
        elif kind == 8:
            at, length = _varint(data, at)
            at += length
        elif kind not in (1, 2):  # booleans lie in their heads
            raise RuntimeError("pyarrow has written a page header with unknown fields: this version of it is not understood")
    return at + 1, fields


def _number(data: memoryview, at: int) -> tuple[int, int]:
    """Behind a zigzag number, and the number."""
    at, raw = _varint(data, at)
    return at, (raw >> 1) ^ -(raw & 1)


def _varint(data: memoryview, at: int) -> tuple[int, int]:
    raw = shift = 0
    while True:
        byte, at = data[at], at + 1
        raw |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            return at, raw
