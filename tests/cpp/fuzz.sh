#!/usr/bin/env bash
# Fuzzes one target for some seconds, with clang's libFuzzer under AddressSanitizer and UndefinedBehaviorSanitizer.
# usage: tests/cpp/fuzz.sh json|manifest|graph|tokenizer|png|jpeg [SECONDS [FOLDER]]
# FOLDER keeps the program, the inputs that reached new code, and as TARGET-crash-… those that failed. The seeds are those
# of tests/cpp/fuzz_seeds.py and the kept inputs; tests/cpp/corpus/README.md says how more are kept.
set -euo pipefail
target=$1 seconds=${2:-60} folder=${3:-$(mktemp -d)}
here=$(cd "$(dirname "$0")" && pwd)
cpp=$here/../../editar_rt/cpp
mkdir -p "$folder/seeds"
python3 -m tests.cpp.fuzz_seeds "$folder/seeds"
sources=(text json sha256 files manifest graph_file bundle unicode unicode_tables token_models tokenizer
    exact sampling pictures fit exif srgb png_file jpeg_file picture_files)
sources=("${sources[@]/#/$cpp/src/}")
if [[ ! -e $folder/fuzz ]]; then
    clang++ -std=c++17 -O1 -g -ffp-contract=off -fsanitize=fuzzer,address,undefined -fno-sanitize-recover=all \
        -I"$cpp/src" -I"$cpp/include" -DEDITAR_PICTURE_FILES -DEDITAR_COLOR_PROFILES -DEDITAR_FUZZ_WITH_CLANG \
        "$here/fuzz.cpp" "${sources[@]/%/.cpp}" -lspng -lturbojpeg -llcms2 -o "$folder/fuzz"
fi
mkdir -p "$folder/$target"
cd "$folder"
EDITAR_FUZZ=$target nice ./fuzz -max_total_time="$seconds" -timeout=10 -rss_limit_mb=1500 -max_len=20000 \
    -print_final_stats=1 -artifact_prefix="$target-" \
    "$target" "seeds/$target"
