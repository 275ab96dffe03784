"""The runtime is lean: it never brings what a device does not have."""

from __future__ import annotations

import subprocess
import sys

HEAVY = ("torch", "onnx", "transformers", "onnxruntime", "tensorrt", "scipy", "matplotlib")


def modules_after(code: str) -> set[str]:
    script = f"{code}\nimport sys; print(' '.join(sorted(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_importing_every_module_loads_nothing_heavy() -> None:
    code = (
        "import importlib, importlib.util, pkgutil, editar_rt\n"
        "without = () if importlib.util.find_spec('starlette') else ('editar_rt.server.',)  # needs an extra\n"
        "for m in pkgutil.walk_packages(editar_rt.__path__, 'editar_rt.'):\n"
        "    if not m.name.endswith('__main__') and not m.name.startswith(without): importlib.import_module(m.name)\n"
    )
    loaded = modules_after(code)
    assert "editar_rt.cli" in loaded and "editar_rt.backends.ort.backend" in loaded
    assert not loaded & {*HEAVY, "export", "training"}


def test_importing_the_package_loads_numpy_and_pillow_alone_and_not_before_a_name_is_used() -> None:
    loaded = modules_after("import editar_rt")
    assert not loaded & {*HEAVY, "numpy", "PIL", "click"}
    loaded = modules_after("from editar_rt import *")
    assert {"numpy", "PIL"} <= loaded
    assert not loaded & {*HEAVY, "click", "rich", "tokenizers"}


if __name__ == "__main__":  # for an environment without pytest: the smallest install
    test_importing_every_module_loads_nothing_heavy()
    test_importing_the_package_loads_numpy_and_pillow_alone_and_not_before_a_name_is_used()
