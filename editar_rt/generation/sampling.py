"""From logits to tokens: guidance, temperature, top-k, top-p and one draw. Plain NumPy.

The draw of a token depends on its seed and its position alone, not on how many were drawn before it or what else is
in the batch: a picture gets the same tokens alone and among others, and skipping positions shifts nothing.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import TypeGuard

import numpy as np
from numpy.typing import NDArray

from editar_rt import names
from editar_rt.errors import BackendError, OptionError
from editar_rt.generation.guidance import Scale, Schedule, read_scale, scales_of

Logits = NDArray[np.float32]


@dataclasses.dataclass(frozen=True)
class Sampling:
    """How tokens are chosen. The defaults are EditAR's.

    Raises:
        OptionError: for a value outside of what the field allows.
    """

    cfg_scale: Scale = 3.0
    """Guidance: logits are null + cfg_scale · (cond − null). At 1 and below the null row is not run.

    A number, a `Schedule` or how one is written (`linear:1,5`), or a function of (position, N) that gives a number.
    """
    cfg_interval: int | tuple[int, int] = -1
    """Which tokens are guided: (start, stop) are target tokens start to stop − 1.

    EditAR's own spelling is one number: single steps after this one, counted from 0, go without guidance, which is
    (0, cfg_interval + 2), as token 0 comes from the prefill; -1 keeps it to the end.
    """
    temperature: float = 1.0
    """Logits are divided by this after top-k; above 0."""
    top_k: int = 1000
    """Only this many of the largest logits stay, and those tied with the last of them; 0 is off."""
    top_p: float = 1.0
    """The most likely tokens stay until their probabilities sum to more than this; 1 is off."""
    seed: int = 0
    """0 to 2⁶⁴ − 1."""
    greedy: bool = False
    """Take the largest logit; temperature, top_k, top_p and seed are unused then."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "cfg_scale", read_scale(self.cfg_scale))
        if isinstance(self.cfg_interval, list | tuple):
            object.__setattr__(self, "cfg_interval", tuple(self.cfg_interval))
            good = len(self.cfg_interval) == 2 and all(map(is_whole, self.cfg_interval))
            good = good and 0 <= self.cfg_interval[0] < self.cfg_interval[1]
            _require(good, "cfg_interval", "-1 or more, or (start, stop) with 0 <= start < stop", self.cfg_interval)
        else:
            good = is_whole(self.cfg_interval) and self.cfg_interval >= -1
            _require(good, "cfg_interval", "-1 or more, or (start, stop)", self.cfg_interval)
        good = _finite(self.temperature) and self.temperature > 0
        _require(good, "temperature", "a finite number above 0", self.temperature)
        _require(is_whole(self.top_k) and self.top_k >= 0, "top_k", "0 (off) or more", self.top_k)
        _require(_finite(self.top_p) and 0 < self.top_p <= 1, "top_p", "in (0, 1]", self.top_p)
        _require(is_whole(self.seed) and 0 <= self.seed < 2**64, "seed", "0 to 2^64 - 1", self.seed)
        _require(isinstance(self.greedy, bool | np.bool_), "greedy", "True or False", self.greedy)
        # Python's own types, which JSON and seeds above 2⁶³ need, whatever of NumPy's was given.
        kinds = {"temperature": float, "top_k": int, "top_p": float, "seed": int, "greedy": bool}
        for name, kind in kinds.items():
            object.__setattr__(self, name, kind(getattr(self, name)))
        interval = self.cfg_interval
        whole = tuple(map(int, interval)) if isinstance(interval, tuple) else int(interval)
        object.__setattr__(self, "cfg_interval", whole)

    @property
    def guided(self) -> bool:
        """Whether the null row may be needed at all."""
        scale = self.cfg_scale
        return callable(scale) or (scale.largest if isinstance(scale, Schedule) else float(scale)) > 1

    def scales(self, count: int) -> NDArray[np.float64]:
        """The guidance scale of every target token, [count]; 1, which is none, outside of the interval.

        Raises:
            OptionError: a schedule of another number of values, or a function that gives something else.
        """
        found = scales_of(self.cfg_scale, count)
        start, stop = self.cfg_interval if isinstance(self.cfg_interval, tuple) else (0, self.cfg_interval + 2)
        if self.cfg_interval != -1:
            found[:start] = found[stop:] = 1
        return np.maximum(found, 1)

    @classmethod
    def checked(cls, given: Sampling | None, usual: Sampling) -> Sampling:
        """What a caller gave; the usual one for None.

        Raises:
            OptionError: something else than a Sampling.
        """
        if given is not None and not isinstance(given, cls):
            raise OptionError(f"sampling must be an editar_rt.Sampling, got {type(given).__name__}")
        return given or usual

    def settings(self, count: int | None = None) -> dict[str, str | int | float | bool | list[int]]:
        """The fields as JSON has them; `Sampling(**settings)` is the same again.

        Args:
            count: N; a function as `cfg_scale` becomes the values that it gives for so many tokens.
        """
        found = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        if isinstance(self.cfg_interval, tuple):
            found["cfg_interval"] = list(self.cfg_interval)
        if callable(self.cfg_scale):
            found["cfg_scale"] = str(Schedule("values", tuple(scales_of(self.cfg_scale, count or 0).tolist())))
        elif isinstance(self.cfg_scale, Schedule):
            found["cfg_scale"] = str(self.cfg_scale)
        return found


def is_whole(value: object) -> TypeGuard[int]:
    """Whether a value is a whole number, Python's or NumPy's; True and False are none."""
    return isinstance(value, int | np.integer) and not isinstance(value, bool)


def _finite(value: object) -> bool:
    return isinstance(value, int | float | np.integer | np.floating) and math.isfinite(value)


def _require(good: object, name: str, allowed: str, value: object) -> None:
    if not good:
        raise OptionError(f"{name} must be {allowed}, got {value}")


def guide(cond: Logits, null: Logits, scale: float) -> Logits:
    """Classifier-free guidance of [..., V] logits."""
    return null + np.float32(scale) * (cond - null)


def largest_tokens(logits: Logits, count: int) -> NDArray[np.intp]:
    """Indices of the `count` largest of one row [V], ascending; those tied with the last of them stay too.

    A partial sort of the whole row is what a draw would spend most of its time on. Of the maxima of disjoint groups,
    the `count`-th largest is a lower bound of the row's own, so all that lies below it is gone before the sort.
    """
    size = logits.shape[0]
    if not 0 < count < size:
        return np.arange(size)
    candidates: NDArray[np.intp] = np.arange(size)
    groups = size // (2 * count)  # values a group; twice as many groups as are asked for keep the bound tight
    if groups > 1:
        width = size // groups
        peaks = logits[: groups * width].reshape(groups, width).max(axis=0)
        candidates = np.flatnonzero(logits >= np.partition(peaks, width - count)[width - count])
    values = logits[candidates]
    threshold = np.partition(values, len(values) - count)[len(values) - count]
    return np.asarray(candidates[values >= threshold])


def distribution(logits: Logits, sampling: Sampling) -> tuple[NDArray[np.intp], NDArray[np.float64]]:
    """What one row [V] is drawn from: the tokens that top-k and then top-p leave, ascending, and their probabilities.

    Top-k looks at the logits before the temperature, which does not change their order. Top-p drops a token when those
    more likely than it already sum to more than `top_p`; the most likely one always stays.

    Raises:
        BackendError: NaN or +∞ among the logits. −∞ is a token that is never drawn.
    """
    peak = float(logits.max())
    if not math.isfinite(peak):
        raise BackendError(
            f"the decoder's logits are not finite (the largest is {peak}); the engine or bundle is faulty"
        )
    kept = largest_tokens(logits, sampling.top_k)
    probabilities = softmax(logits[kept], sampling.temperature)
    if sampling.top_p < 1:
        order = np.argsort(-probabilities, kind="stable")
        # Sums of the more likely ones, shifted rather than subtracted: exactly 0 for the first.
        before = np.concatenate([[0.0], np.cumsum(probabilities[order])[:-1]])
        stay = np.sort(order[before <= sampling.top_p])
        kept, probabilities = kept[stay], probabilities[stay] / probabilities[stay].sum()
    return kept, probabilities


def softmax(logits: Logits, temperature: float = 1.0) -> NDArray[np.float64]:
    """Probabilities of [K] logits.

    In float64: a running sum of 16384 float32 terms drifts by more than the smallest of them, and any temperature
    above 0 stays finite once the largest logit is taken off. After top-k it costs microseconds.
    """
    weights = np.exp((logits.astype(np.float64) - logits.max()) / temperature)
    return np.asarray(weights / weights.sum())


def uniform(seed: int, index: int, position: int) -> float:
    """The random number in [0, 1) of one draw: a counter-based generator keyed by what is drawn.

    Args:
        seed: 0 to 2⁶⁴ − 1.
        index: which picture of several that share a seed; 0 for one alone.
        position: of the target token, 0 to N − 1.
    """
    generator = np.random.Philox(key=seed, counter=[0, 0, index, position])
    return float(int(generator.random_raw()) >> 11) * 2.0**-53


def draw(logits: Logits, sampling: Sampling, number: float) -> int:
    """One token from one row [V], by the inverse of the cumulative distribution at `number` in [0, 1)."""
    kept, probabilities = distribution(logits, sampling)
    cumulative = np.cumsum(probabilities)
    # Scaled by the last sum, which rounding may leave beside 1; side="right" never takes a probability of 0.
    place = int(np.searchsorted(cumulative, number * cumulative[-1], side="right"))
    return int(kept[min(place, len(kept) - 1)])


def pick_tokens(
    logits: Logits,
    sampling: Sampling,
    position: int,
    indices: Sequence[int] | None = None,
    seeds: Sequence[int] | None = None,
) -> NDArray[np.int32]:
    """Tokens int32 [B] from guided logits [B, V] for target token `position`.

    Args:
        indices: of each row's picture among those that share a seed. None is 0 for all: rows of a batch are
            independent pictures, each as it would be alone.
        seeds: of each row. None is the sampling's for all.

    Raises:
        BackendError: NaN or +∞ among the logits.
    """
    if sampling.greedy:
        tokens = np.asarray(logits.argmax(axis=-1), np.int32)
        largest = np.take_along_axis(logits, tokens[:, None], axis=-1)
        if not np.isfinite(largest).all():
            raise BackendError("the decoder's logits are not finite; the engine or bundle is faulty")
        return tokens
    numbers = _numbers(sampling, position, len(logits), indices, seeds)
    return np.asarray([draw(row, sampling, number) for row, number in zip(logits, numbers, strict=True)], np.int32)


def _numbers(
    sampling: Sampling, position: int, rows: int, indices: Sequence[int] | None, seeds: Sequence[int] | None
) -> list[float]:
    """The random number of each row."""
    keys = list(zip(seeds or [sampling.seed] * rows, indices or [0] * rows, strict=True))
    number_of = {key: uniform(*key, position) for key in set(keys)}  # rows mostly share theirs
    return [number_of[key] for key in keys]


@dataclasses.dataclass(frozen=True)
class Draw:
    """What one token of every picture is drawn with, for a device that has the logits: a sampler's inputs."""

    numbers: NDArray[np.float32]
    """[B], in [0, 1]."""
    cfg_scale: float
    temperature: float
    top_k: int
    """0 is off."""
    top_p: float

    @classmethod
    def prepare(
        cls, sampling: Sampling, position: int, rows: int, scale: float, seeds: Sequence[int] | None = None
    ) -> Draw:
        """For target token `position` of `rows` pictures, guided by `scale`; `seeds` as of `pick_tokens`."""
        if sampling.greedy:  # the first of the largest is what a number of 0 draws from them
            return cls(np.zeros(rows, np.float32), scale, 1.0, 1, 1.0)
        numbers = np.asarray(_numbers(sampling, position, rows, None, seeds))
        # In float64 a token of hardly any weight may be drawn with 0: of NaN a sampler says that it cannot tell.
        numbers[numbers == 0] = np.nan
        return cls(numbers.astype(np.float32), scale, sampling.temperature, sampling.top_k, sampling.top_p)

    @property
    def inputs(self) -> dict[str, NDArray[np.float32] | float]:
        """By the names of a sampler's inputs."""
        return {
            names.NUMBERS: self.numbers,
            names.CFG_SCALE: self.cfg_scale,
            names.TEMPERATURE: self.temperature,
            names.TOP_K: self.top_k,
            names.TOP_P: self.top_p,
        }

    def repeated(self, times: int) -> Draw:
        """For as many rows of each picture, one block of rows behind the other."""
        return dataclasses.replace(self, numbers=np.tile(self.numbers, times))

    def limited_to(self, most: int, vocabulary: int) -> Draw | None:
        """As a sampler takes it that sorts `most` logits of a vocabulary; None where the host must draw.

        That is a top-k above `most`, and top-p without a top-k.
        """
        limited = dataclasses.replace(self, top_k=0) if self.top_k >= vocabulary else self
        if limited.top_k > most or (limited.top_p < 1 and not limited.top_k and most < vocabulary):
            return None
        return limited
