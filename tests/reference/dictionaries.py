"""Dictionaries that dictionary_learning itself has trained, and what it makes of rows.

    dictionaries.py make FOLDER SHARDS
        its StandardTrainer trains its AutoEncoder on the rows of some shards, and the dictionary is saved as its training saves one: FOLDER/pickle holds
        ae.pt, FOLDER/safetensors the same tensors in a file of that format; config.json lies beside both
    dictionaries.py check FOLDER SHARDS ENCODED
        its activations on these rows against those that `sae encode` has written

An activation that is within rounding of 0 may be there or not. Exit status 0: as it should be.
"""

import importlib.util
import json
import pathlib
import sys

import numpy as np
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import safetensors.torch
import torch

# The package's own start imports nnsight, with which it reads language models: its dictionaries and trainers do not need it.
SPEC = importlib.util.find_spec("dictionary_learning")
sys.modules["dictionary_learning"] = importlib.util.module_from_spec(SPEC)

from dictionary_learning.dictionary import AutoEncoder  # noqa: E402
from dictionary_learning.trainers.standard import StandardTrainer  # noqa: E402

FEATURES, STEPS, BATCH = 200, 100, 128


def rows(shards):
    """The rows of shards of f16, in the order of their paths."""
    columns = [pq.read_table(path)["activation"] for path in sorted(pathlib.Path(shards).glob("*.parquet"))]
    return torch.from_numpy(np.concatenate([np.frombuffer(b"".join(of.to_pylist()), np.float16).reshape(len(of), -1) for of in columns])).float()


def make(folder, shards):
    x = rows(shards)
    trainer = StandardTrainer(
        steps=STEPS, activation_dim=x.shape[1], dict_size=FEATURES, layer=3, lm_name="none", lr=1e-2, l1_penalty=0.3, warmup_steps=10, sparsity_warmup_steps=10, seed=1, device="cpu"
    )
    for step in range(STEPS):
        trainer.update(step, x[step * BATCH % len(x) :][:BATCH])
    tensors = {name: tensor.cpu() for name, tensor in trainer.ae.state_dict().items()}
    for kind in ("pickle", "safetensors"):
        (pathlib.Path(folder) / kind).mkdir(parents=True)
        (pathlib.Path(folder) / kind / "config.json").write_text(json.dumps({"trainer": trainer.config}, indent=4))
    torch.save(tensors, pathlib.Path(folder) / "pickle/ae.pt")
    # Its encoder.weight is the transpose of what lies in memory, which ae.pt says by strides.
    assert not tensors["encoder.weight"].is_contiguous()
    tensors = {name: tensor.contiguous() for name, tensor in tensors.items()}
    safetensors.torch.save_file(tensors, pathlib.Path(folder) / "safetensors/ae.safetensors")


def check(folder, shards, encoded):
    x = rows(shards)
    dictionary = AutoEncoder.from_pretrained(pathlib.Path(folder) / "pickle/ae.pt")
    with torch.no_grad():
        expected = dictionary.encode(x).numpy()
        centred = x - dictionary.bias
        size = (centred.abs() @ dictionary.encoder.weight.abs().T + dictionary.encoder.bias.abs()).numpy()
    assert dictionary.bias.abs().max() > 0.01, "a bias that is folded in shows"
    pairs = ds.dataset(pathlib.Path(encoded) / "activations", format="parquet").to_table()
    got = np.zeros_like(expected)
    got[pairs["row"].to_numpy().astype(np.int64), pairs["feature"].to_numpy()] = pairs["activation"].to_numpy()
    density = (expected > 0).mean()
    assert 0.005 < density < 0.9, density
    assert (np.abs(got - expected) <= 1e-5 * size).all(), np.abs(got - expected).max()
    print(f"{len(pairs)} pairs of {len(x)} rows")


if __name__ == "__main__":
    {"make": make, "check": check}[sys.argv[1]](*sys.argv[2:])
