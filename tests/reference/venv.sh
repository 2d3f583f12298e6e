#!/usr/bin/env bash
# Prints the path of a Python that has everything in requirements.txt, making the virtual environment if it is missing. NVRTC 13.0
# lies in its folder nvrtc: PyTorch insists on a newer one, whose kernels a driver of CUDA 13.0 need not take.
#
#   PYTHON_REF="$(tests/reference/venv.sh)"
#   PYTHON_MODELS="$(tests/reference/venv.sh models)"
#
# With `models` it is another, small one that has requirements-models.txt as well: it sees the packages of the first, which must not change.
#
# The environment lies outside the clone, in ${SAE_CACHE:-$HOME/.cache/sae-ci}/venv-<hash of requirements.txt>, and is
# shared by every clone with the same requirements. It counts as present only once its `complete` file is there, which is
# written last: an interrupted installation is thrown away. Two callers at once wait for each other.
# Only the path goes to stdout; progress goes to stderr. SAE_PYTHON chooses the interpreter (default: python3).
set -euo pipefail

here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
requirements="$here/requirements.txt"
cache="${SAE_CACHE:-$HOME/.cache/sae-ci}"
venv="$cache/venv-$(sha256sum "$requirements" | cut -c1-16)"
nvrtc='nvidia-cuda-nvrtc==13.0.88'

if [[ ! -f "$venv/complete" ]]; then
    mkdir -p "$cache"
    exec 9>"$venv.lock"
    flock 9
    if [[ ! -f "$venv/complete" ]]; then
        echo "venv.sh: making $venv (several GB, minutes)" >&2
        rm -rf "$venv"
        "${SAE_PYTHON:-python3}" -m venv "$venv" >&2
        "$venv/bin/python" -m pip install --quiet --disable-pip-version-check --no-cache-dir -r "$requirements" >&2
        "$venv/bin/python" -c 'import torch, numpy, scipy, pyarrow, safetensors, sae_lens, tensorboard, moto, kubeflow_trainer_api' >&2
        touch "$venv/complete"
    fi
fi
if [[ "${1:-}" == models ]]; then
    base="$venv"
    requirements="$here/requirements-models.txt"
    venv="$cache/venv-$(cat "$here/requirements.txt" "$requirements" | sha256sum | cut -c1-16)"
    exec 7>"$venv.lock"
    flock 7
    if [[ ! -f "$venv/complete" ]]; then
        echo "venv.sh: making $venv (300 MB)" >&2
        rm -rf "$venv"
        "${SAE_PYTHON:-python3}" -m venv "$venv" >&2
        "$base/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))' > "$("$venv/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/reference.pth"
        "$venv/bin/python" -m pip install --quiet --disable-pip-version-check --no-cache-dir --no-deps -r "$requirements" >&2
        "$venv/bin/python" -c 'import torch, transformers, gguf' >&2
        touch "$venv/complete"
    fi
    echo "$venv/bin/python"
    exit
fi
if [[ ! -d "$venv/nvrtc" ]]; then
    exec 8>"$venv-nvrtc.lock"
    flock 8
    if [[ ! -d "$venv/nvrtc" ]]; then
        echo "venv.sh: adding $nvrtc" >&2
        making="$(mktemp -d "$venv/nvrtc-XXXXXX")"
        "$venv/bin/python" -m pip install --quiet --disable-pip-version-check --no-cache-dir --no-deps --target "$making" "$nvrtc" >&2
        mv -T "$making" "$venv/nvrtc"
    fi
fi
echo "$venv/bin/python"
