"""Writes down what TensorRT's Python bindings have: classes and their attributes, of several versions.

    python tests/benchmarks/record_tensorrt_api.py FOLDER…  > tests/runtime/tensorrt_api.json

Each FOLDER is an unpacked wheel of a version (tensorrt_bindings, tensorrt_cu12_bindings, …, tensorrt up to 8.5, or
tensorrt_rtx_cu13_bindings of TensorRT for RTX) for the Python that runs this. The libraries behind the bindings need
not be there: empty ones, made with gcc, satisfy the loader, and nothing of them is called. `USED` is what the project
touches.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

USED = """Builder BuilderFlag DataType ExecutionContextAllocationStrategy IBuilderConfig ICudaEngine IExecutionContext
IHostMemory ILayer ILogger INetworkDefinition IOptimizationProfile IProgressMonitor ITensor ITimingCache MemoryPoolType
NetworkDefinitionCreationFlag OnnxParser ParserError PreviewFeature Runtime TacticSource float16 float32 int32 bool
ComputeCapability DynamicShapesKernelSpecializationStrategy IAttention IAttentionOutputLayer IRuntimeCache
IRuntimeConfig LayerType
"""
PROGRAM = """
import ctypes, importlib, json, os, sys
folder, libraries, used = sys.argv[1], sys.argv[2], sys.argv[3].split()
for _ in range(2):  # one may need another
    for name in sorted(os.listdir(libraries)):
        try:
            ctypes.CDLL(os.path.join(libraries, name), ctypes.RTLD_GLOBAL)
        except OSError:
            pass
sys.setdlopenflags(os.RTLD_LAZY | os.RTLD_GLOBAL)
sys.path.insert(0, folder)
names = ("tensorrt_rtx_bindings", "tensorrt_bindings", "tensorrt")
module = importlib.import_module(next(name for name in names if os.path.isdir(os.path.join(folder, name))))
found = {}
for name in used:
    value = getattr(module, name, None)
    if value is not None:
        found[name] = [n for n in dir(value) if not n.startswith("_")] if isinstance(value, type) else []
print(json.dumps({module.__version__: found}))
"""


def record(folder: Path, python: str = sys.executable) -> dict[str, dict[str, list[str]]]:
    """{version: {class: attributes}} of an unpacked wheel."""
    binding = next(file for file in folder.glob("tensorrt*/tensorrt*.so") if file.stem in ("tensorrt", "tensorrt_rtx"))
    with tempfile.TemporaryDirectory() as made:
        _stand_ins(binding, Path(made))
        answer = subprocess.run(
            [python, "-c", PROGRAM, str(folder), made, USED], capture_output=True, text=True, check=True
        )
    found: dict[str, dict[str, list[str]]] = json.loads(answer.stdout.splitlines()[-1])
    return found


def _stand_ins(binding: Path, folder: Path) -> None:
    """Empty libraries under the names that the binding needs; the first has the functions that it looks up at once."""
    needed = subprocess.run(["readelf", "-dW", binding], capture_output=True, text=True, check=True).stdout
    symbols = subprocess.run(
        ["nm", "-D", "--undefined-only", binding], capture_output=True, text=True, check=True
    ).stdout
    # What is TensorRT's has no version behind its name, as the system's functions do.
    wanted = re.findall(r" U (get[A-Z]\w+|create\w+|initLib\w+|_ZN11nvuff\w+|_ZN14nvcaffe\w+)$", symbols, re.MULTILINE)
    code = "".join(f"void *{name}(void) {{ return 0; }}\n" for name in wanted)
    for name in re.findall(r"\[(lib(?:nv|tensorrt)\w+\.so\.\d+)\]", needed):
        command = ["gcc", "-shared", "-fPIC", "-w", "-x", "c", "-", "-o", folder / name, f"-Wl,-soname,{name}"]
        subprocess.run(command, input=code, text=True, check=True)
        code = ""


if __name__ == "__main__":
    versions: dict[str, dict[str, list[str]]] = {}
    for each in sys.argv[1:]:
        versions |= record(Path(each))
    lines = [f' "{version}": {json.dumps(classes)}' for version, classes in versions.items()]
    print("{\n" + ",\n".join(lines) + "\n}")
