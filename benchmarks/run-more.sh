#!/usr/bin/env bash
# A second call to a machine with a GPU, when run.sh has shown that kernels hold: compute-sanitizer, and what steps take with other
# weights, moments and batches.
#
#   FOLDER/run-more.sh [OUT]   in a folder that benchmarks/bundle.sh made; OUT is $OUT or FOLDER/out where it is not given
#
# Leaves OUT/gpu-more.tar.gz, and takes nine minutes at most: parts.sh says how, and run.sh what its variables mean.
set -uo pipefail
. "$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)/parts.sh"

begin "${1:-${OUT:-$here/out}}" gpu-more \
    boundaries 30 memcheck 80 racecheck 80 synccheck 40 repeats 30 f32 20 mixed-bf16 20 mixed-int8 20 bf16-sr 20 bf16-sr-bf16 20 \
    bf16-sr-int8 20 batches 40 train 60 narrow-a 50

# A few cases under one of the tools of compute-sanitizer. Each precision is a process of its own.
sanitizer() {
    SAE_TEST_EMULATED=few "$1" --tool "$2" --target-processes all --error-exitcode 1 "$here/cuda_tests" --exact cases_hold_on_a_gpu --nocapture
}

# The quickstart twice; weights and moments are compared byte for byte.
train_twice() {
    local run rows=()
    [ -z "${SAE_SMALL:-}" ] ||
        rows=(--set data.synth.rows=4096 --set data.synth.width=16 --set sae.features=64 --set train.batch=512)
    for run in 1 2; do
        "$here/sae" train "$here/quickstart.toml" --device cuda --set "run.dir=$work/run-$run" --set "data.train=$work/train" \
            --set "data.eval=$work/eval" "${rows[@]}" || return
    done
    find "$work/run-1/checkpoints" -name '*.safetensors' | grep -q . || { echo "no checkpoint" && return 1; }
    diff -r -x '*.jsonl' -x 'events.*' -x manifest.json -x COMMIT -x config.toml "$work/run-1/checkpoints" "$work/run-2/checkpoints" &&
        echo "the same bits"
}
export -f sanitizer train_twice

names=all
[ -z "${SAE_SMALL:-}" ] || names="a sum of"
part boundaries bash -c 'gpu_test boundaries_hold_on_a_gpu "SAE_TEST_EMULATED=$0"' "$names"
tool="$(command -v compute-sanitizer || ls -d /usr/local/cuda/bin/compute-sanitizer 2>/dev/null)"
for name in memcheck racecheck synccheck; do
    if [ -n "$tool" ]; then
        part "$name" bash -c 'sanitizer "$@"' "$name" "$tool" "$name"
    else
        left_out "$name" "no compute-sanitizer here"
    fi
done
repeats=100
[ -z "${SAE_SMALL:-}" ] || repeats=2
part repeats bash -c "gpu_test a_step_repeated_on_a_gpu_gives_the_same_bits SAE_REPEATS=$repeats"
part f32 bash -c 'step f32 b f32/f32'
part mixed-bf16 bash -c 'step mixed-bf16 b mixed/bf16'
part mixed-int8 bash -c 'step mixed-int8 b mixed/int8'
part bf16-sr bash -c 'step bf16-sr b bf16-sr/f32'
part bf16-sr-bf16 bash -c 'step bf16-sr-bf16 b bf16-sr/bf16'
part bf16-sr-int8 bash -c 'step bf16-sr-int8 b bf16-sr/int8'
part batches bash -c 'step batches b batches dense'
part train bash -c train_twice
part narrow-a bash -c 'step narrow-a a dense bf16-sr/int8 mixed/int8'
finish
