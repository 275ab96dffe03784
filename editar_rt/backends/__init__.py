"""The engines that run a bundle's graphs, behind one interface (`base.Backend`). Each loads when it is chosen."""

from __future__ import annotations

from editar_rt.backends.base import Backend
from editar_rt.bundle import Bundle
from editar_rt.errors import BackendError, OptionError

DEVICES = ("auto", "cpu", "cuda", "tensorrt")


def make_backend(bundle: Bundle, device: str, threads: int | None = None, cache: bool = True) -> Backend:
    """The backend for a device.

    Args:
        device: `cpu` or `cuda` through ONNX Runtime; `auto` takes CUDA where ONNX Runtime has it.
        threads: CPU threads; None leaves the choice to the engine.
        cache: keep large weights as this machine's processor wants them (`backends.prepacked`).

    Raises:
        OptionError: an unknown device.
        BackendError: a library or device that is not there.
    """
    if device not in DEVICES:
        raise OptionError(f"device must be one of {', '.join(DEVICES)}, got {device!r}")
    if device == "tensorrt":
        raise BackendError("this version has no TensorRT backend; choose cpu, cuda or auto")
    from editar_rt.backends.onnxruntime import OnnxRuntimeBackend

    return OnnxRuntimeBackend(bundle, device, threads, cache)
