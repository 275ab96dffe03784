"""ONNX Runtime, on the CPU or a CUDA device.

The decoder runs through an IOBinding: past and present of the cache are bound to one buffer, which the graph updates
in place, and the logits to one array. Nothing is allocated in the loop after its first step.
"""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np
from numpy.typing import NDArray

from editar_rt import names
from editar_rt.backends.base import Arrays
from editar_rt.bundle import Bundle
from editar_rt.errors import BackendError, MissingPartError


def import_onnxruntime() -> Any:
    """The onnxruntime module; it comes in two packages of which one must be chosen."""
    try:
        return importlib.import_module("onnxruntime")
    except ImportError as e:
        raise BackendError(
            f'ONNX Runtime is not installed ({e}); run: pip install "editar-rt[cpu]", or "editar-rt[gpu]" for CUDA'
        ) from None


class OnnxRuntimeBackend:
    """See the module's docstring and `base.Backend`."""

    def __init__(self, bundle: Bundle, device: str = "auto", threads: int | None = None) -> None:
        self._ort = import_onnxruntime()
        has_cuda = "CUDAExecutionProvider" in self._ort.get_available_providers()
        if device == "cuda" and not has_cuda:
            raise BackendError(
                "this ONNX Runtime has no CUDA provider; "
                'run: pip uninstall onnxruntime && pip install "editar-rt[gpu]", or choose --device cpu'
            )
        self.device = "cuda" if device != "cpu" and has_cuda else "cpu"
        self._bundle = bundle
        self._threads = threads
        self._sessions: dict[str, Any] = {}

    @property
    def name(self) -> str:
        return f"ONNX Runtime {self._ort.__version__} ({self.device.upper()})"

    def session(self, part: str) -> Any:
        """The session of a part, made when first needed."""
        if part not in self._sessions:
            if part not in self._bundle.manifest.parts:
                held = ", ".join(self._bundle.manifest.parts) or "nothing"
                raise MissingPartError(f"the bundle {self._bundle.folder} has no part {part}; it holds {held}")
            options = self._ort.SessionOptions()
            options.log_severity_level = 3
            if self._threads:
                options.intra_op_num_threads = self._threads
            providers = ["CUDAExecutionProvider"] * (self.device == "cuda") + ["CPUExecutionProvider"]
            path = self._bundle.part_path(part)
            try:
                self._sessions[part] = self._ort.InferenceSession(str(path), options, providers=providers)
            except Exception as e:  # the binding raises its own classes, all of them direct Exceptions
                raise BackendError(f"ONNX Runtime {self._ort.__version__} cannot load {path}: {e}") from None
        return self._sessions[part]

    def run(self, part: str, inputs: Arrays) -> dict[str, NDArray[Any]]:
        session = self.session(part)
        wanted = [o.name for o in session.get_outputs()]
        return dict(zip(wanted, session.run(wanted, dict(inputs)), strict=True))

    def make_cache(self, rows: int, capacity: int) -> OnnxRuntimeCache:
        return OnnxRuntimeCache(self, self._bundle, rows, capacity)


class OnnxRuntimeCache:
    """Keys and values [rows, heads, capacity, head_dim] of every layer in buffers on the device."""

    def __init__(self, backend: OnnxRuntimeBackend, bundle: Bundle, rows: int, capacity: int) -> None:
        self._session = backend.session(names.DECODER)
        self._device = backend.device
        self.rows = rows
        self.length = 0
        part, model = bundle.manifest.parts[names.DECODER], bundle.manifest.model
        self._layers = model.layers or 0
        self._dtype = np.dtype(next(t.dtype for t in part.inputs if t.name == names.past_key(0)))
        self._shape = (model.heads or 0, capacity, model.head_dim or 0)
        zeros = np.zeros((rows, *self._shape), self._dtype)
        make = backend._ort.OrtValue.ortvalue_from_numpy
        # On the CPU an OrtValue keeps using the array it is made from, so that each needs its own.
        self._buffers = [make(zeros.copy(), self._device, 0) for _ in range(2 * self._layers)]
        self._vocab = model.vocab_size or 0
        self._logits = np.empty((0, 0, 0), np.float32)
        self._binding: Any = None

    def keep_rows(self, rows: int) -> None:
        if not 0 < rows <= self.rows:
            raise ValueError(f"rows must be 1 to {self.rows}, got {rows}")
        self.rows = rows
        self._binding = None  # the first rows of every buffer lie together: bind them under the smaller shape

    def _bind_cache(self) -> Any:
        binding = self._session.io_binding()
        shape = [self.rows, *self._shape]
        for layer in range(self._layers):
            pairs = (
                (names.past_key(layer), names.present_key(layer), self._buffers[2 * layer]),
                (names.past_value(layer), names.present_value(layer), self._buffers[2 * layer + 1]),
            )
            for past, present, buffer in pairs:
                binding.bind_input(past, self._device, 0, self._dtype, shape, buffer.data_ptr())
                binding.bind_output(present, self._device, 0, self._dtype, shape, buffer.data_ptr())
        return binding

    def forward(
        self, tokens: NDArray[np.int32], prefix: NDArray[np.float32], logit_positions: NDArray[np.int32]
    ) -> NDArray[np.float32]:
        if self._binding is None:
            self._binding = self._bind_cache()
        binding, positions = self._binding, tokens.shape[1]
        inputs = {
            names.TOKENS: tokens,
            names.PREFIX: prefix,
            names.LOGIT_POSITIONS: logit_positions,
            names.PAST_LENGTH: np.full(self.rows, self.length, np.int32),
            names.TOTAL_LENGTH: np.asarray(self.length + positions, np.int32),
        }
        for name, array in inputs.items():
            binding.bind_cpu_input(name, array)
        shape = (self.rows, len(logit_positions), self._vocab)
        if self._logits.shape != shape:
            self._logits = np.empty(shape, np.float32)
        binding.bind_output(names.LOGITS, "cpu", 0, np.float32, shape, self._logits.ctypes.data)
        self._session.run_with_iobinding(binding)
        self.length += positions
        return self._logits
