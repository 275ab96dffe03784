"""The decoder as engines of fixed shapes, with a KV cache that they share.

The cache of all layers is one block, zeroed once, [2 · layers, rows, heads, capacity, head_dim]. Engines of the dialect
"native" update it in place. Those of "delta" return the new keys and values, [2 · layers, rows, heads, positions,
head_dim], which are copied to the cache: all rows at the same position by one 3-D copy, others by one each. A step is
recorded (with CUDA, in a graph) when it runs for the second time; inputs and logits are copied through pinned memory.
If the bundle has a sampler, it is queued after a step or drafts and reads the logits on the device, so that only tokens
are copied.

An engine covers neighbouring rows of the cache, and positions up to its number. What it computes besides that which was
asked for is not used: delta's is not copied; native's lands behind the chunk, where the next one overwrites it, or, for
rows that were not asked for, in the last positions of the capacity, which no sequence reaches.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from editar_rt import names
from editar_rt.backends.base import Batch, DraftChunks, Floats, Output
from editar_rt.backends.engines.device import CaptureError, Engines, Lines
from editar_rt.backends.engines.plan import DRAFTS, Plan, Shape, Window, fixed, memory_type
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


class Piece(NamedTuple):
    """The part of a batch that one engine runs: R rows of the cache, each with up to S positions."""

    rows: Ints
    """[R], ascending."""
    past: Ints
    """[R]"""
    counts: Ints
    """[R]"""
    tokens: Ints
    """[R, S]"""
    states: Floats | None
    """[R, S, D]; None if all tokens are given."""

    @classmethod
    def of(cls, batch: Batch, rows: slice, start: int = 0, stop: int | None = None) -> Piece:
        """Some rows of a batch, and of their chunks the positions `start` to `stop - 1`; None means to the end."""
        tokens = batch.tokens[rows, start:stop]
        counts = np.minimum(batch.counts[rows] - start, tokens.shape[1])
        states = None
        if batch.states is not None and (tokens < 0).any():
            shape = (*batch.tokens.shape, batch.states.shape[-1])
            states = np.broadcast_to(batch.states, shape)[rows, start:stop]
        return cls(batch.rows[rows], batch.past[rows] + np.int32(start), counts, tokens, states)

    def copies(self) -> Iterator[slice]:
        """Rows that one copy places: neighbours with the same positions."""
        places = np.stack((self.rows - np.arange(len(self.rows)), self.past, self.counts), axis=1)
        borders = [0, *(np.flatnonzero((np.diff(places, axis=0) != 0).any(axis=1)) + 1).tolist(), len(self.rows)]
        yield from map(slice, borders[:-1], borders[1:])


class EngineDecoder:
    """See the module's docstring and `base.Decoder`."""

    def __init__(self, backend: Programs, rows: int, capacity: int) -> None:
        self._backend, self._memory, self._plan = backend, backend.engines.memory, backend.plan
        tensor = next(t for t in backend.part(names.DECODER).inputs if t.name == names.past_key(0))
        _, heads, self._capacity, width = fixed(tensor.shape, {names.ROWS_DIM: rows})
        manifest = backend.bundle.manifest
        self._in_place = not manifest.operators.returns_new_rows
        self._room = self._capacity - (self._plan.unused_positions if self._in_place else 0)
        if capacity > self._room:
            raise OptionError(f"the decoder's cache has room for {self._room} positions, but {capacity} are needed")
        self._vocab = manifest.model.vocab_size or 0
        self._sampler_top_k = manifest.sampler_top_k or 0
        self._rows = self._plan.padded(rows)
        self._kinds, self._heads = 2 * (manifest.model.layers or 0), heads
        self._position = width * memory_type(tensor.dtype).itemsize  # bytes of one position in one head
        self._head = self._capacity * self._position
        self._row = heads * self._head
        size = self._kinds * self._rows * self._row
        self._address = self._memory.allocate(size)
        weakref.finalize(self, self._memory.free, self._address)
        self._memory.zero(self._address, size)
        # Recorded runs by first row, shape, and how they sample; None after the first run, a warm-up.
        self._recorded: dict[tuple[int, Shape, str | bool], Callable[[], None] | None] = {}

    @property
    def draws(self) -> bool:
        """Whether the device can sample tokens."""
        return names.SAMPLER in self._backend.bundle.manifest.parts

    @property
    def piece(self) -> int:
        return self._plan.chunks[-1] if self._plan.chunks else 1

    def runs(self, rows: int, positions: int) -> int:
        return self._plan.runs(rows, positions, self._rows)

    @property
    def draft_chunks(self) -> DraftChunks:
        return DraftChunks(self._plan.drafts or tuple(size for size in DRAFTS if size <= self.piece), False)

    def run(self, batch: Batch, draw: Draw | None = None) -> Output:
        end = int((batch.past + batch.counts).max())
        if end > self._room:
            raise OptionError(f"the decoder's cache has room for {self._room} positions, but {end} are needed")
        positions = self._side_by_side(batch)
        if draw is not None and positions is not None and self.draws:
            drawn = self._run_and_draw(batch, positions, draw)
            if drawn is not None:
                return drawn
        if positions is None:
            logits = np.stack([self._chunk(batch, place) for place in range(len(batch.rows))])
        else:
            logits = self._rows_together(batch, positions)
        return Output(lambda: logits, None if draw is None else draw.on_host(logits))

    def _side_by_side(self, batch: Batch) -> int | None:
        """Positions of the engines that run the rows of a batch together; None if they go one by one."""
        needed = batch.tokens.shape[1]
        positions = self._plan.side_by_side(needed)
        if needed > 1 and len(batch.rows) == 1 and positions != needed:
            return None  # a chunk of one row
        if positions is None or (self._in_place and int(batch.past.max()) + positions > self._capacity):
            return None
        return positions

    def _rows_together(self, batch: Batch, positions: int) -> Floats:
        """Run rows side by side → logits [R, K, V]."""
        parts = []
        done, rows = 0, len(batch.rows)
        while done < rows:
            window = self._plan.window(batch.rows[done:].tolist(), self._rows)
            piece = Piece.of(batch, slice(done, done + window.served))
            program = self._run(piece, window, positions)
            last = piece.counts[:, None] + np.arange(-batch.outputs, 0)  # [R, K]
            parts.append(program.outputs[names.LOGITS][(piece.rows - window.start)[:, None], last])
            done += window.served
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def _chunk(self, batch: Batch, place: int) -> Floats:
        """Run several positions of one row → logits [K, V]."""
        logits = np.empty((batch.outputs, self._vocab), np.float32)
        count = int(batch.counts[place])
        done, first = 0, count - batch.outputs  # first position whose logits are wanted
        while done < count:
            begun = int(batch.past[place]) + done
            size = self._plan.chunk(count - done, self._capacity - begun if self._in_place else self._capacity)
            window = Window(int(batch.rows[place]), 1, 1)
            if size == 1:
                window = self._plan.window([window.start], self._rows)
            stop = min(done + size, count)
            piece, begin = Piece.of(batch, slice(place, place + 1), done, stop), max(done, first)
            program = self._run(piece, window, size, logits=begin < stop)
            if begin < stop:
                found = program.outputs[names.LOGITS][piece.rows[0] - window.start]
                logits[begin - first : stop - first] = found[begin - done : stop - done]
            done = stop
        return logits

    def _run(self, piece: Piece, window: Window, positions: int, logits: bool = True) -> Program:
        """Run a piece through an engine, and wait for its outputs."""
        program = self._backend.program(Shape(names.DECODER, window.size, positions))
        self._fill(program, piece, window, positions)
        if piece.states is None and logits and positions in (1, *self._plan.drafts):
            self._pass_recorded(program, window.start)
        else:
            self._pass(program, window.start, prefix=piece.states is not None, logits=logits)
        self._place(program, piece, window, positions)
        self._memory.synchronize()
        return program

    def _run_and_draw(self, batch: Batch, positions: int, draw: Draw) -> Output | None:
        """A step, or drafts, whose tokens the device samples; None, before anything runs, if the host must sample.

        Args:
            positions: of the engine.
        """
        rows, count = batch.tokens.shape
        if batch.outputs < count or (batch.counts < count).any() or (batch.tokens < 0).any():
            return None
        window = self._plan.window(batch.rows.tolist(), self._rows)
        taken = batch.rows - window.start
        # All rows of a picture must be in the same run, and the sampler's rows are neighbours.
        if window.served < rows or taken[-1] - taken[0] >= rows:
            return None
        inputs = SamplerInputs.of(draw, rows, self._sampler_top_k, self._vocab)
        if inputs is None:
            return None
        program = self._backend.program(Shape(names.DECODER, window.size, positions))
        sampler = self._backend.program(Shape(names.SAMPLER, window.size, positions))
        piece = Piece.of(batch, slice(None))
        self._fill(program, piece, window, positions)
        sampler.set_inputs(inputs.among(window.size, int(taken[0]), positions))
        self._pass_recorded(program, window.start, sampler)
        self._place(program, piece, window, positions)
        self._memory.synchronize()
        pass_ = program.passes

        def logits() -> Floats:
            if program.passes != pass_:
                raise ValueError("these logits have been overwritten; read them before the next step")
            program.download()
            self._memory.synchronize()
            read: Floats = program.outputs[names.LOGITS][taken, :count]
            return read

        drawn: Ints = sampler.outputs[names.DRAWN][taken[draw.cond], :count].copy()
        if (drawn < 0).any():
            drawn = draw.on_host(logits(), drawn)
        return Output(logits, drawn)

    def _fill(self, program: Program, piece: Piece, window: Window, positions: int) -> None:
        """Set a piece's inputs in its rows of an engine, and harmless values in the others and behind the chunks."""
        program.passes += 1
        inputs, taken, count = program.inputs, piece.rows - window.start, piece.tokens.shape[1]
        inputs[names.TOKENS][:] = 0
        inputs[names.TOKENS][taken, :count] = piece.tokens
        inputs[names.PAST_LENGTH][:] = self._capacity - positions if self._in_place else 0
        inputs[names.PAST_LENGTH][taken] = piece.past
        offsets = np.arange(positions, dtype=np.int32)
        inputs[names.POSITIONS][:] = 0
        inputs[names.POSITIONS][taken] = np.minimum(piece.past[:, None] + offsets, self._room)  # padding may lie behind
        if piece.states is not None:
            inputs[names.PREFIX][taken, :count] = piece.states

    def _pass(
        self, program: Program, start: int, prefix: bool = False, logits: bool = True, sampler: Program | None = None
    ) -> None:
        """Queue one run over the rows from `start` on.

        Args:
            logits: whether logits are copied to the host.
            sampler: samples from the logits; its tokens are copied to the host instead.
        """
        addresses = {}
        for kind in range(self._kinds):
            name = (names.past_value if kind % 2 else names.past_key)(kind // 2)
            addresses[name] = self._address + (kind * self._rows + start) * self._row
            if self._in_place:
                addresses[names.present_of(name)] = addresses[name]
        program.engine.bind(addresses)
        program.upload(prefix)
        program.engine.enqueue()
        if sampler is not None:
            sampler.upload(sampler.noisy)
            sampler.engine.enqueue()
            sampler.download()
        elif logits:
            program.download()

    def _pass_recorded(self, program: Program, start: int, sampler: Program | None = None) -> None:
        """Queue a run; from the second on, as a recorded one."""
        key = (start, program.shape, sampler is not None and ("noise" if sampler.noisy else "numbers"))

        def run() -> None:
            self._pass(program, start, sampler=sampler)

        if self._backend.uncaptured is None and key in self._recorded:
            recorded = self._recorded[key]
            if recorded is None:
                try:
                    recorded = self._recorded[key] = self._memory.capture(run)
                except CaptureError as error:
                    self._backend.uncaptured = str(error)
            if recorded is not None:
                recorded()
                return
        self._recorded.setdefault(key, None)
        run()

    def _place(self, program: Program, piece: Piece, window: Window, positions: int) -> None:
        """Queue the copy of new keys and values into the cache, if the engine has not updated it."""
        if self._in_place:
            return
        pitch = positions * self._position  # of a head in the engine's output
        for rows in piece.copies():
            row, past, count = (int(values[rows.start]) for values in (piece.rows, piece.past, piece.counts))
            target = self._address + row * self._row + past * self._position
            source = program.addresses[names.NEW_ROWS] + (row - window.start) * self._heads * pitch
            self._memory.copy_lines(
                Lines(target, self._head, self._rows * self._row),
                Lines(source, pitch, window.size * self._heads * pitch),
                width=count * self._position,
                height=(rows.stop - rows.start) * self._heads,
                depth=self._kinds,
            )

    def copy(self, source: int, target: int, start: int, stop: int, frozen: bool = False) -> None:
        offset, width = start * self._position, (stop - start) * self._position
        if not width:
            return
        there, here = (
            Lines(self._address + row * self._row + offset, self._head, self._rows * self._row)
            for row in (target, source)
        )
        self._memory.copy_lines(there, here, width, height=self._heads, depth=self._kinds)
        self._memory.synchronize()

    def release(self, row: int) -> None:
        """Rows do not share memory here."""
