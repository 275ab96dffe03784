"""Builds a bundle's engines with TensorRT on the device that will run them.

Every part becomes an engine of fixed shapes; the decoder gets one for each number of rows and each length of a chunk
(or one for all, if the recipe says so). The graphs' types are kept, see `tensorrt_compat`. The engines are published
only after they have passed the gate.

This needs tensorrt, NumPy and the bundle, but neither torch nor ONNX.
"""

from __future__ import annotations

import datetime
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from editar_rt import names
from editar_rt.backends.engines.folder import BUILD_NAME, BuildInfo, EngineInfo
from editar_rt.backends.engines.plan import Shape
from editar_rt.backends.engines.tensorrt import Machine, TensorRTEngines
from editar_rt.bundle.compare import Comparison
from editar_rt.bundle.folder import Bundle, file_digest, publishing
from editar_rt.bundle.words import stored_numbers
from editar_rt.errors import BackendError, OptionError
from editar_rt.version import __version__
from export.recipe import EngineRecipe
from export.tensorrt_gate import GateError, compare

BUILD_FACTOR = 4  # memory for building as a multiple of the weights: file, parser's and builder's copies, engine
MEMORY_FILE = Path("/proc/meminfo")
ENDING = ".engine"


@dataclass(frozen=True)
class Watcher:
    """Callbacks that report the progress of a build."""

    report: Callable[[str], None] = lambda line: None
    """Called with lines of the result."""
    warn: Callable[[str], None] = lambda line: None
    progress: Callable[[str, int, int], None] = lambda phase, done, total: None


@dataclass
class _Built:
    """The engines built so far."""

    engines: dict[str, EngineInfo] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    halves: list[str] = field(default_factory=list)


def build_engines(
    bundle: Bundle, target: str, recipe: EngineRecipe, output: Path, machine: Machine, force: bool, watcher: Watcher
) -> BuildInfo:
    """Build, test and publish the engines of a bundle.

    Args:
        target: the recipe's name, for the command that builds them again.
        output: the folder to write, inside the bundle.

    Raises:
        OptionError: the bundle has another dialect or weights that this TensorRT cannot read, or the runtime would not
            find the output folder.
        BackendError: TensorRT cannot build or run an engine.
        GateError: the outputs of the engines differ from those of the exporting machine; nothing is published.
    """
    check_bundle(bundle, output)
    if recipe.shared and not machine.tensorrt.shares_engines:
        raise OptionError(
            f"TensorRT {machine.tensorrt.version} gives wrong results with one engine for several shapes; use a "
            "recipe without shared = true"
        )
    stored = stored_numbers(bundle.manifest.precision, bundle.manifest.dialect)
    if stored.is_quantized and not machine.tensorrt.reads_int4:
        raise OptionError(
            f"the decoder of {bundle.folder} has INT4 weights, which need TensorRT 10.0 or newer, but this is "
            f"{machine.tensorrt.version}; export the bundle again with --precision fp16"
        )
    bundle.check()
    for line in memory_warnings(bundle, free_memory()):
        watcher.warn(line)
    manifest, plan = bundle.manifest, recipe.plan(bundle.manifest.model)
    with publishing(output, force, BUILD_NAME) as partial:
        built = _Built()
        files: dict[str, list[Shape]] = {}
        for shape in plan.shapes(manifest.parts):
            together = recipe.shared and shape.part == names.DECODER
            files.setdefault((shape.part if together else shape.name) + ENDING, []).append(shape)
        for number, (name, shapes) in enumerate(files.items(), start=1):
            watcher.warn(f"building {name} ({number} of {len(files)})")
            _build(bundle, recipe, machine, partial / name, shapes, built, watcher)
        info = BuildInfo(
            bundle=bundle.fingerprint,
            target=target,
            tensorrt=machine.tensorrt.version,
            cuda=machine.cuda,
            gpu=machine.gpu,
            compute_capability=machine.capability,
            rows=list(plan.rows),
            chunks=list(plan.chunks),
            engines=built.engines,
            files={name: file_digest(partial / name) for name in files},
            graphs={name: file.sha256 for name, file in manifest.files.items() if ".onnx" in name},
            flags={
                "strongly_typed": machine.tensorrt.is_strongly_typed,
                "float16": built.halves,
                "tf32": recipe.tf32,
                "shared": recipe.shared,
                "workspace_mib": recipe.workspace_mib,
                "optimization_level": recipe.optimization_level,
                "external": recipe.external,
            },
            seconds=built.seconds,
            made_by={
                "tool": "python -m export tensorrt",
                "version": __version__,
                "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
            },
        )
        compared = _pass_gate(bundle, partial, info, machine, watcher)
        info = replace(info, parity=[_entry(each) for each in compared])
        (partial / BUILD_NAME).write_text(info.to_json(), encoding="utf-8")
    return info


def check_bundle(bundle: Bundle, output: Path) -> None:
    """Reject a bundle that no machine can build.

    Raises:
        OptionError: as in `build_engines`.
    """
    manifest = bundle.manifest
    if not manifest.operators.has_fixed_shapes:
        raise OptionError(
            f"TensorRT needs the dialect delta or native, but {bundle.folder} has the dialect {manifest.dialect}; "
            f"convert it with: python -m export convert {bundle.folder} --dialect delta -o OUT"
        )
    if output.resolve().parent != bundle.folder.resolve():
        raise OptionError(
            f"engines must be in their bundle's folder, where the runtime finds them; choose -o {bundle.folder}/NAME"
        )


def memory_warnings(bundle: Bundle, free: int | None) -> Iterator[str]:
    """Warnings about a build that may not fit in memory.

    Args:
        free: bytes of available memory; None if unknown.
    """
    sizes = {part: bundle.stored_bytes(part) for part in bundle.manifest.parts}
    if not sizes or free is None:
        return
    largest = max(sizes, key=lambda part: sizes[part])
    needed = BUILD_FACTOR * sizes[largest]
    if needed > free:
        yield (
            f"building {largest} takes about {needed >> 20} MiB of memory, but only {free >> 20} MiB are free: "
            "it may be slow or be killed by the system; close other programs, or add swap"
        )


def free_memory(file: Path = MEMORY_FILE) -> int | None:
    """Bytes of available memory as reported by Linux; None if unknown."""
    try:
        lines = dict(line.split(":", 1) for line in file.read_text(encoding="utf-8").splitlines() if ":" in line)
        return int(lines["MemAvailable"].split()[0]) << 10
    except (OSError, KeyError, ValueError, IndexError):
        return None


def _build(
    bundle: Bundle,
    recipe: EngineRecipe,
    machine: Machine,
    path: Path,
    shapes: list[Shape],
    built: _Built,
    watcher: Watcher,
) -> None:
    """Build one file, with the engine of one shape or of several."""
    begun, tensorrt, part = time.perf_counter(), machine.tensorrt, bundle.manifest.parts[shapes[0].part]
    builder = tensorrt.make_builder()
    network = tensorrt.make_network(builder)
    parser = tensorrt.parse(network, bundle.part_path(shapes[0].part))
    config = tensorrt.make_config(
        builder, recipe.workspace_mib << 20, recipe.optimization_level, recipe.tf32, recipe.external
    )
    found = {network.get_input(i).name: network.get_input(i) for i in range(network.num_inputs)}
    if set(found) != {tensor.name for tensor in part.inputs}:
        raise BackendError(f"TensorRT's inputs of {part.file} are not those of the manifest: {', '.join(found)}")
    if len(shapes) == 1:
        for tensor in part.inputs:
            found[tensor.name].shape = shapes[0].of(tensor)
    else:
        profiles = [{tensor.name: shape.of(tensor) for tensor in part.inputs} for shape in shapes]
        tensorrt.add_profiles(builder, config, profiles)
    if tensorrt.keep_types(network, config):
        built.halves.append(path.name)
    monitor = tensorrt.watch(config, watcher.progress)
    with _timings(bundle, machine) as cache_file:
        saved = cache_file.read_bytes() if cache_file.is_file() else b""
        cache = tensorrt.use_timings(config, saved)
        path.write_bytes(tensorrt.build(builder, network, config))
        cache_file.with_suffix(".partial").write_bytes(tensorrt.timings(config))
    # Lifetimes in TensorRT's Python module depend on its version, so all objects are kept until here.
    del monitor, cache, config, parser, network, builder
    engine = tensorrt.load(tensorrt.make_runtime(), path.read_bytes())
    scratch = tensorrt.scratch_bytes(engine)
    for profile, shape in enumerate(shapes):
        built.engines[shape.name] = EngineInfo(path.name, profile, scratch)
    built.seconds[path.name] = time.perf_counter() - begun
    watcher.report(
        f"{path.name:24}  {path.stat().st_size / 2**20:8.1f} MiB  scratch {scratch / 2**20:8.1f} MiB  "
        f"{built.seconds[path.name]:6.1f} s"
    )


@contextmanager
def _timings(bundle: Bundle, machine: Machine) -> Iterator[Path]:
    """The file of the builder's timings for this machine; after the block it is replaced by the new timings."""
    file = bundle.folder / f"tensorrt-{machine.tensorrt.version}-{machine.capability}.timings"
    written = file.with_suffix(".partial")
    try:
        yield file
        written.replace(file)
    finally:
        written.unlink(missing_ok=True)


def _entry(compared: Comparison) -> dict[str, Any]:
    """A comparison as an entry of `build.json`."""
    found = compared.to_json()
    return {"engine": found.pop("part"), **found}


def _pass_gate(bundle: Bundle, folder: Path, info: BuildInfo, machine: Machine, watcher: Watcher) -> list[Comparison]:
    compared = []
    for each in compare(bundle, TensorRTEngines(bundle, folder, info, machine), info.plan):
        watcher.report(str(each))
        compared.append(each)
    if failed := [each for each in compared if not each.holds]:
        worst = failed[0]
        raise GateError(
            f"the outputs of the engine {worst.part} differ from those of the exporting machine ({worst.output}: error "
            f"{worst.error:.1e}, allowed {worst.bound:.0e}); nothing was published"
        )
    return compared
