"""The engines that run a bundle's graphs, with one interface (`base.Backend`). Each is imported when it is chosen.

To add one, write its opener and add it to `OPENERS`.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from editar_rt.arguments import as_one_of, is_integer
from editar_rt.backends.base import Backend
from editar_rt.backends.engines.folder import find_folders, without_engines
from editar_rt.bundle.folder import Bundle
from editar_rt.bundle.manifest import Manifest
from editar_rt.errors import BackendError, OptionError
from editar_rt.machine import thread_limit

AUTO, CPU, CUDA, TENSORRT, EMULATED = "auto", "cpu", "cuda", "tensorrt", "emulated"


class Settings(NamedTuple):
    """Settings for opening a backend; each backend uses those that apply to it."""

    threads: int | None = None
    """CPU threads, at most the machine's number of logical cores; None lets the engine choose."""
    cache: bool = True
    """Store weights prepacked for this machine's CPU on disk (`backends.ort.prepacked`)."""
    prepack: bool = True
    """Prepack weights: faster matmuls, but twice the memory while a part is opened."""
    profile: Path | None = None
    """Folder for a profile of the decoder (`Backend.end_profile`)."""


def _onnxruntime(bundle: Bundle, device: str, settings: Settings) -> Backend:
    from editar_rt.backends.ort.backend import OnnxRuntimeBackend

    backend = OnnxRuntimeBackend(bundle, device, settings.threads, settings.cache, settings.profile)
    backend.prepack = settings.prepack
    return backend


def _tensorrt(bundle: Bundle, device: str, settings: Settings) -> Backend:
    from editar_rt.backends.engines.backend import EngineBackend
    from editar_rt.backends.engines.tensorrt import open_engines

    if device == TENSORRT and not find_folders(bundle):
        return _provider(bundle, settings)
    engines = open_engines(bundle)
    return EngineBackend(bundle, engines, engines.info.plan)


def _provider(bundle: Bundle, settings: Settings) -> Backend:
    from editar_rt.backends.engines.backend import EngineBackend
    from editar_rt.backends.engines.emulated import ProviderEngines
    from editar_rt.backends.engines.plan import Plan

    try:
        engines = ProviderEngines(bundle, settings.threads)
    except BackendError as error:
        raise BackendError(without_engines(bundle, str(error))) from None
    return EngineBackend(bundle, engines, Plan.usual(bundle.manifest.model))


def _emulated(bundle: Bundle, device: str, settings: Settings) -> Backend:
    from editar_rt.backends.engines.backend import EngineBackend
    from editar_rt.backends.engines.emulated import EmulatedEngines
    from editar_rt.backends.engines.plan import Plan

    engines = EmulatedEngines(bundle, settings.threads, settings.cache)
    return EngineBackend(bundle, engines, Plan.usual(bundle.manifest.model))


USUAL = Settings()


class Opener(NamedTuple):
    """Opens a device's backend."""

    open: Callable[[Bundle, str, Settings], Backend]
    fixed_shapes: bool
    """Whether it runs the dialects with fixed shapes, or the others."""


OPENERS = {
    CPU: Opener(_onnxruntime, fixed_shapes=False),
    CUDA: Opener(_onnxruntime, fixed_shapes=False),
    TENSORRT: Opener(_tensorrt, fixed_shapes=True),
    EMULATED: Opener(_emulated, fixed_shapes=True),
}
DEVICES = (AUTO, *OPENERS)


def make_backend(bundle: Bundle, device: str, settings: Settings = USUAL) -> Backend:
    """The backend for a device.

    Args:
        device: `cpu` or `cuda` for ONNX Runtime. A bundle of the dialects delta and native runs on `tensorrt`, with
            its engines or, if it has none, with ONNX Runtime's plug-in provider; or on `emulated`: ONNX Runtime on
            the CPU in place of TensorRT, slow and for checks. `auto` means CUDA if ONNX Runtime has it, otherwise the
            CPU; for those dialects, TensorRT with engines.

    Raises:
        OptionError: an unknown device, or an invalid number of threads.
        BackendError: a library or device is missing or cannot run the bundle.
    """
    as_one_of("device", device, DEVICES)
    threads, most = settings.threads, thread_limit()
    if threads is not None and not (is_integer(threads) and 1 <= threads <= most):
        raise OptionError(
            f"threads must be 1 to {most}, the number of logical cores of this machine, or None for the engine's "
            f"choice, got {threads!r:.40}"
        )
    fixed_shapes = bundle.manifest.operators.has_fixed_shapes
    if device == AUTO:
        return OPENERS[TENSORRT if fixed_shapes else CPU].open(bundle, device, settings)
    if OPENERS[device].fixed_shapes != fixed_shapes:
        raise BackendError(_wrong_device(bundle, device))
    return OPENERS[device].open(bundle, device, settings)


def default_device(bundle: Bundle) -> str:
    """The default device of checks: TensorRT if the bundle has engines, otherwise this CPU."""
    return TENSORRT if find_folders(bundle) else host_device(bundle.manifest)


def host_device(manifest: Manifest) -> str:
    """The device that runs a bundle of any dialect on this machine's CPU."""
    return EMULATED if manifest.operators.has_fixed_shapes else CPU


def _wrong_device(bundle: Bundle, device: str) -> str:
    dialect = bundle.manifest.dialect
    if bundle.manifest.operators.has_fixed_shapes:
        return (
            f"the bundle {bundle.folder} has the dialect {dialect}, which runs on {TENSORRT}, not on {device}; to "
            f"check it on the CPU, slowly and without TensorRT, choose --device {EMULATED}"
        )
    return (
        f"{device} runs bundles of the dialects delta and native, but {bundle.folder} has the dialect {dialect}; "
        f"convert it with: python -m export convert {bundle.folder} --dialect delta -o OUT"
    )
