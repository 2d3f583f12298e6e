#!/usr/bin/env bash
# One folder that tests and measures the CUDA kernels on a machine with nothing but an NVIDIA driver.
#
#   benchmarks/bundle.sh FOLDER        then, on that machine:  FOLDER/run.sh [OUT]
#
# Needs NVRTC here (SAE_NVRTC when it is not found), and no GPU. The binaries carry kernels for sm_80, sm_90a and sm_100a, stripped
# of their symbols; FOLDER stays below 60 MiB in the profile release. benchmarks/run.sh says what it does there. SAE_PROFILE=dev builds faster, for a
# look at the bundle itself: it measures nothing.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
most_bytes=$((60 << 20))
mkdir -p "$1"
out="$(cd "$1" && pwd)"
profile="${SAE_PROFILE:-release}"

# All at once and of the whole workspace, so that dependencies are built with one set of features, once.
targets=(--bin sae --bench operations --bench step --test cuda)
# NAME's executable, out of cargo's messages.
executable() {
    sed -n 's/.*"name":"'"$1"'".*"executable":"\([^"]*\)".*/\1/p' "$out/build.json" | tail -1
}
build() {
    cargo build --profile "$profile" --workspace "${targets[@]}" --message-format=json >"$out/build.json"
}

build
rm -rf "$out/cubins" "$out/cache"
"$(executable sae)" kernels --out "$out/cubins" >"$out/kernels.txt"
SAE_CUBINS="$out/cubins" build
for name in sae operations step cuda; do
    strip -o "$out/$name" "$(executable "$name")"
done
mv "$out/cuda" "$out/cuda_tests"
# No release carries the kernels of the naive versions: a cache does, as if they had been compiled there.
"$out/operations" --cubins "$out/cache"
mkdir -p "$out/tests"
cp -r tests/golden "$out/tests/"
cp benchmarks/run.sh benchmarks/dense_torch.py launch/recipes/quickstart.toml "$out/"
# What the binaries carry need not lie beside them.
rm -r "$out/cubins" "$out/build.json"

bytes="$(du -sb "$out" | cut -f1)"
du -ah "$out" | sort -h | tail -12
echo "$((bytes >> 20)) MiB of at most $((most_bytes >> 20))"
[ "$bytes" -le "$most_bytes" ] || [ "$profile" != release ] || { echo "the bundle is too large" >&2 && exit 1; }
