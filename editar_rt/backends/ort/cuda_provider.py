"""ONNX Runtime's CUDA provider: checks that it works on this machine, and copies inside the device.

ONNX Runtime reports the provider as available if it was compiled in; if the driver or a library of CUDA is missing, it
opens sessions on the CPU instead. Therefore a session with one operator is opened first and examined. It is also used
to copy between two addresses, for which ONNX Runtime's Python API has no function.
"""

from __future__ import annotations

import contextlib
import io
from typing import Any

import numpy as np

from editar_rt import machine
from editar_rt.backends.engines.cuda import Device, find_runtime
from editar_rt.backends.ort.sessions import Session
from editar_rt.bundle.folder import Bundle
from editar_rt.bundle.words import INT8
from editar_rt.errors import BackendError

CUDA, CPU = "CUDAExecutionProvider", "CPUExecutionProvider"
OPTIONS = {"use_tf32": "0"}  # TF32 is on by default: float32 matmuls with inputs rounded to 10 bits of mantissa
# An ONNX graph of Identity, uint8 [n] source -> target; a test creates the same with the package onnx.
COPY = (
    b"\x08\x08:J\n\x1a\n\x06source\x12\x06target\x22\x08Identity\x12\x04copyZ\x12\n\x06source\x12\x08\n\x06"
    b"\x08\x02\x12\x02\n\x00b\x12\n\x06target\x12\x08\n\x06\x08\x02\x12\x02\n\x00B\x04\n\x00\x10\x11"
)
INT8_CACHE = (8, 0)  # first compute capability whose attention reads an int8 cache


def open_session(ort: Any, graph: str | bytes, options: Any, cuda: dict[str, str] | None = None) -> Any:
    """A session on the CPU, or on CUDA and nowhere else.

    Args:
        graph: a file, or its content.
        cuda: options of the CUDA provider besides `OPTIONS`; None means the CPU.

    Raises:
        BackendError: the session runs without the requested CUDA provider.
        Exception: any error of ONNX Runtime.
    """
    providers: list[Any] = [CPU] if cuda is None else [(CUDA, OPTIONS | cuda), CPU]
    # With fallback, a provider that fails would be dropped silently, at opening or in a run.
    session = Session(ort, graph, options, providers=providers, enable_fallback=0)
    if cuda is not None and CUDA not in session.get_providers():
        raise BackendError(
            f"ONNX Runtime {ort.__version__} did not load {CUDA}: the driver, the GPU or a library of CUDA or cuDNN is "
            'missing; run nvidia-smi and, in a clone of the project, pip install ".[gpu]", or choose --device cpu'
        )
    return session


class CudaProvider:
    """The provider, after it was shown to work."""

    def __init__(self, ort: Any, session: Any) -> None:
        self._ort, self._session = ort, session

    @classmethod
    def find(cls, ort: Any) -> CudaProvider | None:
        """Open the provider; None if this ONNX Runtime was built without it.

        Raises:
            BackendError: it does not work on this machine, with the reason if it is known.
        """
        said = _load_libraries(ort)
        if CUDA not in ort.get_available_providers():
            return None
        options = ort.SessionOptions()
        options.log_severity_level = 4
        try:
            return cls(ort, open_session(ort, COPY, options, {}))
        except Exception as e:  # the binding's own classes derive directly from Exception
            raise BackendError(f"CUDA does not work here: {e}{said}") from None

    def copy(self, source: int, target: int, size: int) -> None:
        """Copy `size` bytes between two addresses on the device, and wait for it."""
        binding = self._session.io_binding()
        binding.bind_input("source", "cuda", 0, np.uint8, [size], source)
        binding.bind_output("target", "cuda", 0, np.uint8, [size], target)
        self._session.run_with_iobinding(binding)

    @staticmethod
    def check(bundle: Bundle) -> None:
        """Reject a bundle that the GPU is known not to run.

        Raises:
            BackendError: the cache is int8, and the GPU has no kernel for it.
        """
        if bundle.manifest.kv_cache != INT8:
            return
        try:
            device = Device(find_runtime())
        except BackendError:  # ONNX Runtime may find another runtime, and then reports the error itself
            return
        if tuple(map(int, device.capability.split("."))) < INT8_CACHE:
            raise BackendError(
                f"the cache of {bundle.folder} is int8, which ONNX Runtime's attention reads on GPUs of compute "
                f"capability 8.0 or newer, but the {device.name} has {device.capability}; export the bundle again "
                "with --kv-cache same"
            )

    def read_bandwidth(self) -> float | None:
        """Bytes per second, measured with copies on the device; None without enough memory."""
        size = machine.COPIED_BYTES
        try:
            buffers = [self._ort.OrtValue.ortvalue_from_shape_and_type([size], np.uint8, "cuda", 0) for _ in "12"]
        except Exception:  # as above
            return None
        source, target = (buffer.data_ptr() for buffer in buffers)
        return machine.copy_bandwidth(lambda size: self.copy(source, target, size))


def _load_libraries(ort: Any) -> str:
    """Load CUDA's libraries from pip's folders, which the system does not search.

    Returns:
        the libraries that could not be loaded, as text to append to a message.
    """
    if not hasattr(ort, "preload_dlls"):  # before 1.21
        return ""
    said = io.StringIO()  # it prints to stdout, where a JSON document may be expected
    with contextlib.redirect_stdout(said):
        ort.preload_dlls()
    lines = [line.strip() for line in said.getvalue().splitlines() if line.startswith("Failed")]
    return f" ({'; '.join(lines)})" if lines else ""
