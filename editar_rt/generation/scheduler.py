"""Steps sequences together over one KV cache. Sequences join and leave between any two steps.

One `step` first feeds pieces to the sequences that lag (a prefill, a run of known tokens, an unconditional row that
waited); then all sequences that are ready take one decode step in one run of the decoder. A picture's tokens are the
same as without the others: its pieces are cut at its own positions, and rows do not affect each other.

Rows are laid out from the middle: [cond 2, cond 1, cond 0 | uncond 0, uncond 1]. Guided pictures take the innermost
places, so that the conditional rows, the unconditional rows and both together are contiguous in the cache for any
number of pictures. The outermost picture takes the place of one that leaves.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from editar_rt.backends.base import Backend, Batch, Output
from editar_rt.errors import OptionError
from editar_rt.generation.sampling import Draw
from editar_rt.generation.sequence import Chunk, Context, Floats, Ints, Row, Sequence
from editar_rt.generation.strategy import Costs, Drafter, Speculate, Speculation, best_size, sizes_for


class Logits:
    """The guided logits [P, K, V] of one run, computed on demand; available until the next run."""

    def __init__(self, output: Output, draw: Draw) -> None:
        self._output, self._draw = output, draw
        self._values: Floats | None = None

    def __call__(self) -> Floats:
        if self._values is None:
            self._values = self._draw.guided(self._output.logits())
        return self._values

    def keep(self) -> None:
        """Compute and keep the logits, so that they stay available after the next run."""
        self._values = self().copy()


class Drawn(NamedTuple):
    """A token that was sampled."""

    sequence: Sequence
    position: int
    token: int
    source: Logits
    place: int
    """Index of the sequence among the pictures of `source`."""
    offset: int
    """Index of the position among those of `source`."""

    def logits(self) -> Floats:
        """The guided logits [V] of this token."""
        logits: Floats = self.source()[self.place, self.offset]
        return logits


class _Layout(NamedTuple):
    """The part of a batch that stays the same while the same sequences step together."""

    sequences: list[Sequence]
    guided: list[bool]
    rows: list[Row]  # ascending by slot
    slots: Ints
    owner: Ints  # for each row, the index of its sequence
    cond: Ints
    uncond: Ints
    counts: Ints


class Scheduler:
    """The decoder's rows and the contexts that use them.

    Args:
        pictures: the largest number of contexts.
        guided: how many of them may have an unconditional row; None means all.
        prefix: number of positions of picture and text.
        count: N, target tokens; the last is never fed.
        on_device: False samples on the host even if the device can.
        costs: measured costs of passes, which may outlive the scheduler.
    """

    def __init__(
        self,
        backend: Backend,
        pictures: int,
        guided: int | None,
        prefix: int,
        count: int,
        on_device: bool = True,
        costs: Costs | None = None,
    ) -> None:
        self.pictures, self.guided, self.count = pictures, pictures if guided is None else guided, count
        self.decoder = backend.make_decoder(self.pictures + self.guided, prefix + count - 1)
        self._on_device, self._costs = on_device, Costs() if costs is None else costs
        self._contexts: list[Context] = []  # by place from the middle; guided ones first
        self._layout: _Layout | None = None

    # Contexts join and leave.

    def join(self, guided: bool) -> Context:
        """Allocate the rows of a picture.

        Raises:
            OptionError: all are in use.
        """
        inner = sum(context.uncond is not None for context in self._contexts)
        if len(self._contexts) >= self.pictures or (guided and inner >= self.guided):
            raise OptionError(f"the decoder has room for {self.pictures} pictures, {self.guided} of them with guidance")
        place = len(self._contexts)
        if guided and inner < place:
            self._move(self._contexts[inner], place)
            self._contexts.append(self._contexts[inner])
            place = inner
        cond = Row(self.pictures - 1 - place, self.count)
        context = Context(cond, Row(self.pictures + place, self.count) if guided else None)
        self._contexts[place : place + 1] = [context]
        self._layout = None
        return context

    def leave(self, context: Context) -> None:
        """Free a picture's rows; no other picture's tokens change."""
        for row in context:
            self.decoder.release(row.slot)
        gap = self._contexts.index(context)
        inner = sum(each.uncond is not None for each in self._contexts)
        if context.uncond is not None:  # the last guided picture fills the gap; its own place goes to an unguided one
            gap = self._close(gap, inner - 1)
        self._close(gap, len(self._contexts) - 1)
        self._contexts.pop()
        self._layout = None

    def _close(self, gap: int, last: int) -> int:
        """Move the context at place `last` to an empty place. Returns the place that is empty afterwards."""
        if gap != last:
            self._move(self._contexts[last], gap)
            self._contexts[gap] = self._contexts[last]
        return last

    def _move(self, context: Context, place: int) -> None:
        for row, slot in zip(context, (self.pictures - 1 - place, self.pictures + place)):
            self.decoder.copy(row.slot, slot, 0, row.filled)
            self.decoder.release(row.slot)
            row.slot = slot
        self._layout = None

    # Steps.

    def step(self, sequences: Iterable[Sequence]) -> list[Drawn]:
        """Advance sequences, each at its own position; finished ones are skipped.

        The lagging ones together are fed about one piece (`Decoder.piece`), so that no step waits for a whole prefill.
        A call may sample no token.

        Raises:
            BackendError: the engine failed, or its logits are not finite.
        """
        # 1. Separate the sequences that need one token per row from those that need more.
        ready: list[Sequence] = []
        lagging: list[Sequence] = []
        for sequence in sequences:
            if not sequence.finished:
                (ready if sequence.ready else lagging).append(sequence)
        drawn: list[Drawn] = []
        # 2. Feed the lagging ones within the budget of one piece. One that has caught up samples from its last piece.
        if lagging:
            budget = self.decoder.piece
            waiting: list[Row] = []  # rows being prefilled, which later ones may copy instead of running the same
            for sequence in lagging:
                prefilled = all(row.has_prefix for row in sequence.rows())
                fed = self._catch_up(sequence, budget, waiting)
                sequence.passes += prefilled and fed > 0
                budget -= fed
                if all(sequence.lacks(row) == 0 for row in sequence.rows()):
                    drawn.append(self._draw_after_chunks(sequence))
                    continue
                waiting += [row for row in sequence.rows() if not row.has_prefix]
        # 3. Step the ready ones: those that take the same number of positions in one run.
        for size, together in sorted(self._by_size(ready).items()):
            drawn += self._step_together(together, size)
        return drawn

    def speculation(self, speculate: Speculate | None, drafter: Drafter) -> Speculation | None:
        """How a sequence takes several positions in a pass of this scheduler's decoder; None for plain decoding.

        Raises:
            OptionError: the decoder has no chunks of this size.
        """
        if not (sizes := self.pass_sizes(speculate)):
            return None
        chunks = self.decoder.draft_chunks
        worth = chunks.worth if speculate == "auto" and chunks.alike else 0.0
        return Speculation(drafter, sizes, chunks.alike, worth)

    def pass_sizes(self, speculate: Speculate | None) -> tuple[int, ...]:
        """The numbers of positions that a pass may have; empty for plain decoding.

        Raises:
            OptionError: the decoder has no chunks of this size.
        """
        if speculate is None:
            return ()
        chunks = self.decoder.draft_chunks
        together = bool(chunks.sizes) and self.decoder.runs(2 if self.guided else 1, chunks.sizes[0]) == 1
        return sizes_for(speculate, chunks, together, self.count)

    def _by_size(self, ready: list[Sequence]) -> dict[int, list[Sequence]]:
        """Ready sequences by the number of positions that they take."""
        found: dict[int, list[Sequence]] = {}
        alike: dict[tuple[tuple[int, ...], bool], list[Sequence]] = {}  # that choose together
        for sequence in ready:
            speculation = sequence.speculation
            if speculation is None or speculation.plain:
                found.setdefault(1, []).append(sequence)
            else:
                alike.setdefault((speculation.sizes, speculation.probing), []).append(sequence)
        for those in alike.values():
            speculations = [each.speculation for each in those if each.speculation is not None]
            size = best_size(speculations, self._costs, sum(len(each.rows()) for each in those))
            if len(those) == 1 and speculations[0].shrinks and not speculations[0].probing:
                needed = those[0].window()
                size = min(size, needed + needed % 2)
            found.setdefault(size, []).extend(those)
        return found

    def prefill(self, sequence: Sequence) -> None:
        """Feed picture and text without sampling a token."""
        for row in sequence.context:
            while not row.has_prefix:
                self._feed(row, sequence.tokens, 0)

    def score(self, context: Context, picture: Chunk, text: Chunk, tokens: Ints) -> Floats:
        """Logits [N, V] of every target position, with forced target tokens [N]."""
        # Prefill picture and text; their last position predicts target token 0.
        row = context.cond
        row.begin(picture, text)
        row.filled = min(row.filled, row.start)
        while not row.has_prefix:
            self._feed(row, tokens, 0)
        assert row.first is not None  # the prefix has run
        # Feed the target tokens; each predicts the next one, and the last one predicts nothing.
        pieces = [row.first[None]]
        while row.filled < row.start + len(tokens) - 1:
            chunk = row.next_piece(tokens, len(tokens) - 1, self.decoder.piece)
            pieces.append(self._run_chunk(row, chunk, len(chunk)))
            row.advance(chunk)
        return np.concatenate(pieces)

    def _catch_up(self, sequence: Sequence, budget: int, waiting: list[Row]) -> int:
        """Feed a lagging sequence about `budget` positions. Returns how many were fed.

        Args:
            waiting: rows that earlier sequences are still prefilling.
        """
        fed = 0
        for row in sequence.rows():
            while sequence.lacks(row) > 0 or not row.has_prefix:
                # Stop at the budget. If another row is computing the same prefix, wait and copy it.
                if fed >= budget or (not row.has_prefix and any(_will_give(other, row) for other in waiting)):
                    return fed
                fed += self._feed(row, sequence.tokens, sequence.position, sequence.speculation is not None)
        return fed

    def _feed(self, row: Row, tokens: Ints, position: int, even: bool = False) -> int:
        """Feed a row's next piece, or copy the same prefix from another row. Returns how many positions were run.

        Args:
            even: feed an even number of target tokens if possible, the first of them again, so that the bits do not
                depend on where the last pass ended.
        """
        if not row.has_prefix and self._copied(row):
            return 0
        if even and row.filled > row.start and (position - row.filled + row.start) % 2:
            row.filled -= 1
        chunk = row.next_piece(tokens, position, self.decoder.piece)
        row.logits = self._run_chunk(row, chunk, 1)[0]
        row.advance(chunk)
        if row.filled == row.start:
            row.first = row.logits
        return len(chunk)

    def _copied(self, row: Row) -> bool:
        """Copy the picture, or the text after it, from a row with the same contents. Returns whether there was one."""
        assert row.picture is not None
        end, others = len(row.picture), [other for context in self._contexts for other in context if other is not row]
        if row.filled == 0:
            for other in others:
                if other.filled >= end and _same_picture(row, other):
                    self.decoder.copy(other.slot, row.slot, 0, end, frozen=True)  # later writes go after it
                    row.filled = end
                    return True
        if row.filled == end:
            for other in others:
                if other.has_prefix and _same_prefix(row, other):
                    self.decoder.copy(other.slot, row.slot, end, row.start)
                    row.filled, row.first, row.logits = row.start, other.first, other.first
                    return True
        return False

    def _run_chunk(self, row: Row, chunk: Chunk, outputs: int) -> Floats:
        """Run a piece of one row. Returns a copy of the logits [outputs, V] of its last positions."""
        states = None if chunk.states is None else chunk.states[None]
        numbers = np.asarray([row.slot, row.filled, len(chunk)], np.int32)
        batch = Batch(numbers[:1], numbers[1:2], numbers[2:], chunk.tokens[None], states, outputs)
        logits: Floats = self.decoder.run(batch).logits()[0].copy()
        return logits

    def _draw_after_chunks(self, sequence: Sequence) -> Drawn:
        """Sample on the host from the logits of each row's last piece."""
        position = sequence.position
        logits = [row.first if position == 0 else row.logits for row in sequence.rows()]
        rows = np.stack([each for each in logits if each is not None])[:, None]
        places = np.arange(2, dtype=np.int32)
        draw = Draw(
            places[:1],
            places[len(rows) - 1 : len(rows)],
            (sequence.sampling,),
            sequence.scales[None, position : position + 1],
            (sequence.seed,),
            (position,),
        )
        token = int(draw.on_host(rows)[0, 0])
        sequence.draw(token)
        return Drawn(sequence, position, token, Logits(Output(lambda: rows), draw), 0, 0)

    def _step_together(self, ready: list[Sequence], size: int) -> list[Drawn]:
        """One run in which every picture feeds `size` positions, and takes the tokens that are valid after it."""
        # Each row is fed the tokens before the position and drafts after it; both rows of a guided picture the same.
        layout = self._layout_of(ready)
        chunks = [sequence.chunk(size) for sequence in ready]
        fed = np.stack([tokens for _, tokens in chunks])
        past = np.asarray([row.start + chunks[at][0] for row, at in zip(layout.rows, layout.owner.tolist())], np.int32)
        # The settings and random numbers of each picture at the positions after those that are fed.
        draw = Draw(
            layout.cond,
            layout.uncond,
            tuple(sequence.sampling for sequence in ready),
            np.stack([sequence.scales[at + 1 : at + 1 + size] for sequence, (at, _) in zip(ready, chunks)]),
            tuple(sequence.seed for sequence in ready),
            tuple(at + 1 for at, _ in chunks),
        )
        # Run the decoder, which samples if it can; otherwise sample here.
        begun = time.perf_counter()
        batch = Batch(layout.slots, past, layout.counts * np.int32(size), fed[layout.owner], None, size)
        output = self.decoder.run(batch, draw if self._on_device else None)
        made = draw.on_host(output.logits()) if output.tokens is None else output.tokens
        self._costs.add(len(layout.rows), size, time.perf_counter() - begun)
        # Accept what is valid; the cache is rewound to it.
        source, drawn = Logits(output, draw), []
        for place, (sequence, (at, tokens)) in enumerate(zip(ready, chunks)):
            for position, token in sequence.accept(at, tokens, made[place]):
                drawn.append(Drawn(sequence, position, token, source, place, position - at - 1))
        return drawn

    def _layout_of(self, ready: list[Sequence]) -> _Layout:
        guided = [sequence.guided for sequence in ready]
        kept = self._layout
        if kept is not None and kept.sequences == ready and kept.guided == guided:
            return kept
        rows = sorted(
            ((row.slot, place, row) for place, sequence in enumerate(ready) for row in sequence.rows()),
            key=lambda each: each[0],
        )
        at = {row.slot: n for n, (_, _, row) in enumerate(rows)}
        cond = [at[sequence.context.cond.slot] for sequence in ready]
        uncond = [at[sequence.rows()[-1].slot] for sequence in ready]
        integers = [[slot for slot, _, _ in rows], [place for _, place, _ in rows], cond, uncond, [1] * len(rows)]
        slots, owner, *others = (np.asarray(each, np.int32) for each in integers)
        self._layout = _Layout(list(ready), guided, [row for _, _, row in rows], slots, owner, *others)
        return self._layout


def _same_picture(row: Row, other: Row) -> bool:
    return row.picture is not None and other.picture is not None and row.picture.same(other.picture)


def _same_prefix(row: Row, other: Row) -> bool:
    return _same_picture(row, other) and row.text is not None and other.text is not None and row.text.same(other.text)


def _will_give(other: Row, row: Row) -> bool:
    """Whether `other` will contain the next part that `row` needs, so that `row` can copy it."""
    return _same_picture(row, other) if row.filled == 0 else _same_prefix(row, other)
