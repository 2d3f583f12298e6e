#!/usr/bin/env bash
# Compiles kernels, emulator and driver into a libcuda.so.1 that runs the kernels on the processor.
#
#   build.sh VARIANT FOLDER DEVICE_CUH KERNEL.cu…
#
# VARIANT is plain, asan (addresses and undefined behaviour) or tsan (races). The library and what it was made from go to
# FOLDER, which is made. CXX names the compiler, g++ by default; JOBS how many run at once.
set -euo pipefail
here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
variant="$1" folder="$2" device="$3"
shift 3
cxx="${CXX:-g++}"

common=(-std=c++20 -g -fPIC -fvisibility=hidden -fno-omit-frame-pointer -ffp-contract=off -I"$here")
# The files of the emulator itself are never watched: they move between stacks and poison memory.
own=(-O2 -Wall -Wextra)
# Kernels look at the same bytes as float and as float4, as CUDA allows.
kernels=(-w -fno-strict-aliasing -DEMULATOR "-I$(dirname "$device")")
link=(-shared -Wl,-soname,libcuda.so.1 -Wl,-Bsymbolic)
case "$variant" in
plain) kernels+=(-O2) ;;
asan)
    sanitize=(-fsanitize=address,undefined -fno-sanitize-recover=undefined)
    kernels+=(-O1 "${sanitize[@]}")
    own+=(-DEMULATOR_ASAN)
    link+=("${sanitize[@]}")
    ;;
tsan)
    kernels+=(-O1 -fsanitize=thread)
    own+=(-DEMULATOR_TSAN)
    link+=(-fsanitize=thread)
    ;;
*)
    echo "build.sh: no variant $variant" >&2
    exit 64
    ;;
esac

mkdir -p "$folder"

# One source file for each .cu: the kernels in a namespace without a name, so that helpers of the same name in two files
# stay apart and arrays in templates are ordinary ones; then a line for each kernel.
register() {
    local source="$1" stem="$2" text entries
    text="$("$cxx" "${common[@]}" "${kernels[@]}" -DEMULATOR_LIST -x c++ -E -P "$source" | tr '\n' ' ')"
    entries="$(grep -oE 'extern "C" __global__ void __launch_bounds__ ?\([^)]*\) *[A-Za-z_][A-Za-z_0-9]* *\(' <<<"$text" || true)"
    if [ "$(grep -oE '\b__global__\b' <<<"$text" | wc -l)" != "$(grep -c . <<<"$entries")" ]; then
        echo "build.sh: $source: a kernel does not begin with: extern \"C\" __global__ void __launch_bounds__(N) name(" >&2
        exit 65
    fi
    echo "#include \"$device\""
    echo "extern \"C\" __attribute__((visibility(\"hidden\"))) u8 __start_shared_$stem[], __stop_shared_$stem[];"
    echo "namespace {"
    echo "#include \"$source\""
    sed -E "s/.*__launch_bounds__ ?\(([^,)]*)[^)]*\) *([A-Za-z_0-9]+) *\(/EMULATOR_KERNEL(\2, \1, __start_shared_$stem, __stop_shared_$stem);/" <<<"$entries"
    echo "}"
}

objects=() sections=()
jobs=()
# Waits for the oldest compiler when as many run as may.
compile() {
    local object="$1"
    shift
    if [ "${#jobs[@]}" -ge "${JOBS:-2}" ]; then
        wait "${jobs[0]}"
        jobs=("${jobs[@]:1}")
    fi
    "$cxx" "${common[@]}" "$@" -c -o "$object" &
    jobs+=($!)
    objects+=("$object")
}

for source in "$@"; do
    stem="$(basename "$source" .cu)"
    register "$source" "$stem" >"$folder/$stem.cpp"
    compile "$folder/$stem.o" "${kernels[@]}" "$folder/$stem.cpp"
    sections+=("$stem")
    # Shared memory begins and ends with a page of its own: the memory of a block can then be mapped anew.
    echo "__attribute__((aligned(4096), used)) static char last_page[4096];" >"$folder/$stem.page.cpp"
    compile "$folder/$stem.page.o" "$folder/$stem.page.cpp"
done
for part in emulator collectives memory driver; do
    compile "$folder/$part.o" "${own[@]}" "$here/$part.cpp"
done
for job in "${jobs[@]}"; do wait "$job"; done
for stem in "${sections[@]}"; do
    for object in "$folder/$stem.o" "$folder/$stem.page.o"; do objcopy --rename-section ".bss=shared_$stem" "$object"; done
done
"$cxx" "${link[@]}" "${objects[@]}" -o "$folder/libcuda.so.1"
# A program that looks for libcuda.so first must not find another one.
ln -sf libcuda.so.1 "$folder/libcuda.so"
