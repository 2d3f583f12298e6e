"""`sae encode` with a dictionary of millions of features: pairs a second, and the memory that it takes.

    PYTHON_MODELS="$(tests/reference/venv.sh models)"
    cargo build --release
    "$PYTHON_MODELS" benchmarks/encode.py target/release/sae OUT --features 1048576 --width 64 --rows 32768

In OUT: dictionary/, random unit columns of W_enc as SAELens writes them, with a bias at which about --l0 of the features fire on a normal row; rows/,
such rows; then for each of --shards an encoding, of which all have to hold the same pairs. A sample of --sample rows is held against numpy."""

import argparse
import glob
import json
import os
import statistics
import subprocess
import sys
import time

import numpy as np
import pyarrow.parquet as pq
import safetensors.numpy

ROOT = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..")
sys.path.insert(0, os.path.join(ROOT, "launch", "python"))
import sae


def make(given):
    """The dictionary and the rows, where they are not there yet."""
    folder, random = os.path.join(given.out, "dictionary"), np.random.default_rng(1)
    if not os.path.exists(os.path.join(folder, "cfg.json")):
        os.makedirs(folder, exist_ok=True)
        w_dec = random.standard_normal((given.features, given.width), np.float32)
        w_dec /= np.linalg.norm(w_dec, axis=1, keepdims=True)
        # Of a unit column's product with a normal row a share of l0 / F lies above this.
        bias = -statistics.NormalDist().inv_cdf(1 - given.l0 / given.features)
        tensors = {"W_enc": np.ascontiguousarray(w_dec.T), "b_enc": np.full(given.features, bias, np.float32), "W_dec": w_dec, "b_dec": np.zeros(given.width, np.float32)}
        safetensors.numpy.save_file(tensors, os.path.join(folder, "sae_weights.safetensors"))
        config = {"architecture": "standard", "d_in": given.width, "d_sae": given.features, "dtype": "float32", "apply_b_dec_to_input": False, "normalize_activations": "none"}
        with open(os.path.join(folder, "cfg.json"), "w") as file:
            json.dump(config, file)
    with sae.ShardWriter(os.path.join(given.out, "rows"), given.width, "f32") as writer:
        if not writer.is_finished:
            writer.write(np.random.default_rng(2).standard_normal((given.rows, given.width), np.float32))


def pairs_of(folder):
    """Rows, features and activations of all pairs, by row and feature."""
    tables = [pq.read_table(file) for file in sorted(glob.glob(os.path.join(folder, "activations", "*.parquet")))]
    columns = [np.concatenate([table[name].to_numpy() for table in tables]) for name in ("row", "feature", "activation")]
    order = np.lexsort(columns[1::-1])
    return [column[order] for column in columns]


def check(given, pairs):
    """The first rows beside numpy."""
    weights = safetensors.numpy.load_file(os.path.join(given.out, "dictionary", "sae_weights.safetensors"))
    rows = np.random.default_rng(2).standard_normal((given.rows, given.width), np.float32)[: given.sample]
    expected = np.maximum(rows @ weights["W_enc"] + weights["b_enc"], 0)
    found = np.zeros_like(expected)
    some = pairs[0] < given.sample
    found[pairs[0][some], pairs[1][some]] = pairs[2][some]
    return float(np.abs(found - expected).max())


def measured(given, shards):
    """An encoding's figures. A process counts the memory of the one that starts it as its own peak: nothing large may be loaded here before."""
    out = os.path.join(given.out, f"encoded-{shards}")
    command = [given.sae, "encode", os.path.join(given.out, "dictionary"), "--data", os.path.join(given.out, "rows"), "--out", out, "--feature-shards", str(shards)]
    began = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, used = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - began
    assert status == 0, command
    figures = {"features": given.features, "width": given.width, "rows": given.rows, "feature_shards": shards, "wall_s": round(seconds, 2)}
    cpu_s = used.ru_utime + used.ru_stime
    return figures | {"cpu_s": round(cpu_s, 2), "rows_per_s": round(given.rows / seconds), "peak_mib": round(used.ru_maxrss / 1024)}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sae")
    parser.add_argument("out")
    parser.add_argument("--features", type=int, default=1 << 20)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--rows", type=int, default=1 << 15)
    parser.add_argument("--l0", type=float, default=32)
    parser.add_argument("--sample", type=int, default=64)
    parser.add_argument("--shards", type=int, nargs="+", default=[1, 4, 16])
    parser.add_argument("--make", action="store_true", help="only dictionary/ and rows/")
    given = parser.parse_args()
    if given.make:
        return make(given)
    subprocess.run([sys.executable, *sys.argv, "--make"], check=True)
    figures, first = [measured(given, shards) for shards in given.shards], None
    for of in figures:
        pairs = pairs_of(os.path.join(given.out, f"encoded-{of['feature_shards']}"))
        first = first or pairs
        assert all(np.array_equal(one, other) for one, other in zip(first, pairs)), "other pairs"
        beside = {"l0": round(len(pairs[0]) / given.rows, 3), "weights_mib": 8 * given.features * given.width >> 20, "worst_beside_numpy": check(given, pairs)}
        print(json.dumps(of | beside), flush=True)


if __name__ == "__main__":
    main()
