#!/usr/bin/env bash
# One folder that tests and measures the CUDA kernels on a machine with nothing but an NVIDIA driver and bash.
#
#   benchmarks/bundle.sh [FOLDER]        FOLDER is target/bundle where it is not given; then, on that machine:  FOLDER/run.sh [OUT]
#
# Needs Rust and Python with venv here (launch/release-tools.sh has the rest), and no GPU. The binaries are those of a release: they start
# with glibc 2.28 and newer, carry kernels for sm_80, sm_90a and sm_100a, so no compiler goes along, and are stripped of their symbols.
# Prints the size of FOLDER and of the files of the checkout, and fails when both together, which is what travels where a checkout is
# copied with the folder in it, take more than 64 MiB. SAE_PROFILE=dev builds faster and without kernels in the binaries, for the tests
# of the scripts on the emulator: such a folder measures nothing.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
most_bytes=$((64 << 20))
folder="${1:-target/bundle}"
mkdir -p "$folder"
out="$(cd "$folder" && pwd)"
profile="${SAE_PROFILE:-release}"
build_json="$(mktemp)"
trap 'rm -f "$build_json"' EXIT

# All at once and of the whole workspace, so that dependencies are built with one set of features, once.
build() {
    local how=(cargo build) target=()
    if [ "$profile" != dev ]; then
        how=(launch/release-tools.sh cargo zigbuild)
        target=(--target "$(uname -m)-unknown-linux-gnu.2.28")
    fi
    "${how[@]}" "${target[@]}" --profile "$profile" --workspace --bin sae --bench step --test cuda \
        --message-format=json >"$build_json"
}
# NAME's executable, out of cargo's messages.
executable() {
    sed -n 's/.*"name":"'"$1"'".*"executable":"\([^"]*\)".*/\1/p' "$build_json" | tail -1
}

build
if [ "$profile" != dev ]; then
    rm -rf "$out/cubins"
    launch/release-tools.sh "$(executable sae)" kernels --out "$out/cubins" >"$out/kernels.txt"
    SAE_CUBINS="$out/cubins" build
    # The binaries carry them now.
    rm -r "$out/cubins"
fi
for name in sae step cuda; do
    strip -o "$out/$name" "$(executable "$name")"
done
mv "$out/cuda" "$out/cuda_tests"
mkdir -p "$out/tests"
cp -r tests/golden "$out/tests/"
cp benchmarks/{parts.sh,run.sh,run-more.sh,clock.py,gemm.py,dense_torch.py} launch/recipes/quickstart.toml "$out/"

# Of files, from names between NULs.
bytes_of() {
    du --files0-from=- -cb | tail -1 | cut -f1
}
bytes="$(find "$out" -type f -print0 | bytes_of)"
# Nothing where there is no git, or where what it knows is no longer there.
beside="$({ git ls-files -z --cached --others --exclude-standard | bytes_of; } 2>/dev/null || true)"
beside="${beside:-0}"
du -ah "$out" | sort -h | tail -8
echo "$((bytes >> 20)) MiB, and $((beside >> 20)) MiB of the checkout beside it, of at most $((most_bytes >> 20)) MiB together"
[ $((bytes + beside)) -le "$most_bytes" ] || [ "$profile" = dev ] || { echo "the bundle is too large" >&2 && exit 1; }
