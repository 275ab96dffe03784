#!/usr/bin/env bash
# Packs all that a GPU host without a network needs to build and measure engines, in pieces of at most 55 MiB.
#
#   tests/benchmarks/gpu_host/pack.sh OUT DEMO_BUNDLE [SEEDED_BUNDLE SEEDED_PREFIX [INT4_BUNDLE]]
#
# All bundles have the dialect delta; export with --sampling-head to measure that too. The second has seeded weights,
# which are carried as a list (seeds.py); for GPT-XL:
#   python -c "from pathlib import Path; from tests.benchmarks.full_size import make_weights as make; \
#       make(Path('WORK'), 'transformer')"
#   python -m export onnx --transformer WORK/editar_release.pt --target h200 --dialect delta --sampling-head -o WORK/gpt-xl     # prefix: full_size/
# The third, the same with --precision int4, is carried as it is. TensorRT 8.5.3 refuses to build it, and the results say
# so: for its figures put TensorRT 10 into the tree's site folder instead.
#
# DEMO_NATIVE and SEEDED_NATIVE in the environment name the same two bundles in the dialect native; the second has the
# seeds of SEEDED_PREFIX too. With LIBRARY=rtx, TensorRT for RTX is packed in place of TensorRT, and runs both dialects.
# XZ_LEVEL=-1 packs in a fraction of the time; the pieces are more, not larger.
#
# OUT gets pieces, host.part-00, host.part-01, …, and run.sh. On the host, with them in one folder:
#   bash run.sh FOLDER RESULTS
#
# Packed are TensorRT 8.5.3, the newest whose wheel holds the libraries, with a CPython 3.10 of this machine, the
# runtime's dependencies and CUDA's runtime. TensorRT's plugin library wants cuBLAS 11 and cuDNN 8 only for plugins of
# its own; empty stand-ins satisfy the loader, and the recipe h200 leaves them out as sources of kernels.
set -euo pipefail
out=$(mkdir -p "${1:?output folder}" && cd "$1" && pwd)
demo=${2:?a bundle of the dialect delta}; seeded=${3:-}; prefix=${4:-}; int4=${5:-}
root=$(cd "$(dirname "$0")/../../.." && pwd)
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT
python310=${PYTHON310:-$(python3.10 -c 'import sys; print(sys.base_prefix)' 2>/dev/null || true)}
[ -d "$python310" ] || { echo "a CPython 3.10 prefix is needed: set PYTHON310" >&2; exit 1; }
download() { python3 -m pip download -q --no-deps --only-binary=:all: -d "$work/wheels" "$@"; }

mkdir -p "$work/tree/site" "$work/tree/stubs" "$work/tree/python/bin" "$work/tree/python/lib" "$work/tree/project"
if [ "${LIBRARY:-tensorrt}" = rtx ]; then
    libraries="tensorrt_rtx_cu13_libs==1.7.1.116 tensorrt_rtx_cu13_bindings==1.7.1.116 nvidia-cuda-runtime"
    mkdir -p "$work/tree/site/tensorrt_rtx"  # the package of this name holds these two lines
    printf '%s\n' 'from tensorrt_rtx_bindings import *' 'from tensorrt_rtx_bindings import __version__' \
        > "$work/tree/site/tensorrt_rtx/__init__.py"
else
    libraries="tensorrt==8.5.3.1 nvidia-cuda-nvrtc-cu11 nvidia-cuda-runtime-cu11"
fi
for package in $libraries numpy==1.26.4 pillow==11.3.0 \
    tokenizers==0.22.1 click==8.1.8 rich==14.0.0 markdown-it-py==3.0.0 mdurl pygments tomli typing_extensions; do
    download --python-version 3.10 --implementation cp --platform manylinux_2_28_x86_64 \
        --platform manylinux_2_17_x86_64 --platform manylinux2014_x86_64 --platform manylinux1_x86_64 "$package"
done
for wheel in "$work"/wheels/*.whl; do python3 -m zipfile -e "$wheel" "$work/tree/site"; done
for name in libcublas.so.11 libcublasLt.so.11 libcudnn.so.8; do
    gcc -shared -fPIC -x c /dev/null -o "$work/tree/stubs/$name" -Wl,-soname,"$name"
done
cp "$(readlink -f "$python310/bin/python3.10")" "$work/tree/python/bin/python3.10"
cp -a "$python310"/lib/libpython3.10*.so* "$work/tree/python/lib/" 2>/dev/null || true
cp -a "$python310/lib/python3.10" "$work/tree/python/lib/"
rm -rf "$work"/tree/python/lib/python3.10/{site-packages,test,idlelib,tkinter,ensurepip,lib2to3,config-*}

cp -a "$root/editar_rt" "$root/export" "$root/engines" "$work/tree/project/"
find "$work/tree/project/engines" -mindepth 1 -maxdepth 1 -type d -exec rm -rf {} +
mkdir -p "$work/tree/project/tests/golden" "$work/tree/project/tests/benchmarks/gpu_host"
cp "$root/tests/__init__.py" "$work/tree/project/tests/"
cp "$root/tests/benchmarks/__init__.py" "$work/tree/project/tests/benchmarks/"
cp "$root"/tests/golden/{__init__,seeded_checkpoint}.py "$work/tree/project/tests/golden/"
cp "$root"/tests/benchmarks/gpu_host/{__init__.py,seeds.py,measure.py,measured.toml,measured-rtx.toml} \
    "$work/tree/project/tests/benchmarks/gpu_host/"
cp -a "$demo" "$work/tree/project/demo"
if [ -n "$seeded" ]; then
    cp -a "$seeded" "$work/tree/project/seeded"
    (cd "$root" && python3 -m tests.benchmarks.gpu_host.seeds shrink "$work/tree/project/seeded" "$prefix")
fi
if [ -n "${DEMO_NATIVE:-}" ]; then cp -a "$DEMO_NATIVE" "$work/tree/project/demo-native"; fi
if [ -n "${SEEDED_NATIVE:-}" ]; then
    cp -a "$SEEDED_NATIVE" "$work/tree/project/seeded-native"
    (cd "$root" && python3 -m tests.benchmarks.gpu_host.seeds shrink "$work/tree/project/seeded-native" "$prefix")
fi
if [ -n "$int4" ]; then cp -a "$int4" "$work/tree/project/int4"; fi
find "$work/tree" -name __pycache__ -prune -exec rm -rf {} +
tar c -C "$work/tree" . | xz -T0 "${XZ_LEVEL:--6}" > "$work/all.xz"
rm -f "$out"/host.part-*
split -b 55M -d "$work/all.xz" "$out/host.part-"
cp "$root/tests/benchmarks/gpu_host/run.sh" "$out/"
ls -l "$out"
