"""Holds the package in launch/python to what it says, with torch and transformers on the processor.

    python tests/reference/package.py CHECK [ARGUMENT …] [-- CHECK [ARGUMENT …] …]

CHECK is one of the functions below; the tests of tests/tests/python.rs call them with what they have made, and fail where one fails.
"""

import json
import os
import pathlib
import signal
import subprocess
import sys
import tempfile
import threading
import time
import warnings

import numpy as np

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, os.environ.get("SAE_PACKAGE", str(ROOT / "launch/python")))

import pyarrow as pa  # noqa: E402
import pyarrow.fs  # noqa: E402
import pyarrow.parquet as pq  # noqa: E402

import sae  # noqa: E402


def refuses(kind, words, call, *arguments, **named):
    """Whether a call fails with such an error, which says these words."""
    try:
        call(*arguments, **named)
    except kind as error:
        assert all(word in str(error) for word in words), f"{error} lacks one of {words}"
        return
    raise AssertionError(f"{call} with {arguments} is not refused")


def shards(folder):
    """The rows of a folder's manifest in their order, as one table."""
    manifest = json.loads((pathlib.Path(folder) / "manifest.json").read_text())
    return pa.concat_tables([pq.read_table(pathlib.Path(folder) / shard["path"]) for shard in manifest["shards"]])


def numbers(table, dtype=np.float32):
    """The activations of a table, `[n, D]`."""
    column = table["activation"].combine_chunks()
    rows = np.frombuffer(column.buffers()[1], np.uint8)[column.offset * column.type.byte_width :]
    return rows[: len(column) * column.type.byte_width].view(dtype).reshape(len(column), -1)


def rewrite(source, out):
    """Writes the f16 rows of another folder again, in shards of as many, by torch tensors, numpy arrays and bits in turn."""
    import torch

    rows, manifest = numbers(shards(source), np.float16), json.loads(pathlib.Path(source, "manifest.json").read_text())
    options = {"shard_rows": manifest["shards"][0]["rows"], "shuffled": manifest["prepared"]}
    ways = [torch.from_numpy, lambda some: some, lambda some: some.view(np.uint16), lambda some: torch.from_numpy(some)[None]]
    with sae.ShardWriter(out, rows.shape[1], "f16", {"dataset": source}, **options) as writer:
        for turn, at in enumerate(range(0, len(rows), 777)):
            some = rows[at : at + 777].copy()
            writer.write(ways[turn % len(ways)](some), token_id=np.arange(at, at + len(some)), pos=0, label=["x"] * len(some))
            some[:] = 0  # what was handed over belongs to its owner again
        assert writer.rows == len(rows)
    assert writer.rows_committed == len(rows) and writer.is_finished
    table = shards(out)
    assert np.array_equal(numbers(table, np.uint16), rows.view(np.uint16))
    assert table["token_id"].to_pylist() == list(range(len(rows))) and {*table["label"].to_pylist()} == {"x"}


def formats(folder):
    """Every format that rows may have, and the same rounding in torch and numpy."""
    import torch

    torch.manual_seed(1)
    x = torch.randn(500, 24) * 10.0 ** torch.randint(-6, 4, (500, 1))
    given = {
        "torch": x,
        "double": x.double(),
        "strided": torch.stack([x, x], dim=2)[:, :, 0],
        "grad": x.clone().requires_grad_(),
        "batches": x.reshape(5, 100, 24),
        "numpy": x.numpy(),
        "fortran": np.asfortranarray(x.numpy()),
        "big": x.numpy().astype(">f4"),
    }
    wanted = {"bf16": torch.bfloat16, "f16": torch.float16, "f32": torch.float32}
    for dtype, of in wanted.items():
        bits = x.to(of).view(torch.uint8).numpy()
        for name, rows in given.items():
            out = f"{folder}/{name}-{dtype}"
            with sae.ShardWriter(out, 24, of, shard_rows=200) as writer:
                writer.write(rows)
            assert np.array_equal(numbers(shards(out), np.uint8), bits), (name, dtype)
    half = x.bfloat16()
    for name, rows in {"bf16": half, "bits": half.view(torch.int16).numpy().view(np.uint16)}.items():
        with sae.ShardWriter(f"{folder}/own-{name}", 24) as writer:
            writer.write(rows)
        assert np.array_equal(numbers(shards(f"{folder}/own-{name}"), np.int16), half.view(torch.int16).numpy())
    # Ties go to the even neighbour.
    ties = (np.arange(0x3F80_8000, 0x3F80_8000 + 24 * 0x10000, 0x10000, dtype=np.uint32)).view(np.float32).reshape(1, 24)
    with sae.ShardWriter(f"{folder}/ties", 24) as writer:
        writer.write(ties)
    assert np.array_equal(numbers(shards(f"{folder}/ties"), np.int16), torch.from_numpy(ties).bfloat16().view(torch.int16).numpy())


def bfloat16(folder):
    """numpy's bf16, which is that of ml_dtypes."""
    import ml_dtypes
    import torch

    torch.manual_seed(3)
    x = torch.randn(300, 24) * 10.0 ** torch.randint(-6, 4, (300, 1))
    rows = x.numpy().astype(ml_dtypes.bfloat16)
    given = {"whole": rows, "batches": rows.reshape(3, 100, 24), "strided": np.stack([rows, rows], axis=2)[:, :, 0], "fortran": np.asfortranarray(rows)}
    for dtype, of in {"f16": torch.float16, "f32": torch.float32, ml_dtypes.bfloat16: torch.bfloat16}.items():
        for name, some in given.items():
            out = f"{folder}/{name}-{of}"
            with sae.ShardWriter(out, 24, dtype, shard_rows=200) as writer:
                writer.write(some, score=np.ones(some.shape[:-1], ml_dtypes.bfloat16))
            table = shards(out)
            assert np.array_equal(numbers(table, np.uint8), x.bfloat16().to(of).view(torch.uint8).numpy()), (name, of)
            assert {*table["score"].to_pylist()} == {1.0}
    rows[3, 2] = np.nan
    refuses(ValueError, ["row 3", "not finite"], sae.ShardWriter(f"{folder}/nan", 24).write, rows)


def refusals(folder):
    """What a writer does not take, and that nothing of it is written."""
    import torch

    rows = np.ones((6, 4), np.float32)
    new = lambda name="w", **more: sae.ShardWriter(f"{folder}/{name}", 4, "f16", **more)
    for width in (0, -1, 1 << 21, 2.0, True, "4"):
        refuses(ValueError, ["width"], sae.ShardWriter, f"{folder}/x", width)
    for dtype in ("f8", "int8", np.int32, torch.int64, "f64"):
        refuses(ValueError, ["choose f32, f16 or bf16"], sae.ShardWriter, f"{folder}/x", 4, dtype)
    for url in (3, b"x", None, True):
        refuses(ValueError, ["no path or URL", repr(url)], sae.ShardWriter, url, 4)
    refuses(ValueError, ["bytes"], new, metadata={"a": "x" * (1 << 17)})
    refuses(ValueError, ["JSON"], new, metadata={"a": object()})
    refuses(ValueError, ["JSON"], new, metadata={"a": float("nan")})
    for columns, words in (
        ({"a": "list<int32>"}, ["column a", "type 'list<int32>'"]),
        ({"a": int}, ["column a", "type <class 'int'>"]),
        ({3: "int32"}, ["called 3"]),
        ({"activation": "int32"}, ["'activation'"]),
        (["a"], ["columns ['a']", "types by names"]),
    ):
        refuses(ValueError, words, new, columns=columns)
    for rows_of_shard in (0, -1, 2.0, "9", True, [4]):
        refuses(ValueError, [f"shard_rows {rows_of_shard!r}: a whole number"], new, shard_rows=rows_of_shard)
    for shuffled in ("no", 1, None):
        refuses(ValueError, [f"shuffled {shuffled!r}: True or False"], new, shuffled=shuffled)
    assert not os.path.exists(f"{folder}/x") and not os.path.exists(f"{folder}/w")

    writer = new()
    for wrong in (np.ones((6, 5), np.float32), np.ones(4 * 6, np.float32), np.float32(1), torch.ones(2, 3, 5)):
        refuses(ValueError, ["last dimension"], writer.write, wrong)
    for wrong in (np.ones((6, 4), np.int32), torch.ones(6, 4, dtype=torch.int64), np.ones((6, 4), complex), np.full((6, 4), "a"), [["a"] * 4]):
        refuses(ValueError, ["floats"], writer.write, wrong)
    for bits in (np.ones((6, 4), np.int16), torch.ones(6, 4, dtype=torch.int16)):
        refuses(ValueError, ["floats", "numpy's uint16"], writer.write, bits)
    for wrong in ([[1.0, 2.0], [3.0]], None, "rows"):
        refuses(ValueError, ["rows"], writer.write, wrong)
    for value, words in ((np.nan, ["row 3", "not finite"]), (np.inf, ["row 3", "not finite"]), (1e6, ["row 3", "f16 cannot"])):
        bad = rows.copy()
        bad[3, 2] = value
        refuses(ValueError, words, writer.write, bad)
        refuses(ValueError, words, writer.write, torch.from_numpy(bad))
    refuses(ValueError, ["not finite"], writer.write, np.full((1, 4), 0x7C00, np.uint16))
    for name in ("activation", ""):
        refuses(ValueError, ["column"], writer.write, rows, **{name: 1})
    assert not os.path.exists(f"{folder}/w"), "nothing was begun"

    writer.write(rows, token_id=[1, 2, 3, 4, 5, 6], of=torch.arange(6))
    refuses(ValueError, ["without of"], writer.write, rows, token_id=1)
    refuses(ValueError, ["with pos"], writer.write, rows, token_id=1, of=1, pos=1)
    refuses(ValueError, ["5 values for 6 rows"], writer.write, rows, token_id=[1] * 5, of=1)
    turned = torch.arange(6).reshape(3, 2)
    refuses(ValueError, ["[3, 2]", "[2, 3]"], writer.write, rows.reshape(2, 3, -1), token_id=turned, of=1)
    refuses(ValueError, ["[3, 2]", "[2, 3]"], writer.write, rows.reshape(2, 3, -1), token_id=turned.tolist(), of=1)
    for wrong, words in (
        (1 << 31, "holds 2147483648, and int32 goes from -2147483648 to 2147483647"),
        (1 << 64, "holds 18446744073709551616, and whole numbers have 64 bits"),
        ([1 << 63, -1] * 3, "holds 9223372036854775808, and whole numbers have 64 bits"),
        (-1, "holds -1: its numbers begin at 0"),
        (1.5, "is float64, and has to be int32"),
        (torch.ones(6), "is float32, and has to be int32"),
        (True, "is bool, and has to be int32"),
        ("a", "and has to be int32"),
        (None, "without a value"),
        ([1, 2, 3, 4, 5, None], "without a value"),
        ([1, 2, 3, 4, 5, "6"], "mixes int and str"),
        ([1, 2, 3, 4, 5, True], "mixes bool and int"),
        ([[1, 2], [3], [4, 5, 6]], "several lengths"),
        ([object()] * 6, "is object"),
        ([b"a"] * 6, "is |S1"),
        (np.array(["2026-01-01"] * 6, "datetime64[D]"), "is datetime64[D]"),
    ):
        refuses(ValueError, ["column token_id", words], writer.write, rows, token_id=wrong, of=1)
    refuses(ValueError, ["column of", "int64"], writer.write, rows, token_id=1, of=np.uint64(1 << 63))
    assert writer.rows == 6
    for name in ("doc_id", "pos", "context_id"):
        refuses(ValueError, [f"column {name} holds -3: its numbers begin at 0"], new("w2").write, rows, **{name: [0, 1, -3, 0, 0, 0]})
    refuses(ValueError, ["columns declares token_ids", "without"], new("w2", columns={"token_ids": "int64"}).write, rows, token_id=1)
    assert not os.path.exists(f"{folder}/w2"), "nothing was begun"
    refuses(ValueError, ["another plan", "width"], sae.ShardWriter, f"{folder}/w", 5, "f16")
    refuses(ValueError, ["another plan", "metadata"], new, metadata={"a": 1})
    refuses(ValueError, ["another plan", "shard_rows"], new, shard_rows=7)
    assert writer.finish() == 6
    refuses(ValueError, ["finished"], writer.write, rows, token_id=1, of=1)
    refuses(ValueError, ["finished"], new().write, rows, token_id=1, of=1)
    assert new().finish() == 6 and len(shards(f"{folder}/w")) == 6

    pq.write_table(pa.table({"a": [1]}), f"{folder}/w/other.pq")
    os.makedirs(f"{folder}/others")
    pq.write_table(pa.table({"a": [1]}), f"{folder}/others/some.parquet")
    refuses(ValueError, ["already holds shards"], new, "others")
    refuses(ValueError, ["no rows"], new("empty").finish)
    for content in (b"", b"[]", b"{", b"\xff", b'{"shards": {"": {}}, "note": {}}', b'{"shards": {"": {"path": "../../x", "size": 1, "rows": 1, "raw": true, "row_groups": []}}}'):
        pathlib.Path(f"{folder}/w/parts/000000.json").write_bytes(content)
        refuses(sae.DamagedError, ["000000.json"], new)
    # A place that is a file, or below one, is none from the start.
    pathlib.Path(f"{folder}/file").write_bytes(b"")
    for place in ("file", "file/below", "file/below/it"):
        refuses(ValueError, [f"{folder}/file is a file, and a folder is needed"], sae.ShardWriter, f"{folder}/{place}", 4)
    # A shard that no part has would be taken for rows: it is named, and left where it is.
    left = new("left", shard_rows=6)
    left.write(rows)
    stray = pathlib.Path(f"{folder}/left/shard-000009.parquet")
    stray.write_bytes(b"x")
    refuses(sae.DamagedError, ["shard-000009.parquet", "of no part"], left.finish)
    assert stray.read_bytes() == b"x" and not os.path.exists(f"{folder}/left/manifest.json")
    stray.unlink()
    assert left.finish() == 6


def columns(folder):
    """Values that fit come back, however they are handed over, in the types that were declared, are known, or were given."""
    import torch

    cases = {
        "token_id": ([[0, 1, 2], [3, 4, (1 << 31) - 1]], "int32"),
        "doc_id": (torch.arange(6).reshape(2, 3), "int64"),
        "context_id": (np.array([(1 << 64) - 1] * 6, np.uint64), "uint64"),
        "large": ([(1 << 64) - 1, 0, 0, 0, 0, 0], "uint64"),
        "small": (np.arange(-3, 3, dtype=">i2"), "int16"),
        "word": (np.array(["ü", "b", "ends with \0", "d", "e", "f"], object), "string"),
        "flag": ([True, False] * 3, "bool"),
        "score": (torch.arange(6, dtype=torch.bfloat16), "float"),
        "wide": (7, "double"),
        "narrow": ([1, 2, 3, 4, 5, 1 << 40], "int64"),
    }
    with sae.ShardWriter(f"{folder}/columns", 4, "f32", columns={"wide": "double", "narrow": "int64"}) as writer:
        writer.write(np.ones((2, 3, 4), np.float32).tolist(), **{name: value for name, (value, _) in cases.items()})
    table = shards(f"{folder}/columns")
    for name, (value, kind) in cases.items():
        flat = value.reshape(-1).tolist() if hasattr(value, "reshape") else np.array(value, object).reshape(-1).tolist()
        expected = flat * (6 // len(flat))
        assert (table[name].to_pylist(), str(table.schema.field(name).type)) == (expected, kind), name


def places(folder):
    """A text means the same place as to the program, or is refused (loader/src/store/address.rs)."""
    from sae._address import parse
    from sae._store import Store

    for text, expected in {
        "a%20b/#c?d": ("", "", "a%20b/#c?d"),
        "file:///a%20b/%5B0%5D": ("", "", "/a b/[0]"),
        "FILE://localhost/a": ("", "", "/a"),
        "s3://bucket/a%20b#c?d=e/ü~": ("s3", "bucket", "a%20b#c?d=e/ü~"),
        "S3A://bucket/": ("s3a", "bucket", ""),
        "gs://bucket/a/": ("gs", "bucket", "a"),
        "az://box/a@b": ("az", "box", "a@b"),
        "abfss://box@account.dfs.core.windows.net/a": ("abfss", "box@account.dfs.core.windows.net", "a"),
        "1x://y": ("", "", "1x://y"),
    }.items():
        assert parse(text) == expected, (text, parse(text))
    for text, words in {
        "": ["empty"],
        "ftp://x/y": ["ftp:// is not read"],
        "https://x/y": ["https:// is not read"],
        "s3://": ["no bucket"],
        "s3://host:9000/x": ["no bucket is called host:9000", "AWS_ENDPOINT"],
        "s3://key:secret@bucket/x": ["do not belong in a URL"],
        "s3://bucket/x?X-Amz-Signature=secret": ["do not belong in a URL"],
        "az://box:secret@account/x": ["do not belong in a URL"],
        "file:///x?sig=secret": ["do not belong in a URL"],
        "file://host/x": ["write file:///"],
        "file://localhost": ["write file:///"],
        "file:///a#b": ["%23"],
        "file:///%ff": ["percent-encoded UTF-8"],
        "s3://bucket/a//b": ["is empty"],
        "s3://bucket/a/../b": ["`..`"],
        "s3://bucket/a\nb": ["control character"],
        "$SCRATCH_OF_NOBODY/a": ["$SCRATCH_OF_NOBODY is a variable", "expandvars"],
        "a/${X_OF_NOBODY}": ["$X_OF_NOBODY is a variable"],
    }.items():
        refuses(ValueError, words, parse, text)
        try:
            parse(text)
        except ValueError as error:
            assert "secret" not in str(error), error
    os.mkdir(f"{folder}/$acts")
    assert parse(f"{folder}/$acts/new").path == f"{folder}/$acts/new"

    # What goes wrong with a file on its way is said with its name.
    output = Store(folder).open("taken")
    output.write(b"x")
    os.mkdir(f"{folder}/taken")
    refuses(sae.StoreError, [f"{folder}/taken: ", "directory"], output.commit)
    output.abort()
    assert sorted(os.listdir(folder)) == ["$acts", "taken"]

    # Arrow's file systems are made without a request.
    assert Store("gs://bucket/a/b")._root == "bucket/a/b" and type(Store("gs://bucket")._fs).__name__ == "GcsFileSystem"
    for name in [name for name in os.environ if name.startswith("AZURE_")]:
        del os.environ[name]
    refuses(ValueError, ["AZURE_STORAGE_ACCOUNT_NAME", "az://box@ACCOUNT.dfs.core.windows.net"], Store, "az://box/a")
    for wrong in ("abfss://box@account.example.com/a", "abfss://@account.dfs.core.windows.net/a"):
        refuses(ValueError, ["CONTAINER@ACCOUNT.dfs.core.windows.net"], Store, wrong)
    whole = Store("abfss://box@account.dfs.core.windows.net/a/b/")
    os.environ |= {"AZURE_STORAGE_ACCOUNT_NAME": "other", "AZURE_STORAGE_ACCOUNT_KEY": "a2V5", "AZURE_STORAGE_ENDPOINT": "http://127.0.0.1:1"}
    named = Store("wasbs://box/a")
    assert (whole._root, named._root) == ("box/a/b", "box/a") and {type(of._fs) for of in (whole, named)} == {pa.fs.AzureFileSystem}
    assert whole.below("c").url == "abfss://box@account.dfs.core.windows.net/a/b/c"
    # A pyarrow of before.
    azure = pa.fs.AzureFileSystem
    del pa.fs.AzureFileSystem
    refuses(ValueError, [f"pyarrow {pa.__version__} has no AzureFileSystem", "newer"], Store, "az://box/a")
    pa.fs.AzureFileSystem = lambda account, account_key: None
    os.environ |= {"AZURE_TENANT_ID": "a", "AZURE_CLIENT_ID": "b", "AZURE_CLIENT_SECRET": "c"}
    refuses(ValueError, ["does not take these credentials", "newer"], Store, "az://box/a")
    pa.fs.AzureFileSystem = azure


def child(out, seed):
    """Writes 40 shards slowly, going on after what is committed; for `killed`."""
    rng = np.random.default_rng(int(seed))
    rows = rng.standard_normal((40 * 500, 16)).astype(np.float32)
    with sae.ShardWriter(out, 16, "bf16", {"seed": int(seed)}, shard_rows=500) as writer:
        print("begun", writer.rows_committed, flush=True)
        for at in range(writer.rows_committed, len(rows), 170):
            writer.write(rows[at : at + 170], token_id=np.arange(at, min(at + 170, len(rows))))
            time.sleep(0.002)
    print("finished", flush=True)


def killed(folder, kills):
    """Writers that are killed again and again leave each row once, and the bytes of one that nobody disturbed."""
    rng = np.random.default_rng(5)
    struck, out = 0, f"{folder}/killed"
    while True:
        call = [sys.executable, __file__, "child", out, "9"]
        process = subprocess.Popen(call, stdout=subprocess.PIPE, text=True)
        assert process.stdout.readline().startswith("begun")
        timer = threading.Timer(rng.uniform(0.0, 0.12), process.kill) if struck < int(kills) else None
        if timer:
            timer.start()
        finished = "finished" in process.stdout.read()
        code = process.wait()
        assert code == (0 if finished else -signal.SIGKILL), code
        if timer:
            timer.cancel()
        if finished:
            break
        struck += process.returncode == -signal.SIGKILL
    assert struck >= min(int(kills), 3), f"only {struck} were killed before one finished"
    child(f"{folder}/whole", 9)
    same_files(f"{folder}/killed", f"{folder}/whole")
    assert shards(out)["token_id"].to_pylist() == list(range(40 * 500))
    print(f"{struck} writers were killed")


def same_files(one, other):
    """Whether two folders hold the same files, hidden ones of killed writers aside."""
    found = []
    for folder in (one, other):
        paths = [path for path in pathlib.Path(folder).rglob("*") if path.is_file() and not path.name.startswith(".")]
        found.append({str(path.relative_to(folder)): path.read_bytes() for path in paths})
    assert found[0].keys() == found[1].keys(), sorted(found[0].keys() ^ found[1].keys())
    differing = [name for name in found[0] if found[0][name] != found[1][name]]
    assert not differing, differing


def exported(folder):
    """The tensors of an export in one file or in parts, as safetensors reads them, in f32."""
    import safetensors.torch

    index = pathlib.Path(folder, "sae_weights.safetensors.index.json")
    names = json.loads(index.read_text())["weight_map"]["W_enc"] if index.exists() else ["sae_weights.safetensors"]
    parts = [safetensors.torch.load_file(f"{folder}/{name}") for name in names]
    parts = [{name: tensor.float().numpy() for name, tensor in part.items()} for part in parts]
    whole = {name: np.concatenate([part[name] for part in parts], axis) for name, axis in (("W_enc", 1), ("b_enc", 0), ("W_dec", 0))}
    return whole | {"b_dec": parts[0]["b_dec"]}


def same_bits(one, other):
    return one.shape == other.shape and np.array_equal(one.view(np.uint32), other.view(np.uint32))


def loads(run, export, *options):
    """`sae.load` of a run and of its export, against the export's files; `unit_norm`, `best` or a step choose the same as the export did."""
    named = {"unit_norm": "unit_norm" in options}
    which = [option for option in options if option != "unit_norm"]
    if which:
        named["checkpoint"] = int(which[0]) if which[0].isdigit() else which[0]
    expected = exported(export)
    if named["unit_norm"] is False and not which:
        owes(sae.load(run))
    for weights in (sae.load(run, **named), sae.load(export)):
        assert (weights.features, weights.width) == expected["W_dec"].shape and weights.W_enc.shape == expected["W_enc"].shape
        for name, values in expected.items():
            assert same_bits(np.ascontiguousarray(getattr(weights, name)), np.ascontiguousarray(values)), (weights, name)
        indices(weights, expected)
        at = 0
        for block in weights.blocks():
            assert block.first == at and same_bits(block.W_dec, expected["W_dec"][at : at + len(block.b_enc)])
            at += len(block.b_enc)
        assert at == weights.features
        tensors = weights.torch()
        assert all(same_bits(tensors[name].numpy(), np.ascontiguousarray(values)) for name, values in expected.items())


def owes(weights):
    """A run that may owe updates does, in some rows and not in others: else nothing is shown of them."""
    import safetensors.numpy

    if not weights.manifest or weights.manifest["recipe"]["train"]["adam"] != "catchup":
        return
    files = sorted(pathlib.Path(weights.place).glob("optimizer-*.safetensors"))
    last_update_f = np.concatenate([safetensors.numpy.load_file(file)["last_update"] for file in files])
    is_owed = (last_update_f > 0) & (last_update_f < weights.manifest["step"])
    assert is_owed.any() and not is_owed.all(), last_update_f


def indices(weights, expected):
    """Every way to ask for some of a matrix."""
    features, width = expected["W_dec"].shape
    rng = np.random.default_rng(3)
    some = rng.permutation(features)[:20]
    mask = rng.random(features) < 0.1
    for chosen in (0, -1, features - 1, np.int64(5), slice(None), slice(3, 200, 7), slice(130, 40, -1), slice(5, 5), some, some.tolist(), some - features, mask, [], [4, 4]):
        assert np.array_equal(weights.W_dec[chosen], expected["W_dec"][chosen if not isinstance(chosen, list) or chosen else slice(0)]), chosen
        assert np.array_equal(weights.W_enc[:, chosen], expected["W_enc"][:, chosen if not isinstance(chosen, list) or chosen else slice(0)]), chosen
    assert np.array_equal(weights.W_enc[2], expected["W_enc"][2]) and weights.W_dec[7, 3] == expected["W_dec"][7, 3]
    assert np.array_equal(weights.W_dec[some, 1:3], expected["W_dec"][some, 1:3]) and len(weights.W_enc) == width
    for wrong in (features, -features - 1, 1.5, [0, features], np.ones(3, bool), "a", (0, 0, 0)):
        refuses(IndexError, [], weights.W_dec.__getitem__, wrong)


def damage(run):
    """Bits that changed are noticed where they are read, files that are missing at once; an earlier checkpoint is taken."""
    attempts = sorted(pathlib.Path(run, "checkpoints").glob("step-*/attempt-*"))
    assert len(attempts) >= 2
    newest, before = attempts[-1], attempts[-2]
    file = newest / "weights-000000.safetensors"
    kept = file.read_bytes()
    file.write_bytes(kept[:-1] + bytes([kept[-1] ^ 1]))
    weights = sae.load(run)
    assert weights.place.endswith(str(newest)[-30:]) and weights.W_dec[0].shape == (weights.width,)
    refuses(sae.DamagedError, ["weights-000000.safetensors", "hashes"], weights.W_dec.__getitem__, weights.features - 1)
    assert sae.load(run, verify=False).W_dec[weights.features - 1].shape == (weights.width,)
    step = int(before.parent.name[5:])
    for wrong in (kept[:-5], kept + b"x", b"", b"\xff" * len(kept), kept[:8] + b"[" + kept[9:], None):
        if wrong is None:
            file.unlink()
        else:
            file.write_bytes(wrong)
        if wrong is not None and len(wrong) == len(kept):
            refuses(sae.DamagedError, ["weights-000000"], lambda: sae.load(run).W_dec[0])
            continue
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            assert sae.load(run).manifest["step"] == step
        assert any("trying the checkpoint before it" in str(one.message) for one in said)
    file.write_bytes(kept)
    for name, wrong in (("COMMIT", b"0" * 32), ("manifest.json", b"{}")):
        was = (newest / name).read_bytes()
        (newest / name).write_bytes(wrong)
        with warnings.catch_warnings(record=True):
            assert sae.load(run).manifest["step"] == step
        refuses(sae.DamagedError, ["COMMIT"], sae.load, newest)
        (newest / name).write_bytes(was)
    assert sae.load(run).manifest["step"] > step
    for place in (newest, newest.parent, before):
        assert sae.load(place).manifest["step"] == int(place.name[5:] if place.name.startswith("step") else place.parent.name[5:])
    refuses(FileNotFoundError, ["step 99999", str(step)], sae.load, run, 99999)
    refuses(FileNotFoundError, ["no committed checkpoint"], sae.load, pathlib.Path(run).parent)
    refuses(ValueError, ["checkpoint already"], sae.load, newest, "best")
    refuses(ValueError, ["choose"], sae.load, run, "newest")
    for wrong in (True, 1.5, -1, None):
        refuses(ValueError, [f"checkpoint {wrong!r}: choose"], sae.load, run, wrong)
    refuses(ValueError, ["unit_norm 'no': True or False"], sae.load, run, unit_norm="no")
    refuses(ValueError, ["no path or URL"], sae.load, 3)
    # Manifests that were sealed again after somebody had changed them.
    import xxhash

    text = (newest / "manifest.json").read_bytes()
    manifest = json.loads(text)
    file_names = [entry["name"] for entry in manifest["files"]]
    def with_file(**change):
        changed = json.loads(text)
        changed["files"][file_names.index("weights-000000.safetensors")] |= change
        return changed
    hostile = [with_file(name="../../../x"), with_file(name="/etc/passwd"), with_file(features=1 << 60), with_file(first_feature=-1), with_file(first_feature=128),
               with_file(bytes=-1), with_file(tile_hashes=None), manifest | {"width": 0}, manifest | {"features": 1 << 50}, manifest | {"scale": 0}, manifest | {"files": []},
               manifest | {"recipe": {}}, {key: value for key, value in manifest.items() if key != "scale"}]  # fmt: skip
    copy = pathlib.Path(tempfile.mkdtemp(dir=pathlib.Path(run).parent), "copy")
    copy.mkdir()
    for name in [*file_names, "manifest.json", "COMMIT"]:
        (copy / name).write_bytes((newest / name).read_bytes())
    assert same_bits(sae.load(copy).W_dec[3], sae.load(newest).W_dec[3])
    for changed in hostile:
        data = json.dumps(changed).encode()
        (copy / "manifest.json").write_bytes(data)
        (copy / "COMMIT").write_text(xxhash.xxh3_128_hexdigest(data) + "\n")
        refuses(sae.DamagedError, [], sae.load, copy)
    data = json.dumps(manifest | {"format": 99}).encode()
    (copy / "manifest.json").write_bytes(data)
    (copy / "COMMIT").write_text(xxhash.xxh3_128_hexdigest(data) + "\n")
    refuses(NotImplementedError, ["format 99"], sae.load, copy)


def hostile_exports(export):
    """What an export may not say."""
    place = pathlib.Path(export)
    config, weights = (place / "cfg.json").read_text(), (place / "sae_weights.safetensors").read_bytes()
    for change in ({"architecture": "topk"}, {"activation_fn": "jumprelu"}, {"normalize_activations": "layer_norm"}, {"d_sae": 0}, {"d_in": "4"}, {"d_sae": 1 << 40}):
        (place / "cfg.json").write_text(json.dumps(json.loads(config) | change))
        refuses(ValueError, ["cfg.json"], sae.load, place)
    for wrong in ("", "[]", "{", "\u0000"):
        (place / "cfg.json").write_text(wrong)
        refuses(sae.DamagedError, ["cfg.json"], sae.load, place)
    (place / "cfg.json").write_text(config)
    length = int.from_bytes(weights[:8], "little")
    header = json.loads(weights[8 : 8 + length])
    for name, change in (("W_dec", {"data_offsets": [0, 1 << 62]}), ("W_dec", {"dtype": "I8"}), ("W_enc", {"shape": [1 << 40, 1 << 40]}), ("b_enc", {"shape": []}), ("W_dec", {"data_offsets": [8, 0]})):
        text = json.dumps(header | {name: header[name] | change}).encode()
        (place / "sae_weights.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + weights[8 + length :])
        refuses(sae.DamagedError, ["sae_weights"], sae.load, place)
    for wrong in (b"", b"\xff" * 64, (1 << 62).to_bytes(8, "little") + b"{}", weights[: 8 + length]):
        (place / "sae_weights.safetensors").write_bytes(wrong)
        refuses(sae.DamagedError, ["sae_weights"], sae.load, place)
    (place / "sae_weights.safetensors").write_bytes(weights)
    for names in (["../x"], ["/etc/passwd"], [], "a", [1]):
        (place / "sae_weights.safetensors.index.json").write_text(json.dumps({"weight_map": {"W_enc": names}}))
        refuses(sae.DamagedError, ["index"], sae.load, place)


def altered(export, change):
    """A copy of an export of one file, with whatever `change` does to its tensors, by their names."""
    import safetensors.numpy

    copy = pathlib.Path(tempfile.mkdtemp(dir=pathlib.Path(export).parent))
    tensors = safetensors.numpy.load_file(f"{export}/sae_weights.safetensors")
    change(tensors)
    safetensors.numpy.save_file({name: np.ascontiguousarray(values) for name, values in tensors.items()}, copy / "sae_weights.safetensors")
    config = json.loads(pathlib.Path(export, "cfg.json").read_text())
    (copy / "cfg.json").write_text(json.dumps(config | {"d_sae": len(tensors["b_enc"])}))
    return copy


def scaled(export):
    """Factors on decoder rows are multiplied in, and whatever else a file holds beside the four tensors is refused by its name."""
    expected = exported(export)
    factors_f = np.random.default_rng(6).uniform(0.5, 2, len(expected["b_enc"])).astype(np.float32)
    for name in ("scaling_factor", "finetuning_scaling_factor"):
        weights = sae.load(altered(export, lambda tensors: tensors.update({name: factors_f})))
        assert same_bits(weights.W_dec[:], expected["W_dec"] * factors_f[:, None]), name
        assert np.array_equal(weights.W_dec[[131, 4]], weights.W_dec[:][[131, 4]]) and same_bits(weights.W_enc.numpy(), np.ascontiguousarray(expected["W_enc"]))
        wrong = altered(export, lambda tensors: tensors.update({name: factors_f[1:]}))
        refuses(sae.DamagedError, [name, "shape"], sae.load, wrong)
    for name in ("threshold", "log_threshold", "W_skip"):
        other = altered(export, lambda tensors: tensors.update({name: factors_f}))
        refuses(ValueError, [f"holds {name} besides"], sae.load, other)
        refuses(ValueError, [f"holds {name} besides"], sae.encode, other, np.zeros((1, len(expected["b_dec"])), np.float32))


def chosen(export, data):
    """Features of an export that holds some of a run's are called by their numbers in the run, as its map says."""
    import safetensors.numpy

    ids = np.flatnonzero(np.random.default_rng(7).random(len(exported(export)["b_enc"])) < 0.4)

    def keep(tensors):
        tensors |= {"W_enc": tensors["W_enc"][:, ids], "b_enc": tensors["b_enc"][ids], "W_dec": tensors["W_dec"][ids]}

    some = altered(export, keep)
    mapped = lambda values: safetensors.numpy.save_file({"feature": values}, some / "features.safetensors")
    mapped(ids)
    rows = numbers(shards(data), np.float16)[:500]
    whole, found = sae.encode(export, rows), sae.encode(some, rows)
    of_both = np.isin(whole.feature, ids)
    # Where rounding does not decide.
    clear, is_clear = of_both & (whole.activation > 1e-3), found.activation > 1e-3
    pairs = lambda of, which: [*zip(of.row[which].tolist(), of.feature[which].tolist())]
    assert clear.sum() > 100 and abs(clear.sum() - is_clear.sum()) < 5 and len({*pairs(whole, clear)} ^ {*pairs(found, is_clear)}) < 10
    assert found.shape == (500, len(ids)) and np.abs(found.dense() - whole.dense()[:, ids]).max() < 1e-3
    assert np.array_equal(sae.load(some).feature_ids, ids) and sae.load(export).feature_ids is None
    for wrong, words in ((ids[1:], "I64"), (ids.astype(np.int32), "I64"), (ids[::-1].copy(), "ascend"), (ids - 1 - ids[0], "ascend"), (ids + (1 << 32), "ascend")):
        if wrong.dtype == np.int32:
            (some / "features.safetensors").unlink()
            safetensors.numpy.save_file({"feature": wrong.astype(np.float32)}, some / "features.safetensors")
        else:
            mapped(wrong)
        refuses(sae.DamagedError, ["features.safetensors", words], sae.load, some)
    for wrong in (b"", b"\xff" * 64, b"\0" * 9, b"x" * 10_000):
        (some / "features.safetensors").write_bytes(wrong)
        refuses(sae.DamagedError, ["features.safetensors"], sae.load, some)


def encodes(run, export, data):
    """`sae.encode` of a run against numpy on its export: the same pairs but where rounding decides, and the same activations."""
    import torch

    expected, rows = exported(export), numbers(shards(data), np.float16)[:3000]
    x = rows.astype(np.float32)
    dense = np.maximum(x @ expected["W_enc"] + expected["b_enc"], 0)
    error = 1e-5 * np.abs(x).sum(axis=1, keepdims=True) * np.abs(expected["W_enc"]).max()
    for given in (rows, torch.from_numpy(rows.copy()), torch.from_numpy(x).reshape(3, 1000, -1)):
        for source in (run, export, sae.load(run)):
            found = sae.encode(source, given)
            assert found.shape == dense.shape and (np.abs(found.dense() - dense) <= error).all()
    assert (found.activation > 0).all() and len(found.row) > 1000
    order = np.lexsort((found.feature, found.row))
    assert np.array_equal(order, np.arange(len(order))) and found.row.dtype == found.feature.dtype == np.int64
    # In pieces of rows and features it is the same.
    from sae import _encode, _weights

    _encode._ROWS, _encode._DENSE_BYTES, _weights._BLOCK_BYTES = 700, 4 * 700 * 50, 8 * x.shape[1] * 128
    pieces = sae.encode(run, rows)
    assert (np.abs(pieces.dense() - dense) <= error).all() and len(sae.encode(run, rows[:0]).row) == 0
    strong = sae.encode(run, rows, threshold=float(np.median(found.activation)))
    assert 0 < len(strong.row) < len(found.row) and strong.activation.min() > np.median(found.activation)
    refuses(ValueError, ["width"], sae.encode, run, x[:, 1:])
    refuses(ValueError, ["not finite"], sae.encode, run, np.full_like(x, np.nan))
    for threshold in (-1.0, np.nan, "1", True, None):
        refuses(ValueError, [f"threshold {threshold!r}"], sae.encode, run, x, threshold=threshold)


def tokenizer(special="<s> $A"):
    """Letters are tokens; id 0 is BOS, which programs have taken for none."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    words = ["<s>", "</s>", "<pad>", "<unk>", *"abcdefghijklmnopqrstuvwxyz "]
    made = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, "<unk>"))
    made.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    if special:
        made.post_processor = processors.TemplateProcessing(single=special, special_tokens=[("<s>", 0), ("</s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=made, bos_token="<s>", eos_token="</s>", unk_token="<unk>", pad_token="<pad>")


def llama(layers=4):
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(vocab_size=40, hidden_size=32, intermediate_size=64, num_hidden_layers=layers, num_attention_heads=4, num_key_value_heads=2,
                         max_position_embeddings=64)  # fmt: skip
    return LlamaForCausalLM(config).eval()


def texts():
    """Texts of all lengths, none twice."""
    rng, letters = np.random.default_rng(8), list("abcdefghijklmnopqrstuvwxyz ")
    drawn = ["".join(rng.choice(letters, count)) for count in (43, 0, 70, 1, 20, 26) * 5]
    begin, end = {5: "<s>", 3: "<s><s>", 1: "<s><s><s>"}, {0: "<s>", 3: "<s>", 4: "<s>"}
    return [begin.get(number % 6, "") + text + end.get(number % 6, "") for number, text in enumerate(drawn)]


TEXTS = texts()


def harvested(out, layer, several):
    """Rows with their columns, and the contexts, by id."""
    table = shards(f"{out}/layer-{layer}" if several else out)
    contexts = {}
    for file in sorted(pathlib.Path(out, "_contexts").iterdir()):
        some = pq.read_table(file)
        assert [str(kind) for kind in some.schema.types] == ["uint64", "int64", "list<element: uint32 not null>"], some.schema
        contexts |= dict(zip(some["context_id"].to_pylist(), some["token_ids"].to_pylist()))
    return table, contexts


def harvests(folder):
    """A random Llama: rows are those of output_hidden_states, with the columns that belong to them."""
    import torch

    model, tokens = llama(), tokenizer()
    cases = [(2, {}), ([0, 1, 4], {"packed": False}), ([3], {"keep_first": True, "bos": "never"}), (4, {"batch": 1, "keep_first": True})]
    for number, (layers, options) in enumerate(cases):
        out, several = f"{folder}/{number}", isinstance(layers, list) and len(layers) > 1
        done = sae.harvest(model, tokens, iter(TEXTS), layers, out, context=12, dtype="f32", part_bytes=9000, **options)
        assert done.is_finished and not model.training
        for layer in np.atleast_1d(layers):
            table, contexts = harvested(out, layer, several)
            assert len(table) == done.rows and len(contexts) == done.contexts and sorted(contexts) == list(range(len(contexts)))
            rows, expected, columns = numbers(table), [], []
            for context, ids in sorted(contexts.items()):
                streams = {}
                hook = model.model.layers[-1].register_forward_hook(lambda _, __, output: streams.update(last=output))
                with torch.no_grad():
                    hidden = model(torch.tensor([ids]), output_hidden_states=True).hidden_states
                hook.remove()
                last = streams["last"][0] if isinstance(streams["last"], tuple) else streams["last"]
                stream = last if layer == 4 else hidden[layer]  # hidden_states ends with the final norm
                kept = [pos for pos, token in enumerate(ids) if options.get("keep_first") or pos > 0 and token != 0]
                expected.append(stream[0, kept].numpy())
                columns += [(context, pos, ids[pos]) for pos in kept]
            expected = np.concatenate(expected)
            assert rows.shape == expected.shape and np.abs(rows - expected).max() < 1e-5, np.abs(rows - expected).max()
            assert columns == list(zip(*(table[name].to_pylist() for name in ("context_id", "pos", "token_id"))))
        source = json.loads(pathlib.Path(out, f"layer-{layer}" if several else "", "manifest.json").read_text())["source"]
        assert source["layer"] == layer and source["context_size"] == 12 and source["hook_name"] == f"blocks.{layer - 1}.hook_resid_post"
        tokens_of(contexts, table, tokens, options)


def tokens_of(contexts, table, tokens, options):
    """BOS stands where a context or a text begins, or a text has it, never twice, and the texts are all there, each token with its text."""
    bos = options.get("bos", "auto") != "never"
    bare = [tokens(text, add_special_tokens=False)["input_ids"] for text in TEXTS]
    ends = [ids[-1:] == [0] for ids in bare]
    bare = [[token for token in ids if not bos or token != 0] for ids in bare]
    joined = [token for _, ids in sorted(contexts.items()) for token in ids if not bos or token != 0]
    assert joined == [token for ids in bare for token in ids]
    rows = zip(*(table[name].to_pylist() for name in ("context_id", "pos", "doc_id", "token_id")))
    if not bos:
        return
    by_doc = [(doc, token) for doc, ids in enumerate(bare) for token in ids]
    kept = list(rows)
    assert [(doc, token) for _, _, doc, token in kept if token != 0] == by_doc
    # Inside of a context BOS is of the text that it begins.
    begins = {doc: ids[:1] for doc, ids in enumerate(bare)}
    for (context, pos, doc, token), (after, _, next_doc, following) in zip(kept, kept[1:]) if options.get("keep_first") else []:
        if pos > 0 and token == 0 and context == after:
            assert [following] == begins[next_doc] and (doc == next_doc or ends[doc])
        assert not (context == after and doc != next_doc and following != 0 and token != 0), "a text without BOS"
    docs = {context: [] for context in contexts}
    for context, _, doc, _ in kept:
        docs[context].append(doc)
    short = 0
    for context, ids in contexts.items():
        assert ids[0] == 0 and (0, 0) not in zip(ids, ids[1:]), ids
        if len(ids) == 12 or not options.get("packed", True) and 2 <= len(ids) < 12 or context + 1 == len(contexts):
            continue
        # One that would have ended with the BOS of a text.
        assert len(ids) == 11 and ids[-1] != 0 and docs[context][-1] != docs[context + 1][0], (context, ids)
        short += 1
    assert short or not options.get("packed", True), "no text begins at the end of a context"


def special_tokens(folder):
    """What tokenizers put around texts, and `bos` that is asked for."""
    from sae._contexts import Form, Special, Texts, contexts

    assert Special.of(tokenizer(), "auto") == ([0], []) and Special.of(tokenizer(), "always") == ([0], [])
    assert Special.of(tokenizer(None), "auto") == ([], []) and Special.of(tokenizer(None), "always") == ([0], [])
    assert Special.of(tokenizer("</s> $A"), "always") == ([1], [])
    assert Special.of(tokenizer("<s> $A </s>"), "auto") == ([0], [1]) and Special.of(tokenizer("<s> $A </s>"), "never") == ([], [])
    without = tokenizer(None)
    without.bos_token = None
    other = llama()
    config = other.config
    config.bos_token_id = 3
    sae.harvest(other, without, TEXTS[:3], 1, f"{folder}-bos", context=12, bos="always")
    assert {ids[0] for ids in harvested(f"{folder}-bos", 1, False)[1].values()} == {3}
    assert Special.of(without, "always", config) == ([3], []) and Special.of(without, "auto", config) == ([], [])
    without.cls_token = "</s>"
    assert Special.of(without, "always", config) == ([1], [])
    without.cls_token = config.bos_token_id = None
    refuses(ValueError, ["neither the tokenizer nor the model has a BOS"], Special.of, without, "always", config)
    refuses(ValueError, ["bos 'yes'"], Special.of, without, "yes")
    # A text that is cut before a BOS of its own, and one of which nothing else is left then.
    form = Form(6, Special([0], []), packed=True, marks_texts=True, keep_first=False, vocabulary=40)
    cut = list(contexts(tokenizer(), Texts(["abcde<s>f", "ghi<s>", "j"], {}, 0), form))
    assert [of.tokens for of in cut] == [[0, 4, 5, 6, 7, 8], [0, 9, 0, 10, 11, 12], [0, 13]] and cut[2].docs == [2, 2]
    assert form.keeps(cut[1].tokens) == [False, True, False, True, True, True]
    # An encoder, whose contexts end with a token too; its attention sees padding unless it is masked.
    import torch
    from transformers import BertConfig, BertModel

    torch.manual_seed(2)
    config = BertConfig(vocab_size=40, hidden_size=16, num_hidden_layers=3, num_attention_heads=2, intermediate_size=32, max_position_embeddings=64)
    model = BertModel(config).eval()
    done = sae.harvest(model, tokenizer("<s> $A </s>"), TEXTS, 2, folder, context=16, packed=False, batch=7, dtype="f32", keep_first=True)
    table, contexts = harvested(folder, 2, False)
    rows, expected = numbers(table), []
    for _, ids in sorted(contexts.items()):
        assert ids[0] == 0 and ids[-1] == 1
        with torch.no_grad():
            expected.append(model(torch.tensor([ids]), output_hidden_states=True).hidden_states[2][0].numpy())
    source = json.loads(pathlib.Path(folder, "manifest.json").read_text())["source"]
    assert source["hook_name"] == "blocks.1.hook_normalized_resid_post", source
    sae.harvest(model, tokenizer("<s> $A </s>"), TEXTS[:3], 0, f"{folder}-0", context=16)
    assert json.loads(pathlib.Path(f"{folder}-0", "manifest.json").read_text())["source"]["hook_name"] == "hook_full_embed"
    assert done.rows == len(rows) and len({len(ids) for ids in contexts.values()}) > 3
    assert np.abs(rows - np.concatenate(expected)).max() < 1e-5


# Each class that the README names: what its config calls its sizes where that is not as in Llama's, and its last norm.
GPT2 = {"hidden_size": "n_embd", "num_hidden_layers": "n_layer", "num_attention_heads": "n_head", "max_position_embeddings": "n_positions"}
CLASSES = {
    "Llama": ({}, {}, "model.norm"),
    "Qwen2": ({}, {}, "model.norm"),
    "Gemma2": ({}, {"head_dim": 8}, "model.norm"),
    "Mixtral": ({}, {"num_local_experts": 4}, "model.norm"),
    "GPT2": (GPT2, {}, "transformer.ln_f"),
    "GPTNeoX": ({}, {}, "gpt_neox.final_layer_norm"),
    "OPT": ({"intermediate_size": "ffn_dim"}, {"word_embed_proj_dim": 32}, "model.decoder.final_layer_norm"),
    "Bert": ({}, {}, None),
}


def tiny(name, auto="AutoModelForCausalLM", called=None, **more):
    """A random model of a class of `transformers`, of three blocks."""
    import torch
    import transformers

    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64}
    known = {(called or {}).get(key, key): value for key, value in sizes.items()}
    torch.manual_seed(4)
    config = getattr(transformers, f"{name}Config")(vocab_size=40, pad_token_id=2, bos_token_id=0, eos_token_id=1, **known, **more)
    return getattr(transformers, auto).from_config(config).eval()


def classes(folder):
    """Every layer of every class that the README names is what output_hidden_states says; others are refused before anything is begun."""
    import torch

    for name, (called, more, norm) in CLASSES.items():
        model, out = tiny(name, "AutoModel" if name == "Bert" else "AutoModelForCausalLM", called, **more), f"{folder}/{name}"
        sae.harvest(model, tokenizer(), TEXTS[:6], [0, 1, 2, 3], out, context=12, packed=False, dtype="f32", keep_first=True)
        for layer in range(4):
            table, contexts = harvested(out, layer, True)
            expected = []
            for _, ids in sorted(contexts.items()):
                with torch.no_grad():
                    expected.append(model(torch.tensor([ids]), output_hidden_states=True).hidden_states[layer][0])
            rows = torch.from_numpy(numbers(table).copy())
            if layer == 3 and norm:
                with torch.no_grad():
                    rows = model.get_submodule(norm)(rows)  # behind the last block transformers has the norm, too
            assert (rows - torch.cat(expected)).abs().max() < 1e-5, (name, layer)
            hook = json.loads(pathlib.Path(out, f"layer-{layer}/manifest.json").read_text())["source"]["hook_name"]
            assert name == "Bert" or hook == (f"blocks.{layer - 1}.hook_resid_post" if layer else "blocks.0.hook_resid_pre"), (name, hook)
    begin = lambda model, **more: sae.harvest(model, tokenizer(), TEXTS[:6], 1, f"{folder}/refused", context=12, **more)
    mamba = tiny("Mamba", state_size=4)
    refuses(ValueError, ["after 1 blocks of MambaForCausalLM is not its hidden_states[1]", "blocks="], begin, mamba)
    refuses(ValueError, ["after 1 blocks of RwkvForCausalLM is not its hidden_states[1]"], begin, tiny("Rwkv", attention_hidden_size=32))
    several = {"hidden_size_per_layer_input": 8, "vocab_size_per_layer_input": 40, "laurel_rank": 4, "num_kv_shared_layers": 0, "altup_num_inputs": 3, "head_dim": 8}
    gemma = tiny("Gemma3nText", "AutoModel", activation_sparsity_pattern=None, layer_types=["full_attention"] * 3, **several)
    for blocks in (None, gemma.layers):
        refuses(ValueError, ["layer 1 of Gemma3nTextModel is [3, 1, 8, 32] where [batch, seq, D]"], begin, gemma, blocks=blocks)
    assert not pathlib.Path(folder, "refused").exists(), "nothing was begun"
    assert begin(mamba, blocks=mamba.backbone.layers).is_finished


def other_tokens(folder):
    """Padding behind the model's vocabulary changes no row; text and special tokens behind it are refused."""
    model, tokens, padded = llama(), tokenizer(), tokenizer()
    # Of 31 tokens the tokenizer knows, the model has rows for nine more.
    padded.add_tokens([f"<{number}>" for number in range(9)])
    padded.add_special_tokens({"pad_token": "[PAD]"})
    assert padded.pad_token_id == 40
    options = {"context": 12, "packed": False, "dtype": "f32"}
    for name, of in {"own": tokens, "padded": padded}.items():
        sae.harvest(model, of, TEXTS, 2, f"{folder}/{name}", **options)
    assert shards(f"{folder}/own").equals(shards(f"{folder}/padded"))
    words = ["text 2 has token 40, and the model has 40", "tokenizer of another model"]
    refuses(ValueError, words, sae.harvest, model, padded, ["ab", "<8>", "a[PAD]b"], 2, f"{folder}/text", **options)
    from tokenizers import processors

    padded.backend_tokenizer.post_processor = processors.TemplateProcessing(single="[PAD] $A", special_tokens=[("[PAD]", 40)])
    words = ["puts around a text token 40, and the model has 40"]
    refuses(ValueError, words, sae.harvest, model, padded, ["ab"], 2, f"{folder}/special", **options)
    assert not pathlib.Path(folder, "special").exists(), "nothing was begun"


def harvest_again(folder):
    """Stopped at any batch, gone on, and shared by workers: the same bytes. Other arguments are refused."""
    import torch

    model, tokens = llama(), tokenizer()
    options = {"context": 12, "part_bytes": 3000, "batch": 3}
    sae.harvest(model, tokens, TEXTS, [1, 3], f"{folder}/whole", **options)

    class Struck(Exception):
        pass

    left = 0

    def strike(*_):
        nonlocal left
        left -= 1
        if left == 0:
            raise Struck

    hook = model.model.layers[0].register_forward_hook(strike)
    struck = 0
    while True:
        # One pass looks at the streams, and two make a part: every other one goes on by one, at least.
        left = 3 + struck % 5
        try:
            done = sae.harvest(model, tokens, iter(TEXTS), [1, 3], f"{folder}/struck", **options)
            break
        except Struck:
            struck += 1
    hook.remove()
    assert struck > 5 and done.is_finished
    same_files(f"{folder}/struck", f"{folder}/whole")
    for worker in (2, 0, 1):
        done = sae.harvest(model, tokens, iter(TEXTS), [1, 3], f"{folder}/shared", worker=(worker, 3), **options)
        assert done.is_finished == (worker == 1)
    same_files(f"{folder}/shared", f"{folder}/whole")
    assert done == sae.harvest(model, tokens, TEXTS, [1, 3], f"{folder}/whole", **options)
    refuses(ValueError, ["another plan", "sources"], sae.harvest, model, tokens, TEXTS, [1, 3], f"{folder}/whole", **options | {"context": 13})
    refuses(ValueError, ["another plan", "folders"], sae.harvest, model, tokens, TEXTS, [1], f"{folder}/whole", **options)
    refuses(ValueError, ["layers 0"], sae.harvest, model, tokens, TEXTS, 5, f"{folder}/x")
    refuses(ValueError, ["no room"], sae.harvest, model, tokenizer("<s> $A </s>"), TEXTS, 1, f"{folder}/y", context=2)
    refuses(ValueError, ["no tokens"], sae.harvest, model, tokens, ["", "<s>"], 1, f"{folder}/z")
    refuses(ValueError, ["text 1", "int"], sae.harvest, model, tokens, ["a", 3], 1, f"{folder}/t")
    for worker in ((3, 3), (0,), 1, (0.0, 1), ("0", "2"), None):
        refuses(ValueError, [f"worker {worker!r}: (w, W)"], sae.harvest, model, tokens, TEXTS, 1, f"{folder}/v", worker=worker)
    for layer in (True, 1.0, "1", [], [1, 1], [True], None, -1):
        refuses(ValueError, [f"layer {layer!r}: the model has layers 0"], sae.harvest, model, tokens, TEXTS, layer, f"{folder}/v")
    for name, wrong in (("context", "12"), ("context", 1), ("batch", True), ("part_bytes", 1e6), ("packed", "no"), ("keep_first", 1)):
        refuses(ValueError, [f"{name} {wrong!r}: "], sae.harvest, model, tokens, TEXTS, 1, f"{folder}/v", **{name: wrong})
    for wrong in ("a text", b"a text", None, 3):
        refuses(ValueError, [f"texts is a {type(wrong).__name__}"], sae.harvest, model, tokens, wrong, 1, f"{folder}/v")
    assert not pathlib.Path(folder, "v").exists(), "nothing was begun"
    # Other texts: in front, behind what is whole, more of them or fewer, for a harvest that is whole and for one that is not.
    sae.harvest(model, tokens, TEXTS, [1, 3], f"{folder}/begun", worker=(1, 2), **options)
    others = "texts are not those that the folder was begun with"
    for out, texts, words in (
        ("whole", ["other", *TEXTS], others),
        ("whole", [*TEXTS[:-1], "other"], others),
        ("whole", [*TEXTS, "other"], "text 30 goes on behind the last"),
        ("whole", TEXTS[:-3], "there are 27 texts, and the folder was begun with at least 30"),
        ("begun", ["other", *TEXTS], others),
        ("begun", TEXTS[:3], "there are 3 texts, and the folder was begun with at least "),
    ):
        refuses(ValueError, [words, "or name an empty folder"], sae.harvest, model, tokens, texts, [1, 3], f"{folder}/{out}", **options)
    assert done == sae.harvest(model, tokens, [*TEXTS, "", "<s>"], [1, 3], f"{folder}/whole", **options), "texts without tokens"
    # Other weights under the same names, and another tokenizer of the same class.
    with torch.no_grad():
        model.model.layers[3].mlp.up_proj.weight.mul_(1.01)
    refuses(ValueError, ["another plan", "weights"], sae.harvest, model, tokens, TEXTS, [1, 3], f"{folder}/whole", **options)
    other = tokenizer()
    other.add_tokens(["ab"])
    refuses(ValueError, ["another plan", "vocabulary"], sae.harvest, llama(), other, TEXTS, [1, 3], f"{folder}/whole", **options)
    padded = tokenizer()
    padded(["a", "bcd"], padding=True, truncation=True, max_length=2)
    assert done == sae.harvest(llama(), padded, TEXTS, [1, 3], f"{folder}/whole", **options), "what a call leaves behind decides nothing"
    with torch.no_grad():
        model.model.layers[0].mlp.down_proj.weight.fill_(float("inf"))
    refuses(ValueError, ["layer 1", "not finite"], sae.harvest, model, tokens, TEXTS, 1, f"{folder}/w")
    assert not list(pathlib.Path(folder, "w").rglob("*.p*rti*l")) and not list(pathlib.Path(folder, "w").rglob("shard*"))


def twin(out):
    """Harvests, as one of two processes that have the same number, the system's too, as in two containers; for `shared_parts`."""
    os.getpid = lambda: 7
    sae.harvest(llama(), tokenizer(), TEXTS, [1, 3], out, context=12, part_bytes=3000, batch=3)


def shared_parts(folder):
    """Workers that begin together, with one plan or with several; shards that are gone before the manifest is written."""
    from sae._errors import DamagedError
    from sae._parts import Parts
    from sae._store import Store

    # Both have seen an empty folder: the first decides.
    first, second, third = (Parts(Store(f"{folder}/begun")) for _ in range(3))
    first.begin({"command": "a", "n": [1]})
    refuses(ValueError, ["another plan", "command"], second.begin, {"command": "b", "n": [1]})
    third.begin({"command": "a", "n": [1]})
    assert json.loads(pathlib.Path(folder, "begun/parts/plan.json").read_text()) == {"command": "a", "n": [1]}
    assert [path.name for path in pathlib.Path(folder, "begun/parts").iterdir()] == ["plan.json"]

    model, tokens, options = llama(), tokenizer(), {"context": 12, "part_bytes": 3000, "batch": 3}
    run = lambda out, **more: sae.harvest(model, tokens, iter(TEXTS), [1, 3], f"{folder}/{out}", **options | more)
    run("whole")
    # A marker that another plan has left.
    assert not run("left", worker=(0, 2)).is_finished
    marker = pathlib.Path(folder, "left/parts/000002.json")
    kept = marker.read_text()
    plan = json.loads(kept)["plan"]
    marker.write_text(kept.replace(plan, plan[::-1]))
    refuses(DamagedError, ["000002.json", "another plan"], run, "left", worker=(1, 2))
    marker.write_text(kept)
    # Shards that are gone or cut are named, nothing is made of them, and the remedy helps.
    for change, words in ((lambda path: path.unlink(), "is gone"), (lambda path: path.write_bytes(path.read_bytes()[:-1]), "bytes")):
        shard = pathlib.Path(folder, "left/layer-3/shard-000002.parquet")
        change(shard)
        refuses(DamagedError, ["layer-3/shard-000002.parquet", words, "000002.json"], run, "left", worker=(1, 2))
        assert not list(pathlib.Path(folder, "left").rglob("manifest.json"))
        marker.unlink()
        run("left", worker=(1, 2))
        assert not list(pathlib.Path(folder, "left").rglob("manifest.json"))
        if words == "bytes":
            run("left", worker=(0, 2))
            break
        # Made again by its own worker, which finishes: begin anew for the other damage.
        run("left", worker=(0, 2))
        for manifest in pathlib.Path(folder, "left").rglob("manifest.json"):
            manifest.unlink()
    same_files(f"{folder}/left", f"{folder}/whole")
    # Of two writers of one folder the first to begin is stopped before it publishes anything, and one that began before the folder was finished too.
    rows = np.ones((12, 4), np.float32)
    new = lambda: sae.ShardWriter(f"{folder}/two", 4, "f16", shard_rows=5)
    first, second, third = new(), new(), new()
    first.write(rows[:4])
    second.write(rows[:6])
    refuses(ValueError, ["another writer has begun to write to", "one at a time"], first.write, rows[:4])
    refuses(ValueError, ["has failed"], first.finish)
    refuses(ValueError, ["was written to by another writer since"], third.write, rows)
    fourth = new()
    second.write(rows[:6])
    refuses(ValueError, ["another writer has begun"], lambda: (new().write(rows[:1]), second.finish()))
    refuses(ValueError, ["was written to by another writer since"], fourth.write, rows)
    idle = new()
    busy = new()
    busy.write(rows[:1])
    assert idle.rows_committed == 10
    busy.write(rows[:4])
    refuses(ValueError, ["was written to by another writer since"], idle.finish)
    assert not pathlib.Path(folder, "two/manifest.json").exists()
    busy.abort()
    pathlib.Path(folder, "two/parts/000002.json").unlink()
    pathlib.Path(folder, "two/shard-000002.parquet").unlink()
    last = new()
    assert last.rows_committed == 10
    last.write(rows[:2])
    assert last.finish() == 12 and len(shards(f"{folder}/two")) == 12 and not pathlib.Path(folder, "two/parts/writer").exists()
    with_gap = sae.ShardWriter(f"{folder}/writer", 4, "f16", shard_rows=5)
    with_gap.write(np.ones((12, 4), np.float32))
    pathlib.Path(folder, "writer/shard-000001.parquet").unlink()
    refuses(DamagedError, ["shard-000001.parquet", "is gone"], with_gap.finish)
    assert not pathlib.Path(folder, "writer/manifest.json").exists()

    twins = [subprocess.Popen([sys.executable, __file__, "twin", f"{folder}/twins"]) for _ in range(2)]
    assert [process.wait() for process in twins] == [0, 0]
    same_files(f"{folder}/twins", f"{folder}/whole")


def remote(url, local):
    """A writer and a run in object storage; `local` is the same run's export."""
    rows = np.random.default_rng(4).standard_normal((5000, 32)).astype(np.float32)
    def begin():
        return sae.ShardWriter(f"{url}/written", 32, "f16", {"a": 1}, shard_rows=1200)
    writer = begin()
    writer.write(rows[:3000], token_id=np.arange(3000))
    assert writer.rows_committed == 2400
    del writer  # as if it had been killed: what it had begun stays in the store
    writer = begin()
    assert writer.rows_committed == 2400
    with writer:
        writer.write(rows[2400:], token_id=np.arange(2400, 5000))
    done = sae.harvest(llama(), tokenizer(), TEXTS, 2, f"{url}/harvested", context=12, part_bytes=9000)
    assert done.is_finished
    expected = exported(local)
    for place in (f"{url}/run", f"{url}/export"):
        weights = sae.load(place)
        for name, values in expected.items():
            assert same_bits(np.ascontiguousarray(getattr(weights, name)), np.ascontiguousarray(values)), (place, name)
        some = [299, 0, 130, 131]
        assert np.array_equal(weights.W_dec[some], expected["W_dec"][some]) and np.array_equal(weights.W_enc[:, 7], expected["W_enc"][:, 7])
        assert len(sae.encode(weights, rows[:10] * 30).row) > 0
    refuses(FileNotFoundError, ["no committed checkpoint"], sae.load, f"{url}/nothing")
    twins_in_object_storage(f"{url}/twins", rows)


def twins_in_object_storage(url, rows):
    """Of two writers of the same one fails when the other has finished: what that has written stays, whole."""
    from sae._store import Store

    store = Store(url)
    whole = lambda: {name: store.get(name, 1 << 30) for name in store.list()}
    new = lambda: sae.ShardWriter(url, 32, "f16", shard_rows=1200)
    failing, other = new(), new()
    failing.write(rows[:700])
    with other:
        other.write(rows[:2000])
    written = whole()
    assert len(written) == 6, "two shards with their markers, the plan and the manifest"
    failing.abort()
    assert whole() == written, "something else is there"
    output = store.open("a/b%20c#d")
    output.write(b"1")
    assert store.size("a/b%20c#d") is None, "an object that is not whole is there"
    output.commit()
    assert store.get("a/b%20c#d", 9) == b"1"


if __name__ == "__main__":
    for check in " ".join(sys.argv[1:]).split(" -- "):
        name, *arguments = check.split()
        globals()[name](*arguments)
