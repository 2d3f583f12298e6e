#!/usr/bin/env bash
# Bugs that a machine makes, one at a time: an operator turned round, a function that returns nothing. The unit tests beside the code must notice each.
#
#   tests/mutants.sh                           all of the leaves
#   tests/mutants.sh --sample                  every eighth of them, as CI does
#   tests/mutants.sh trainer/src/schedule.rs   of any other files, by the unit tests of their crate
#
# Leaves are files that need nothing of their crate. They are put into a crate of their own, where a bug takes seconds to build and try; in the
# crates it takes a minute. Other files are changed in a copy of the sources, never in place. Ends with an error when a bug was missed;
# one that changes nothing is excluded in tests/mutants.toml, with the reason.
set -euo pipefail
root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
cd "$root"

cache="${SAE_CACHE:-$HOME/.cache/sae-ci}"
export PATH="$cache/tools/bin:$PATH"
export CARGO_TARGET_DIR="${CARGO_TARGET_DIR:-$cache/target}"
# What a bug changes is one file of a crate.
export CARGO_INCREMENTAL=1
copy="$cache/mutants"

leaves=(launch/src/template.rs loader/src/{memory,number,dataset/norms,store/variable,stream/permutation,stream/pool}.rs)

# The files as modules of one crate, with the workspace's versions of what they use.
leaves() {
    local leaf name
    rm -rf "$copy/leaves"
    mkdir -p "$copy/leaves/src"
    cp Cargo.lock rust-toolchain.toml "$copy/leaves/"
    cat >"$copy/leaves/Cargo.toml" <<'TOML'
[package]
name = "leaves"
edition = "2024"
[dependencies]
serde = "1"
thiserror = "2"
[dev-dependencies]
tempfile = "3"
[workspace]
[profile.dev]
debug = false
TOML
    echo '#![allow(dead_code)]' >"$copy/leaves/src/lib.rs"
    for leaf in "${leaves[@]}"; do
        name="$(basename "$leaf" .rs)"
        cp "$leaf" "$copy/leaves/src/"
        echo "pub mod $name;" >>"$copy/leaves/src/lib.rs"
    done
    cd "$copy/leaves"
}

# All sources, as old as they are, so that what has not changed is not built again.
workspace() {
    rm -rf "$copy/workspace"
    mkdir -p "$copy/workspace"
    git ls-files -z --cached --others --exclude-standard | tar --create --null --files-from=- | tar --extract --directory="$copy/workspace"
    cd "$copy/workspace"
}

arguments=(--in-place --config "$root/tests/mutants.toml" --output "${OUT:-$copy}" --colors never --no-times)
case "${1:-}" in
--sample)
    leaves
    arguments+=(--shard 0/8 --sharding round-robin)
    ;;
'') leaves ;;
*)
    workspace
    # Unoptimised builds take half the time.
    arguments+=(--workspace --cargo-arg=--config=profile.dev.opt-level=0)
    for file; do arguments+=(--file "$file"); done
    ;;
esac
status=0
cargo mutants "${arguments[@]}" || status=$?
# 3 says that all were noticed, some by a loop without an end.
[ "$status" = 3 ] || exit "$status"
