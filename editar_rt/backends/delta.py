"""Runs bundles of the spelling delta: the loop over engines of fixed shapes, and the KV cache between them.

The cache of all layers is one block, zeroed once, [2 · layers, rows, heads, capacity, head_dim]. An engine reads it
where it lies and gives the new keys and values, [2 · layers, rows, heads, positions, head_dim], which are placed by one
2-D copy where the engine's rows are all of the cache's, else by one for every layer's keys and one for its values.
A step is recorded (CUDA: in a graph) when it comes for the second time; inputs and logits cross in page-locked memory.

The device is behind `device`'s interfaces: TensorRT on a GPU, or its emulation.
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from editar_rt import names
from editar_rt.backends.base import Arrays
from editar_rt.backends.device import CaptureError, Engines, aligned
from editar_rt.backends.shapes import Plan, Shape, fixed
from editar_rt.bundle import Bundle, Part, TensorInfo
from editar_rt.errors import MissingPartError, OptionError


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
            self._programs[shape] = Program(self.bundle, self.engines, shape)
        return self._programs[shape]

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


class Program:
    """An engine, and buffers for all its tensors but the cache, at addresses that stay.

    Inputs lie in one block on both sides and cross in one copy, the decoder's prefix last: a step leaves it out.
    """

    def __init__(self, bundle: Bundle, engines: Engines, shape: Shape) -> None:
        part, self.memory = bundle.manifest.parts[shape.part], engines.memory
        self.engine = engines.open(shape)
        own = [tensor for tensor in part.inputs if not tensor.name.startswith(names.PAST_BEGINNINGS)]
        own.sort(key=lambda tensor: tensor.name == names.PREFIX)
        self._in, self._out = Block(shape, own), Block(shape, part.outputs)
        self._in_address, out_address = (self.memory.allocate(block.size) for block in (self._in, self._out))
        self.addresses = self._in.addresses(self._in_address) | self._out.addresses(out_address)
        self.engine.bind(self.addresses)
        self._sent = self.memory.host_array(self._in.size)
        self.inputs = self._in.views(self._sent)
        returned = Block(shape, [tensor for tensor in part.outputs if tensor.name != names.NEW_ROWS])
        self.outputs = returned.views(self.memory.host_array(returned.size))
        if names.LOGIT_POSITIONS in self.inputs:
            self.inputs[names.LOGIT_POSITIONS][:] = np.arange(shape.positions)
        self.upload()
        self.memory.synchronize()

    def upload(self, prefix: bool = True) -> None:
        """Queue the inputs' copy to the device.

        Args:
            prefix: the decoder's too; without it the device's stays what it was.
        """
        end = self._in.size if prefix else self._in.offsets.get(names.PREFIX, self._in.size)
        self.memory.to_device(self._in_address, self._sent[:end])

    def download(self) -> None:
        """Queue the outputs' copy to the host, but for the new rows'."""
        for name, array in self.outputs.items():
            self.memory.to_host(array, self.addresses[name])


class Block:
    """Where tensors lie in one block of bytes, each at a good address."""

    def __init__(self, shape: Shape, tensors: Sequence[TensorInfo]) -> None:
        self.tensors = {tensor.name: (shape.of(tensor), np.dtype(tensor.dtype)) for tensor in tensors}
        self.offsets: dict[str, int] = {}
        self.size = 0
        for name, (dimensions, dtype) in self.tensors.items():
            self.offsets[name] = self.size
            self.size += aligned(math.prod(dimensions) * dtype.itemsize)

    def addresses(self, start: int) -> dict[str, int]:
        return {name: start + offset for name, offset in self.offsets.items()}

    def views(self, block: NDArray[np.uint8]) -> dict[str, NDArray[Any]]:
        """The tensors in a block on the host."""
        return {
            name: block[offset:][: math.prod(dimensions) * dtype.itemsize].view(dtype).reshape(dimensions)
            for (name, (dimensions, dtype)), offset in zip(self.tensors.items(), self.offsets.values())
        }


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
        # Of steps by their first row: what queues them at once; None after the first, which warms up.
        self._recorded: dict[tuple[int, int], Callable[[], None] | None] = {}

    def forward(
        self,
        tokens: NDArray[np.int32],
        prefix: NDArray[np.float32],
        logit_positions: NDArray[np.int32],
        first_row: int = 0,
    ) -> NDArray[np.float32]:
        rows, positions = tokens.shape
        past = self.lengths[first_row : first_row + rows]
        if int(past.max()) + positions > self._room:
            raise OptionError(
                f"the decoder's cache has room for {self._room} positions; {past.max()} are filled and {positions} "
                "more do not fit"
            )
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
            inputs = program.inputs
            for name in (names.TOKENS, names.POSITIONS, names.PAST_LENGTH):
                inputs[name][:] = 0
            inputs[names.TOKENS][taken] = tokens[done : done + count]
            inputs[names.PAST_LENGTH][taken] = past
            inputs[names.POSITIONS][taken, 0] = past
            if (tokens[done : done + count] < 0).any():
                inputs[names.PREFIX][taken] = prefix[done : done + count]
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

    def _pass(self, program: Program, start: int, prefix: bool = False, logits: bool = True) -> None:
        """Queue one pass over the rows from `start` on."""
        tensor = self._rows * self._row
        addresses = {}
        for kind in range(self._kinds):
            name = (names.past_value if kind % 2 else names.past_key)(kind // 2)
            addresses[name] = self._address + kind * tensor + start * self._row
        program.engine.bind(addresses)
        program.upload(prefix)
        program.engine.enqueue()
        if logits:
            program.download()

    def _pass_recorded(self, program: Program, start: int, rows: int) -> None:
        """A step, all at once where it has been recorded."""
        key = (start, rows)
        if self._backend.uncaptured is None and key in self._recorded:
            recorded = self._recorded[key]
            if recorded is None:
                try:
                    recorded = self._recorded[key] = self._memory.capture(lambda: self._pass(program, start))
                except CaptureError as error:
                    self._backend.uncaptured = str(error)
            if recorded is not None:
                recorded()
                return
        self._recorded.setdefault(key, None)
        self._pass(program, start)

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
