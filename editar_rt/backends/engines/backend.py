"""Runs bundles of the dialects delta and native through engines of fixed shapes. `decoder` steps the decoder's.

The device, TensorRT on a GPU or its emulation, implements the interfaces in `device`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from editar_rt import names
from editar_rt.backends.base import Arrays
from editar_rt.backends.engines.cuda import memory_in_use
from editar_rt.backends.engines.decoder import EngineDecoder
from editar_rt.backends.engines.device import Engines
from editar_rt.backends.engines.plan import Plan, Shape, fixed
from editar_rt.backends.engines.program import Program
from editar_rt.backends.sampler import SamplerInputs
from editar_rt.bundle.folder import Bundle
from editar_rt.bundle.manifest import Part
from editar_rt.errors import BackendError, MissingPartError


class EngineBackend:
    """See the module's docstring and `base.Backend`."""

    def __init__(self, bundle: Bundle, engines: Engines, plan: Plan) -> None:
        self.bundle, self.engines, self.plan = bundle, engines, plan
        self.uncaptured: str | None = None
        """Why steps are not recorded; None if they are, or if none has run yet."""
        self._programs: dict[Shape, Program] = {}
        self._closed = False

    @property
    def name(self) -> str:
        note = f"; steps are not captured: {self.uncaptured}" if self.uncaptured else ""
        return self.engines.name + note

    @property
    def device(self) -> str:
        return self.engines.device

    def read_bandwidth(self) -> float | None:
        return self.engines.read_bandwidth()

    def memory_in_use(self) -> int | None:
        return None if self.device == "cpu" else memory_in_use()

    def shared_bytes(self) -> int:
        return 0

    @property
    def needs_trial(self) -> bool:
        return self.engines.trial is not None and self.engines.trial.is_needed

    @property
    def samplers(self) -> tuple[tuple[int, int], ...]:
        return tuple(self.plan.sampled) if names.SAMPLER in self.bundle.manifest.parts else ()

    def end_profile(self) -> Path:
        raise BackendError(f"{self.engines.name} makes no profile of a decode step")

    def part(self, name: str) -> Part:
        """The manifest's description of a part.

        Raises:
            MissingPartError: the bundle lacks the part.
        """
        parts = self.bundle.manifest.parts
        if name not in parts:
            held = ", ".join(parts) or "nothing"
            raise MissingPartError(f"the bundle {self.bundle.folder} has no part {name}; its parts are {held}")
        return parts[name]

    @property
    def capacity(self) -> int:
        """Positions of a row of the decoder's cache."""
        tensor = next(t for t in self.part(names.DECODER).inputs if t.name == names.past_key(0))
        return fixed(tensor.shape, {names.ROWS_DIM: 1})[2]

    def program(self, shape: Shape) -> Program:
        """An engine with its buffers, created on first use."""
        if self._closed:
            raise BackendError("the editor is closed; load the bundle again")
        self.part(shape.part)
        if shape not in self._programs:
            lent = {}
            if shape.part == names.SAMPLER:
                decoder = self.program(Shape(names.DECODER, shape.rows, shape.positions))
                lent[names.LOGITS] = decoder.addresses[names.LOGITS]
            self._programs[shape] = Program(self.bundle, self.engines, shape, lent)
        return self._programs[shape]

    def sample(self, logits: NDArray[np.float32], inputs: SamplerInputs) -> NDArray[np.int32]:
        memory, sampler = self.engines.memory, self.program(Shape(names.SAMPLER, *logits.shape[:2]))
        sent = memory.host_array(logits.nbytes)
        sent[:] = np.ascontiguousarray(logits, np.float32).reshape(-1).view(np.uint8)
        memory.to_device(sampler.addresses[names.LOGITS], sent)
        sampler.set_inputs(inputs)
        sampler.upload()
        sampler.engine.enqueue()
        sampler.download()
        memory.synchronize()
        return sampler.outputs[names.DRAWN].copy()

    def run(self, part: str, inputs: Arrays) -> dict[str, NDArray[Any]]:
        program = self.program(Shape(part))
        rows = len(next(iter(inputs.values())))
        described = self.part(part).outputs
        results = {
            tensor.name: np.empty(fixed(tensor.shape, {names.ROWS_DIM: rows}), tensor.dtype) for tensor in described
        }
        for row in range(rows):
            for name, values in inputs.items():
                program.inputs[name][0] = values[row]
            program.upload()
            program.engine.enqueue()
            program.download()
            program.memory.synchronize()
            for name, values in results.items():
                values[min(row, len(values) - 1)] = program.outputs[name][0]  # some outputs are the same for all rows
        return results

    def make_decoder(self, rows: int, capacity: int) -> EngineDecoder:
        return EngineDecoder(self, rows, capacity)

    def close(self) -> None:
        self._closed = True
        self._programs.clear()
