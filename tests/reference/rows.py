"""Rows of activations from Parquet files, in file order, for the scripts of this folder.

A file holds either a column `activation` (FixedSizeList or List of float16/float32, or FixedSizeBinary whose field
metadata says `sae.dtype` = f16 | bf16 | f32 and `sae.width`) or a column `act` (a list of float32).
"""

import glob
import os
import queue
import threading

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

ROWS_PER_READ = 16_384
QUEUE_DEPTH = 2
PLAIN = {"f16": np.float16, "f32": np.float32}


def parquet_files(paths):
    """The Parquet files meant by a list of files and folders, each folder's files sorted by name."""
    files = []
    for path in paths:
        files += sorted(glob.glob(os.path.join(path, "*.parquet"))) if os.path.isdir(path) else [path]
    if not files:
        raise SystemExit(f"no Parquet files in {paths}")
    return files


def row_count(files):
    return sum(pq.read_metadata(file).num_rows for file in files)


def column_name(schema):
    for name in ("activation", "act"):
        if name in schema.names:
            return name
    raise SystemExit(f"no column `activation` or `act` among {schema.names}")


def as_tensor(column, field):
    """One Arrow array of rows as a tensor [rows, width] in its stored dtype."""
    if pa.types.is_fixed_size_binary(field.type):
        metadata = field.metadata or {}
        dtype, width = metadata[b"sae.dtype"].decode(), int(metadata[b"sae.width"])
        row_bytes = field.type.byte_width
        start = column.offset * row_bytes
        values = np.frombuffer(column.buffers()[1], np.uint8)[start : start + len(column) * row_bytes]
        if dtype == "bf16":
            return torch.from_numpy(values.view(np.int16).reshape(-1, width).copy()).view(torch.bfloat16)
        return torch.from_numpy(values.view(PLAIN[dtype]).reshape(-1, width).copy())
    return torch.from_numpy(column.flatten().to_numpy(zero_copy_only=False).reshape(len(column), -1).copy())


def chunks(files):
    for file in files:
        with pq.ParquetFile(file) as parquet:
            name = column_name(parquet.schema_arrow)
            field = parquet.schema_arrow.field(name)
            for part in parquet.iter_batches(ROWS_PER_READ, columns=[name], use_threads=False):
                yield as_tensor(part.column(0), field)


def read_ahead(items):
    """The same items, produced by a thread that stays a little ahead."""
    ready, end, stop = queue.Queue(QUEUE_DEPTH), object(), threading.Event()

    def produce():
        last = end
        try:
            for item in items:
                ready.put(item)
                if stop.is_set():
                    return
        except BaseException as error:  # handed to the consumer, which raises it
            last = error
        ready.put(last)

    threading.Thread(target=produce, daemon=True).start()
    try:
        while (item := ready.get()) is not end:
            if isinstance(item, BaseException):
                raise item
            yield item
    finally:
        stop.set()


def batches(files, size, limit=None):
    """Batches [size, width] in stored dtype; `limit` is a number of rows; the last batch may be short."""
    rest, held, left = [], 0, limit
    for chunk in read_ahead(chunks(files)):
        if left is not None:
            chunk = chunk[:left]
            left -= len(chunk)
        start = 0
        if rest:
            start = min(size - held, len(chunk))
            rest.append(chunk[:start])
            held += start
            if held == size:
                yield torch.cat(rest)
                rest, held = [], 0
        while start + size <= len(chunk):
            yield chunk[start : start + size]
            start += size
        if start < len(chunk):
            rest.append(chunk[start:])
            held += len(chunk) - start
        if left == 0:
            break
    if held:
        yield torch.cat(rest)
