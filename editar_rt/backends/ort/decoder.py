"""The decoder on ONNX Runtime, with a KV cache that the graph updates in place.

The graph runs through an IOBinding, with past and present of the cache bound to the same buffer. On the CPU, the inputs
and logits of a step are arrays that stay bound.

A step of several contiguous rows is one run, and so is a short chunk if the graph has the input `chunk_lengths`.
Otherwise GroupQueryAttention accepts chunks after a past for one row only, and chunks run row by row.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from editar_rt import names
from editar_rt.backends.base import Batch, DraftChunks, Floats, Output
from editar_rt.backends.engines.device import CaptureError
from editar_rt.backends.failures import running
from editar_rt.backends.ort.captured_steps import NO_GRAPH, CapturedSteps, run_options
from editar_rt.backends.ort.cuda_provider import CudaProvider
from editar_rt.backends.ort.pages import trim_heap
from editar_rt.backends.ort.rows import RowBuffers
from editar_rt.bundle.folder import Bundle
from editar_rt.bundle.words import INT8, PRECISIONS, replay_bound
from editar_rt.errors import OptionError
from editar_rt.generation.sampling import Draw

Ints = NDArray[np.int32]

GROWTH = 256  # positions by which a cache grows if its size costs time
CHUNK = 256  # positions per run on a CPU: more are not faster, but take more memory
LONG = 64  # positions from which on a run's temporary memory is returned to the system
# NumPy has no bfloat16: values are stored as uint16, and bound with ONNX's number of the type.
BFLOAT16, BFLOAT16_BITS = 16, np.dtype(np.uint16)


class Sessions(Protocol):
    """The part of the backend that the decoder uses."""

    cuda: CudaProvider | None
    uncaptured: str | None

    @property
    def graph_ids(self) -> Iterator[int]: ...

    @property
    def ort(self) -> Any: ...

    @property
    def device(self) -> str: ...

    @property
    def decoder_part(self) -> str: ...

    def session(self, part: str) -> Any: ...

    def give_up_capture(self, reason: str) -> Any: ...


class OnnxRuntimeDecoder:
    """See the module's docstring and `base.Decoder`.

    Keys and values of every layer are [rows, heads, capacity, head_dim] on the device. In the dialect standard, a
    step's work grows with the capacity, so the buffers grow with the number of cached positions.
    """

    def __init__(self, backend: Sessions, bundle: Bundle, rows: int, capacity: int) -> None:
        self._backend, self._device, self._cuda = backend, backend.device, backend.cuda
        self._session = backend.session(names.DECODER)
        manifest = bundle.manifest
        part, model = manifest.parts[backend.decoder_part], manifest.model
        self._layers = model.layers or 0
        dtype = next(t.dtype for t in part.inputs if t.name == names.past_key(0))
        self._dtype = BFLOAT16_BITS if dtype == "bfloat16" else np.dtype(dtype)
        self._bound_as = BFLOAT16 if dtype == "bfloat16" else self._dtype
        # ONNX Runtime multiplies quantized weights with pairs of rows. An odd last row would run in a kernel that
        # rounds differently, and a picture's tokens would depend on its batch. A spare row at each end completes pairs.
        self._pairs = PRECISIONS[manifest.precision].is_quantized and self._device == "cpu"
        self._spare = 1 if self._pairs else 0
        # Attention over a float cache rounds a chunk otherwise than a step, which integer activations amplify.
        self._like_steps = not self._pairs or manifest.kv_cache == INT8
        self._rows, self._capacity = rows + 2 * self._spare, capacity
        self._room = capacity + self._spare  # a full row that completes a pair gets one more position
        self._filled = np.zeros(self._rows, np.int32)  # end of each row's contents; 0 if they are not needed
        self._shape = (model.heads or 0, 0, model.head_dim or 0)  # of a row as allocated
        self._growth = GROWTH if manifest.operators.reads_whole_cache else self._room
        self._buffers: list[Any] = []
        self._row_buffers: RowBuffers | None = None  # the memory of the buffers, on the CPU
        self._wanted = {tensor.name for tensor in part.inputs}
        self._vocab, self._no_states = model.vocab_size or 0, np.zeros((1, 1, model.dim or 0), np.float32)
        self._bindings: dict[tuple[int, int], Any] = {}  # by first row and number of rows
        self._bound: dict[tuple[int, int, int], BoundRun] = {}  # likewise, and by number of positions
        self._shrinking = backend.ort.RunOptions()
        self._shrinking.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")
        self._plain = run_options(backend.ort, NO_GRAPH) if self._device == "cuda" else None
        self._captured: CapturedSteps | None = None
        if self._device == "cuda" and backend.uncaptured is None:
            close = replay_bound(manifest.precision, manifest.kv_cache)
            self._captured = CapturedSteps(
                backend.ort, backend.graph_ids, self._session, capacity, model.dim or 0, self._vocab, close
            )
        self._reserve(1)

    @property
    def piece(self) -> int:
        return CHUNK if self._device == "cpu" else self._capacity

    def runs(self, rows: int, positions: int) -> int:
        if positions == 1 or self._takes_chunks(positions):
            return 1
        return rows * -(-positions // self.piece)

    @property
    def draft_chunks(self) -> DraftChunks:
        # On a CPU, chunks of two positions and more go through the same kernels; quantized weights need even ones.
        # docs/performance.md, "What a pass costs", has the costs of four positions.
        worth = 2.4 if self._pairs else 1.6
        return DraftChunks(tuple(range(2, LONG, 2)), self._device == "cpu", self._like_steps, worth)

    def run(self, batch: Batch, draw: Draw | None = None) -> Output:
        rows, past = batch.rows + self._spare, batch.past
        ends = past + batch.counts
        end = int(ends.max())
        if end > self._capacity:
            raise OptionError(f"the decoder's cache has room for {self._capacity} positions, but {end} are needed")
        self._reserve(end + self._spare)
        self._follow()
        if self._row_buffers is not None:
            for row, position in zip(rows.tolist(), past.tolist()):
                self._row_buffers.prepare_write(row, position)
        if batch.tokens.shape[1] == 1:
            parts = [self._step(rows[span], batch, span) for span in neighbours(rows)]
        elif self._together(batch):
            parts = [self._chunks(int(rows[span.start]), batch, span) for span in neighbours(rows)]
        else:
            parts = [self._chunk(int(row), batch, place) for place, row in enumerate(rows)]
        logits = parts[0] if len(parts) == 1 else np.concatenate(parts)
        self._filled[rows] = ends
        return Output(lambda: logits, None if draw is None else draw.on_host(logits))

    def copy(self, source: int, target: int, start: int, stop: int, frozen: bool = False) -> None:
        source, target = source + self._spare, target + self._spare
        if self._row_buffers is not None:
            self._row_buffers.copy(source, target, start, stop, frozen)
        elif self._cuda is not None:  # whole rows: positions after `stop` are written before they are read
            for buffer in self._buffers:
                place = buffer.data_ptr()
                self._cuda.copy(place + source * self._row_bytes, place + target * self._row_bytes, self._row_bytes)
        self._filled[target] = stop

    def release(self, row: int) -> None:
        self._filled[row + self._spare] = 0

    # Memory.

    def _reserve(self, positions: int) -> None:
        """Make room for this many positions in every row."""
        heads, allocated, width = self._shape
        if positions <= allocated:
            return
        target = min(-(-positions // self._growth) * self._growth, self._room)
        old, self._buffers, self._row_buffers = self._buffers, [], None
        self._bindings.clear()
        self._bound.clear()
        make = self._backend.ort.OrtValue.ortvalue_from_numpy
        memory = RowBuffers(2 * self._layers, self._rows, heads, target, width, self._dtype)
        for n, row_buffer in enumerate(memory.buffers):
            if old:
                row_buffer.array[:, :, :allocated] = old[n].numpy()
                old[n] = None  # free its memory before the next one is filled
            # On the CPU, an OrtValue uses the memory of its array.
            self._buffers.append(make(row_buffer.array, self._device, 0))
        self._row_buffers = memory if self._device == "cpu" else None
        row = memory.buffers[0].array[0] if memory.buffers else np.empty((heads, target, width), self._dtype)
        self._shape, self._row_bytes = row.shape, row.nbytes

    def _binding(self, first_row: int, rows: int) -> Any:
        if (first_row, rows) not in self._bindings:
            self._bindings[first_row, rows] = self._bind(first_row, rows)
        return self._bindings[first_row, rows]

    def _bind(self, first_row: int, rows: int) -> Any:
        """Bind past and present of contiguous rows to the same memory."""
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

    # Steps: one position of each row.

    def _step(self, rows: Ints, batch: Batch, span: slice) -> Floats:
        """Step contiguous rows → logits [R, 1, V], valid until the next step of the same rows."""
        tokens, past, states = batch.tokens[span], batch.past[span], rows_of(batch.states, span)
        first, count = int(rows[0]), len(rows)
        if not (self._pairs and count % 2):
            return self._repeated(first, tokens, past, states)
        extra = self._adjacent(first, count)
        if self._row_buffers is not None:
            self._row_buffers.prepare_write(extra, int(self._filled[extra]))
        place = 0 if extra < first else count
        logits = self._repeated(
            min(extra, first),
            np.insert(tokens, place, 0, axis=0),
            np.insert(past, place, self._filled[extra]),
            states if states is None or len(states) == 1 else np.insert(states, place, 0, axis=0),
        )
        return logits[1:] if place == 0 else logits[:-1]

    def _adjacent(self, first: int, count: int) -> int:
        """An adjacent row that makes the number of rows even; an unneeded one if possible.

        That row is written at the position after its contents, which nothing reads.
        """
        adjacent = [row for row in (first - 1, first + count) if 0 <= row < self._rows]
        return min(adjacent, key=lambda row: int(self._filled[row]))

    def _repeated(self, first_row: int, tokens: Ints, past: Ints, states: Floats | None) -> Floats:
        """A run of contiguous rows whose shape recurs, with logits of all positions [R, S, V]."""
        rows, positions = tokens.shape
        if self._device == "cpu" and states is None:
            return self._bound_run(first_row, rows, positions).run(self._session, tokens, past)

        def ordinary() -> Floats:
            return self._run(tokens, states, first_row, past, positions)

        if self._captured is not None and tokens.min() >= 0:
            try:
                return self._captured.run(lambda: self._bind(first_row, rows), ordinary, first_row, tokens, past)
            except CaptureError as e:
                reason = str(e)
            self._captured = self._session = None  # free the memory before the session is opened again
            self._bindings.clear()
            self._session = self._backend.give_up_capture(reason)
        return ordinary()

    def _bound_run(self, first_row: int, rows: int, positions: int) -> BoundRun:
        key = first_row, rows, positions
        if key not in self._bound:
            binding = self._bind(first_row, rows)
            self._bound[key] = BoundRun(binding, rows, positions, self._no_states, self._vocab, self._wanted)
        return self._bound[key]

    def _follow(self) -> None:
        """Switch to ordinary runs if another cache gave up capture."""
        if self._captured is not None and self._backend.uncaptured is not None:
            self._captured, self._session = None, self._backend.session(names.DECODER)
            self._bindings.clear()

    # Chunks: several positions of one row, or of several.

    def _takes_chunks(self, positions: int) -> bool:
        """Whether chunks of this length of several rows are one run. Long ones are not: their memory would add up."""
        # Quantized weights are multiplied with pairs of positions, and no row may share a pair with another.
        return names.CHUNK_LENGTHS in self._wanted and positions < LONG and not (self._pairs and positions % 2)

    def _together(self, batch: Batch) -> bool:
        length = batch.tokens.shape[1]
        paired = not (self._pairs and batch.outputs % 2)  # the last layer and the head see these positions alone
        return self._takes_chunks(length) and paired and bool((batch.counts == length).all())

    def _chunks(self, first_row: int, batch: Batch, span: slice) -> Floats:
        """Run chunks of the same length in contiguous rows → logits [R, K, V]."""
        tokens, past, states = batch.tokens[span], batch.past[span], rows_of(batch.states, span)
        if batch.outputs == tokens.shape[1]:
            return self._repeated(first_row, tokens, past, states)
        return self._run(tokens, states, first_row, past, batch.outputs)

    def _chunk(self, row: int, batch: Batch, place: int) -> Floats:
        """Run one row in pieces, because temporary memory grows with the length of a piece.

        Returns:
            logits [1, K, V].
        """
        count, past = int(batch.counts[place]), int(batch.past[place])
        tokens, states = batch.tokens[place : place + 1, :count], rows_of(batch.states, slice(place, place + 1))
        # Tokens go in pairs, as in steps and drafts, so that it makes no difference which of these they come by. A
        # position behind an odd number of them is overwritten by the next run.
        even = 2 if self._pairs and states is None else 1
        tokens = np.pad(tokens, ((0, 0), (0, count % even)))
        parts, first_output, length = [], count - batch.outputs, tokens.shape[1]
        for start in range(0, length, self.piece):
            stop = min(start + self.piece, length)
            own = states if states is None or states.shape[1] == 1 else states[:, start:stop]
            # The graph returns logits of at least one position.
            begin = min(max(start, first_output), stop - 1)
            begin -= (stop - begin) % even
            logits = self._run(tokens[:, start:stop], own, row, np.asarray([past + start], np.int32), stop - begin)
            if stop > first_output:
                parts.append(logits[:, max(start, first_output) - begin : min(stop, count) - begin])
        return parts[0] if len(parts) == 1 else np.concatenate(parts, axis=1)

    @running(names.DECODER)
    def _run(self, tokens: Ints, states: Floats | None, first_row: int, past: Ints, outputs: int) -> Floats:
        """One run of the graph over contiguous rows → logits [R, outputs, V] of the last positions."""
        rows, positions = tokens.shape
        binding, logits = self._binding(first_row, rows), np.empty((rows, outputs, self._vocab), np.float32)
        inputs = {
            names.TOKENS: np.ascontiguousarray(tokens),
            names.PREFIX: self._no_states if states is None else np.ascontiguousarray(states),
            names.LOGIT_POSITIONS: np.arange(positions - outputs, positions, dtype=np.int32),
            names.PAST_LENGTH: past,
            names.LAST_ROW: past + (positions - 1),
            names.TOTAL_LENGTH: np.asarray(past.max() + positions, np.int32),
            names.CHUNK_LENGTHS: np.full(rows, positions, np.int32),
        }
        for name, array in inputs.items():
            if name in self._wanted:  # dialects differ
                binding.bind_cpu_input(name, array)
        binding.bind_output(names.LOGITS, "cpu", 0, np.float32, logits.shape, logits.ctypes.data)
        gives_back = self._device == "cpu" and positions >= LONG
        self._session.run_with_iobinding(binding, self._shrinking if gives_back else self._plain)
        if gives_back:
            trim_heap()
        return logits


class BoundRun:
    """A run of contiguous rows on the CPU, with arrays that stay bound and are overwritten: nothing is allocated.

    Args:
        binding: a binding of the rows' cache.
        positions: S, of each row.
        wanted: the graph's inputs; dialects differ.
    """

    def __init__(
        self, binding: Any, rows: int, positions: int, no_states: Floats, vocab: int, wanted: set[str]
    ) -> None:
        self._binding, self._positions = binding, positions
        self._tokens, self._past = np.zeros((rows, positions), np.int32), np.zeros(rows, np.int32)
        self._last_row, self._total = np.zeros(rows, np.int32), np.zeros((), np.int32)
        self._logits = np.zeros((rows, positions, vocab), np.float32)
        self._bound = {
            names.TOKENS: self._tokens,
            names.PREFIX: no_states,
            names.LOGIT_POSITIONS: np.arange(positions, dtype=np.int32),
            names.PAST_LENGTH: self._past,
            names.LAST_ROW: self._last_row,
            names.TOTAL_LENGTH: self._total,
            names.CHUNK_LENGTHS: np.full(rows, positions, np.int32),
        }
        for name, array in self._bound.items():
            if name in wanted:
                binding.bind_input(name, "cpu", 0, array.dtype, array.shape, array.ctypes.data)
        binding.bind_output(names.LOGITS, "cpu", 0, np.float32, self._logits.shape, self._logits.ctypes.data)

    @running(names.DECODER)
    def run(self, session: Any, tokens: Ints, past: Ints) -> Floats:
        """Tokens [R, S] after `past` [R] positions → logits [R, S, V], valid until the next run."""
        self._tokens[:], self._past[:], self._last_row[:] = tokens, past, past + (self._positions - 1)
        self._total[...] = max(past.tolist()) + self._positions
        session.run_with_iobinding(self._binding)
        return self._logits


def neighbours(rows: Ints) -> list[slice]:
    """Split ascending rows into contiguous runs."""
    if int(rows[-1]) - int(rows[0]) == len(rows) - 1:
        return [slice(0, len(rows))]
    ends = np.flatnonzero(np.diff(rows) != 1) + 1
    return [slice(a, b) for a, b in zip([0, *ends.tolist()], [*ends.tolist(), len(rows)])]


def rows_of(states: Floats | None, rows: slice) -> Floats | None:
    """Some rows of hidden states, which may be one row that is shared by all."""
    return states if states is None or len(states) == 1 else states[rows]
