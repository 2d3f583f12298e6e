#!/usr/bin/env bash
# Tests and measures the CUDA kernels on a machine with nothing but an NVIDIA driver, in under nine minutes.
#
#   FOLDER/run.sh [OUT]        in a folder that benchmarks/bundle.sh made
#
# A part that fails or runs out of time ends no other; each has a limit, and all together SAE_SECONDS (530). Output goes to OUT
# (FOLDER/out), a summary to OUT/summary.txt and the screen; the exit code is 1 when a part failed. What the machine lacks
# (compute-sanitizer, a PyTorch that sees the card) is left out and said. SAE_SMALL=1 takes tiny shapes and more time, for the
# emulator.
set -uo pipefail
here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
mkdir -p "${1:-$here/out}"
out="$(cd "${1:-$here/out}" && pwd)"
seconds="${SAE_SECONDS:-530}"
slower=1
small=()
cases=all
repeats=100
rows=()
if [ -n "${SAE_SMALL:-}" ]; then
    small=(small)
    slower=10
    cases=few
    repeats=2
    rows=(--set data.synth.rows=4096 --set data.synth.width=16 --set sae.features=64 --set train.batch=512)
fi
# The tests look for what belongs to the checkout here, and for the binary; kernels of the naive versions come from the cache.
export CARGO_MANIFEST_DIR="$here/tests" SAE_BINARY="$here/sae" SAE_CACHE_DIR="$here/cache"
# A machine without a card is no success.
export SAE_REQUIRE_ALL=1

summary=()
failed=0
# part NAME LIMIT_S COMMAND…
part() {
    local name="$1" limit="$2" left=$((seconds - SECONDS)) start=$SECONDS result=ok code=0
    shift 2
    limit=$((limit * slower))
    if [ "$left" -le 5 ]; then
        summary+=("$(printf '%-14s %5s   %s' "$name" - 'left out: no time')")
        failed=1
        return
    fi
    [ "$left" -lt "$limit" ] && limit="$left"
    echo "=== $name: $* (at most $limit s)"
    timeout --kill-after=10 "$limit" "$@" >"$out/$name.txt" 2>&1 || code=$?
    case "$code" in
    0) ;;
    124 | 137) result="FAILED: not done after $limit s" && failed=1 ;;
    *) result="FAILED: exit code $code" && failed=1 ;;
    esac
    tail -5 "$out/$name.txt"
    summary+=("$(printf '%-14s %5d s %s' "$name" $((SECONDS - start)) "$result")")
}

left_out() {
    summary+=("$(printf '%-14s %5s   %s' "$1" - "left out: $2")")
}

of_card() {
    local test="$1" limit="$2"
    shift 2
    part "$test" "$limit" env SAE_TEST_EMULATED="$cases" "$@" "$here/cuda_tests" --exact "$test" --nocapture
}

train() {
    part "train-$1" 60 "$here/sae" train "$here/quickstart.toml" --device cuda --set "run.dir=$out/run-$1" \
        --set "data.train=$out/data/train" --set "data.eval=$out/data/eval" "${rows[@]}"
}

same_bits() {
    diff -r -x '*.jsonl' -x 'events.*' -x manifest.json -x COMMIT -x config.toml "$out/run-1/checkpoints" "$out/run-2/checkpoints" &&
        find "$out/run-1/checkpoints" -name '*.safetensors' | grep -q .
}
export -f same_bits
export out

sanitizer() {
    local tool="$1"
    part "$tool" 90 env SAE_TEST_EMULATED=few compute-sanitizer --tool "$tool" --error-exitcode 1 \
        "$here/cuda_tests" --exact cases_hold_on_a_card --nocapture
}

cd "$out" || exit 1
command -v nvidia-smi >/dev/null && part card 10 nvidia-smi
of_card cases_hold_on_a_card 90
of_card a_step_repeated_on_a_card_gives_the_same_bits 60 SAE_REPEATS="$repeats"
of_card a_run_on_a_card_reaches_the_golden_losses 60
part operations 120 "$here/operations" "${small[@]}" --json "$out/operations.jsonl"
part step 150 "$here/step" "${small[@]}" --json "$out/step.jsonl"
rm -rf "$out/run-1" "$out/run-2"
train 1
train 2
part same-bits 10 bash -c same_bits
python="${SAE_PYTHON:-python3}"
if "$python" -c 'import torch, sys; sys.exit(not (torch.cuda.is_available() or sys.argv[1:]))' "${small[@]}" 2>/dev/null; then
    part torch 150 "$python" "$here/dense_torch.py" "${small[@]/#/--}" --seconds 110 --json "$out/torch.jsonl" \
        --ours "$out/operations.jsonl" "$out/step.jsonl"
else
    left_out torch "$python has no PyTorch that sees a card"
fi
if command -v compute-sanitizer >/dev/null; then
    sanitizer memcheck
    sanitizer racecheck
else
    left_out sanitizers 'no compute-sanitizer here'
fi

{
    printf '%s\n' "${summary[@]}"
    printf '%-14s %5d s %s\n' all "$SECONDS" "$([ "$failed" = 0 ] && echo ok || echo FAILED)"
} | tee "$out/summary.txt"
exit "$failed"
