#!/usr/bin/env bash
# Prints the path of a Python that has everything in requirements.txt, making the virtual environment if it is missing. NVRTC 13.0
# lies in its folder nvrtc: PyTorch insists on a newer one, whose kernels a driver of CUDA 13.0 need not take.
#
#   PYTHON_REF="$(tests/reference/venv.sh)"
#   PYTHON_MODELS="$(tests/reference/venv.sh models)"
#
# With `models` it is another, small one that has requirements-models.txt as well: it sees the packages of the first, which must not change.
#
# The environments lie outside the clone, in ${SAE_CACHE:-$HOME/.cache/sae-ci}/venv-<hash of the requirements>, and are
# shared by every clone with the same requirements. One counts as present only once its `complete` file is there, which is
# written last: an interrupted installation is thrown away. Two callers at once wait for each other.
# Only the path goes to stdout; progress goes to stderr. SAE_PYTHON chooses the interpreter (default: python3).
set -euo pipefail

here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
requirements="$here/requirements.txt"
models="$here/requirements-models.txt"
cache="${SAE_CACHE:-$HOME/.cache/sae-ci}"
nvrtc='nvidia-cuda-nvrtc==13.0.88'

# The environment of some requirements.
environment_of() { echo "$cache/venv-$(cat "$@" | sha256sum | cut -c1-16)"; }

# once FILE MAKE ARGUMENT…: calls MAKE unless FILE is there, which it leaves behind. Of several callers one does.
once() {
    local made="$1" lock
    shift
    [[ ! -e "$made" ]] || return 0
    mkdir -p "$cache"
    exec {lock}>"${made%/*}.lock"
    flock "$lock"
    [[ -e "$made" ]] || "$@"
    exec {lock}>&-
}

# environment VENV SIZE FILL: a virtual environment with what FILL installs there.
environment() {
    local venv="$1"
    echo "venv.sh: making $venv ($2)" >&2
    rm -rf "$venv"
    "${SAE_PYTHON:-python3}" -m venv "$venv" >&2
    "$3" "$venv/bin/python" >&2
    touch "$venv/complete"
}

install() { "$1" -m pip install --quiet --disable-pip-version-check --no-cache-dir "${@:2}" >&2; }

reference() {
    install "$1" -r "$requirements"
    "$1" -c 'import torch, numpy, scipy, pyarrow, safetensors, sae_lens, tensorboard, moto, kubeflow_trainer_api'
}

on_top() {
    local packages='import sysconfig; print(sysconfig.get_path("purelib"))'
    "$base/bin/python" -c "$packages" > "$("$1" -c "$packages")/reference.pth"
    install "$1" --no-deps -r "$models"
    "$1" -c 'import torch, transformers, gguf, ml_dtypes, mypy.api'
}

add_nvrtc() {
    local making
    echo "venv.sh: adding $nvrtc" >&2
    making="$(mktemp -d "$base/nvrtc-XXXXXX")"
    install "$base/bin/python" --no-deps --target "$making" "$nvrtc"
    mv -T "$making" "$base/nvrtc"
}

base="$(environment_of "$requirements")"
once "$base/complete" environment "$base" 'several GB, minutes' reference
if [[ "${1:-}" == models ]]; then
    base_and_models="$(environment_of "$requirements" "$models")"
    once "$base_and_models/complete" environment "$base_and_models" '300 MB' on_top
    echo "$base_and_models/bin/python"
    exit
fi
once "$base/nvrtc" add_nvrtc
echo "$base/bin/python"
