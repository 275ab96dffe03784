"""The loop: the picture's prefill, the text's, then one step a token. Nothing else steps a decoder.

`decode` is a generator that yields after every drawn token and every run of known ones; progress, previews, cancelling,
traces, benchmarks and tests are consumers of it.

The picture comes first and attention is causal, so its keys and values are the same with and without the text and for
every instruction: it goes through the decoder once, in one row, and is copied to the others. So does the text of rows
that share it. Of the rows [cond | null], the null ones depend on the picture alone and can be kept too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from editar_rt.backends.base import Backend, Cache, DrawingCache
from editar_rt.errors import Cancelled
from editar_rt.generation.sampling import Draw, Sampling, guide, pick_tokens

Floats = NDArray[np.float32]


@dataclass(eq=False)
class Step:
    """Target tokens of every picture: one that was drawn, or a run of known ones."""

    position: int
    """Of the first, 0 to N - 1."""
    tokens: NDArray[np.int32]
    """[B, S]; S is 1 where they were drawn."""
    source: Floats | Callable[[], Floats] | None
    """The logits, or what reads them from the device that drew; None of a run."""

    @property
    def drawn(self) -> bool:
        """Whether the tokens were drawn."""
        return self.source is not None

    @property
    def logits(self) -> Floats | None:
        """[B, V] with guidance, that were drawn from; None of a run. To be asked for before the next step."""
        if callable(self.source):
            self.source = self.source()
        return self.source

    @property
    def stop(self) -> int:
        """The position behind the last."""
        return self.position + len(self.tokens[0])


Progress = Callable[[int, int], None]  # (tokens done, tokens in all)
Watcher = Callable[[Step, NDArray[np.int32]], None]  # (what was done, tokens [B, N] so far)


class Cancel(Protocol):
    """What tells the loop to stop: a `threading.Event`, or anything like it."""

    def is_set(self) -> bool:
        """Whether to stop; asked after every step."""


class Chunk(NamedTuple):
    """Some positions of the sequence, of rows that go through the decoder together."""

    tokens: NDArray[np.int32]  # [R, S], negative where `states` is taken
    states: Floats  # broadcasts against [R, S, D]

    def row(self, row: int) -> Chunk:
        """One row, as a chunk of its own."""
        states = self.states[row : row + 1] if len(self.states) > 1 else self.states
        return Chunk(self.tokens[row : row + 1], states)


def picture_chunk(condition_tokens: NDArray[np.int32] | None, null_picture: Floats) -> Chunk:
    """The picture's part of the sequence.

    Args:
        condition_tokens: [P, N], or None for one dropped picture.
        null_picture: what stands in for a dropped picture, [1, N, D].
    """
    if condition_tokens is None:
        return Chunk(np.full(null_picture.shape[:2], -1, np.int32), null_picture)
    return Chunk(condition_tokens, np.zeros((1, 1, null_picture.shape[2]), np.float32))


def text_chunk(text: Floats) -> Chunk:
    """The text's part of the sequence; projected text [B, T, D]."""
    return Chunk(np.full(text.shape[:2], -1, np.int32), text)


class Prefix:
    """A cache filled with pictures, and then with texts again and again.

    Rows are [cond_0 … cond_B-1 | null_0 … null_B-1], or the first half alone without guidance.

    Args:
        pictures: [P, N] tokens, run once each.
        picture_of_row: for each of the B rows its picture, in order of first appearance (0, 0, 1, …).
        guided: whether there are null rows.
        text_tokens: T.
        count: target tokens that must fit behind; the last is not fed back.
    """

    def __init__(
        self,
        backend: Backend,
        pictures: Chunk,
        picture_of_row: Sequence[int],
        guided: bool,
        text_tokens: int,
        count: int,
    ) -> None:
        self.rows, self.guided = len(picture_of_row), guided
        self.picture_tokens, self.dim = pictures.tokens.shape[1], pictures.states.shape[2]
        self._picture_of_row = list(picture_of_row)
        owners = self._picture_of_row * (2 if guided else 1)
        self.cache: Cache = backend.make_cache(len(owners), self.picture_tokens + text_tokens + count - 1)
        last = np.asarray([self.picture_tokens - 1], np.int32)  # the decoder wants a position; nothing reads it
        self._drawing = self.cache if isinstance(self.cache, DrawingCache) and self.cache.draws else None
        for picture in range(len(pictures.tokens)):
            self.cache.forward(*pictures.row(picture), last, picture)
        for row in reversed(range(len(owners))):  # backwards: a picture's own row comes before those that copy it
            if owners[row] != row:
                self.cache.copy_row(owners[row], row, frozen=True)  # texts come behind
        self._start = self.picture_tokens + text_tokens  # where target tokens begin
        self._held = np.full((len(owners), count), -1, np.int32)  # target tokens in the cache, as far as `lengths` say
        self._text: tuple[Floats, Floats] | None = None  # what is behind the pictures, and the logits it gave
        self._null_logits: Floats | None = None

    def read(self, text: Floats, null_text: Floats) -> tuple[Floats, Floats | None]:
        """Run texts [B or 1, T, D] behind the pictures, and once the null text [1, T, D].

        One text for all rows of one picture is run once; the text that is there already is not run again.

        Returns:
            logits of the first target token, [B, V]: (with the text, without it where guided).
        """
        lengths = self.cache.lengths
        if self._text is None or not np.array_equal(text, self._text[0]):
            self._text = None  # an interrupted run leaves rows half filled
            lengths[: self.rows] = self.picture_tokens
            self._text = text.copy(), self._run(text, 0)
        if self.guided and self._null_logits is None:
            lengths[self.rows :] = self.picture_tokens
            self._null_logits = self._run(null_text, self.rows)
        return self._text[1], self._null_logits

    def rewind(self, known: NDArray[np.int32]) -> None:
        """Go back to the last place from which known target tokens [B, N], negative where free, can be continued.

        What the rows hold of the tokens before the first free one stays in the cache, but for one token: running it
        again gives the logits of the next.
        """
        free = (known < 0).any(axis=0)
        most = max(int(free.argmax()) - 1, 0) if free.any() else 0
        for rows in (slice(0, self.rows), slice(self.rows, None)):
            lengths = self.cache.lengths[rows]
            if len(lengths):
                held = min(int(lengths.min()) - self._start, most)
                same = (self._held[rows, :held] == known[:, :held]).all(axis=0)
                lengths[:] = self._start + (held if same.all() else int(same.argmin()))

    def feed(self, tokens: NDArray[np.int32], position: int, guided: bool) -> tuple[Floats, Floats | None]:
        """Run what the rows lack of target tokens [B, N] before `position`, each row's as one chunk.

        The null rows stay behind while nothing is guided; what they missed goes in when they are needed again.

        Returns:
            logits of target token `position`, [B, V]: (with the text, without it where guided); valid until the next.
        """
        lengths = self.cache.lengths
        if not guided:
            return self._feed(tokens, position, 0, 1), None
        if lengths[0] == lengths[self.rows]:
            both = self._feed(tokens, position, 0, 2)
            return both[: self.rows], both[self.rows :]
        null = self._feed(tokens, position, self.rows, 1).copy()
        return self._feed(tokens, position, 0, 1), null

    @property
    def draws(self) -> bool:
        """Whether the cache's device can draw tokens."""
        return self._drawing is not None

    def draw(
        self, tokens: NDArray[np.int32], position: int, guided: bool, draw: Draw
    ) -> tuple[NDArray[np.int32], Callable[[], Floats]] | None:
        """`feed`, and draw target token `position` where the logits are, if the cache's device can.

        Returns:
            (tokens [B], negative where the host must draw; what reads the guided logits [B, V]); None where this is
            not a step that can be drawn so: nothing has run then.
        """
        cache, rows = self._drawing, self.rows * (2 if guided else 1)
        if cache is None or (cache.lengths[:rows] != self._start + position - 1).any():
            return None
        null_rows = np.arange(rows, dtype=np.int32)
        if guided:
            null_rows[: self.rows] += self.rows
        chunk = np.tile(tokens[:, position - 1 : position], (rows // self.rows, 1))
        drawn = cache.draw(chunk, null_rows, draw.repeated(rows // self.rows))
        if drawn is None:
            return None
        self._held[:rows, position - 1 : position] = chunk

        def logits() -> Floats:
            own = drawn.logits()
            return guide(own[: self.rows], own[self.rows :], draw.cfg_scale) if guided else own

        return drawn.tokens[: self.rows], logits

    def _feed(self, tokens: NDArray[np.int32], position: int, first_row: int, halves: int) -> Floats:
        begin = int(self.cache.lengths[first_row]) - self._start
        chunk = np.tile(tokens[:, begin:position], (halves, 1))
        last = np.asarray([position - begin - 1], np.int32)
        logits = self.cache.forward(chunk, np.zeros((1, 1, self.dim), np.float32), last, first_row)
        self._held[first_row : first_row + len(chunk), begin:position] = chunk
        return logits[:, 0]

    def _run(self, text: Floats, first_row: int) -> Floats:
        last = np.asarray([text.shape[1] - 1], np.int32)
        logits: list[Floats] = []
        done: dict[tuple[int, int], int] = {}  # by picture and text, the row that has run them
        for row, picture in enumerate(self._picture_of_row):
            which = row if len(text) > 1 else 0
            if (picture, which) in done:
                source = done[picture, which]
                self.cache.copy_row(first_row + source, first_row + row)
                logits.append(logits[source])
                continue
            done[picture, which] = row
            chunk = text_chunk(text[which : which + 1])
            logits.append(self.cache.forward(*chunk, last, first_row + row)[0, 0].copy())
        return np.stack(logits)


def decode(
    prefix: Prefix,
    first: tuple[Floats, Floats | None],
    count: int,
    sampling: Sampling,
    seeds: Sequence[int] | None = None,
    known: NDArray[np.int32] | None = None,
    on_device: bool = True,
) -> Iterator[Step]:
    """Draw target tokens for every row, but for those that are known.

    A position that is known in all rows is not stepped over: a run of such goes through the decoder as one chunk,
    together with the token drawn before it, and what follows the last free position does not go through it at all.

    Where the device can draw, a step's logits stay there until `Step.logits` is asked for; the tokens are the same.

    Args:
        first: logits of the first token, as `Prefix.read` gives them.
        count: N, target tokens of a row.
        seeds: one a row, instead of the sampling's for all.
        known: [B, N], negative where a token is to be drawn; None draws all.
        on_device: False draws on the host always.
    """
    cond, null = first
    if sampling.guided != (null is not None):
        raise ValueError("rows without text are needed with guidance, and only then")
    scales = sampling.scales(count)
    tokens = np.full((prefix.rows, count), -1, np.int32) if known is None else known.astype(np.int32)
    prefix.rewind(tokens)
    done = 0
    for position in np.flatnonzero((tokens < 0).any(axis=0)).tolist():
        guided, scale, own = bool(scales[position] > 1), float(scales[position]), tokens[:, position]
        found = None
        if position and on_device and prefix.draws:
            draw = Draw.prepare(sampling, position, prefix.rows, scale, seeds)
            found = prefix.draw(tokens, position, guided, draw)
        if found is not None:
            drawn, source = found
            own[:] = np.where(own < 0, drawn, own)
            step = Step(position, own[:, None], source)
        else:
            if position:
                cond, null = prefix.feed(tokens, position, guided)
            step = Step(position, own[:, None], guide(cond, null, scale) if guided and null is not None else cond)
        if position > done:
            yield Step(done, tokens[:, done:position].copy(), None)
        if (own < 0).any():  # the device could not tell, or did not draw
            assert step.logits is not None  # the step has a source
            own[:] = np.where(own < 0, pick_tokens(step.logits, sampling, position, seeds=seeds), own)
        step.tokens = step.tokens.copy()
        yield step
        done = position + 1
    if done < count:
        yield Step(done, tokens[:, done:].copy(), None)


def collect(
    steps: Iterator[Step], tokens: NDArray[np.int32], watchers: Iterable[Watcher] = (), cancel: Cancel | None = None
) -> int:
    """Run the loop to its end, or until it is cancelled: by `cancel`, or by a watcher that raises `Cancelled`.

    Args:
        tokens: [B, N], filled step by step; what is not reached stays as it is.
        watchers: called after every step with the step and the tokens so far.

    Returns:
        how many target positions are done.
    """
    done = 0
    try:
        for step in steps:
            tokens[:, step.position : step.stop] = step.tokens
            done = step.stop
            for watch in watchers:
                watch(step, tokens)
            if cancel is not None and cancel.is_set():
                break
    except Cancelled:
        pass
    return done


def progress_watcher(on_progress: Progress | None) -> list[Watcher]:
    """A watcher of the loop that tells a callback how far it is; none without a callback."""
    if on_progress is None:
        return []
    return [lambda step, tokens: on_progress(step.stop, tokens.shape[1])]


def score(backend: Backend, picture: Chunk, text: Floats, target_tokens: NDArray[np.int32]) -> Floats:
    """Logits [B, N, V] of every target position, the target tokens [B, N] being forced; one pass a row.

    Args:
        picture: of B rows, or of one for all.
        text: projected text [B or 1, T, D].
    """
    count, dim = target_tokens.shape[1], text.shape[2]
    pictures, length = len(picture.tokens), picture.tokens.shape[1] + text.shape[1]
    logits = []
    cache = backend.make_cache(1, length + count - 1)
    wanted = np.arange(length - 1, length - 1 + count, dtype=np.int32)
    for row, forced in enumerate(target_tokens):
        parts = (
            picture.row(row if pictures > 1 else 0),
            text_chunk(text[row : row + 1] if len(text) > 1 else text),
            Chunk(forced[None, :-1], np.zeros((1, 1, dim), np.float32)),  # the last token predicts nothing
        )
        tokens = np.concatenate([part.tokens for part in parts], axis=1)
        states = [np.broadcast_to(part.states, (1, part.tokens.shape[1], dim)) for part in parts]
        cache.lengths[:] = 0
        logits.append(cache.forward(tokens, np.concatenate(states, axis=1), wanted)[0].copy())
    return np.stack(logits)
