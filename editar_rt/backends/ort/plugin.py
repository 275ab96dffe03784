"""ONNX Runtime's plug-in provider for TensorRT for RTX, a separate package: registers it and opens sessions on it.

Importing the package loads its libraries and puts its folder first in LD_LIBRARY_PATH, and registration is for the
whole process. Therefore both happen only when the provider is asked for, and registration once.
"""

from __future__ import annotations

import importlib
import threading
from typing import Any

from editar_rt.backends.ort.sessions import Session
from editar_rt.errors import BackendError

MODULE = "onnxruntime_ep_nv_tensorrt_rtx"
INSTALL = "pip install onnxruntime-ep-nv-tensorrt-rtx-cu13"
TITLE = "ONNX Runtime's provider for TensorRT for RTX"

_lock = threading.Lock()


class RtxProvider:
    """The provider on the first GPU that it lists."""

    def __init__(self, ort: Any, name: str, device: Any) -> None:
        self._ort, self._name, self._device = ort, name, device

    @classmethod
    def find(cls, ort: Any) -> RtxProvider:
        """Register the provider, if this process has not done so.

        Raises:
            BackendError: the package is missing, its library does not load, or it lists no GPU.
        """
        if not hasattr(ort, "register_execution_provider_library"):  # before 1.23
            raise BackendError(
                f"ONNX Runtime {ort.__version__} knows no plug-in providers; run pip install -U onnxruntime"
            )
        try:
            package = importlib.import_module(MODULE)
        except ModuleNotFoundError:
            raise BackendError(f"{TITLE} is not installed; run: {INSTALL}") from None
        except Exception as e:  # it looks for its libraries when it is imported
            raise BackendError(f"{TITLE} cannot be imported ({_one_line(e)})") from None
        with _lock:
            try:
                name = package.get_ep_name()
                if not _devices(ort, name):
                    _register(ort, name, package.get_library_path())
            except Exception as e:  # the binding's own classes derive directly from Exception
                raise BackendError(
                    f"{TITLE} does not load here ({_one_line(e)}); it needs NVIDIA's driver, which nvidia-smi shows"
                ) from None
        devices = _devices(ort, name)
        if not devices:
            raise BackendError(f"{TITLE} lists no device: this machine has no GPU that it supports, see nvidia-smi")
        return cls(ort, name, devices[0])

    @property
    def name(self) -> str:
        return f"ONNX Runtime {self._ort.__version__} ({self._name})"

    def open(self, graph: str, options: Any) -> Any:
        """A session of a graph's file on the GPU; operators that the provider does not take run on the CPU.

        Raises:
            BackendError: the session runs without the provider.
            Exception: any error of ONNX Runtime.
        """
        options.add_provider_for_devices([self._device], {})
        # With fallback, a provider that fails would be dropped silently, at opening or in a run.
        session = Session(self._ort, graph, options, enable_fallback=0)
        if self._name not in session.get_providers():
            raise BackendError(f"{TITLE} takes no part of {graph}; build engines, or choose --device emulated")
        return session


def _devices(ort: Any, name: str) -> list[Any]:
    return [device for device in ort.get_ep_devices() if device.ep_name == name]


def _register(ort: Any, name: str, library: str) -> None:
    """Register a provider that lists no device: it may be new, or registered on a machine without a GPU."""
    try:
        ort.register_execution_provider_library(name, library)
    except Exception as e:  # as above
        if "already registered" not in str(e):
            raise


def _one_line(error: Exception) -> str:
    return f"{' '.join(str(error).split()) or type(error).__name__:.400}"
