"""What `sae encode` has written, against NumPy on an export.

    encoded.py make FOLDER
        writes shards as pyarrow does, with columns of several types beside the activations
    encoded.py check --encoded FOLDER --export FOLDER --rows FILE... [--ids] [--drop-position 0]
        recomputes every activation from the raw rows in float64, and compares pairs, order and columns

An activation that is within rounding of 0 may be there or not; every other must be, and no more. Exit status 0: as it should be.
"""

import argparse
import json
import pathlib

import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
from safetensors.numpy import load_file

WIDTH = 32


def make(folder):
    folder = pathlib.Path(folder)
    folder.mkdir(parents=True)
    rng = np.random.default_rng(7)
    directions = rng.standard_normal((64, WIDTH))
    first = 0
    for shard, rows in enumerate([700, 1, 523]):
        picked = rng.random((rows, 64)) < 0.06
        x = ((picked * rng.uniform(1, 3, (rows, 64))) @ directions * 2.5 + 0.3).astype(np.float32)
        number = np.arange(first, first + rows)
        first += rows
        table = pa.table({
            "activation": pa.FixedSizeListArray.from_arrays(pa.array(x.reshape(-1)), WIDTH),
            "token_id": pa.array((number * 7 % 1000).astype(np.int32)),
            "doc_id": pa.array(number // 50),
            "pos": pa.array((number % 50).astype(np.int16)),
            "context_id": pa.array((number // 25 + (1 << 40)).astype(np.uint64)),
            "surprise": pa.array([None if n % 11 == 0 else n / 8 for n in number.tolist()], pa.float64()),
            "text": pa.array([f"word {n % 13}" for n in number.tolist()], pa.string()),
            "is_code": pa.array((number % 3 == 0)),
            "neighbours": pa.array([[int(n), int(n) + 1] for n in number], pa.list_(pa.int32())),
        })
        pq.write_table(table, folder / f"part-{shard}.parquet", row_group_size=150, compression="snappy")


def weights(folder):
    folder = pathlib.Path(folder)
    if (folder / "ae.safetensors").exists():
        of = load_file(folder / "ae.safetensors")
        return of["encoder.weight"].T.astype(np.float64), of["encoder.bias"].astype(np.float64)
    of = load_file(folder / "sae_weights.safetensors")
    return of["W_enc"].astype(np.float64), of["b_enc"].astype(np.float64)


def check(args):
    w_enc, b_enc = weights(args.export)
    ids = np.arange(len(b_enc))
    if args.ids:
        ids = load_file(pathlib.Path(args.export) / "features.safetensors")["feature"]
    tables = [pq.read_table(file) for file in sorted(args.rows)]
    x = np.concatenate([np.stack(table["activation"].to_pylist()).astype(np.float32) for table in tables]).astype(np.float64)
    given = pa.concat_tables(tables).drop(["activation"])
    kept = np.ones(len(x), bool)
    if args.drop_position is not None:
        kept = given["pos"].to_numpy() != args.drop_position
    numbers = np.flatnonzero(kept)

    parts = sorted((pathlib.Path(args.encoded) / "activations").glob("*.parquet"))
    pieces = [pq.read_table(part) for part in parts]
    for piece in pieces:
        assert piece.schema.types == [pa.uint64(), pa.uint32(), pa.float32()], piece.schema
        order = piece["row"].to_numpy().astype(np.int64) * (1 << 32) + piece["feature"].to_numpy()
        assert (np.diff(order) > 0).all(), "pairs ascend by row, then by feature"
    pairs = pa.concat_tables(pieces)
    row, feature = pairs["row"].to_numpy().astype(np.int64), pairs["feature"].to_numpy().astype(np.int64)
    activation = pairs["activation"].to_numpy().astype(np.float64)
    assert np.isin(row, numbers).all() and np.isin(feature, ids).all()
    assert len(set(zip(row.tolist(), feature.tolist()))) == len(row), "a pair comes once"

    expected = x @ w_enc + b_enc
    size = np.abs(x) @ np.abs(w_enc) + np.abs(b_enc)
    got = np.zeros_like(expected)
    got[row, np.searchsorted(ids, feature)] = activation
    present = np.zeros(expected.shape, bool)
    present[row, np.searchsorted(ids, feature)] = True
    near_zero = np.abs(expected) <= 1e-5 * size
    wanted = (expected > 0) & kept[:, None]
    assert ((present == wanted) | near_zero)[kept].all(), "another set of features is active"
    assert (present[kept] & ~near_zero[kept]).sum() > 500, "there is something to compare"
    assert (activation > 0).all()
    assert (np.abs(got - np.maximum(expected, 0))[present] <= 1e-5 * size[present]).all(), "other activations"

    rows = ds.dataset(pathlib.Path(args.encoded) / "rows", format="parquet").to_table().sort_by("row")
    assert rows["row"].to_pylist() == numbers.tolist()
    beside = [name for name in given.column_names if name != "neighbours"]
    assert rows.column_names == ["row", *sorted(beside)], rows.column_names
    for name in beside:
        column = given[name].take(numbers)
        assert rows[name].type == column.type, (name, rows[name].type)
        assert rows[name].to_pylist() == column.to_pylist(), name

    says = json.loads((pathlib.Path(args.encoded) / "encoding.json").read_text())
    assert (says["rows"], says["pairs"], says["filtered"]) == (len(numbers), len(row), int((~kept).sum())), says
    assert abs(says["l0"] - len(row) / len(numbers)) < 1e-9
    assert [shard["first_row"] for shard in says["data"]["shards"]] == np.cumsum([0] + [len(t) for t in tables])[:-1].tolist()
    metadata = pq.read_metadata(parts[0]).metadata
    assert metadata[b"sae.dictionary"].decode() == says["dictionary"]["identity"]
    assert metadata[b"sae.data"].decode() == says["data"]["identity"]
    print(f"{len(row)} pairs of {len(numbers)} rows")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("make").add_argument("folder")
    of_check = commands.add_parser("check")
    of_check.add_argument("--encoded", required=True)
    of_check.add_argument("--export", required=True)
    of_check.add_argument("--rows", required=True, nargs="+")
    of_check.add_argument("--ids", action="store_true")
    of_check.add_argument("--drop-position", type=int)
    args = parser.parse_args()
    make(args.folder) if args.command == "make" else check(args)


if __name__ == "__main__":
    main()
