"""The engines that run a bundle's graphs, behind one interface (`base.Backend`). Each loads when it is chosen."""

from __future__ import annotations

from editar_rt.arguments import as_one_of
from editar_rt.backends.base import Backend
from editar_rt.backends.engines.folder import find_folders
from editar_rt.backends.engines.plan import DELTA, Plan
from editar_rt.bundle.folder import Bundle
from editar_rt.errors import BackendError, OptionError
from editar_rt.generation.sampling import is_whole
from editar_rt.machine import thread_limit

DEVICES = ("auto", "cpu", "cuda", "tensorrt", "emulated")


def make_backend(bundle: Bundle, device: str, threads: int | None = None, cache: bool = True) -> Backend:
    """The backend for a device.

    Args:
        device: `cpu` or `cuda` through ONNX Runtime; `auto` takes CUDA where ONNX Runtime has it. A bundle of the
            spelling delta runs through `tensorrt`, which needs its engines, or on the CPU in TensorRT's place
            (`emulated`); `auto` takes TensorRT where engines lie in the bundle, and `cpu` is the emulation.
        threads: CPU threads, at most as many as the machine has processors; None leaves the choice to the engine.
        cache: keep large weights as this machine's processor wants them (`backends.prepacked`).

    Raises:
        OptionError: an unknown device, or no number of threads.
        BackendError: a library or device that is not there, or that does not run the bundle.
    """
    as_one_of("device", device, DEVICES)
    if threads is not None and not (is_whole(threads) and 1 <= threads <= thread_limit()):
        raise OptionError(
            f"threads must be 1 to {thread_limit()}, as many as this machine has processors, or None for the engine's "
            f"choice, got {threads!r:.40}"
        )
    is_delta = bundle.manifest.spelling == DELTA
    if is_delta != (device in ("tensorrt", "emulated")) and device not in ("auto", "cpu"):
        raise BackendError(_wrong_device(bundle, device))
    if not is_delta:
        from editar_rt.backends.ort.backend import OnnxRuntimeBackend

        return OnnxRuntimeBackend(bundle, device, threads, cache)
    from editar_rt.backends.engines.backend import DeltaBackend

    if device == "tensorrt" or (device == "auto" and find_folders(bundle)):
        from editar_rt.backends.engines.tensorrt import open_engines

        engines = open_engines(bundle)
        return DeltaBackend(bundle, engines, engines.info.plan)
    from editar_rt.backends.engines.emulated import EmulatedEngines

    return DeltaBackend(bundle, EmulatedEngines(bundle, threads, cache), Plan.usual(bundle.manifest.model))


def _wrong_device(bundle: Bundle, device: str) -> str:
    spelling = bundle.manifest.spelling
    if spelling == DELTA:
        return f"the bundle {bundle.folder} has the spelling delta, which runs on tensorrt or cpu, not on {device}"
    return (
        f"{device} runs bundles of the spelling delta, and {bundle.folder} has the spelling {spelling}; convert it "
        f"with: python -m export convert {bundle.folder} --spelling delta -o OUT"
    )
