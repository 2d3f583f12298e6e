#!/usr/bin/env bash
# Compiles kernels into a libcuda.so.1 that runs them on the processor.
#
#   build.sh objects VARIANT OBJECTS                               the emulator and the driver; OBJECTS, of one variant and one compiler,
#                                                                  also keeps the objects of kernels
#   build.sh library VARIANT OBJECTS FOLDER DEVICE_CUH KERNEL.cu…  FOLDER/libcuda.so.1 of them and the kernels
#   build.sh nvrtc FOLDER                                          FOLDER/libnvrtc.so.13, a stand-in for NVIDIA's
#   build.sh self_test FOLDER                                      FOLDER/self_test
#
# VARIANT is plain, asan (addresses and undefined behaviour) or tsan (races). CXX names the compiler, g++ by default; JOBS
# says how many run at once. Folders are made.
set -euo pipefail
here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
cxx="${CXX:-g++}"
common=(-std=c++20 -g -fPIC -fvisibility=hidden -fno-omit-frame-pointer -ffp-contract=off -I"$here")

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
}

wait_for_all() {
    for job in "${jobs[@]}"; do wait "$job"; done
    jobs=()
}

# What the variant adds for the emulator itself, for kernels, and for the library. The emulator is never watched: it moves
# between stacks and poisons memory.
choose() {
    own=(-O2 -Wall -Wextra)
    # Kernels look at the same bytes as float and as float4, as CUDA allows.
    watched=(-w -fno-strict-aliasing -DEMULATOR)
    link=(-shared -Wl,-soname,libcuda.so -Wl,-Bsymbolic)
    case "$1" in
    plain) watched+=(-O2) ;;
    asan)
        local sanitize=(-fsanitize=address,undefined -fno-sanitize-recover=undefined)
        own+=(-DEMULATOR_ASAN)
        watched+=(-O1 "${sanitize[@]}")
        link+=("${sanitize[@]}")
        ;;
    tsan)
        own+=(-DEMULATOR_TSAN)
        watched+=(-O1 -fsanitize=thread)
        link+=(-fsanitize=thread)
        ;;
    *)
        echo "build.sh: no variant $1" >&2
        exit 64
        ;;
    esac
}

own_parts=(emulator kernels collectives memory driver nccl)

objects() {
    choose "$1"
    mkdir -p "$2"
    for part in "${own_parts[@]}"; do compile "$2/$part.o" "${own[@]}" "$here/$part.cpp"; done
    wait_for_all
}

# One source file for each .cu: the kernels in a namespace without a name, so that helpers of the same name in two files
# stay apart and the compiler watches arrays of templates too; then a line for each kernel.
register() {
    local source="$1" stem="$2" device="$3" text entries
    text="$("$cxx" "${common[@]}" "${watched[@]}" -DEMULATOR_LIST -x c++ -E -P "$source" | tr '\n' ' ')"
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

# Where the object of a kernel's file is kept: its name says all that goes into it, so that a bug planted in one file compiles no other.
kept() {
    local made="$1" stem="$2" own="$3" inputs
    inputs="$("$cxx" "${common[@]}" "${watched[@]}" -MM "$own" | sed -E 's/^[^ ]*: //; s/\\$//')"
    echo "$made/$stem-$(xargs -n 1 <<<"$inputs" | grep -vxF "$own" | xargs -d '\n' cat | sha256sum | cut -c1-32).o"
}

library() {
    local variant="$1" made="$2" folder="$3" device source stem inputs=() stems=() objects=()
    device="$(realpath "$4")"
    shift 4
    [ -e "$made/driver.o" ] || objects "$variant" "$made"
    choose "$variant"
    watched+=(-I"$(dirname "$device")" -ffile-prefix-map="$(dirname "$device")"=kernels/cuda)
    mkdir -p "$folder"
    for source in "$@"; do
        stem="$(basename "$source" .cu)"
        stems+=("$stem")
        register "$(realpath "$source")" "$stem" "$device" >"$folder/$stem.cpp"
        objects+=("$(kept "$made" "$stem" "$folder/$stem.cpp")")
        [ -e "${objects[-1]}" ] || compile "$folder/$stem.o" "${watched[@]}" "$folder/$stem.cpp"
        # Shared memory begins and ends with a page of its own: the memory of a block can then be mapped anew.
        echo "__attribute__((aligned(4096), used)) static char last_page[4096];" >"$folder/$stem.page.cpp"
        compile "$folder/$stem.page.o" "$folder/$stem.page.cpp"
    done
    wait_for_all
    for index in "${!stems[@]}"; do
        stem="${stems[index]}"
        # Others may keep the same one meanwhile: each sees a whole file.
        [ ! -e "$folder/$stem.o" ] || { cp "$folder/$stem.o" "$folder/$stem.whole" && mv "$folder/$stem.whole" "${objects[index]}"; }
        cp "${objects[index]}" "$folder/$stem.o"
    done
    # Zeros that a kernel's file leaves to the loader are its shared arrays.
    for stem in "${stems[@]}"; do
        for object in "$folder/$stem.o" "$folder/$stem.page.o"; do
            objcopy --rename-section ".bss=shared_$stem" "$object"
            inputs+=("$object")
        done
    done
    for part in "${own_parts[@]}"; do inputs+=("$made/$part.o"); done
    "$cxx" "${link[@]}" "${inputs[@]}" -o "$folder/libcuda.so.1"
    # A program that looks for libcuda.so first must not find another one.
    ln -sf libcuda.so.1 "$folder/libcuda.so"
    ln -sf libcuda.so.1 "$folder/libnccl.so.2"
    rm -f "$folder"/*.o
}

nvrtc() {
    mkdir -p "$1"
    "$cxx" "${common[@]}" -O1 -Wall -Wextra -shared "$here/nvrtc.cpp" -o "$1/libnvrtc.so.13"
}

self_test() {
    mkdir -p "$1"
    "$cxx" -std=c++20 -O1 -g -Wall -Wextra "$here/self_test.cpp" -ldl -o "$1/self_test"
}

command="$1"
shift
case "$command" in
objects | library | nvrtc | self_test) "$command" "$@" ;;
*)
    echo "build.sh: no command $command" >&2
    exit 64
    ;;
esac
