"""The parity gate: engines answer what the bundle's self-test says, or they are not published.

A build that succeeds proves nothing. Every engine is run: the feed-forward parts once, each chunk's engine over an
empty cache and over a kept beginning, each step's engine in its first and its last row, for eight greedy tokens; each
sampler's engine on made-up logits. A NaN anywhere in an output fails.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from editar_rt import names
from editar_rt.backends.engines.backend import DeltaBackend
from editar_rt.backends.engines.device import Engines
from editar_rt.backends.engines.plan import Plan, Shape
from editar_rt.bundle.folder import Bundle
from editar_rt.editor import Editor
from editar_rt.errors import BundleError, EditarError
from editar_rt.measure import selftest


class GateError(EditarError):
    """Engines that do not answer as the exporting machine did."""


@dataclass(frozen=True)
class Compared:
    """One output of one engine."""

    engine: str
    output: str
    error: float
    bound: float

    @property
    def holds(self) -> bool:
        return self.error <= self.bound  # false for NaN

    def __str__(self) -> str:
        verdict = "ok" if self.holds else "TOO FAR"
        return f"{self.engine:16}  {self.output:28}  error {self.error:.1e}  bound {self.bound:.0e}  {verdict}"

    def to_json(self) -> dict[str, Any]:
        return asdict(self) | {"error": self.error if self.error == self.error else None, "holds": self.holds}


def compare(bundle: Bundle, engines: Engines, plan: Plan) -> Iterator[Compared]:
    """Run every engine of a plan.

    Raises:
        BundleError: the bundle has no self-test of a part.
    """
    parts = bundle.manifest.parts
    if missing := [part for part in parts if part not in (bundle.manifest.self_test or {})]:
        raise BundleError(
            f"the self-test of the bundle {bundle.folder} lacks {', '.join(missing)}, which engines are compared with; "
            "export it on a machine that runs them"
        )
    by_rows = (names.DECODER, names.SAMPLER)  # which come below, engine by engine
    editor = Editor(bundle, DeltaBackend(bundle, engines, plan))
    for check in selftest.verify(editor, [part for part in parts if part != names.SAMPLER]):
        if check.part not in by_rows:
            yield Compared(check.part, check.output, check.error, check.bound)
    if names.DECODER not in parts:
        return
    for rows in plan.rows if names.SAMPLER in parts else ():
        own = DeltaBackend(bundle, engines, Plan((rows,), plan.chunks))
        for check in selftest.verify(Editor(bundle, own), [names.SAMPLER]):
            shape = Shape(names.SAMPLER, rows=rows)
            yield Compared(shape.name, check.output, check.error, check.bound)
    for rows in plan.rows:
        for row in sorted({0, rows - 1}):
            yield from _decoder(bundle, engines, Plan((rows,), plan.chunks), row, f"row {row}")
    for chunk in plan.chunks:
        for pieces in (1, 2):
            only = Plan(plan.rows, (chunk,))
            yield from _decoder(bundle, engines, only, 0, f"in {pieces} piece{'s' * (pieces - 1)}", pieces)


def _decoder(bundle: Bundle, engines: Engines, plan: Plan, row: int, label: str, pieces: int = 0) -> Iterator[Compared]:
    """The decoder with the engines of one plan.

    Args:
        pieces: in which the prefill is fed, where it is the chunk's engine that is looked at.
    """
    shape = Shape(names.DECODER, positions=plan.chunks[0]) if pieces else Shape(names.DECODER, rows=plan.rows[0])
    editor = Editor(bundle, DeltaBackend(bundle, engines, plan))
    way = selftest.Way(pieces=pieces) if pieces else selftest.Way(plan.rows[0], row)
    for check in selftest.verify(editor, [names.PREFIX_GRAPH, names.DECODER], way):
        if check.part == names.DECODER:
            yield Compared(shape.name, f"{check.output}, {label}", check.error, check.bound)
