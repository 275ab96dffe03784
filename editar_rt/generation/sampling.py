"""From logits to tokens: guidance, temperature, top-k, top-p and one draw. Plain NumPy.

The draw of a token depends on its seed and its position alone, not on how many were drawn before it or what else is
in the batch: a picture gets the same tokens alone and among others, and skipping positions shifts nothing.
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np
from numpy.typing import NDArray

from editar_rt.arguments import is_finite, is_whole
from editar_rt.errors import NotFiniteError, OptionError
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
        good = is_finite(self.temperature) and self.temperature > 0
        _require(good, "temperature", "a finite number above 0", self.temperature)
        _require(is_whole(self.top_k) and self.top_k >= 0, "top_k", "0 (off) or more", self.top_k)
        _require(is_finite(self.top_p) and 0 < self.top_p <= 1, "top_p", "in (0, 1]", self.top_p)
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


def _require(good: object, name: str, allowed: str, value: object) -> None:
    if not good:
        raise OptionError(f"{name} must be {allowed}, got {value}")


def guide(cond: Logits, uncond: Logits, scale: float | Logits) -> Logits:
    """Classifier-free guidance of [..., V] logits; the scale is a number or broadcasts against them."""
    return uncond + np.asarray(scale, np.float32) * (cond - uncond)


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
        NotFiniteError: NaN or +∞ among the logits. −∞ is a token that is never drawn.
    """
    peak = float(logits.max())
    if not math.isfinite(peak):
        raise NotFiniteError(
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

    Philox 4×64 with ten rounds (Salmon et al., 2011), as NumPy has it: key = seed, counter = (0, 0, index, position),
    the top 53 bits of the first word. In Python's integers it takes half the time of making a NumPy generator.

    Args:
        seed: 0 to 2⁶⁴ − 1.
        index: which picture of several that share a seed; 0 for one alone.
        position: of the target token, 0 to N − 1.
    """
    c0, c1, c2, c3 = 1, 0, index, position  # NumPy counts up before it draws
    k0, k1 = seed, 0
    for _ in range(10):
        first, second = _MULTIPLIERS[0] * c0, _MULTIPLIERS[1] * c2
        c0, c1, c2, c3 = (second >> 64) ^ c1 ^ k0, second & _WORD, (first >> 64) ^ c3 ^ k1, first & _WORD
        k0, k1 = (k0 + _WEYL[0]) & _WORD, (k1 + _WEYL[1]) & _WORD
    return (c0 >> 11) * 2.0**-53


_WORD = 2**64 - 1
_MULTIPLIERS = 0xD2E7470EE14C6C93, 0xCA5A826395121157
_WEYL = 0x9E3779B97F4A7C15, 0xBB67AE8584CAA73B


def sample(logits: Logits, sampling: Sampling, number: float) -> int:
    """One token from one row [V], by the inverse of the cumulative distribution at `number` in [0, 1).

    Raises:
        NotFiniteError: NaN or +∞ among the logits.
    """
    if sampling.greedy:
        token = int(logits.argmax())
        if not math.isfinite(logits[token]):
            raise NotFiniteError("the decoder's logits are not finite; the engine or bundle is faulty")
        return token
    kept, probabilities = distribution(logits, sampling)
    cumulative = np.cumsum(probabilities)
    # Scaled by the last sum, which rounding may leave beside 1; side="right" never takes a probability of 0.
    place = int(np.searchsorted(cumulative, number * cumulative[-1], side="right"))
    return int(kept[min(place, len(kept) - 1)])


@dataclasses.dataclass(frozen=True)
class Draw:
    """The settings to draw tokens with, for P pictures of a batch: K positions of each, the last of its chunk."""

    cond: NDArray[np.int32]
    """[P], the place in the batch of each picture's row with the text."""
    uncond: NDArray[np.int32]
    """[P], the place of its row without the text; the same as `cond` where nothing is guided."""
    settings: tuple[Sampling, ...]
    """Of each picture."""
    scales: NDArray[np.float64]
    """[P, K], guidance; 1 is none."""
    numbers: NDArray[np.float64]
    """[P, K], in [0, 1): the random number of each draw."""

    def guided(self, logits: Logits) -> Logits:
        """Logits [R, K, V] of a batch's rows → those that are drawn from, [P, K, V]."""
        if len(self.settings) == 1:  # without copies
            with_text, without = (logits[int(at[0]) : int(at[0]) + 1] for at in (self.cond, self.uncond))
            scale = self.scales.astype(np.float32)[..., None]
            return with_text if self.cond[0] == self.uncond[0] else guide(with_text, without, scale)
        cond = logits[self.cond]
        alone = self.cond == self.uncond
        if alone.all():
            return np.asarray(cond)
        mixed = guide(cond, logits[self.uncond], self.scales.astype(np.float32)[..., None])
        if alone.any():
            mixed[alone] = cond[alone]
        return mixed

    def on_host(self, logits: Logits, drawn: NDArray[np.int32] | None = None) -> NDArray[np.int32]:
        """Tokens int32 [P, K] from a batch's logits [R, K, V].

        Args:
            drawn: tokens that a device has drawn already, [P, K]; negative ones are drawn here.
        """
        if drawn is not None and (drawn >= 0).all():
            return drawn
        guided, given = self.guided(logits), None if drawn is None else drawn.tolist()
        tokens = [
            [
                sample(own, settings, number) if given is None or given[picture][k] < 0 else given[picture][k]
                for k, (own, number) in enumerate(zip(guided[picture], numbers))
            ]
            for picture, (settings, numbers) in enumerate(zip(self.settings, self.numbers.tolist()))
        ]
        return np.asarray(tokens, np.int32)
