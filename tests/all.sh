#!/usr/bin/env bash
# Every test with nothing left out, on a bare Debian with Rust: installs what they need, and runs them.
#
#   tests/all.sh [ARGUMENTS OF cargo test]
#   tests/all.sh --install                     installs alone
#
# Debian's packages are installed as root; the rest, builds among it, goes into ${SAE_CACHE:-$HOME/.cache/sae-ci}, outside the
# clone. Tests mount disks, cut networks and start SLURM, so all of it runs as root: somebody else is asked by sudo. A test
# that cannot run fails here; `cargo test --workspace` runs what it can on any machine and counts the rest.
set -euo pipefail
here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
root="$(dirname "$here")"

fail() {
    echo "all.sh: $*" >&2
    exit 69
}

export SAE_CACHE="${SAE_CACHE:-$HOME/.cache/sae-ci}"
if [ "$(id -u)" != 0 ]; then
    command -v sudo >/dev/null || fail "needs root, and here is no sudo: run it as root, or what this machine can by cargo test --workspace"
    # Rust and the cache are the caller's; root only borrows them.
    borrowed=("PATH=$PATH" "HOME=$HOME" "SAE_CACHE=$SAE_CACHE")
    for name in CARGO_HOME RUSTUP_HOME CARGO_TARGET_DIR CARGO_BUILD_JOBS SAE_PYTHON PYTHON_REF CXX \
        {HTTP,HTTPS,NO}_PROXY {http,https,no}_proxy PIP_INDEX_URL SSL_CERT_FILE; do
        [ -z "${!name:-}" ] || borrowed+=("$name=${!name}")
    done
    exec sudo env "${borrowed[@]}" "$here/all.sh" "$@"
fi
# Tests send SIGHUP. A start by nohup has it ignored, here and in all that this starts.
if (( 0x$(awk '/^SigIgn/ { print $2 }' /proc/self/status) & 1 )); then
    exec env --default-signal=HUP bash "$0" "$@"
fi
cd "$root"

export CARGO_TARGET_DIR="${CARGO_TARGET_DIR:-$SAE_CACHE/target}"
# Daemons lie where root looks.
export PATH="$SAE_CACHE/tools/bin:$PATH:/usr/sbin:/sbin"
# Incremental files would double the size of the cache.
export CARGO_INCREMENTAL=0
# A test that cannot run fails instead of skipping.
export SAE_REQUIRE_ALL=1
mkdir -p "$SAE_CACHE"

give_back() {
    local folder
    [ -n "${SUDO_UID:-}" ] || return 0
    for folder in "$SAE_CACHE" "$CARGO_TARGET_DIR" "${CARGO_HOME:-$HOME/.cargo}" "${RUSTUP_HOME:-$HOME/.rustup}"; do
        [ ! -e "$folder" ] || chown -R "$SUDO_UID:$SUDO_GID" "$folder"
    done
}
trap give_back EXIT

# Programs that tests start, and Debian's packages with them: the compiler of the emulator, launchers of others that start real
# jobs on this machine, what lays a network to be cut, a terminal, a browser, and what makes the Python environment.
packages() {
    local program package
    while read -r program package; do
        command -v "$program" >/dev/null || echo "$package"
    done <<'TABLE'
g++ g++
slurmctld slurmctld
slurmd slurmd
sbatch slurm-client
mpirun openmpi-bin
ip iproute2
script bsdutils
mount mount
chromium chromium
python3 python3
TABLE
    [ -n "${SAE_PYTHON:-${PYTHON_REF:-}}" ] || python3 -c 'import ensurepip, venv' 2>/dev/null || echo python3-venv
}

install() {
    local lacking
    command -v cargo >/dev/null || fail "needs Rust: install it from https://rustup.rs"
    mapfile -t lacking < <(packages)
    if [ "${#lacking[@]}" -gt 0 ]; then
        command -v apt-get >/dev/null || fail "lacks Debian's packages ${lacking[*]}, and here is no apt-get: install what they hold"
        apt-get update
        DEBIAN_FRONTEND=noninteractive apt-get install --yes "${lacking[@]}"
    fi
    command -v cargo-deny >/dev/null || cargo install --locked --version '^0.20' --root "$SAE_CACHE/tools" cargo-deny
    command -v cargo-mutants >/dev/null || cargo install --locked --version '^27' --root "$SAE_CACHE/tools" cargo-mutants
    PYTHON_REF="${PYTHON_REF:-$("$here/reference/venv.sh")}"
    PYTHON_MODELS="${PYTHON_MODELS:-$("$here/reference/venv.sh" models)}"
    export PYTHON_REF PYTHON_MODELS
}

install
[ "${1:-}" = --install ] || cargo test --workspace "$@"
