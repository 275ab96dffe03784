"""Runs bundles of the spelling delta: the loop over engines of fixed shapes, and the KV cache between them.

The cache of all layers is one block, zeroed once, [2 · layers, rows, heads, capacity, head_dim]. An engine reads it
where it lies and gives the new keys and values, [2 · layers, rows, heads, positions, head_dim], which are placed by one
2-D copy where the engine's rows are all of the cache's, else by one for every layer's keys and one for its values.
A step is recorded (CUDA: in a graph) when it comes for the second time; inputs and logits cross in page-locked memory.
Where the bundle has a sampler, it is queued behind the step and reads the logits where they lie: tokens cross instead.

The device is behind `device`'s interfaces: TensorRT on a GPU, or its emulation.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from editar_rt import names
from editar_rt.backends.base import Arrays, Drawn
from editar_rt.backends.engines.device import CaptureError, Engines
from editar_rt.backends.engines.plan import Plan, Shape, fixed
from editar_rt.backends.engines.program import Program
from editar_rt.bundle.folder import Bundle
from editar_rt.bundle.manifest import Part
from editar_rt.errors import MissingPartError, OptionError
from editar_rt.generation.sampling import Draw


class DeltaBackend:
    """See the module's docstring and `base.Backend`."""

    def __init__(self, bundle: Bundle, engines: Engines, plan: Plan) -> None:
        self.bundle, self.engines, self.plan = bundle, engines, plan
        self.uncaptured: str | None = None
        """Why steps are queued piece by piece; None where they are recorded, or none has run."""
        self._programs: dict[Shape, Program] = {}

    @property
    def name(self) -> str:
        note = f"; steps are not captured: {self.uncaptured}" if self.uncaptured else ""
        return self.engines.name + note

    @property
    def device(self) -> str:
        return self.engines.device

    def read_bandwidth(self) -> float | None:
        return self.engines.read_bandwidth()

    def part(self, name: str) -> Part:
        """What the manifest says of a part.

        Raises:
            MissingPartError: the bundle lacks it.
        """
        parts = self.bundle.manifest.parts
        if name not in parts:
            held = ", ".join(parts) or "nothing"
            raise MissingPartError(f"the bundle {self.bundle.folder} has no part {name}; it holds {held}")
        return parts[name]

    def program(self, shape: Shape) -> Program:
        """An engine with its buffers, made when first needed."""
        self.part(shape.part)
        if shape not in self._programs:
            lent = {}
            if shape.part == names.SAMPLER:
                lent[names.LOGITS] = self.program(Shape(names.DECODER, rows=shape.rows)).addresses[names.LOGITS]
            self._programs[shape] = Program(self.bundle, self.engines, shape, lent)
        return self._programs[shape]

    def sample(self, logits: NDArray[np.float32], null_rows: NDArray[np.int32], draw: Draw) -> NDArray[np.int32]:
        """The sampler alone, on logits [R, V] as of a step of R rows; R must be the rows of an engine.

        Returns:
            tokens [R], negative where the host must draw.

        Raises:
            MissingPartError: the bundle has no sampler.
        """
        memory, sampler = self.engines.memory, self.program(Shape(names.SAMPLER, rows=len(logits)))
        sent = memory.host_array(logits.nbytes)
        sent[:] = np.ascontiguousarray(logits, np.float32).reshape(-1).view(np.uint8)
        memory.to_device(sampler.addresses[names.LOGITS], sent)
        sampler.set_draw(slice(None), null_rows, draw)
        sampler.upload()
        sampler.engine.enqueue()
        sampler.download()
        memory.synchronize()
        return sampler.outputs[names.DRAWN].copy()

    def run(self, part: str, inputs: Arrays) -> dict[str, NDArray[Any]]:
        program = self.program(Shape(part))
        rows = len(next(iter(inputs.values())))
        described = self.part(part).outputs
        found = {
            tensor.name: np.empty(fixed(tensor.shape, {names.ROWS_DIM: rows}), tensor.dtype) for tensor in described
        }
        for row in range(rows):
            for name, values in inputs.items():
                program.inputs[name][0] = values[row]
            program.upload()
            program.engine.enqueue()
            program.download()
            program.memory.synchronize()
            for name, values in found.items():
                values[min(row, len(values) - 1)] = program.outputs[name][0]  # some are the same for all rows
        return found

    def make_cache(self, rows: int, capacity: int) -> DeltaCache:
        return DeltaCache(self, rows, capacity)


class DeltaCache:
    """See the module's docstring and `base.Cache`."""

    def __init__(self, backend: DeltaBackend, rows: int, capacity: int) -> None:
        self._backend, self._memory, self._plan = backend, backend.engines.memory, backend.plan
        tensor = next(t for t in backend.part(names.DECODER).inputs if t.name == names.past_key(0))
        _, heads, self._room, width = fixed(tensor.shape, {names.ROWS_DIM: rows})
        if capacity > self._room:
            raise OptionError(f"the decoder's cache has room for {self._room} positions, not for {capacity}")
        self.lengths = np.zeros(rows, np.int32)
        self._rows = max(rows, self._plan.rows[0])  # an engine's rows must all be there
        self._kinds, self._heads = 2 * (backend.bundle.manifest.model.layers or 0), heads
        self._position = width * np.dtype(tensor.dtype).itemsize  # bytes of one position in one head
        self._head = self._room * self._position
        self._row = heads * self._head
        size = self._kinds * self._rows * self._row
        self._address = self._memory.allocate(size)
        weakref.finalize(self, self._memory.free, self._address)
        self._memory.zero(self._address, size)
        # Of steps by their first row, rows, and whether tokens are drawn: what queues them at once; None after the
        # first, which warms up.
        self._recorded: dict[tuple[int, int, bool], Callable[[], None] | None] = {}

    def forward(
        self,
        tokens: NDArray[np.int32],
        prefix: NDArray[np.float32],
        logit_positions: NDArray[np.int32],
        first_row: int = 0,
    ) -> NDArray[np.float32]:
        rows, positions = tokens.shape
        past = self.lengths[first_row : first_row + rows]
        self._require_room(past, positions)
        prefix = np.broadcast_to(prefix, (*tokens.shape, prefix.shape[2]))
        if positions == 1:
            logits = self._step(tokens, prefix, first_row)
            return logits if len(logit_positions) == 1 else np.repeat(logits, len(logit_positions), axis=1)
        chunks = [self._chunk(tokens[row], prefix[row], logit_positions, first_row + row) for row in range(rows)]
        return chunks[0][None] if rows == 1 else np.stack(chunks)

    def _step(self, tokens: NDArray[np.int32], prefix: NDArray[np.float32], first_row: int) -> NDArray[np.float32]:
        """One position in every row, [R, 1] -> logits [R, 1, V]."""
        found = []
        done, rows = 0, len(tokens)
        while done < rows:
            size = self._plan.step(rows - done)
            program = self._backend.program(Shape(names.DECODER, rows=size))
            # An engine with more rows than are left runs some before them too, whose results nobody takes.
            start = min(first_row + done, self._rows - size)
            skipped = first_row + done - start
            count = min(size - skipped, rows - done)
            taken = slice(skipped, skipped + count)
            past = self.lengths[first_row + done :][:count]
            self._fill_step(program, taken, tokens[done : done + count], past)
            if (tokens[done : done + count] < 0).any():
                program.inputs[names.PREFIX][taken] = prefix[done : done + count]
                self._pass(program, start, prefix=True)
            else:
                self._pass_recorded(program, start, size)
            self._place(program, size, 1, skipped, first_row + done, past, 1)
            self._memory.synchronize()
            past += 1
            done += count
            logits = program.outputs[names.LOGITS][taken]
            found.append(logits if count == rows else logits.copy())
        return found[0] if len(found) == 1 else np.concatenate(found)

    @property
    def draws(self) -> bool:
        return names.SAMPLER in self._backend.bundle.manifest.parts

    def draw(
        self, tokens: NDArray[np.int32], null_rows: NDArray[np.int32], draw: Draw, first_row: int = 0
    ) -> Drawn | None:
        manifest, rows = self._backend.bundle.manifest, len(tokens)
        size = self._plan.step(rows)
        start = min(first_row, self._rows - size)
        skipped = first_row - start
        limited = draw.limited_to(manifest.sampler_top_k or 0, manifest.model.vocab_size or 0)
        # Rows of one picture must go through one engine together.
        if not self.draws or limited is None or size - skipped < rows or (tokens < 0).any():
            return None
        past = self.lengths[first_row : first_row + rows]
        self._require_room(past, 1)
        program = self._backend.program(Shape(names.DECODER, rows=size))
        sampler = self._backend.program(Shape(names.SAMPLER, rows=size))
        taken = slice(skipped, skipped + rows)
        self._fill_step(program, taken, tokens, past)
        sampler.set_draw(taken, null_rows + skipped, limited)
        self._pass_recorded(program, start, size, sampler)
        self._place(program, size, 1, skipped, first_row, past, 1)
        self._memory.synchronize()
        past += 1
        pass_ = program.passes

        def logits() -> NDArray[np.float32]:
            if program.passes != pass_:
                raise ValueError("these logits have been written over; ask for them before the next step")
            program.download()
            self._memory.synchronize()
            read: NDArray[np.float32] = program.outputs[names.LOGITS][taken, 0]
            return read

        return Drawn(sampler.outputs[names.DRAWN][taken].copy(), logits)

    @staticmethod
    def _fill_step(program: Program, taken: slice, tokens: NDArray[np.int32], past: NDArray[np.int32]) -> None:
        """A step's inputs in some rows of an engine; the others get what does no harm."""
        program.passes += 1
        inputs = program.inputs
        for name in (names.TOKENS, names.POSITIONS, names.PAST_LENGTH):
            inputs[name][:] = 0
        inputs[names.TOKENS][taken] = tokens
        inputs[names.PAST_LENGTH][taken] = past
        inputs[names.POSITIONS][taken, 0] = past

    def _require_room(self, past: NDArray[np.int32], positions: int) -> None:
        if int(past.max()) + positions > self._room:
            raise OptionError(
                f"the decoder's cache has room for {self._room} positions; {past.max()} are filled and {positions} "
                "more do not fit"
            )

    def _chunk(
        self,
        tokens: NDArray[np.int32],
        prefix: NDArray[np.float32],
        logit_positions: NDArray[np.int32],
        row: int,
    ) -> NDArray[np.float32]:
        """Some positions of one row, [S] -> logits [K, V]."""
        vocabulary = self._backend.bundle.manifest.model.vocab_size or 0
        found = np.empty((len(logit_positions), vocabulary), np.float32)
        done = 0
        while done < len(tokens):
            size = self._plan.chunk(len(tokens) - done)
            program = self._backend.program(Shape(names.DECODER, positions=size))
            piece = slice(done, min(done + size, len(tokens)))
            count = piece.stop - done
            program.passes += 1
            past = self.lengths[row : row + 1]
            inputs = program.inputs
            inputs[names.TOKENS][0, :count], inputs[names.TOKENS][0, count:] = tokens[piece], 0
            inputs[names.PAST_LENGTH][:] = past
            inputs[names.POSITIONS][0, :count] = past + np.arange(count)
            inputs[names.POSITIONS][0, count:] = self._room
            inputs[names.PREFIX][0, :count] = prefix[piece]
            wanted = np.flatnonzero((logit_positions >= done) & (logit_positions < piece.stop))
            self._pass(program, row, prefix=bool((tokens[piece] < 0).any()), logits=len(wanted) > 0)
            self._place(program, 1, size, 0, row, past, count)
            self._memory.synchronize()
            past += count
            found[wanted] = program.outputs[names.LOGITS][0, logit_positions[wanted] - done]
            done += count
        return found

    def _pass(
        self, program: Program, start: int, prefix: bool = False, logits: bool = True, sampler: Program | None = None
    ) -> None:
        """Queue one pass over the rows from `start` on.

        Args:
            logits: whether they are read.
            sampler: draws from them; its tokens are read instead.
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
        """A step, all at once where it has been recorded."""
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
            rows, positions: of the engine.
            skipped: rows of its results that are not taken.
            first_row: of the cache, where the first row taken goes.
            past: positions filled in the rows taken.
            count: positions taken.
        """
        source_pitch = positions * self._position
        source_row = self._heads * source_pitch
        taken = len(past)
        groups = [(0, taken)] if (past == past[0]).all() else [(row, 1) for row in range(taken)]
        for row, together in groups:
            target = self._address + (first_row + row) * self._row + int(past[row]) * self._position
            source = program.addresses[names.NEW_ROWS] + (skipped + row) * source_row
            width = count * self._position
            whole = together == rows == self._rows  # then the kinds follow each other as the heads do
            height = together * self._heads * (self._kinds if whole else 1)
            for kind in range(1 if whole else self._kinds):
                self._memory.copy_2d(
                    target + kind * self._rows * self._row, self._head,
                    source + kind * rows * source_row, source_pitch,
                    width, height,
                )  # fmt: skip

    def copy_row(self, source: int, target: int, frozen: bool = False) -> None:
        pitch = self._rows * self._row
        self._memory.copy_2d(
            self._address + target * self._row, pitch, self._address + source * self._row, pitch, self._row, self._kinds
        )
        self._memory.synchronize()
        self.lengths[target] = self.lengths[source]
