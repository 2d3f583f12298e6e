# Parts of a call to a machine with a GPU, and the one archive of what they print. Sourced by run.sh and run-more.sh.
#
#   begin OUT NAME [PART SECONDS]…   the archive is OUT/NAME.tar.gz, and each part that follows is one of these
#   part PART COMMAND…               runs it; its output goes to a file as it comes
#   left_out PART WHY
#   finish                           prints the summary; exits with 1 when a part failed
#
# No part can take another's results away: each has a limit, the limits add up to 530 s at most, and a part has besides what those
# before it left. Output lies in files at once, and the archive is made again behind every part and on TERM, INT and HUP, under another
# name that it takes over when it is whole. It stays below 16 MiB: the middle of long output is cut out, large files are left out.
# A command that exits with 3 says that the machine lacks what it needs, which is no failure. $results is a folder for files that
# belong into the archive, $work one for what does not. SAE_SECONDS is another time for all parts, which shortens or lengthens each.

budget_s=530
most_text_bytes=$((256 << 10))
most_file_bytes=$((6 << 20))

begin() {
    local of_all=0
    mkdir -p "$1" && out="$(cd "$1" && pwd)" || exit 1
    call="$2"
    archive="$out/$2.tar.gz"
    shift 2
    declare -gA limits=()
    while [ $# -gt 0 ]; do
        limits["$1"]="$2"
        of_all=$((of_all + $2))
        shift 2
    done
    [ "$of_all" -le "$budget_s" ] || { echo "the limits add up to $of_all s of $budget_s" >&2 && exit 1; }
    seconds="${SAE_SECONDS:-$budget_s}"
    scratch="$(mktemp -d)"
    results="$scratch/$call"
    work="$scratch/work"
    mkdir "$results" "$work"
    export results work
    summary=()
    failed=0 number=0 running="" watch="" current=""
    # An archive of an earlier call must not be taken for this one's.
    rm -f "$archive"
    trap 'rm -rf "$scratch"' EXIT
    trap 'stop 143' TERM
    trap 'stop 130' INT
    trap 'stop 129' HUP
    note limits "-" "$of_all" "of $budget_s s, and $seconds s here"
    pack
}

# NAME TOOK_S LIMIT_S RESULT
note() {
    summary+=("$(printf '%-14s %6s s, at most %4s s   %s' "$@")")
}

# What a part may take here, of 530 s.
scaled() {
    echo $(($1 * seconds / budget_s))
}

# NAME COMMAND…
part() {
    local name="$1" later=0 other limit start="$SECONDS" code=0 file
    shift
    [ -n "${limits[$name]:-}" ] || { echo "$name has no limit" >&2 && exit 1; }
    own="${limits[$name]}"
    unset "limits[$name]"
    for other in "${!limits[@]}"; do later=$((later + limits[$other])); done
    limit=$((seconds - SECONDS - $(scaled "$later")))
    number=$((number + 1))
    file="$results/$(printf '%02d' "$number")-$name.txt"
    if [ "$limit" -lt 1 ]; then
        note "$name" 0 "$own" "FAILED: left out, no time" && failed=1
        return
    fi
    echo "=== $name: $* (at most $limit s)"
    # In the background, since a signal is heard of only between commands; and watched, since what waits for a driver that hangs
    # outlives even SIGKILL.
    current="$name" limit_s="$limit" part_start="$start"
    timeout --kill-after=5 "$limit" "$@" >"$file" 2>&1 </dev/null &
    running=$!
    sleep $((limit + 10)) >/dev/null 2>&1 &
    watch=$!
    wait -n "$running" "$watch" || code=$?
    if kill -0 "$running" 2>/dev/null; then code=unkillable; fi
    # timeout(1) leads a process group of its own; what did not hear TERM in it must not disturb the next part.
    kill -KILL -- "-$running" 2>/dev/null
    { kill "$watch" && wait "$watch"; } 2>/dev/null
    running="" watch="" current=""
    outcome "$name" $((SECONDS - start)) "$limit" "$code" "$file"
    pack
}

# NAME TOOK_S LIMIT_S CODE FILE
outcome() {
    local result
    case "$4" in
    0) result=ok ;;
    3) result="left out: $(tail -1 "$5")" ;;
    124 | 137) result="FAILED: cut off" ;;
    unkillable) result="FAILED: cannot be ended" ;;
    *) result="FAILED: exit code $4" ;;
    esac
    [[ "$result" == FAILED* ]] && failed=1
    tail -5 "$5"
    note "$1" "$2" "$3" "$result"
}

left_out() {
    number=$((number + 1))
    echo "$2" >"$results/$(printf '%02d' "$number")-$1.txt"
    note "$1" 0 "${limits[$1]}" "left out: $2"
    unset "limits[$1]"
    pack
}

pack() {
    local packed="$scratch/packed" file bytes
    rm -rf "$packed"
    mkdir -p "$packed/$call"
    printf '%s\n' "${summary[@]}" >"$results/summary.txt"
    for file in "$results"/*; do
        bytes="$(stat -c %s "$file")"
        case "$file" in
        *.txt | *.jsonl)
            if [ "$bytes" -le "$most_text_bytes" ]; then
                cp "$file" "$packed/$call/"
            else
                {
                    head -c $((most_text_bytes / 2)) "$file"
                    printf '\n[%s bytes are left out here]\n' $((bytes - most_text_bytes))
                    tail -c $((most_text_bytes / 2)) "$file"
                } >"$packed/$call/${file##*/}"
            fi
            ;;
        *)
            if [ "$bytes" -le "$most_file_bytes" ]; then
                cp "$file" "$packed/$call/"
            else
                echo "$bytes bytes are more than the archive has room for" >"$packed/$call/${file##*/}.left-out.txt"
            fi
            ;;
        esac
    done
    tar -C "$packed" -czf "$archive.new" "$call" && mv "$archive.new" "$archive"
}

# On a signal: what there is, at once; then the end of the part.
stop() {
    trap '' TERM INT HUP
    [ -z "$current" ] || note "$current" $((SECONDS - part_start)) "$limit_s" "FAILED: cut off by a signal"
    note all "$SECONDS" "$seconds" "FAILED: cut off by a signal"
    pack
    [ -z "$running" ] || { kill -TERM -- "-$running" && sleep 1 && kill -KILL -- "-$running"; } 2>/dev/null
    [ -z "$watch" ] || kill "$watch" 2>/dev/null
    exit "$1"
}

finish() {
    note all "$SECONDS" "$seconds" "$([ "$failed" = 0 ] && echo ok || echo FAILED)"
    pack
    printf '%s\n' "${summary[@]}"
    echo "$archive: $(stat -c %s "$archive") bytes"
    exit "$failed"
}

# What both scripts call by these names, each in a shell of its own under timeout(1).

# FILTER [NAME=VALUE]…: the tests of CUDA kernels whose names hold FILTER.
gpu_test() {
    local filter="$1"
    shift
    "$here/cuda_tests" --list "$filter" | grep -q ': test$' || { echo "this build has no test called $filter" && return 3; }
    env "$@" "$here/cuda_tests" "$filter" --nocapture --test-threads=1
}

# WORD…: benches/step.rs. Its lines for programs go to a file that is named after the part.
step() {
    local json="$1"
    shift
    local ceilings=()
    [ ! -s "$results/gemm.jsonl" ] || ceilings=(--ceilings "$results/gemm.jsonl")
    "$here/step" ${SAE_SMALL:+small} "$@" --json "$results/$json.jsonl" "${ceilings[@]}"
}

# FILE ARGUMENT…: a script of PyTorch; it exits with 3 where there is none.
torch_script() {
    local file="$1"
    shift
    command -v "$python" >/dev/null || { echo "no $python here" && return 3; }
    "$python" -u "$here/$file" "$@"
}
export -f gpu_test step torch_script

# The folder of the cuBLAS that a Python has with its PyTorch.
cublas_of() {
    timeout 10 "$1" - <<'EOF_PYTHON' 2>/dev/null
import glob, importlib.util
of = importlib.util.find_spec("nvidia")
found = [path for folder in of.submodule_search_locations for path in glob.glob(f"{folder}/*/lib/libcublas.so.1*")] if of else []
print(found[0].rpartition("/")[0] if found else "")
EOF_PYTHON
}

# The tests look for golden losses beside the folder of their crate, and for the binary here. A machine without a GPU is no success.
here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
python="${SAE_PYTHON:-python3}"
export here python CARGO_MANIFEST_DIR="$here/tests" SAE_BINARY="$here/sae" SAE_REQUIRE_ALL=1
if [ -z "${SAE_CUBLAS:-}" ]; then
    SAE_CUBLAS="$(cublas_of "$python")"
    if [ -n "$SAE_CUBLAS" ]; then export SAE_CUBLAS; else unset SAE_CUBLAS; fi
fi
cases=all
[ -z "${SAE_SMALL:-}" ] || cases=few
export cases
