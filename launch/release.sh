#!/usr/bin/env bash
# Makes a release: an archive and a Python wheel of a `sae` that starts on every Linux with glibc 2.28 or newer and carries its kernels.
#
#   launch/release.sh [FOLDER]           FOLDER is dist where it is not given
#
# Needs Rust, Python 3.11 with venv, and objdump (Debian: binutils); no GPU and no CUDA. release-tools.sh has the rest. The build lies in a
# folder of its target's name, apart from others.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
target="$(uname -m)-unknown-linux-gnu"
out="${1:-dist}"
python="${SAE_PYTHON:-python3}"
binary="${CARGO_TARGET_DIR:-target}/$target/release/sae"
# What is needed at the end is asked for at the beginning.
command -v objdump >/dev/null || { echo "release.sh: needs objdump: install binutils" >&2 && exit 69; }
"$python" -c 'import tomllib' || { echo "release.sh: needs Python 3.11 or newer: name one in SAE_PYTHON" >&2 && exit 69; }
cubins="$(mktemp -d)"
trap 'rm -rf "$cubins"' EXIT

build() {
    launch/release-tools.sh cargo zigbuild --release --locked --bin sae --target "$target.2.28"
}

# pack.py asks for the licences of packages that this build alone would not fetch.
cargo fetch --locked
build
launch/release-tools.sh "$binary" kernels --out "$cubins/all"
SAE_CUBINS="$cubins/all" build
"$binary" kernels --carried | grep sm_90a || { echo "release.sh: the binary carries no kernels" >&2 && exit 70; }
strip "$binary"
"$python" launch/pack.py "$binary" "$out"
