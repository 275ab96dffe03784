"""The parity gate: engines are published only if they pass the bundle's self-test.

A successful build proves nothing. Every engine is run: the feed-forward parts once; each chunk engine with an empty
cache and after a cached prefix; each step engine in its first and its last row, for eight greedy tokens; each sampler
engine on synthetic logits. A NaN anywhere in an output is a failure.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from editar_rt import names
from editar_rt.backends.engines.backend import EngineBackend
from editar_rt.backends.engines.device import Engines
from editar_rt.backends.engines.plan import Plan, Shape
from editar_rt.bundle.compare import Comparison
from editar_rt.bundle.folder import Bundle
from editar_rt.editor import Editor
from editar_rt.errors import BundleError, EditarError
from editar_rt.measure import selftest


class GateError(EditarError):
    """The outputs of engines differ from those of the exporting machine."""


def compare(bundle: Bundle, engines: Engines, plan: Plan) -> Iterator[Comparison]:
    """Run every engine of a plan; the part of each comparison is the engine's name.

    Raises:
        BundleError: the bundle has no self-test of a part.
    """
    parts = bundle.manifest.parts
    if missing := [part for part in parts if part not in (bundle.manifest.self_test or {})]:
        raise BundleError(
            f"the self-test of the bundle {bundle.folder} lacks {', '.join(missing)}, with which engines are compared; "
            "export it on a machine that can run them"
        )
    editor = Editor(bundle, EngineBackend(bundle, engines, plan))
    for check in selftest.verify(editor, [part for part in parts if part != names.SAMPLER]):
        if check.part != names.DECODER:  # decoder and sampler follow, engine by engine
            yield check
    if names.DECODER not in parts:
        return
    for rows in plan.rows if names.SAMPLER in parts else ():
        own = EngineBackend(bundle, engines, Plan((rows,), plan.chunks))
        for check in selftest.verify(Editor(bundle, own), [names.SAMPLER]):
            shape = Shape(names.SAMPLER, rows=rows)
            yield replace(check, part=shape.name)
    for rows in plan.rows:
        for row in sorted({0, rows - 1}):
            yield from _decoder(bundle, engines, Plan((rows,), plan.chunks), row, f"row {row}")
    for chunk in plan.chunks:
        for pieces in (1, 2):
            only = Plan(plan.rows, (chunk,))
            yield from _decoder(bundle, engines, only, 0, f"in {pieces} piece{'s' * (pieces - 1)}", pieces)


def _decoder(
    bundle: Bundle, engines: Engines, plan: Plan, row: int, label: str, pieces: int = 0
) -> Iterator[Comparison]:
    """Compare the decoder with the engines of one plan.

    Args:
        pieces: number of pieces of the prefill, to test a chunk engine; 0 tests a step engine.
    """
    shape = Shape(names.DECODER, positions=plan.chunks[0]) if pieces else Shape(names.DECODER, rows=plan.rows[0])
    editor = Editor(bundle, EngineBackend(bundle, engines, plan))
    way = selftest.Way(pieces=pieces) if pieces else selftest.Way(plan.rows[0], row)
    for check in selftest.verify(editor, [names.PREFIX_GRAPH, names.DECODER], way):
        if check.part == names.DECODER:
            yield replace(check, part=shape.name, output=f"{check.output}, {label}")
