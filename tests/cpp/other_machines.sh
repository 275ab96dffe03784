#!/usr/bin/env bash
# Builds the C++ runtime for other machines, runs `other_machines.c` there, and prints which answers are those of this
# machine: an aarch64 build under qemu-user, a Windows build (mingw) under Wine, each with PyPI's ONNX Runtime for it.
# Neither is the machine itself: qemu is no Jetson, and Wine is not Windows. PNG and JPEG files are left out.
# usage: tests/cpp/other_machines.sh FOLDER BUNDLE…        (as root on Debian, with the project's Python on the PATH)
set -euo pipefail
folder=$(mkdir -p "$1" && cd "$1" && pwd)
shift
here=$(cd "$(dirname "$0")" && pwd)
cpp=${EDITAR_CPP:-$here/../../editar_rt/cpp}
packages="g++ cmake g++-aarch64-linux-gnu qemu-user g++-mingw-w64-x86-64-posix wine64"
wine=$(command -v wine64 wine /usr/lib/wine/wine64 | head -n 1 || true)
for program in cmake g++ aarch64-linux-gnu-g++ qemu-aarch64 x86_64-w64-mingw32-g++-posix; do
    command -v "$program" >/dev/null || { echo "$program is not there; run: apt-get install $packages" >&2; exit 1; }
done
[[ -n $wine ]] || { echo "wine64 is not there; run: apt-get install $packages" >&2; exit 1; }
version=$(python -c 'import onnxruntime; print(onnxruntime.__version__)')
"$here/onnxruntime_header.sh" "$folder/header"

library() { # NAME PLATFORM PATTERN: the engine's library, from PyPI's wheel
    mkdir -p "$folder/$1-engine"
    if ! ls "$folder/$1-engine"/*.whl >/dev/null 2>&1; then
        python -m pip download -q --no-deps --only-binary :all: --python-version 3.11 --platform "$2" \
            -d "$folder/$1-engine" "onnxruntime==$version"
    fi
    python -m zipfile -e "$folder/$1-engine"/*.whl "$folder/$1-engine"
    find "$folder/$1-engine" -name "$3" | head -n 1
}

program() { # NAME COMPILER-PREFIX CMAKE-OPTIONS…: the library and the program
    local name=$1 cc=$2 cxx=$3
    shift 3
    cmake -S "$cpp" -B "$folder/$name" -DEDITAR_PICTURE_FILES=OFF -DEDITAR_CLI=OFF -DEDITAR_WERROR=ON \
        -DBUILD_SHARED_LIBS=OFF -DONNXRUNTIME_ROOT="$folder/header" -DCMAKE_C_COMPILER="$cc" \
        -DCMAKE_CXX_COMPILER="$cxx" -DCMAKE_INSTALL_PREFIX="$folder/$name-installed" -DCMAKE_INSTALL_LIBDIR=lib \
        "$@" >/dev/null
    cmake --build "$folder/$name" --target install -j 2 >/dev/null
    "$cc" -std=c99 -Wall -Wextra -Werror -O1 -DEDITAR_STATIC -I"$folder/$name-installed/include" -c \
        "$here/other_machines.c" -o "$folder/$name.o"
    "$cxx" -static-libgcc -static-libstdc++ "$folder/$name.o" "$folder/$name-installed/lib/libeditar.a" \
        $([[ $name == windows ]] && echo "-static" || echo "-ldl -lpthread") -o "$folder/$name.exe"
}

python -m "tests.cpp.other_machines" inputs "$folder/inputs"
native=$(python -c 'import onnxruntime, pathlib; print(next((pathlib.Path(onnxruntime.__file__).parent / "capi").glob("libonnxruntime.so.*")))')
arm=$(library aarch64 manylinux_2_28_aarch64 'libonnxruntime.so.*')
windows=$(library windows win_amd64 onnxruntime.dll)
program native gcc g++
program aarch64 aarch64-linux-gnu-gcc aarch64-linux-gnu-g++ -DCMAKE_SYSTEM_NAME=Linux -DCMAKE_SYSTEM_PROCESSOR=aarch64
program windows x86_64-w64-mingw32-gcc-posix x86_64-w64-mingw32-g++-posix -DCMAKE_SYSTEM_NAME=Windows

export WINEPREFIX=$folder/wine WINEDEBUG=-all QEMU_LD_PREFIX=/usr/aarch64-linux-gnu folder arm
for bundle in "$@"; do
    export bundle name=$(basename "$bundle")
    "$folder/native.exe" "$bundle" "$native" "$folder/inputs" >"$folder/$name-native.txt"
    # ONNX Runtime reads the host's processors there, which are of another kind, and fails.
    unshare -m bash -c 'mount -t tmpfs none /sys/devices/system/cpu
        exec qemu-aarch64 "$folder/aarch64.exe" "$bundle" "$arm" "$folder/inputs"' >"$folder/$name-aarch64.txt"
    "$wine" "$folder/windows.exe" "Z:$(realpath "$bundle")" "Z:$windows" "Z:$folder/inputs" |
        tr -d '\r' >"$folder/$name-windows.txt"
    echo
    echo "$name: $(head -n 1 "$folder/$name-native.txt")"
    echo
    python -m tests.cpp.other_machines report "native=$folder/$name-native.txt" \
        "Linux, aarch64 (qemu-user)=$folder/$name-aarch64.txt" "Windows, x86-64 (Wine)=$folder/$name-windows.txt"
done
