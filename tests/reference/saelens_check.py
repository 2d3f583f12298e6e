"""Checks that an exported dictionary means in SAELens what it means in our tool.

    saelens_check.py --export FOLDER --rows PARQUET --ours SAFETENSORS [--tolerance 1e-5]

FOLDER is opened with SAE.load_from_disk. SAFETENSORS holds `activations` [n, F] and `reconstruction` [n, D], computed by our
tool from the first n raw rows of the Parquet file. SAELens encodes and decodes the same rows in float32. The relative error
of a row is its largest difference over its largest value in SAELens. Exit status 0: within the tolerance; 1: not, or a
shape or a number is wrong.
"""

import argparse
import sys

import torch
from sae_lens import SAE
from safetensors.torch import load_file

import rows


def relative_error(ours, theirs):
    """The largest of the rows' relative errors, and its row. A row of zeros must be matched by zeros."""
    difference = (ours.double() - theirs.double()).abs().amax(dim=1)
    size = theirs.double().abs().amax(dim=1)
    relative = torch.where(difference == 0, 0.0, difference / size)
    worst = int(relative.argmax())
    return relative[worst].item(), worst


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--export", required=True)
    parser.add_argument("--rows", required=True)
    parser.add_argument("--ours", required=True)
    parser.add_argument("--tolerance", type=float, default=1e-5)
    args = parser.parse_args()
    torch.set_float32_matmul_precision("highest")

    ours = load_file(args.ours)
    missing = {"activations", "reconstruction"} - ours.keys()
    if missing:
        sys.exit(f"FAIL: {args.ours} lacks {sorted(missing)}")
    count = len(ours["activations"])
    files = rows.parquet_files([args.rows])
    if count == 0 or rows.row_count(files) < count:
        sys.exit(f"FAIL: {count} rows to compare, {rows.row_count(files)} in {args.rows}")
    x = next(rows.batches(files, count)).float()

    loaded = SAE.load_from_disk(args.export, device="cpu")
    sae = loaded[0] if isinstance(loaded, tuple) else loaded
    with torch.no_grad():
        acts = sae.encode(x)
        theirs = {"activations": acts, "reconstruction": sae.decode(acts)}

    failed = False
    for name, expected in theirs.items():
        if ours[name].shape != expected.shape:
            sys.exit(f"FAIL: {name} has shape {list(ours[name].shape)}, SAELens gives {list(expected.shape)}")
        if not ours[name].isfinite().all():
            sys.exit(f"FAIL: {name} is not finite everywhere")
        error, row = relative_error(ours[name], expected)
        passed = error <= args.tolerance
        failed |= not passed
        print(f"{'ok' if passed else 'FAIL'}: {name} {list(expected.shape)} max relative error {error:.3g} (row {row})")
    l0 = (acts > 0).sum(dim=1).double().mean().item()
    print(f"{count} rows, L0 in SAELens {l0:.2f}, tolerance {args.tolerance:g}")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
