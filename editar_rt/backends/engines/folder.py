"""Built engines on disk: a folder inside the bundle, with a `build.json` that says where they run.

An engine of TensorRT is native code for one GPU and one version, built on the device by `python -m export tensorrt`.
One of TensorRT for RTX is for the compute capabilities that its recipe names, and one version; it is built anywhere.
Engines that do not match are rejected with the command that builds them again.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shlex
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from editar_rt.backends.engines.plan import Plan
from editar_rt.backends.engines.tensorrt_compat import LIBRARIES, RTX, TENSORRT, TOO_OLD, TensorRT
from editar_rt.bundle.folder import Bundle
from editar_rt.bundle.links import is_kept_inside
from editar_rt.bundle.manifest import FileInfo, check_relative, decode_json
from editar_rt.errors import BackendError, BundleError
from editar_rt.files import read_regular

BUILD_NAME = "build.json"
FORMAT = "editar-engines"
FORMAT_VERSION = 1
MAX_BYTES = 4 << 20


@dataclass(frozen=True)
class EngineInfo:
    """One engine of a folder."""

    file: str
    profile: int = 0
    """Index of the file's profile, if several engines share a file."""
    scratch_bytes: int = 0
    """Device memory that a run needs besides weights, inputs and outputs; untried, what the builder logged."""


@dataclass(frozen=True)
class BuildInfo:
    """All of `build.json`."""

    bundle: str
    """SHA-256 of the bundle.json that the engines were built from."""
    target: str
    tensorrt: str
    """The library's version."""
    cuda: str
    gpu: str
    """The GPU that they were built on; empty if they are for `capabilities`."""
    compute_capability: str
    rows: list[int]
    chunks: list[int]
    engines: dict[str, EngineInfo]
    """By `Shape.name`."""
    files: dict[str, FileInfo]
    graphs: dict[str, str]
    """SHA-256 of the ONNX files, by name."""
    flags: dict[str, Any] = field(default_factory=dict)
    """The builder's settings."""
    seconds: dict[str, float] = field(default_factory=dict)
    """Build time, by file."""
    parity: list[dict[str, Any]] = field(default_factory=list)
    """The comparisons of the gate."""
    made_by: dict[str, str] = field(default_factory=dict)
    drafts: list[int] = field(default_factory=list)
    library: str = TENSORRT
    """A key of `tensorrt_compat.LIBRARIES`."""
    capabilities: list[str] = field(default_factory=list)
    """The compute capabilities of the GPUs that they are for, if they were built without one."""
    tried: bool = True
    """Whether they ran and passed the gate; otherwise the first load on each machine compares them (`trial`)."""
    format: str = FORMAT
    format_version: int = FORMAT_VERSION

    @property
    def plan(self) -> Plan:
        return Plan(tuple(self.rows), tuple(self.chunks), tuple(self.drafts))

    @property
    def title(self) -> str:
        """Name and version of the library for users."""
        return f"{LIBRARIES[self.library].title} {self.tensorrt}"

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self), indent=1) + "\n"


def rebuild_command(bundle: Bundle, target: str) -> str:
    """The command that builds a bundle's engines again."""
    return shlex.join(["python", "-m", "export", "tensorrt", str(bundle.folder), "--target", target, "--force"])


def other_command(bundle: Bundle) -> str:
    """The command that builds a bundle's engines on a device, with its own TensorRT."""
    command = ["python", "-m", "export", "tensorrt", str(bundle.folder), "--target"]
    return f"{shlex.join(command)} TARGET, where TARGET is a recipe in engines/ for this device"


def without_engines(bundle: Bundle, also: str = "") -> str:
    """Says what to do with a bundle that has no engines.

    Args:
        also: another way, and why it is closed.
    """
    return (
        f"the bundle {bundle.folder} has no engines; build them on this device with: "
        f"{rebuild_command(bundle, 'TARGET').removesuffix(' --force')}, where TARGET is a recipe in engines/; "
        + (f"{also}; " if also else "")
        + "to check the bundle on the CPU, slowly and without TensorRT, choose --device emulated"
    )


def find_folders(bundle: Bundle) -> list[Path]:
    """The folders of engines in a bundle, sorted by name, without links that leave it."""
    builds = bundle.folder.glob(f"*/{BUILD_NAME}")
    return sorted(path.parent for path in builds if is_kept_inside(path, bundle.folder))


def read_build(folder: Path) -> BuildInfo:
    """Read a `build.json`; TensorRT is not needed.

    Raises:
        BackendError: the file is not a build.json, or is of a newer format.
    """
    path = folder / BUILD_NAME
    try:
        raw = json.loads(read_regular(path, MAX_BYTES))
    except OSError as error:
        raise BackendError(f"{path} cannot be read: {error.strerror or error}") from None
    except (ValueError, RecursionError) as error:
        raise BackendError(f"{path} is not JSON ({error}); build the engines again") from None
    if not isinstance(raw, dict) or raw.get("format") != FORMAT or raw.get("format_version") != FORMAT_VERSION:
        raise BackendError(
            f'{path} does not say "format": "{FORMAT}" of version {FORMAT_VERSION}; build the engines again'
        )
    try:
        info: BuildInfo = decode_json(BuildInfo, raw, BUILD_NAME)
        for name in info.files:
            check_relative(name)
    except BundleError as error:
        raise BackendError(f"{path} is damaged ({error}); build the engines again") from None
    if not info.rows or not info.chunks or min(*info.rows, *info.chunks, *info.drafts) < 1:
        raise BackendError(f"{path} is damaged (it has no rows or chunks); build the engines again")
    if info.library not in LIBRARIES:
        raise BackendError(f"{path} is damaged (there is no library {info.library!r:.40}); build the engines again")
    if any(min(engine.profile, engine.scratch_bytes) < 0 for engine in info.engines.values()):
        raise BackendError(f"{path} is damaged (an engine has a negative number); build the engines again")
    return info


def check_build(info: BuildInfo, folder: Path, bundle: Bundle, here: TensorRT, gpu: str, capability: str) -> None:
    """Reject engines that were built from another bundle or for another machine.

    Args:
        here: this machine's library.

    Raises:
        BackendError: they do not match, with the command that builds them.
    """
    command = rebuild_command(bundle, info.target)
    if info.bundle != bundle.fingerprint:
        raise BackendError(f"the engines in {folder} were built from another bundle than this one; run: {command}")
    if info.title != here.title:
        found = here.version if info.library == here.library else here.title
        raise BackendError(
            f"the engines in {folder} are for {info.title}, but this machine has {found}; run: {command}"
        )
    machine = f"{gpu} ({capability})"
    if info.library == TENSORRT and machine != f"{info.gpu} ({info.compute_capability})":
        raise BackendError(
            f"the engines in {folder} are for GPU {info.gpu} ({info.compute_capability}), but this machine has "
            f"{machine}; run: {command}"
        )
    if info.library == RTX and capability not in info.capabilities:
        again = command if capability in here.capabilities and capability != TOO_OLD else other_command(bundle)
        raise BackendError(
            f"the engines in {folder} are for GPUs of compute capability {', '.join(info.capabilities)}, but this "
            f"machine has {machine}; {'name it in the recipe, and ' if again == command else ''}run: {again}"
        )


def read_engine(folder: Path, info: BuildInfo, name: str, bundle: Bundle) -> bytes:
    """Read an engine's file, and compare its size and hash.

    Raises:
        BackendError: the file is missing, truncated or altered.
    """
    path, command = folder / name, rebuild_command(bundle, info.target)
    expected = info.files.get(name)
    if expected is None or not path.is_file():
        raise BackendError(f"{folder} lacks the engine {name}; run: {command}")
    if not is_kept_inside(path, bundle.folder):
        raise BackendError(f"the engine {path} is a link that leaves the bundle; do not trust it, or run: {command}")
    try:
        size = path.stat().st_size
        if size != expected.bytes:
            raise BackendError(
                f"the engine {path} has {size} bytes, but {BUILD_NAME} says {expected.bytes}: it was truncated or "
                f"altered; run: {command}"
            )
        content = read_regular(path, expected.bytes)
    except OSError as error:
        raise BackendError(f"the engine {path} cannot be read: {error.strerror or error}") from None
    if hashlib.sha256(content).hexdigest() != expected.sha256:  # hash the content that is loaded
        raise BackendError(f"the engine {path} was altered (its SHA-256 differs); run: {command}")
    return content
