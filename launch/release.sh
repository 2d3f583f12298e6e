#!/usr/bin/env bash
# Makes a release: an archive and a Python wheel of a `sae` that starts on every Linux with glibc 2.28 or newer and carries its kernels.
#
#   launch/release.sh [FOLDER]           FOLDER is dist where it is not given
#
# Needs Rust, Python with venv, and objdump (Debian: binutils); no GPU and no CUDA. What it links with lies in
# ${SAE_CACHE:-$HOME/.cache/sae-ci}/release-…, made when missing: zig, whose C library is of any age that is asked for, and NVRTC 13.0, whose
# kernels every driver of CUDA 13 takes. The build lies in a folder of its target's name, apart from others.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
glibc=2.28
target="$(uname -m)-unknown-linux-gnu"
tools=(ziglang==0.15.2 cargo-zigbuild==0.24.1 nvidia-cuda-nvrtc==13.0.88)
out="${1:-dist}"
binary="${CARGO_TARGET_DIR:-target}/$target/release/sae"

venv="${SAE_CACHE:-$HOME/.cache/sae-ci}/release-$(sha256sum <<<"${tools[*]}" | cut -c1-16)"
if [ ! -f "$venv/complete" ]; then
    rm -rf "$venv"
    "${SAE_PYTHON:-python3}" -m venv "$venv"
    "$venv/bin/python" -m pip install --quiet --disable-pip-version-check --no-cache-dir "${tools[@]}"
    touch "$venv/complete"
fi
cubins="$(mktemp -d)"
trap 'rm -rf "$cubins"' EXIT

build() {
    PATH="$venv/bin:$PATH" cargo zigbuild --release --locked --bin sae --target "$target.$glibc"
}

build
SAE_NVRTC="$(echo "$venv"/lib/python3*/site-packages/nvidia/cu13/lib)" "$binary" kernels --out "$cubins/all"
SAE_CUBINS="$cubins/all" build
"$binary" kernels --carried
strip "$binary"
"${SAE_PYTHON:-python3}" launch/pack.py "$binary" "$out"
