#!/usr/bin/env bash
# On a GPU host without a network: unpack, build engines, compare, measure. bash run.sh PIECES RESULTS [SECONDS]
#
# RESULTS gets results.json after every stage, so that a run that is stopped leaves what it had, and the log. The whole
# takes at most SECONDS, 1500 (25 minutes) when not given; the most valuable stages come first.
set -euo pipefail
pieces=$(cd "${1:?folder of the pieces}" && pwd); results=$(mkdir -p "${2:?folder for results}" && cd "$2" && pwd)
limit=${3:-1500}; begun=$(date +%s)
place=${PLACE:-/tmp/editar-gpu-host}
rm -rf "$place"; mkdir -p "$place"
cat "$pieces"/host.part-* | tar xJ -C "$place"

export PYTHONHOME=$place/python PYTHONPATH=$place/site:$place/project PYTHONDONTWRITEBYTECODE=1
libraries=$place/site/tensorrt:$place/site/tensorrt_rtx_libs:$place/site/nvidia/cu13/lib:$place/site/nvidia/cuda_nvrtc/lib:$place/site/nvidia/cuda_runtime/lib:$place/stubs
export LD_LIBRARY_PATH=$libraries:$place/python/lib:${LD_LIBRARY_PATH:-}
cd "$place/project"
# The module's libraries find each other only when their names are bound late and for all.
exec "$place/python/bin/python3.10" -c '
import os, runpy, sys
sys.setdlopenflags(os.RTLD_LAZY | os.RTLD_GLOBAL)
sys.argv = ["measure", *sys.argv[1:]]
runpy.run_module("tests.benchmarks.gpu_host.measure", run_name="__main__")
' "$results" "$((limit - $(date +%s) + begun))" 2>&1 | tee "$results/log.txt"
