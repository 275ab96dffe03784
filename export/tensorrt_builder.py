"""Builds a bundle's engines: with TensorRT on the device that will run them, with TensorRT for RTX anywhere.

Every part becomes an engine of fixed shapes; the decoder gets one for each number of rows and each length of a chunk
(or one for all, if the recipe says so). The graphs' types are kept, see `tensorrt_compat`. Where there is a GPU, the
engines are published only after they have passed the gate; otherwise the first load on a GPU compares them.

This needs tensorrt, NumPy and the bundle, but neither torch nor ONNX.
"""

from __future__ import annotations

import datetime
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from editar_rt import names
from editar_rt.backends.engines.folder import BUILD_NAME, BuildInfo, EngineInfo
from editar_rt.backends.engines.plan import Shape
from editar_rt.backends.engines.tensorrt import Machine, TensorRTEngines
from editar_rt.backends.engines.tensorrt_compat import FLOAT8_FROM, Profile, Progress, TensorRT, has_float8
from editar_rt.backends.engines.trial import entry
from editar_rt.bundle.compare import Comparison
from editar_rt.bundle.folder import Bundle, file_digest, publishing
from editar_rt.bundle.manifest import Part
from editar_rt.bundle.words import stored_numbers
from editar_rt.errors import BackendError, OptionError
from editar_rt.measure.gate import check, compare
from editar_rt.version import __version__
from export.recipe import EngineRecipe

USUAL_ROWS = 2  # with guidance
BUILD_FACTOR = 4  # memory for building as a multiple of the weights: file, parser's and builder's copies, engine
MEMORY_FILE = Path("/proc/meminfo")
ENDING = ".engine"


@dataclass(frozen=True)
class Watcher:
    """Callbacks that report the progress of a build."""

    report: Callable[[str], None] = lambda line: None
    """Called with lines of the result."""
    warn: Callable[[str], None] = lambda line: None
    progress: Progress = lambda phase, done, total: None


@dataclass
class _Built:
    """The engines built so far."""

    engines: dict[str, EngineInfo] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    halves: list[str] = field(default_factory=list)


def build_engines(
    bundle: Bundle,
    target: str,
    recipe: EngineRecipe,
    output: Path,
    tensorrt: TensorRT,
    machine: Machine | None,
    force: bool,
    watcher: Watcher,
) -> BuildInfo:
    """Build, test and publish the engines of a bundle.

    Args:
        target: the recipe's name, for the command that builds them again.
        output: the folder to write, inside the bundle.
        machine: the GPU that tests them; None if they are for others, which test them when they load them first.

    Raises:
        OptionError: the bundle has another dialect or weights that this TensorRT cannot read, or the runtime would not
            find the output folder.
        BackendError: TensorRT cannot build or run an engine.
        GateError: the outputs of the engines differ from those of the exporting machine; nothing is published.
    """
    check_bundle(bundle, target, output)
    _check_features(bundle, recipe, tensorrt)
    bundle.check()
    for line in memory_warnings(bundle, free_memory()):
        watcher.warn(line)
    manifest, plan = bundle.manifest, recipe.plan(bundle.manifest.model)
    with publishing(output, force, BUILD_NAME) as partial:
        built = _Built()
        files: dict[str, list[Shape]] = {}
        for shape in plan.shapes(manifest.parts):
            name = shape.part if _is_together(shape, recipe) else shape.name
            files.setdefault(name + ENDING, []).append(shape)
        for number, (name, shapes) in enumerate(files.items(), start=1):
            watcher.warn(f"building {name} ({number} of {len(files)})")
            _build(bundle, recipe, tensorrt, machine, partial / name, shapes, built, watcher)
        info = BuildInfo(
            bundle=bundle.fingerprint,
            target=target,
            tensorrt=tensorrt.version,
            cuda=machine.cuda if machine else "",
            gpu=machine.gpu if machine else "",
            compute_capability=machine.capability if machine else "",
            rows=list(plan.rows),
            chunks=list(plan.chunks),
            engines=built.engines,
            files={name: file_digest(partial / name) for name in files},
            graphs={name: file.sha256 for name, file in manifest.files.items() if ".onnx" in name},
            flags={
                "strongly_typed": tensorrt.is_strongly_typed,
                "float16": built.halves,
                "tf32": recipe.tf32,
                "shared": recipe.shared,
                "dynamic": recipe.dynamic,
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
            drafts=list(plan.drafts),
            library=tensorrt.library,
            capabilities=list(recipe.capabilities),
            tried=machine is not None,
        )
        if machine is not None:
            compared = _pass_gate(bundle, partial, info, machine, watcher)
            info = replace(info, parity=[entry(each) for each in compared])
        (partial / BUILD_NAME).write_text(info.to_json(), encoding="utf-8")
    return info


def check_bundle(bundle: Bundle, target: str, output: Path) -> None:
    """Reject a bundle that no machine can build.

    Raises:
        OptionError: as in `build_engines`.
    """
    manifest = bundle.manifest
    if not manifest.operators.has_fixed_shapes:
        raise OptionError(
            f"TensorRT needs the dialect delta or native, but {bundle.folder} has the dialect {manifest.dialect}; "
            f"convert it with: python -m export convert {bundle.folder} --target {target} -o OUT"
        )
    if output.resolve().parent != bundle.folder.resolve():
        raise OptionError(
            f"engines must be in their bundle's folder, where the runtime finds them; choose -o {bundle.folder}/NAME"
        )


def _check_features(bundle: Bundle, recipe: EngineRecipe, tensorrt: TensorRT) -> None:
    """Reject what this library cannot do.

    Raises:
        OptionError: as in `build_engines`.
    """
    manifest = bundle.manifest
    tensorrt.check_capabilities(recipe.capabilities)
    if (recipe.shared or recipe.dynamic) and not tensorrt.shares_engines:
        raise OptionError(
            f"{tensorrt.title} gives wrong results with one engine for several shapes; use a recipe without "
            f"{'shared' if recipe.shared else 'dynamic'} = true"
        )
    if not manifest.operators.returns_new_rows and not tensorrt.updates_caches:
        raise OptionError(
            f"the dialect native needs TensorRT 10.15 or newer, but this is {tensorrt.version}; convert the bundle "
            f"with: python -m export convert {bundle.folder} --dialect delta -o OUT"
        )
    blocks = stored_numbers(manifest.precision, manifest.dialect).blocks
    if blocks is None:
        return
    where = f"the decoder of {bundle.folder} has {manifest.precision.upper()} weights"
    if blocks.bits == 4 and not tensorrt.reads_int4:
        raise OptionError(
            f"{where}, which need TensorRT 10.0 or newer, but this is {tensorrt.version}; export the bundle again with "
            "--precision fp16"
        )
    if blocks.bits == 8 and not tensorrt.reads_8_bits:
        raise OptionError(
            f"{where}, which only TensorRT for RTX multiplies with float16 activations, but this is {tensorrt.title}; "
            "export the bundle again with --precision int4 or fp16"
        )
    if blocks.is_float and (lacking := [each for each in recipe.capabilities if not has_float8(each)]):
        raise OptionError(
            f"{where}, which GPUs of compute capability {FLOAT8_FROM} and newer have, but the recipe also names "
            f"{', '.join(lacking)}; leave them out, or export the bundle again with --precision int8"
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


def build_engine(
    tensorrt: TensorRT,
    path: Path,
    part: Part,
    shapes: Sequence[Shape],
    recipe: EngineRecipe,
    progress: Progress = lambda phase, done, total: None,
    timings: Callable[[Any], AbstractContextManager[None]] = lambda config: nullcontext(),
) -> tuple[memoryview, bool]:
    """Build one engine from a part's graph, for one shape or for several.

    Args:
        path: the graph.
        timings: given the builder's configuration, a context in which it has the timings of earlier builds.

    Returns:
        the engine, and whether it has float16 layers.

    Raises:
        BackendError: the library cannot read the graph or build the engine.
    """
    builder = tensorrt.make_builder()
    network = tensorrt.make_network(builder)
    parser = tensorrt.parse(network, path)
    config = tensorrt.make_config(
        builder,
        recipe.workspace_mib << 20,
        recipe.optimization_level,
        recipe.tf32,
        recipe.external,
        recipe.capabilities,
    )
    found = {network.get_input(i).name: network.get_input(i) for i in range(network.num_inputs)}
    if set(found) != {tensor.name for tensor in part.inputs}:
        raise BackendError(f"TensorRT's inputs of {part.file} are not those of the manifest: {', '.join(found)}")
    if len(shapes) == 1:
        for tensor in part.inputs:
            found[tensor.name].shape = shapes[0].of(tensor)
    else:
        tensorrt.add_profiles(builder, config, _profiles(part, shapes, recipe.dynamic))
    tensorrt.split_attention(network)
    halves = tensorrt.keep_types(network, config)
    monitor = tensorrt.watch(config, progress)
    with timings(config):
        engine = tensorrt.build(builder, network, config)
    # Lifetimes in TensorRT's Python module depend on its version, so all objects are kept until here.
    del monitor, config, parser, network, builder
    return engine, halves


def _build(
    bundle: Bundle,
    recipe: EngineRecipe,
    tensorrt: TensorRT,
    machine: Machine | None,
    path: Path,
    shapes: list[Shape],
    built: _Built,
    watcher: Watcher,
) -> None:
    """Write one file, with the engine of one shape or of several."""
    begun, part = time.perf_counter(), bundle.manifest.parts[shapes[0].part]
    engine, halves = build_engine(
        tensorrt,
        bundle.part_path(shapes[0].part),
        part,
        shapes,
        recipe,
        watcher.progress,
        lambda config: _timings(bundle, tensorrt, machine, config),
    )
    path.write_bytes(engine)
    del engine
    if halves:
        built.halves.append(path.name)
    scratch = tensorrt.take_scratch()
    if machine is not None:
        scratch = tensorrt.scratch_bytes(tensorrt.load(tensorrt.make_runtime(), path.read_bytes()))
    for number, shape in enumerate(shapes):
        built.engines[shape.name] = EngineInfo(path.name, 0 if recipe.dynamic else number, scratch)
    built.seconds[path.name] = time.perf_counter() - begun
    watcher.report(
        f"{path.name:24}  {path.stat().st_size / 2**20:8.1f} MiB  scratch {scratch / 2**20:8.1f} MiB  "
        f"{built.seconds[path.name]:6.1f} s"
    )


def _is_together(shape: Shape, recipe: EngineRecipe) -> bool:
    """Whether a shape is run by an engine of several shapes."""
    if recipe.dynamic and shape.part in (names.DECODER, names.SAMPLER):
        return f"{shape.rows}x{shape.positions}" not in recipe.static
    return recipe.shared and shape.part == names.DECODER  # profiles save nothing but weights


def _profiles(part: Part, shapes: Sequence[Shape], dynamic: bool) -> list[Profile]:
    """One profile for each shape, or one that covers all and is made for steps of the usual rows."""
    if not dynamic:
        return [{tensor.name: (shape.of(tensor),) * 3 for tensor in part.inputs} for shape in shapes]
    least, most = (
        Shape(shapes[0].part, pick(shape.rows for shape in shapes), pick(shape.positions for shape in shapes))
        for pick in (min, max)
    )
    usual = Shape(most.part, min(USUAL_ROWS, most.rows), least.positions)
    return [{tensor.name: (least.of(tensor), usual.of(tensor), most.of(tensor)) for tensor in part.inputs}]


@contextmanager
def _timings(bundle: Bundle, tensorrt: TensorRT, machine: Machine | None, config: Any) -> Iterator[None]:
    """Let the builder use the timings of this machine, if it measures; after the block, they are kept."""
    if machine is None or not tensorrt.has_timings:
        yield
        return
    file = bundle.folder / f"tensorrt-{tensorrt.version}-{machine.capability}.timings"
    written = file.with_suffix(".partial")
    try:
        cache = tensorrt.use_timings(config, file.read_bytes() if file.is_file() else b"")
        yield
        written.write_bytes(tensorrt.timings(config))
        written.replace(file)
        del cache  # it must live until here
    finally:
        written.unlink(missing_ok=True)


def _pass_gate(bundle: Bundle, folder: Path, info: BuildInfo, machine: Machine, watcher: Watcher) -> list[Comparison]:
    compared = []
    for each in compare(bundle, TensorRTEngines(bundle, folder, info, machine), info.plan):
        watcher.report(str(each))
        compared.append(each)
    check(compared, "nothing was published")
    return compared
