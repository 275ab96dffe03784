"""The parity gate: engines are used only if they pass the bundle's self-test.

Engines that are built on the device are compared before they are published; others when they are loaded for the first
time on a GPU.

A successful build proves nothing. Every engine is run: the feed-forward parts once; each chunk engine with an empty
cache and after a cached prefix; each step engine in its first and its last row, for eight greedy tokens; each engine of
drafts against steps on the same tokens; each sampler engine on synthetic logits. A NaN anywhere in an output is a
failure.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np

from editar_rt import names
from editar_rt.backends.base import Batch
from editar_rt.backends.engines.backend import EngineBackend
from editar_rt.backends.engines.device import Engines
from editar_rt.backends.engines.plan import Plan, Shape
from editar_rt.bundle.compare import Comparison
from editar_rt.bundle.folder import Bundle
from editar_rt.errors import BackendError, BundleError
from editar_rt.measure import selftest
from editar_rt.model import Model

log = logging.getLogger("editar_rt")


class GateError(BackendError):
    """The outputs of engines differ from those of the exporting machine."""


def try_engines(model: Model) -> None:
    """Compare the engines of a loaded bundle, and keep the result beside them.

    Raises:
        GateError: an engine's outputs are wrong; it is refused from now on.
        BundleError: as in `compare`.
    """
    backend = model.backend
    assert isinstance(backend, EngineBackend) and backend.engines.trial is not None  # only these need a trial
    log.info("comparing the engines of %s with the exporting machine, once for this GPU", model.bundle.folder)
    compared = list(compare(model.bundle, backend.engines, backend.plan))
    backend.engines.trial.keep(compared)
    check(compared, "they will not be used on this machine")


def check(compared: Sequence[Comparison], consequence: str) -> None:
    """
    Args:
        consequence: what follows from a failure, for the message.

    Raises:
        GateError: one of the comparisons does not hold.
    """
    if failed := [each for each in compared if not each.holds]:
        worst = failed[0]
        raise GateError(
            f"the outputs of the engine {worst.part} differ from those of the exporting machine ({worst.output}: error "
            f"{worst.error:.1e}, allowed {worst.bound:.0e}); {consequence}"
        )


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
    editor = Model(bundle, EngineBackend(bundle, engines, plan))
    for check in selftest.verify(editor, [part for part in parts if part != names.SAMPLER]):
        if check.part != names.DECODER:  # decoder and sampler follow, engine by engine
            yield check
    if names.DECODER not in parts:
        return
    for rows, positions in plan.sampled if names.SAMPLER in parts else ():
        own = EngineBackend(bundle, engines, Plan((rows,), plan.chunks, (positions,) if positions > 1 else ()))
        for check in selftest.verify(Model(bundle, own), [names.SAMPLER]):
            yield replace(check, part=Shape(names.SAMPLER, rows, positions).name)
    for rows in plan.rows:
        for row in sorted({0, rows - 1}):
            yield from _decoder(bundle, engines, Plan((rows,), plan.chunks), row, f"row {row}")
    for chunk in plan.chunks:
        for pieces in (1, 2):
            only = Plan(plan.rows, (chunk,))
            yield from _decoder(bundle, engines, only, 0, f"in {pieces} piece{'s' * (pieces - 1)}", pieces)
    for rows in plan.rows:
        for drafts in plan.drafts:
            yield from _drafts(bundle, engines, Plan((rows,), plan.chunks, (drafts,)))


def _decoder(
    bundle: Bundle, engines: Engines, plan: Plan, row: int, label: str, pieces: int = 0
) -> Iterator[Comparison]:
    """Compare the decoder with the engines of one plan.

    Args:
        pieces: number of pieces of the prefill, to test a chunk engine; 0 tests a step engine.
    """
    shape = Shape(names.DECODER, positions=plan.chunks[0]) if pieces else Shape(names.DECODER, rows=plan.rows[0])
    model = Model(bundle, EngineBackend(bundle, engines, plan))
    way = selftest.Way(pieces=pieces) if pieces else selftest.Way(plan.rows[0], row)
    for check in selftest.verify(model, [names.PREFIX_GRAPH, names.DECODER], way):
        if check.part == names.DECODER:
            yield replace(check, part=shape.name, output=f"{check.output}, {label}")


def _drafts(bundle: Bundle, engines: Engines, plan: Plan) -> Iterator[Comparison]:
    """Compare an engine of drafts, its rows at different positions, with the plan's steps on the same tokens."""
    (rows,), (count,) = plan.rows, plan.drafts
    backend, size = EngineBackend(bundle, engines, plan), bundle.manifest.model.vocab_size or 1
    room = backend.capacity - plan.unused_positions
    decoder, every = backend.make_decoder(rows, room), np.arange(rows, dtype=np.int32)
    begin = every % (room - count) + 1  # the rows' positions
    tokens = (np.arange(rows * room, dtype=np.int32).reshape(rows, room) * 7919 + 17) % size
    answers = []
    for positions in (1, count):
        for row in every:
            one, filled = every[row : row + 1], begin[row : row + 1]
            decoder.run(Batch(one, 0 * one, filled, tokens[one, : int(filled[0])], None, 1))
        found = []
        for start in range(0, count, positions):
            chunk = np.stack([tokens[row, begin[row] + start :][:positions] for row in every])
            batch = Batch(every, begin + np.int32(start), np.full_like(every, positions), chunk, None, positions)
            found.append(decoder.run(batch).logits().copy())
        answers.append(np.concatenate(found, axis=1))
    shape, bound = Shape(names.DECODER, rows, count), bundle.manifest.bound(names.DECODER)
    yield Comparison.of(shape.name, f"{names.LOGITS} of drafts", answers[1], answers[0], bound)
