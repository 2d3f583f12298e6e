#!/usr/bin/env bash
# Runs a command with what releases are made by, and which no machine need have:
#
#   launch/release-tools.sh cargo zigbuild --release --bin sae --target x86_64-unknown-linux-gnu.2.28
#   launch/release-tools.sh sae kernels --out /tmp/cubins
#
# zig links for a glibc of any age that is asked for, and NVRTC 13.0 compiles kernels that every driver of CUDA 13 takes. They lie in
# ${SAE_CACHE:-$HOME/.cache/sae-ci}/release-…, made when missing, by the Python that SAE_PYTHON names (python3).
set -euo pipefail
tools=(ziglang==0.15.2 cargo-zigbuild==0.24.1 nvidia-cuda-nvrtc==13.0.88)
venv="${SAE_CACHE:-$HOME/.cache/sae-ci}/release-$(sha256sum <<<"${tools[*]}" | cut -c1-16)"
if [ ! -f "$venv/complete" ]; then
    mkdir -p "${venv%/*}"
    exec 9>"$venv.lock"
    flock 9
    if [ ! -f "$venv/complete" ]; then
        rm -rf "$venv"
        "${SAE_PYTHON:-python3}" -m venv "$venv" >&2
        "$venv/bin/python" -m pip install --quiet --disable-pip-version-check --no-cache-dir "${tools[@]}" >&2
        touch "$venv/complete"
    fi
    exec 9>&-
fi
SAE_NVRTC="$(echo "$venv"/lib/python3*/site-packages/nvidia/cu13/lib)"
export SAE_NVRTC PATH="$venv/bin:$PATH"
exec "$@"
