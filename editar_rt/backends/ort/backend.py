"""ONNX Runtime, on the CPU or a CUDA device.

The decoder runs through an IOBinding: past and present of the cache are bound to one buffer, which the graph updates
in place, and the logits to one array. Nothing is allocated in the loop after its first step, but for the array that
ONNX Runtime copies a captured step's logits to.
"""

from __future__ import annotations

import importlib
import itertools
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from editar_rt import machine, names
from editar_rt.backends.base import Arrays
from editar_rt.backends.engines.device import CaptureError
from editar_rt.backends.failures import running
from editar_rt.backends.ort.captured_steps import ENABLE, NO_GRAPH, CapturedSteps, closeness, run_options, why_not
from editar_rt.backends.ort.cuda_provider import CudaProvider, open_session
from editar_rt.backends.ort.pages import drop_file_pages, trim_heap
from editar_rt.backends.ort.prepacked import prepacked
from editar_rt.backends.ort.rows import RowBuffer
from editar_rt.bundle.folder import Bundle
from editar_rt.errors import BackendError, MissingPartError

GROWTH = 256  # positions by which a cache grows where its size costs time
# Products with weights that a graph dequantizes (INT4 for TensorRT): in float32, and not with rounded activations.
WEIGHT_ONLY = ("session.qdq_matmulnbits_accuracy_level", "1")
CHUNK = 256  # positions that go through the decoder at once on a CPU: more is not faster, and takes more memory
ONCE_AN_EDIT = {names.PREFIX_GRAPH}  # parts whose weights need not stay beside a full cache
READS_INT8 = (1, 27)  # the version from which on attention reads an int8 cache; those before fail in the first run
# NumPy has no such type: values lie in arrays of the other's bits, and are bound by ONNX's number for the type.
BFLOAT16, BFLOAT16_BITS = 16, np.dtype(np.uint16)
LONG = 64  # positions from which on what they took besides the cache is given back: it would lie beside a full cache


def import_onnxruntime() -> Any:
    """The onnxruntime module; it comes in two packages of which one must be chosen."""
    try:
        return importlib.import_module("onnxruntime")
    except ImportError as e:
        raise BackendError(
            f'ONNX Runtime is not installed ({e}); run: pip install "editar-rt[cpu]", or "editar-rt[gpu]" for CUDA'
        ) from None


class OnnxRuntimeBackend:
    """See the module's docstring and `base.Backend`.

    Args:
        cache: keep weights as this machine's processor wants them (`backends.prepacked`).
        profile: a folder that ONNX Runtime's profile of the decoder is written to.
    """

    def __init__(
        self,
        bundle: Bundle,
        device: str = "auto",
        threads: int | None = None,
        cache: bool = True,
        profile: Path | None = None,
    ) -> None:
        self._ort = import_onnxruntime()
        self.cuda: CudaProvider | None = None
        """None on the CPU."""
        self._why_cpu = ""  # where CUDA was meant to be taken
        if device == "cuda" or (device == "auto" and "cuda" in bundle.manifest.providers):
            try:
                self.cuda = CudaProvider.find(self._ort)
            except BackendError as e:
                if device == "cuda":
                    raise
                self._why_cpu = str(e)
        if device == "cuda" and self.cuda is None:
            raise BackendError(
                "this ONNX Runtime has no CUDA provider; "
                'run: pip uninstall onnxruntime && pip install "editar-rt[gpu]", or choose --device cpu'
            )
        self._device = "cpu" if self.cuda is None else "cuda"
        self._bundle = bundle
        self._threads = threads
        self._cache, self._profile = cache, profile
        self.prepack = True
        """Whether sessions opened from now on rearrange weights: faster products, twice the memory while they open."""
        self.capture = profile is None
        """Whether decode steps on CUDA may become CUDA graphs, in sessions opened from now on: not where operators are
        to be measured one by one."""
        self.uncaptured: str | None = None
        """Why steps on CUDA are plain runs; None where they are captured, or no decoder is open."""
        self.graph_ids = itertools.count(1)
        self._sessions: dict[str, Any] = {}
        self._graphs: dict[str, Path] = {}  # that they are of

    @property
    def name(self) -> str:
        note = f"; {self._why_cpu}" if self._why_cpu else ""
        if self.device == "cuda" and names.DECODER in self._sessions:
            note = f"; steps are not captured: {self.uncaptured}" if self.uncaptured else "; steps are captured"
        return f"ONNX Runtime {self._ort.__version__} ({self.device.upper()}){note}"

    @property
    def device(self) -> str:
        return self._device

    def read_bandwidth(self) -> float | None:
        return machine.read_bandwidth(self._threads) if self.cuda is None else self.cuda.read_bandwidth()

    def session(self, part: str) -> Any:
        """The session of a part, made when first needed."""
        if part not in self._sessions:
            if part not in self._bundle.manifest.parts:
                held = ", ".join(self._bundle.manifest.parts) or "nothing"
                raise MissingPartError(f"the bundle {self._bundle.folder} has no part {part}; it holds {held}")
            if part == names.DECODER and self.device not in self._bundle.manifest.providers:
                manifest = self._bundle.manifest
                raise BackendError(
                    f"ONNX Runtime does not run {self._bundle.folder} on {self.device}: its decoder (precision "
                    f"{manifest.precision}, spelling {manifest.spelling}) is for {', '.join(manifest.providers)}; "
                    f"export it again with --provider {self.device}" + (f" ({self._why_cpu})" if self._why_cpu else "")
                )
            if part == names.DECODER and self._bundle.manifest.kv_cache == "int8":
                self._check_version()
            options = self._ort.SessionOptions()
            if self._profile is not None and part == names.DECODER:
                options.enable_profiling, options.profile_file_prefix = True, str(self._profile / part)
            if part in ONCE_AN_EDIT:
                options.enable_cpu_mem_arena = False  # it would keep what one run took
            kept = self._cache and self.device == "cpu" and prepacked(self._bundle, part, self._ort, self._open)
            self._graphs[part] = kept or self._bundle.part_path(part)
            self._sessions[part] = self._open_part(part, options)
            drop_file_pages(self._graphs[part])  # opening reads more than running
            trim_heap()
        return self._sessions[part]

    def _check_version(self) -> None:
        version: str = self._ort.__version__
        if tuple(map(int, version.split(".")[:2])) < READS_INT8:
            raise BackendError(
                f"the cache of {self._bundle.folder} is int8, which ONNX Runtime reads from "
                f"{'.'.join(map(str, READS_INT8))} on, and this is {version}; run pip install -U onnxruntime, which "
                "takes Python 3.11, or export the bundle again with --kv-cache same"
            )

    def _open_part(self, part: str, options: Any) -> Any:
        if part == names.DECODER and self.cuda is not None:
            self.cuda.check(self._bundle)
            inputs = (tensor.name for tensor in self._bundle.manifest.parts[part].inputs)
            self.uncaptured = self.uncaptured or why_not(self.capture, inputs)
            if self.uncaptured is None:
                try:
                    return self._open(self._graphs[part], options, ENABLE)
                except BackendError as e:
                    self.uncaptured = str(e)
        return self._open(self._graphs[part], options)

    def give_up_capture(self, reason: str) -> Any:
        """Open the decoder again for plain runs: a stream whose capture failed cannot be used."""
        self.uncaptured = reason
        self._sessions.pop(names.DECODER, None)
        return self.session(names.DECODER)

    def _open(self, path: Path, options: Any, cuda: dict[str, str] | None = None) -> Any:
        """A session of a graph on the device.

        Args:
            cuda: options of the CUDA provider, where that is the device.
        """
        options.log_severity_level = 3
        options.add_session_config_entry(*WEIGHT_ONLY)
        if not self.prepack:
            options.add_session_config_entry("session.disable_prepacking", "1")
        if self._threads:
            options.intra_op_num_threads = self._threads
        try:
            return open_session(self._ort, str(path), options, None if self.device == "cpu" else cuda or {})
        except BackendError:
            raise
        except Exception as e:  # the binding raises its own classes, all of them direct Exceptions
            raise BackendError(f"ONNX Runtime {self._ort.__version__} cannot load {path}: {e}") from None

    def run(self, part: str, inputs: Arrays) -> dict[str, NDArray[Any]]:
        session = self.session(part)
        wanted = [o.name for o in session.get_outputs()]
        with running(part):
            found = dict(zip(wanted, session.run(wanted, dict(inputs)), strict=True))
        if part in ONCE_AN_EDIT:
            drop_file_pages(self._graphs[part])
        return found

    def make_cache(self, rows: int, capacity: int) -> OnnxRuntimeCache:
        return OnnxRuntimeCache(self, self._bundle, rows, capacity)


class OnnxRuntimeCache:
    """Keys and values [rows, heads, capacity, head_dim] of every layer in buffers on the device.

    Where a step's work grows with the capacity (the spelling standard), the buffers grow with what is filled.
    """

    def __init__(self, backend: OnnxRuntimeBackend, bundle: Bundle, rows: int, capacity: int) -> None:
        self._backend, self._device, self._cuda = backend, backend.device, backend.cuda
        self._session = backend.session(names.DECODER)
        self.lengths = np.zeros(rows, np.int32)
        part, model = bundle.manifest.parts[names.DECODER], bundle.manifest.model
        self._layers = model.layers or 0
        dtype = next(t.dtype for t in part.inputs if t.name == names.past_key(0))
        self._dtype = BFLOAT16_BITS if dtype == "bfloat16" else np.dtype(dtype)
        self._bound_as = BFLOAT16 if dtype == "bfloat16" else self._dtype
        self._make = backend._ort.OrtValue.ortvalue_from_numpy
        self._rows, self._capacity = rows, capacity
        self._shape = (model.heads or 0, 0, model.head_dim or 0)  # of a row as allocated
        self._growth = GROWTH if bundle.manifest.spelling == "standard" else capacity
        self._buffers: list[Any] = []
        self._row_buffers: list[RowBuffer] = []  # what they lie in, on the CPU
        self._wanted = {tensor.name for tensor in part.inputs}
        self._vocab = model.vocab_size or 0
        self._logits = np.empty((0, 0, 0), np.float32)
        self._bindings: dict[tuple[int, int], Any] = {}  # by first row and number of rows
        self._shrinking = backend._ort.RunOptions()
        self._shrinking.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")
        self._plain = run_options(backend._ort, NO_GRAPH) if self._device == "cuda" else None
        self._captured: CapturedSteps | None = None
        if self._device == "cuda" and backend.uncaptured is None:
            close = closeness(bundle.manifest)
            self._captured = CapturedSteps(
                backend._ort, backend.graph_ids, self._session, capacity, model.dim or 0, self._vocab, close
            )
        self._reserve(1)

    def _reserve(self, positions: int) -> None:
        """Make room for so many positions in every row."""
        heads, allocated, width = self._shape
        if positions <= allocated:
            return
        target = min(-(-positions // self._growth) * self._growth, self._capacity)
        old, self._buffers, self._row_buffers = self._buffers, [], []
        self._bindings.clear()
        for n in range(2 * self._layers):
            # On the CPU an OrtValue keeps using the array it is made from, so that each needs its own.
            row_buffer = RowBuffer(self._rows, heads, target, width, self._dtype)
            values = row_buffer.array
            if old:
                values[:, :, :allocated] = old[n].numpy()
                old[n] = None  # its memory goes before the next one comes
            self._buffers.append(self._make(values, self._device, 0))
            if self._device == "cpu":
                self._row_buffers.append(row_buffer)
        self._shape = values.shape[1:]
        self._row_bytes = values[0].nbytes

    def _binding(self, first_row: int, rows: int) -> Any:
        if (first_row, rows) not in self._bindings:
            self._bindings[first_row, rows] = self._bind(first_row, rows)
        return self._bindings[first_row, rows]

    def _bind(self, first_row: int, rows: int) -> Any:
        """Past and present bound to the same memory: the rows of a buffer lie one behind the other."""
        binding = self._session.io_binding()
        shape, offset = [rows, *self._shape], first_row * self._row_bytes
        for layer in range(self._layers):
            pairs = (
                (names.past_key(layer), names.present_key(layer), self._buffers[2 * layer]),
                (names.past_value(layer), names.present_value(layer), self._buffers[2 * layer + 1]),
            )
            for past, present, buffer in pairs:
                place = buffer.data_ptr() + offset
                binding.bind_input(past, self._device, 0, self._bound_as, shape, place)
                binding.bind_output(present, self._device, 0, self._bound_as, shape, place)
        return binding

    def forward(
        self,
        tokens: NDArray[np.int32],
        prefix: NDArray[np.float32],
        logit_positions: NDArray[np.int32],
        first_row: int = 0,
    ) -> NDArray[np.float32]:
        rows, positions = tokens.shape
        shape = (rows, len(logit_positions), self._vocab)
        if self._logits.shape != shape:
            self._logits = np.empty(shape, np.float32)
        past = self.lengths[first_row : first_row + rows]
        self._reserve(int(past.max()) + positions)
        self._follow()
        if self._captured is not None and positions == 1 and len(logit_positions) == 1 and tokens.min() >= 0:

            def ordinary() -> NDArray[np.float32]:
                self._run(tokens, prefix, logit_positions, first_row, self._logits)
                past[:] -= 1  # it is done again
                return self._logits

            try:
                logits = self._captured.run(lambda: self._bind(first_row, rows), ordinary, first_row, tokens, past)
                past += 1
                return logits
            except CaptureError as e:
                reason = str(e)
            self._captured = self._session = None  # its memory goes before it is opened again
            self._bindings.clear()
            self._session = self._backend.give_up_capture(reason)
        # GroupQueryAttention takes chunks behind a past in one row at a time.
        alone = rows > 1 and positions > 1 and past.any()
        if alone or (self._device == "cpu" and positions > CHUNK):
            for row in range(rows):
                own = prefix[row : row + 1] if len(prefix) > 1 else prefix
                self._run_row(tokens[row : row + 1], own, logit_positions, first_row + row, self._logits[row : row + 1])
        else:
            self._run(tokens, prefix, logit_positions, first_row, self._logits)
        return self._logits

    def _follow(self) -> None:
        """Go on with plain runs where another cache gave capture up."""
        if self._captured is not None and self._backend.uncaptured is not None:
            self._captured, self._session = None, self._backend.session(names.DECODER)
            self._bindings.clear()

    def _run_row(
        self,
        tokens: NDArray[np.int32],
        prefix: NDArray[np.float32],
        logit_positions: NDArray[np.int32],
        row: int,
        logits: NDArray[np.float32],
    ) -> None:
        """One row, in pieces: what a piece computes besides the cache takes memory by its length."""
        length = CHUNK if self._device == "cpu" else tokens.shape[1]
        for start in range(0, tokens.shape[1], length):
            stop = start + length
            wanted = np.flatnonzero((logit_positions >= start) & (logit_positions < stop))
            # The graph gives logits of at least one position.
            places = logit_positions[wanted] - start if len(wanted) else np.zeros(1, np.int32)
            found = np.empty((1, len(places), self._vocab), np.float32)
            own = prefix[:, start:stop] if prefix.shape[1] > 1 else prefix
            self._run(tokens[:, start:stop], own, places.astype(np.int32), row, found)
            if len(wanted):
                logits[:, wanted] = found

    @running(names.DECODER)
    def _run(
        self,
        tokens: NDArray[np.int32],
        prefix: NDArray[np.float32],
        logit_positions: NDArray[np.int32],
        first_row: int,
        logits: NDArray[np.float32],
    ) -> None:
        rows, positions = tokens.shape
        binding, past = self._binding(first_row, rows), self.lengths[first_row : first_row + rows]
        inputs = {
            names.TOKENS: np.ascontiguousarray(tokens),
            names.PREFIX: np.ascontiguousarray(prefix),
            names.LOGIT_POSITIONS: logit_positions,
            names.PAST_LENGTH: past.copy(),
            names.LAST_ROW: past + (positions - 1),
            names.TOTAL_LENGTH: np.asarray(past.max() + positions, np.int32),
        }
        for name, array in inputs.items():
            if name in self._wanted:  # spellings differ
                binding.bind_cpu_input(name, array)
        binding.bind_output(names.LOGITS, "cpu", 0, np.float32, logits.shape, logits.ctypes.data)
        gives_back = self._device == "cpu" and positions >= LONG
        self._session.run_with_iobinding(binding, self._shrinking if gives_back else self._plain)
        if gives_back:
            trim_heap()
        past += positions

    def copy_row(self, source: int, target: int, frozen: bool = False) -> None:
        length = int(self.lengths[source])
        for row_buffer in self._row_buffers:
            row_buffer.copy(source, target, length, frozen)
        if self._cuda is not None:
            for buffer in self._buffers:
                place = buffer.data_ptr()
                self._cuda.copy(place + source * self._row_bytes, place + target * self._row_bytes, self._row_bytes)
        self.lengths[target] = length
