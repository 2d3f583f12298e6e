"""Activations as the tools write them that `sae ingest` reads, and what has to come of them.

    ingest.py make FOLDER          a source for each case, its rows and columns beside it, damaged and hostile files in `hostile`
    ingest.py check FOLDER SHARDS  shards of each case against those, bit for bit

NumPy, with bfloat16 of ml_dtypes, PyTorch, safetensors, datasets and SAELens write their own files. By hand are vLLM's hidden states, by safetensors in
the shape that vLLM's connector gives them, and BioNeMo's store, by pyarrow after its documents.
"""

import argparse
import json
import os
import pickle
import struct
import types
import zipfile

import datasets
import ml_dtypes
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import safetensors.torch
import torch
from sae_lens.cache_activations_runner import CacheActivationsRunner

WIDTH = 12
random = np.random.default_rng(7)
BITS = {"f16": np.uint16, "bf16": np.uint16, "f32": np.uint32}


def values(*shape):
    """Numbers with signs, small ones, a NaN and infinities."""
    x = random.normal(size=(*shape, WIDTH)).astype(np.float32)
    flat = x.reshape(-1)
    flat[3], flat[5], flat[7], flat[11] = np.nan, np.inf, -np.inf, 1e-41
    return x


def bits(x):
    """Rows of a tensor or an array as unsigned integers."""
    if isinstance(x, torch.Tensor):
        x = x.contiguous().view({2: torch.int16, 4: torch.int32}[x.element_size()]).numpy()
    unsigned = {2: np.uint16, 4: np.uint32}[x.dtype.itemsize]
    return np.ascontiguousarray(x).view(unsigned).reshape(-1, WIDTH)


class Cases:
    def __init__(self, folder):
        self.folder, self.expected = folder, {}

    def path(self, name):
        path = os.path.join(self.folder, name)
        os.makedirs(path, exist_ok=True)
        return path

    def expect(self, name, rows, dtype, arguments=(), lengths=None, **columns):
        """Rows of a case; where they lie in contexts of these lengths, two columns follow."""
        if lengths is not None:
            columns["context_id"] = np.repeat(np.arange(len(lengths)), lengths)
            columns["pos"] = np.concatenate([np.arange(n) for n in lengths])
        np.savez(os.path.join(self.folder, f"{name}.npz"), rows=rows, **columns)
        self.expected[name] = {"dtype": dtype, "arguments": list(arguments)}


def make_npy(cases):
    x = values(300)
    np.save(cases.path("npy") + "/a.npy", x[:100])
    np.save(cases.path("npy") + "/b.npy", x[100:])
    cases.expect("npy", bits(x), "f32")
    with open(cases.path("npy-3") + "/a.npy", "wb") as file:
        x = values(20, 7).astype(np.float16)
        np.lib.format.write_array(file, x, version=(3, 0))
    cases.expect("npy-3", bits(x), "f16", lengths=[7] * 20)
    # ml_dtypes has no name for it that .npy knows: two bytes of any kind.
    x = values(50).astype(ml_dtypes.bfloat16)
    np.save(cases.path("npy-bf16") + "/a.npy", x)
    with open(cases.path("npy-bf16") + "/a.npy", "rb") as file:
        assert b"'<V2'" in file.read(128)
    cases.expect("npy-bf16", bits(x), "bf16")
    x = np.nan_to_num(values(40).astype(np.float64), posinf=1, neginf=-1) + 1e-9
    np.save(cases.path("npy-f64") + "/a.npy", x)
    cases.expect("npy-f64", bits(x.astype(np.float32)), "f32")
    np.save(cases.path("npy-to-bf16") + "/a.npy", x.astype(np.float32))
    cases.expect("npy-to-bf16", bits(torch.tensor(x.astype(np.float32)).bfloat16()), "bf16", ["--dtype", "bf16"])


def make_safetensors(cases):
    x, tokens = torch.tensor(values(30, 5)).bfloat16(), torch.arange(150).reshape(30, 5)
    scores = torch.tensor(random.normal(size=30).astype(np.float32))
    path = cases.path("safetensors")
    for name, part in [("a", slice(0, 10)), ("b", slice(10, 30))]:
        tensors = {"acts": x[part].clone(), "input_ids": tokens[part].clone(), "score": scores[part].clone(), "odd": torch.ones(3)}
        safetensors.torch.save_file(tensors, f"{path}/{name}.safetensors", metadata={"model": "none"})
    columns = {"token_id": tokens.reshape(-1).numpy(), "score": np.repeat(scores.numpy(), 5)}
    cases.expect("safetensors", bits(x), "bf16", lengths=[5] * 30, **columns)
    y = torch.tensor(values(60)).half()
    safetensors.torch.save_file({"layer.1": torch.zeros(60, 4), "layer.2": y}, cases.path("safetensors-named") + "/a.safetensors")
    cases.expect("safetensors-named", bits(y), "f16", ["--tensor", "layer.2"])


def make_vllm(cases):
    lengths, hidden, tokens = [5, 1, 9], [], []
    for i, length in enumerate(lengths):
        x = torch.stack([torch.tensor(values(max(length, 2)))[:length].bfloat16() for _ in range(3)], dim=1).contiguous()
        ids = torch.arange(length) + 1000 * i
        safetensors.torch.save_file({"hidden_states": x, "token_ids": ids}, f"{cases.path('vllm')}/cmpl-{i}.safetensors")
        open(f"{cases.path('vllm')}/cmpl-{i}.safetensors.lock", "w").close()
        hidden.append(x[:, 2])
        tokens.append(ids)
    rows, ids = bits(torch.cat(hidden)), torch.cat(tokens).numpy()
    cases.expect("vllm", rows, "bf16", ["--layer", "2"], lengths=lengths, token_id=ids)


def make_datasets(cases):
    x, tokens = values(2500, 4), random.integers(0, 50_000, size=(2500, 4)).astype(np.int32)
    features = datasets.Features(
        {
            "resid": datasets.Array2D(shape=(4, WIDTH), dtype="float32"),
            "tokens": datasets.Sequence(datasets.Value("int32"), length=4),
            "doc_id": datasets.Value("int64"),
            "text": datasets.Value("string"),
        }
    )
    data = {"resid": x, "tokens": tokens, "doc_id": np.arange(2500) // 3, "text": [f"text {i}" for i in range(2500)]}
    dataset = datasets.Dataset.from_dict(data, features=features)
    dataset.save_to_disk(cases.path("arrow"), num_shards=2)
    dataset.to_parquet(cases.path("parquet") + "/a.parquet", batch_size=700)
    for name in ("arrow", "parquet"):
        columns = {"token_id": tokens.reshape(-1), "doc_id": np.repeat(np.arange(2500) // 3, 4)}
        cases.expect(name, bits(x), "f32", lengths=[4] * 2500, **columns)
    # Contexts of several lengths, in batches that begin in the middle of a larger table; and a name for each row.
    lengths = random.integers(1, 9, size=200)
    flat = values(int(lengths.sum())).astype(np.float16)
    ends = np.concatenate([[0], np.cumsum(lengths)])
    lists = pa.ListArray.from_arrays(pa.array(ends, pa.int32()), pa.FixedSizeListArray.from_arrays(pa.array(flat.reshape(-1)), WIDTH))
    ids = pa.ListArray.from_arrays(pa.array(ends, pa.int32()), pa.array(np.arange(len(flat)), pa.uint16()))
    table = pa.table({"a": lists, "ids": ids, "other": pa.array([{"x": i} for i in range(200)])}).slice(10, 180)
    with pa.ipc.new_stream(cases.path("arrow-ragged") + "/a.arrow", table.schema) as writer:
        writer.write_table(table, max_chunksize=50)
    with pa.ipc.new_file(cases.path("arrow-file") + "/a.arrow", table.schema) as writer:
        writer.write_table(table, max_chunksize=64)
    for name in ("arrow-ragged", "arrow-file"):
        within = slice(int(ends[10]), int(ends[190]))
        cases.expect(name, bits(flat[within]), "f16", lengths=lengths[10:190], ids=np.arange(len(flat))[within])
    rows = values(90)
    table = pa.table({"v": pa.array(rows.tolist(), pa.list_(pa.float32())), "word": [f"ü{i}" for i in range(90)], "p": pa.array(range(90), pa.int8())})
    with pa.ipc.new_stream(cases.path("arrow-rows") + "/a.arrow", table.schema) as writer:
        writer.write_table(table, max_chunksize=40)
    pq.write_table(table, cases.path("parquet-rows") + "/a.parquet", row_group_size=35, compression="zstd")
    for name in ("arrow-rows", "parquet-rows"):
        # NumPy's lists lose the bits of NaN alone, which are those of NumPy's own.
        cases.expect(name, bits(rows), "f32", word=np.array([f"ü{i}" for i in range(90)]), p=np.arange(90))


def make_columns(cases):
    """Columns that are chosen, of which others have nulls; masks of one bool for each position."""
    rows = values(40)
    of = {"v": pa.array(rows.tolist(), pa.list_(pa.float32())), "tokens": range(40), "source": ["a", None] * 20, "n": [None, 1] * 20}
    table = pa.table(of)
    with pa.ipc.new_stream(cases.path("arrow-nulls") + "/a.arrow", table.schema) as writer:
        writer.write_table(table)
    pq.write_table(table, cases.path("parquet-nulls") + "/a.parquet")
    for name, arguments in (("arrow-nulls", ["--columns", "tokens"]), ("parquet-nulls", ["--columns", "token_id"])):
        cases.expect(name, bits(rows), "f32", arguments, token_id=np.arange(40))
    x, mask = torch.tensor(values(10, 5)), torch.arange(50).reshape(10, 5) % 3 == 0
    tensors = {"acts": x, "attention_mask": mask, "input_ids": torch.arange(50).reshape(10, 5)}
    safetensors.torch.save_file(tensors, cases.path("safetensors-mask") + "/a.safetensors")
    torch.save(tensors, cases.path("torch-mask") + "/a.pt")
    torch.save(tensors, cases.path("torch-alone") + "/a.pt")
    for name in ("safetensors-mask", "torch-mask"):
        columns = {"attention_mask": mask.reshape(-1).numpy().astype(np.uint32), "token_id": np.arange(50)}
        cases.expect(name, bits(x), "f32", lengths=[5] * 10, **columns)
    # Contexts of 3 to 5 positions, in batches whose masks begin within a byte.
    lengths = np.array([3, 5, 4] * 20)
    flat, ends = values(int(lengths.sum())), np.concatenate([[0], np.cumsum(lengths)])
    lists = pa.ListArray.from_arrays(pa.array(ends, pa.int32()), pa.FixedSizeListArray.from_arrays(pa.array(flat.reshape(-1)), WIDTH))
    bools, flags = random.integers(0, 2, len(flat)).astype(bool), random.integers(0, 2, len(lengths)).astype(bool)
    masks = pa.ListArray.from_arrays(pa.array(ends, pa.int32()), pa.array(bools))
    table = pa.table({"acts": lists, "mask": masks, "flag": pa.array(flags)})
    with pa.ipc.new_stream(cases.path("arrow-mask") + "/a.arrow", table.schema) as writer:
        writer.write_table(table, max_chunksize=7)
    pq.write_table(table, cases.path("parquet-mask") + "/a.parquet", row_group_size=13)
    for name in ("arrow-mask", "parquet-mask"):
        cases.expect(name, bits(flat), "f32", lengths=lengths, mask=bools.astype(np.uint32), flag=np.repeat(flags, lengths).astype(np.uint32))
    cases.expect("torch-alone", bits(x), "f32", ["--no-columns"], lengths=[5] * 10)


def make_saelens(cases):
    """What SAELens' runner does once a model has given activations: make a shard of each buffer, put them together."""
    runner = object.__new__(CacheActivationsRunner)
    hook = "blocks.3.hook_resid_post"
    runner.cfg = types.SimpleNamespace(hook_name=hook, d_in=WIDTH, n_seq_in_buffer=6)
    runner.context_size = 8
    runner.features = datasets.Features(
        {hook: datasets.Array2D(shape=(8, WIDTH), dtype="float32"), "token_ids": datasets.Sequence(datasets.Value("int32"), length=8)}
    )
    x, tokens = torch.tensor(values(18, 8)), torch.arange(18 * 8)
    shards = cases.path("saelens") + "/.tmp_shards"
    for i in range(3):
        part = slice(6 * i, 6 * i + 6)
        shard = runner._create_shard((x[part].reshape(-1, WIDTH), tokens.reshape(18, 8)[part].reshape(-1)))
        shard.save_to_disk(f"{shards}/shard_{i:05d}", num_shards=1)
    from pathlib import Path

    CacheActivationsRunner._consolidate_shards(Path(shards), Path(cases.path("saelens")), copy_files=False)
    cases.expect("saelens", bits(x), "f32", lengths=[8] * 18, token_id=tokens.numpy())


def make_bionemo(cases):
    x = values(250)
    for i in range(3):
        part = x[100 * i : 100 * i + 100]
        column = pa.FixedSizeListArray.from_arrays(pa.array(part.reshape(-1)), WIDTH)
        pq.write_table(pa.table({"act": column}), f"{cases.path('bionemo')}/shard_{i:05d}.parquet")
    with open(f"{cases.path('bionemo')}/metadata.json", "w") as file:
        json.dump({"n_samples": 250, "hidden_dim": WIDTH, "n_shards": 3, "shard_size": 100}, file)
    cases.expect("bionemo", bits(x), "f32")


def make_torch(cases):
    x, ids = torch.tensor(values(25, 6)).half(), torch.arange(150).reshape(25, 6)
    torch.save({"states": x, "input_ids": ids, "layer": 3, "name": "none"}, cases.path("torch-dict") + "/a.pt")
    cases.expect("torch-dict", bits(x), "f16", lengths=[6] * 25, token_id=ids.reshape(-1).numpy())
    y = torch.tensor(values(70))
    torch.save(y[10:60], cases.path("torch-tensor") + "/a.pt")
    cases.expect("torch-tensor", bits(y[10:60]), "f32")
    torch.save([y[:30].clone(), torch.nn.Parameter(y[30:].clone())], cases.path("torch-list") + "/a.pt")
    cases.expect("torch-list", bits(y), "f32")
    parts = [y[:30].clone(), y[30:].clone()]
    torch.save({"meta": {"layer": 3}, "acts": parts, "ids": ids}, cases.path("torch-list-named") + "/a.pt")
    cases.expect("torch-list-named", bits(y), "f32", ["--tensor", "acts"])
    torch.save({"acts": [y]}, cases.path("torch-list-of-one") + "/a.pt")
    cases.expect("torch-list-of-one", bits(y), "f32", ["--tensor", "acts"])
    torch.save({"hidden_states": tuple(parts)}, cases.path("torch-tuple") + "/a.pt")
    cases.expect("torch-tuple", bits(parts[1]), "f32", ["--tensor", "hidden_states.1"])


def archive(path, pickled, storage=b"\0" * 480, compression=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, "w", compression) as file:
        for name, content in [("data.pkl", pickled), ("byteorder", b"little"), ("data/0", storage), ("version", b"3\n")]:
            file.writestr(f"archive/{name}", content)


class Evil:
    def __reduce__(self):
        return os.system, ("touch executed",)


def tensor_pickle(shape=(10, 12), strides=(12, 1), numel=120, offset=0):
    """The program of a tensor, which may claim anything."""
    number = lambda n: b"\x8a\x08" + struct.pack("<q", n)
    many = lambda numbers: b"(" + b"".join(map(number, numbers)) + b"t"
    storage = b"(X\x07\0\0\0storagectorch\nFloatStorage\nX\x01\0\0\x000X\x03\0\0\0cpu" + number(numel) + b"tQ"
    body = b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + number(offset) + many(shape) + many(strides)
    return b"\x80\x02" + body + b"\x89ccollections\nOrderedDict\n)RtR."


def make_hostile(folder):
    """Files that must be refused, each with a part of what is said."""
    os.makedirs(folder, exist_ok=True)
    said = {}

    def torch_file(name, says, *arguments, **options):
        archive(f"{folder}/{name}.pt", *arguments, **options)
        said[f"{name}.pt"] = says

    torch_file("executes", "posix.system", pickle.dumps({"a": Evil()}, protocol=2))
    torch_file("executes-4", "posix.system", pickle.dumps([Evil()], protocol=4))
    torch_file("imports", "builtins.eval", b"\x80\x02cbuiltins\neval\n.")
    torch_file("unused", "os.system", b"\x80\x02cos\nsystem\n0" + tensor_pickle()[2:])
    torch_file("endless", "does not end", tensor_pickle()[:-1])
    torch_file("empty-stack", "damaged", b"\x80\x02e.")
    torch_file("compressed", "is compressed", tensor_pickle(), compression=zipfile.ZIP_DEFLATED)
    torch_file("huge", "claims more", tensor_pickle(shape=(1 << 40, 12), numel=1 << 44))
    torch_file("overflows", "claims more", tensor_pickle(shape=(1 << 62, 1 << 62), strides=(1 << 62, 1)))
    torch_file("behind", "claims more", tensor_pickle(offset=1 << 61))
    torch_file("lying", "claims more", tensor_pickle(numel=121))
    torch_file("negative", "damaged", tensor_pickle(shape=(-10, 12)))
    torch_file("turned", "contiguous", tensor_pickle(strides=(1, 10)))
    torch_file("turned-behind", "claims more", tensor_pickle(strides=(1, 10), offset=60))
    torch_file("view", "contiguous", tensor_pickle(strides=(24, 1), shape=(5, 12)))
    bomb = b"\x80\x02]q\x00" + b"".join(b"](" + b"h%c" % i * 200 + b"eq%c" % (i + 1) for i in range(12)) + b"."
    torch_file("bomb", "its pickle has more", bomb)
    torch_file("circle", "deep", b"\x80\x02]q\x00h\x00a.")
    # A long name of a storage, which a hundred thousand refer to.
    number = lambda n: b"\x8a\x08" + struct.pack("<q", n)
    text = lambda of: b"X" + struct.pack("<I", len(of)) + of
    key = b"(" + text(b"storage") + b"ctorch\nFloatStorage\n" + text(b"k" * 200_000) + text(b"cpu") + number(8) + b"tq\x00Q"
    torch_file("long-key", "the name of a storage", b"\x80\x02" + key + b"h\x00Q" * 100_000 + b".")
    # A million tensors, which share lists, under names of 13 KiB.
    program = tensor_pickle()[:-1] + b"q\x00"
    for level in range(3):
        program += b"](" + b"h%c" % level * 100 + b"eq%c" % (level + 1)
    for level in range(3, 16):
        program += b"}" + text(b"n" * 1024) + b"h%csq%c" % (level, level + 1)
    torch_file("long-names", "names and shapes", program + b".")
    torch_file("absent", "it lacks", tensor_pickle().replace(b"X\x01\0\0\x000", b"X\x01\0\0\x007"))
    torch_file("escapes", "it lacks", tensor_pickle().replace(b"X\x01\0\0\x000", b"X\x06\0\0\x00../../"))
    torch.save(torch.ones(10, 12), f"{folder}/legacy.pt", _use_new_zipfile_serialization=False)
    said["legacy.pt"] = "save it again"
    torch.save(tuple(torch.ones(1, 10, 12) for _ in range(3)), f"{folder}/hidden-states.pt")
    said["hidden-states.pt"] = 'tensors "0" to "2" are those of a tuple or a dictionary'
    torch.save({layer: torch.ones(1, 10, 12) for layer in range(3)}, f"{folder}/layers.pt")
    said["layers.pt"] = 'tensors "0" to "2" are those of a tuple or a dictionary'
    torch.save({"x": torch.ones(10, 12), "y": torch.float32}, f"{folder}/dtype.pt")
    said["dtype.pt"] = "torch.float32"
    np.save(f"{folder}/fortran.npy", np.asfortranarray(np.ones((30, 12), np.float32)))
    said["fortran.npy"] = "ascontiguousarray"
    np.save(f"{folder}/big.npy", np.ones((30, 12), ">f4"))
    said["big.npy"] = "big-endian"
    np.save(f"{folder}/objects.npy", np.array([[Evil(), 1]], dtype=object), allow_pickle=True)
    said["objects.npy"] = "holds"
    table = pa.table({"a": pa.array([[1.0, 2.0], None], pa.list_(pa.float32()))})
    with pa.ipc.new_stream(f"{folder}/nulls.arrow", table.schema) as writer:
        writer.write_table(table)
    said["nulls.arrow"] = "null values"
    options = pa.ipc.IpcWriteOptions(compression="lz4")
    table = pa.table({"a": pa.array(np.ones((500, 12)).tolist(), pa.list_(pa.float32()))})
    with pa.ipc.new_stream(f"{folder}/lz4.arrow", table.schema, options=options) as writer:
        writer.write_table(table)
    said["lz4.arrow"] = "compressed"
    ragged = pa.table({"a": pa.array([[1.0, 2.0], [1.0]], pa.list_(pa.float32()))})
    with pa.ipc.new_stream(f"{folder}/ragged.arrow", ragged.schema) as writer:
        writer.write_table(ragged)
    said["ragged.arrow"] = "same width"
    return said


def make(folder):
    cases = Cases(folder)
    makers = (make_npy, make_safetensors, make_vllm, make_datasets, make_columns, make_saelens, make_bionemo, make_torch)
    for maker in makers:
        maker(cases)
    with open(os.path.join(folder, "cases.json"), "w") as file:
        json.dump({"cases": cases.expected, "hostile": make_hostile(os.path.join(folder, "hostile"))}, file)


def check(folder, shards):
    with open(os.path.join(folder, "cases.json")) as file:
        cases = json.load(file)["cases"]
    for name, case in cases.items():
        out = os.path.join(shards, name)
        with open(os.path.join(out, "manifest.json")) as file:
            manifest = json.load(file)
        files = sorted(file for file in os.listdir(out) if file.endswith(".parquet"))
        assert [shard["path"] for shard in manifest["shards"]] == files, name
        table = pa.concat_tables([pq.read_table(os.path.join(out, file)) for file in files])
        with np.load(os.path.join(folder, f"{name}.npz")) as expected:
            rows = expected["rows"]
            assert (manifest["dtype"], manifest["width"]) == (case["dtype"], WIDTH), name
            stored = b"".join(table.column("activation").to_pylist())
            got = np.frombuffer(stored, BITS[case["dtype"]]).reshape(-1, WIDTH)
            assert got.shape == rows.shape, (name, got.shape, rows.shape)
            assert np.array_equal(got, rows), (name, np.argwhere(got != rows)[:5])
            columns = set(expected.files) - {"rows"}
            assert columns == set(table.column_names) - {"activation"}, (name, columns, table.column_names)
            for column in columns:
                assert table.column(column).to_pylist() == expected[column].tolist(), (name, column)
    print(f"{len(cases)} cases are as their tools wrote them")


parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("what", choices=["make", "check"])
parser.add_argument("folder")
parser.add_argument("shards", nargs="?")
options = parser.parse_args()
make(options.folder) if options.what == "make" else check(options.folder, options.shards)
