#!/usr/bin/env bash
# One folder that tests and measures the CUDA kernels on a machine with nothing but an NVIDIA driver.
#
#   benchmarks/bundle.sh FOLDER        then, on that machine:  FOLDER/run.sh [OUT]
#
# Needs NVRTC here (SAE_NVRTC when it is not found), and no GPU. The binaries carry kernels for sm_80, sm_90a and sm_100a. run.sh runs
# the cases of every device against float64, a hundred steps twice for equal bits, compute-sanitizer where it is installed, the step
# benchmark and the quickstart, and leaves their output in OUT.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
mkdir -p "$1"
out="$(cd "$1" && pwd)"
target="${CARGO_TARGET_DIR:-target}"

cargo run --release --quiet -- kernels --out "$out/cubins"
export SAE_CUBINS="$out/cubins"
cargo build --release --workspace --bins
tests="$(cargo test --release --package tests --test cuda --no-run --message-format=json |
    sed -n 's/.*"executable":"\([^"]*\/cuda-[^"]*\)".*/\1/p' | tail -1)"
cp "$target/release/sae" "$target/release/step_cuda" "$out/"
cp "$tests" "$out/cuda_tests"
cp launch/recipes/quickstart.toml "$out/"
strip "$out/sae" "$out/step_cuda" "$out/cuda_tests"

cat >"$out/run.sh" <<'RUN'
#!/usr/bin/env bash
set -uo pipefail
here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
out="${1:-$here/out}"
mkdir -p "$out"
failed=0
part() {
    local name="$1"
    shift
    echo "=== $name: $*"
    "$@" >"$out/$name.txt" 2>&1 || { failed=1 && echo "$name FAILED"; }
    tail -5 "$out/$name.txt"
}
part card nvidia-smi
part cases "$here/cuda_tests" --exact cases_hold_on_a_card --nocapture
if command -v compute-sanitizer >/dev/null; then
    for tool in memcheck racecheck; do
        SAE_TEST_EMULATED=few part "$tool" compute-sanitizer --tool "$tool" --error-exitcode 1 \
            "$here/cuda_tests" --exact cases_hold_on_a_card --nocapture
    done
fi
part step "$here/step_cuda"
cd "$out"
for turn in 1 2; do
    part "train-$turn" "$here/sae" train "$here/quickstart.toml" --device cuda --set "run.dir=$out/run-$turn" \
        --set "data.train=$out/data/train" --set "data.eval=$out/data/eval"
done
part same-bits diff -r -x '*.jsonl' -x 'events.*' -x manifest.json -x COMMIT -x config.toml "$out/run-1/checkpoints" "$out/run-2/checkpoints"
exit "$failed"
RUN
chmod +x "$out/run.sh"
du -sh "$out"
