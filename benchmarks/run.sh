#!/usr/bin/env bash
# A first call to a machine with a GPU and nothing but an NVIDIA driver, bash and perhaps PyTorch: what holds, and what it takes.
#
#   FOLDER/run.sh [OUT]        in a folder that benchmarks/bundle.sh made; OUT is $OUT or FOLDER/out where it is not given
#
# Leaves OUT/gpu.tar.gz, and takes nine minutes at most: parts.sh says how. What matters most comes first. The exit code is 1 when a
# part failed. What the machine lacks (PyTorch, ncu) is left out and said. SAE_SMALL=1 takes tiny shapes, for the emulator, and
# SAE_SECONDS the time of all parts.
set -uo pipefail
. "$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)/parts.sh"

begin "${1:-${OUT:-$here/out}}" gpu \
    machine 20 gemm 40 cases 60 equal-steps 30 kernels 120 ncu 90 crossing 30 golden 40 torch 100

machine() {
    local binary weights failed=0
    uname -a
    getconf GNU_LIBC_VERSION
    nproc
    free -g
    for binary in sae step cuda_tests; do
        echo "== $binary"
        ldd "$here/$binary"
    done
    "$here/sae" --version
    command -v nvidia-smi >/dev/null && nvidia-smi && nvidia-smi -q -d CLOCK,POWER,ECC
    # A process each: a kernel that fails leaves a GPU on which nothing else holds.
    for weights in mixed/f32 f32/f32 mixed/bf16 mixed/int8 bf16-sr/f32 bf16-sr/bf16 bf16-sr/int8; do
        "$here/step" tiny "$weights" || { echo "$weights: FAILED, exit code $?" && failed=1; }
    done
    return "$failed"
}

# Every kernel of a step first with what is quick to know, then the long ones with everything.
ncu_report() {
    local ncu="$1" set="$2" kernels="$3"
    "$ncu" --clock-control none --profile-from-start off --set "$set" --kernel-name "regex:$kernels" --import-source yes \
        --force-overwrite --export "$results/ncu-$set" "$here/step" ${SAE_SMALL:+small} once &&
        "$ncu" --import "$results/ncu-$set.ncu-rep" --page details
}
profile() {
    local failed=0
    ncu_report "$1" basic . || failed=1
    ncu_report "$1" full '^(encode|decode|backward|adam|normalize|residual)_' || failed=1
    return "$failed"
}
export -f machine ncu_report profile

part machine bash -c machine
part gemm bash -c 'torch_script gemm.py ${SAE_SMALL:+--small} --json "$results/gemm.jsonl"'
part cases bash -c "gpu_test cases_hold_on_a_gpu SAE_TEST_EMULATED=$cases"
part equal-steps bash -c "gpu_test equal_steps_of_a_real_size SAE_TEST_EMULATED=$cases"
part kernels bash -c 'step kernels b a'
ncu="$(command -v ncu || ls -d /usr/local/cuda/bin/ncu /opt/nvidia/nsight-compute/*/ncu 2>/dev/null | tail -1)"
if [ -n "$ncu" ]; then
    part ncu bash -c 'profile "$0"' "$ncu"
else
    left_out ncu "no ncu here"
fi
part crossing bash -c 'step crossing crossing'
part golden bash -c "gpu_test a_run_on_a_gpu_reaches_the_golden_losses SAE_TEST_EMULATED=$cases"
part torch bash -c 'torch_script dense_torch.py ${SAE_SMALL:+--small --eager} --json "$results/torch.jsonl" --ours "$results/kernels.jsonl"'
finish
