"""The decoder as engines of fixed shapes, with a KV cache that they share.

The cache of all layers is one block, zeroed once, [2 · layers, rows, heads, capacity, head_dim]. An engine reads it in
place and returns the new keys and values, [2 · layers, rows, heads, positions, head_dim]. They are written to the cache
by one 2-D copy if the engine's rows are all rows of the cache, otherwise by one per layer for keys and one for values.
A step is recorded (with CUDA, in a graph) when it runs for the second time; inputs and logits are copied through pinned
memory. If the bundle has a sampler, it is queued after the step and reads the logits on the device, so that only tokens
are copied.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from editar_rt import names
from editar_rt.backends.base import Batch, DraftChunks, Floats, Output
from editar_rt.backends.engines.device import CaptureError, Engines
from editar_rt.backends.engines.plan import Plan, Shape, fixed
from editar_rt.backends.engines.program import Program
from editar_rt.backends.sampler import SamplerInputs
from editar_rt.bundle.folder import Bundle
from editar_rt.bundle.manifest import Part
from editar_rt.errors import OptionError
from editar_rt.generation.sampling import Draw

Ints = NDArray[np.int32]


class Programs(Protocol):
    """The part of the backend that the decoder uses."""

    bundle: Bundle
    engines: Engines
    plan: Plan
    uncaptured: str | None

    def part(self, name: str) -> Part: ...

    def program(self, shape: Shape) -> Program: ...


class EngineDecoder:
    """See the module's docstring and `base.Decoder`."""

    def __init__(self, backend: Programs, rows: int, capacity: int) -> None:
        self._backend, self._memory, self._plan = backend, backend.engines.memory, backend.plan
        tensor = next(t for t in backend.part(names.DECODER).inputs if t.name == names.past_key(0))
        _, heads, self._room, width = fixed(tensor.shape, {names.ROWS_DIM: rows})
        if capacity > self._room:
            raise OptionError(f"the decoder's cache has room for {self._room} positions, but {capacity} are needed")
        manifest = backend.bundle.manifest
        self._vocab, self._dim = manifest.model.vocab_size or 0, manifest.model.dim or 0
        self._sampler_top_k = manifest.sampler_top_k or 0
        self._rows = max(rows, self._plan.rows[0])  # all rows of an engine must exist
        self._kinds, self._heads = 2 * (manifest.model.layers or 0), heads
        self._position = width * np.dtype(tensor.dtype).itemsize  # bytes of one position in one head
        self._head = self._room * self._position
        self._row = heads * self._head
        size = self._kinds * self._rows * self._row
        self._address = self._memory.allocate(size)
        weakref.finalize(self, self._memory.free, self._address)
        self._memory.zero(self._address, size)
        # Recorded steps by first row, number of rows, and whether they sample; None after the first run, a warm-up.
        self._recorded: dict[tuple[int, int, bool], Callable[[], None] | None] = {}

    @property
    def draws(self) -> bool:
        """Whether the device can sample tokens."""
        return names.SAMPLER in self._backend.bundle.manifest.parts

    @property
    def piece(self) -> int:
        return self._plan.chunks[-1] if self._plan.chunks else 1

    def runs(self, rows: int, positions: int) -> int:
        if positions == 1:
            return -(-rows // self._plan.rows[-1])
        return rows * -(-positions // self.piece)

    @property
    def draft_chunks(self) -> DraftChunks:
        return DraftChunks(tuple(size for size in (2, 4, 8, 16, 32) if size <= self.piece), False)

    def run(self, batch: Batch, draw: Draw | None = None) -> Output:
        end = int((batch.past + batch.counts).max())
        if end > self._room:
            raise OptionError(f"the decoder's cache has room for {self._room} positions, but {end} are needed")
        if batch.tokens.shape[1] > 1:
            logits = np.stack([self._chunk(batch, row) for row in range(len(batch.rows))])
        else:
            if draw is not None:
                drawn = self._step_and_draw(batch, draw)
                if drawn is not None:
                    return drawn
            logits = self._step(batch)
        return Output(lambda: logits, None if draw is None else draw.on_host(logits))

    def _step(self, batch: Batch) -> Floats:
        """Run one position of every row → logits [R, 1, V]."""
        parts = []
        done, rows = 0, len(batch.rows)
        while done < rows:
            start, size, taken = self._engine_for(batch.rows[done:])
            count = taken.stop - taken.start
            own = slice(done, done + count)
            program = self._backend.program(Shape(names.DECODER, rows=size))
            self._fill_step(program, taken, batch.tokens[own], batch.past[own])
            if (batch.tokens[own] < 0).any() and batch.states is not None:
                states = np.broadcast_to(batch.states, (rows, 1, batch.states.shape[2]))
                program.inputs[names.PREFIX][taken] = states[own]
                self._pass(program, start, prefix=True)
            else:
                self._pass_recorded(program, start, size)
            self._place(program, size, 1, taken.start, int(batch.rows[done]), batch.past[own], 1)
            self._memory.synchronize()
            done += count
            logits = program.outputs[names.LOGITS][taken]
            parts.append(logits if count == rows else logits.copy())
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def _engine_for(self, rows: Ints) -> tuple[int, int, slice]:
        """The engine for the first of `rows`: its first row in the cache, its number of rows, and the rows used.

        An engine with more rows than there are contiguous ones also runs rows before them, whose results are ignored.
        """
        gaps = np.flatnonzero(np.diff(rows) != 1)
        together = int(gaps[0]) + 1 if len(gaps) else len(rows)
        size = self._plan.step(together)
        start = min(int(rows[0]), self._rows - size)
        skipped = int(rows[0]) - start
        return start, size, slice(skipped, skipped + min(size - skipped, together))

    def _step_and_draw(self, batch: Batch, draw: Draw) -> Output | None:
        """A step whose tokens the device samples; None, before anything has run, if the host must sample."""
        rows = len(batch.rows)
        start, size, taken = self._engine_for(batch.rows)
        inputs = SamplerInputs.of(draw, rows, self._sampler_top_k, self._vocab) if self.draws else None
        # All rows of a picture must be in the same run.
        if inputs is None or taken.stop - taken.start < rows or (batch.tokens < 0).any():
            return None
        program = self._backend.program(Shape(names.DECODER, rows=size))
        sampler = self._backend.program(Shape(names.SAMPLER, rows=size))
        self._fill_step(program, taken, batch.tokens, batch.past)
        sampler.set_inputs(inputs.among(size, taken.start))
        self._pass_recorded(program, start, size, sampler)
        self._place(program, size, 1, taken.start, int(batch.rows[0]), batch.past, 1)
        self._memory.synchronize()
        pass_ = program.passes

        def logits() -> Floats:
            if program.passes != pass_:
                raise ValueError("these logits have been overwritten; read them before the next step")
            program.download()
            self._memory.synchronize()
            read: Floats = program.outputs[names.LOGITS][taken]
            return read

        drawn: Ints = sampler.outputs[names.DRAWN][taken][draw.cond][:, None].copy()
        if (drawn < 0).any():
            drawn = draw.on_host(logits(), drawn)
        return Output(logits, drawn)

    @staticmethod
    def _fill_step(program: Program, taken: slice, tokens: Ints, past: Ints) -> None:
        """Set a step's inputs in some rows of an engine, and harmless values in the others."""
        program.passes += 1
        inputs = program.inputs
        for name in (names.TOKENS, names.POSITIONS, names.PAST_LENGTH):
            inputs[name][:] = 0
        inputs[names.TOKENS][taken] = tokens
        inputs[names.PAST_LENGTH][taken] = past
        inputs[names.POSITIONS][taken, 0] = past

    def _chunk(self, batch: Batch, place: int) -> Floats:
        """Run several positions of one row → logits [K, V]."""
        logits_of_chunk = np.empty((batch.outputs, self._vocab), np.float32)
        row, count = int(batch.rows[place]), int(batch.counts[place])
        tokens, first_output = batch.tokens[place, :count], count - batch.outputs
        states = None
        if batch.states is not None:
            states = np.broadcast_to(batch.states, (*batch.tokens.shape, self._dim))[place]
        done = 0
        while done < count:
            size = self._plan.chunk(count - done)
            program = self._backend.program(Shape(names.DECODER, positions=size))
            piece = slice(done, min(done + size, count))
            taken = piece.stop - done
            program.passes += 1
            past = batch.past[place : place + 1] + np.int32(done)
            inputs = program.inputs
            inputs[names.TOKENS][0, :taken], inputs[names.TOKENS][0, taken:] = tokens[piece], 0
            inputs[names.PAST_LENGTH][:] = past
            inputs[names.POSITIONS][0, :taken] = past + np.arange(taken)
            inputs[names.POSITIONS][0, taken:] = self._room
            if states is not None:
                inputs[names.PREFIX][0, :taken] = states[piece]
            begin = max(done, first_output)  # first position whose logits are wanted
            self._pass(program, row, prefix=bool((tokens[piece] < 0).any()), logits=begin < piece.stop)
            self._place(program, 1, size, 0, row, past, taken)
            self._memory.synchronize()
            if begin < piece.stop:
                logits = program.outputs[names.LOGITS][0, begin - done : taken]
                logits_of_chunk[begin - first_output : piece.stop - first_output] = logits
            done += taken
        return logits_of_chunk

    def _pass(
        self, program: Program, start: int, prefix: bool = False, logits: bool = True, sampler: Program | None = None
    ) -> None:
        """Queue one run over the rows from `start` on.

        Args:
            logits: whether logits are copied to the host.
            sampler: samples from the logits; its tokens are copied to the host instead.
        """
        tensor = self._rows * self._row
        addresses = {}
        for kind in range(self._kinds):
            name = (names.past_value if kind % 2 else names.past_key)(kind // 2)
            addresses[name] = self._address + kind * tensor + start * self._row
        program.engine.bind(addresses)
        program.upload(prefix)
        program.engine.enqueue()
        if sampler is not None:
            sampler.upload()
            sampler.engine.enqueue()
            sampler.download()
        elif logits:
            program.download()

    def _pass_recorded(self, program: Program, start: int, rows: int, sampler: Program | None = None) -> None:
        """Queue a step; from the second run on, as a recorded step."""
        key = (start, rows, sampler is not None)

        def step() -> None:
            self._pass(program, start, sampler=sampler)

        if self._backend.uncaptured is None and key in self._recorded:
            recorded = self._recorded[key]
            if recorded is None:
                try:
                    recorded = self._recorded[key] = self._memory.capture(step)
                except CaptureError as error:
                    self._backend.uncaptured = str(error)
            if recorded is not None:
                recorded()
                return
        self._recorded.setdefault(key, None)
        step()

    def _place(
        self,
        program: Program,
        rows: int,
        positions: int,
        skipped: int,
        first_row: int,
        past: NDArray[np.int32],
        count: int,
    ) -> None:
        """Queue the copy of new keys and values into the cache.

        Args:
            rows, positions: shape of the engine.
            skipped: number of first rows of its results to ignore.
            first_row: row of the cache for the first row used.
            past: number of cached positions in each row used.
            count: number of positions to copy.
        """
        source_pitch = positions * self._position
        source_row = self._heads * source_pitch
        taken = len(past)
        groups = [(0, taken)] if (past == past[0]).all() else [(row, 1) for row in range(taken)]
        for row, together in groups:
            target = self._address + (first_row + row) * self._row + int(past[row]) * self._position
            source = program.addresses[names.NEW_ROWS] + (skipped + row) * source_row
            width = count * self._position
            whole = together == rows == self._rows  # then keys and values of all layers follow each other like heads
            height = together * self._heads * (self._kinds if whole else 1)
            for kind in range(1 if whole else self._kinds):
                self._memory.copy_2d(
                    target + kind * self._rows * self._row, self._head,
                    source + kind * rows * source_row, source_pitch,
                    width, height,
                )  # fmt: skip

    def copy(self, source: int, target: int, start: int, stop: int, frozen: bool = False) -> None:
        offset, width = start * self._position, (stop - start) * self._position
        if not width:
            return
        for kind in range(self._kinds):
            block = self._address + kind * self._rows * self._row + offset
            places = block + target * self._row, block + source * self._row
            self._memory.copy_2d(places[0], self._head, places[1], self._head, width, self._heads)
        self._memory.synchronize()

    def release(self, row: int) -> None:
        """Rows do not share memory here."""
