"""The C++ runtime built with CMake and installed, once for all test runs: later ones only rebuild what has changed."""

from __future__ import annotations

import functools
import hashlib
import os
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

from tests.cpp.build import CPP
from tests.cpp.once import once
from tests.tools import require, require_module, require_program

PACKAGES = "apt-get install g++ cmake libspng-dev libturbojpeg0-dev liblcms2-dev"
HEADER = "onnxruntime_c_api.h"
HEADER_SCRIPT = Path(__file__).with_name("onnxruntime_header.sh")
TENSORRT = Path(__file__).with_name("tensorrt")
"""Headers in place of TensorRT's and CUDA's, with which the plug-in is built too."""
RELEASE = ("-DCMAKE_BUILD_TYPE=Release", f"-DTENSORRT_ROOT={TENSORRT}")


def onnxruntime_root() -> Path:
    """A folder with ONNX Runtime's header: $ONNXRUNTIME_ROOT, that of `onnxruntime_header.sh`, or the system's."""
    folders = [Path(os.environ["ONNXRUNTIME_ROOT"])] if "ONNXRUNTIME_ROOT" in os.environ else []
    folders += [cache() / "onnxruntime", Path("/usr"), Path("/usr/local")]
    places = ("include", "include/onnxruntime", "usr/include/onnxruntime", "include/onnxruntime/core/session")
    found = [folder for folder in folders if any((folder / place / HEADER).is_file() for place in places)]
    require(bool(found), "header of ONNX Runtime", f"tests/cpp/{HEADER_SCRIPT.name} {cache() / 'onnxruntime'}")
    return found[0]


@functools.cache
def cache() -> Path:
    """A folder that outlives a test run, unless $EDITAR_CPP_BUILDS names another; only this user can write to it."""
    if "EDITAR_CPP_BUILDS" in os.environ:
        return Path(os.environ["EDITAR_CPP_BUILDS"])
    name = hashlib.sha256(str(CPP).encode()).hexdigest()[:12]
    folder = Path(tempfile.gettempdir()) / f"editar-cpp-{os.getuid()}-{name}"
    folder.mkdir(mode=0o700, exist_ok=True)
    require(folder.stat().st_uid == os.getuid(), f"folder {folder} of its own", f"rm -r {folder}")
    return folder


def engine_library() -> Path:
    """ONNX Runtime's library, from the wheel."""
    require_module("onnxruntime", 'pip install -e ".[test]"')
    import onnxruntime

    return next((Path(onnxruntime.__file__).parent / "capi").glob("libonnxruntime.so.*"))


@once
def installed(name: str = "release", options: Sequence[str] = RELEASE) -> Path:
    """Configure, build and install the runtime with warnings as errors. Returns the prefix.

    Args:
        name: of the build.
        options: of CMake.
    """
    for program in ("cmake", "g++"):
        require_program(program, PACKAGES)
    for header in ("spng.h", "turbojpeg.h", "lcms2.h"):
        require((Path("/usr/include") / header).is_file(), f"header {header}", PACKAGES)
    build, prefix = cache() / name, cache() / f"{name}-installed"
    run(
        ["cmake", "-S", str(CPP), "-B", str(build), f"-DCMAKE_INSTALL_PREFIX={prefix}", "-DEDITAR_WERROR=ON",
         f"-DONNXRUNTIME_ROOT={onnxruntime_root()}", "-DCMAKE_INSTALL_LIBDIR=lib", *options]
    )  # fmt: skip
    run(["cmake", "--build", str(build), "-j", str(os.cpu_count() or 1), "--target", "install"])
    return prefix


# Without optimization they compile four times as fast, and most of what they run is the engine's.
SANITIZED = ("-DEDITAR_CLI=OFF", "-DCMAKE_BUILD_TYPE=RelWithDebInfo", "-DCMAKE_CXX_FLAGS_RELWITHDEBINFO=-O0 -g1")


def sanitized(sanitizers: str) -> Path:
    """The runtime under sanitizers, as `installed`: under ThreadSanitizer a static library, so that one is built."""
    kind = ("-DBUILD_SHARED_LIBS=OFF",) if sanitizers == "thread" else ()
    return installed(sanitizers.replace(",", "-"), (*SANITIZED, f"-DEDITAR_SANITIZE={sanitizers}", *kind))


def flags_of(prefix: Path) -> list[str]:
    """What pkg-config tells of an installed runtime: flags for a compiler."""
    require_program("pkg-config", "apt-get install pkg-config")
    environment = os.environ | {"PKG_CONFIG_PATH": str(prefix / "lib/pkgconfig")}
    return run(["pkg-config", "--cflags", "--libs", "editar"], env=environment).split()


def objects(prefix: Path) -> list[Path]:
    """The object files of a build, for programs that call what is below the C ABI."""
    build = prefix.with_name(prefix.name.removesuffix("-installed"))
    return sorted((build / "CMakeFiles/editar.dir/src").rglob("*.o"))


def run(command: Sequence[str], **options: object) -> str:
    """Run a program that must succeed. Returns what it printed."""
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, **options)  # type: ignore[call-overload]
    assert done.returncode == 0, f"{' '.join(map(str, command))}\n{done.stdout[-4000:]}\n{done.stderr[-8000:]}"
    return str(done.stdout)
