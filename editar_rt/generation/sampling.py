"""From logits to tokens: guidance, temperature, top-k, top-p and sampling, in plain NumPy.

The random number of a token depends only on its seed and its position, not on the number of tokens sampled before it or
on the rest of the batch: a picture gets the same tokens alone and in a batch, and skipping positions shifts nothing.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from editar_rt.arguments import is_finite, is_integer
from editar_rt.errors import NotFiniteError, OptionError
from editar_rt.generation import exact
from editar_rt.generation.guidance import Scale, Schedule, read_scale, scales_of
from editar_rt.generation.noise import CLOSE, NOISES, gumbel, nearly_gumbel, uniform, words

Logits = NDArray[np.float32]


EDITARS = {
    "cfg_scale": 3.0,
    "cfg_interval": -1,
    "temperature": 1.0,
    "top_k": 1000,
    "top_p": 1.0,
    "seed": 0,
    "greedy": False,
    "noise": "uniform",
}
"""The published model's sampling."""
NOT_GIVEN: Any = object()


@dataclasses.dataclass(frozen=True)
class Sampling:
    """How tokens are sampled. In an edit, fields that are not given are the bundle's defaults; elsewhere EditAR's.

    `dataclasses.replace` gives every field, so that none is left to the bundle.

    Raises:
        OptionError: a value outside the range of its field.
    """

    cfg_scale: Scale = NOT_GIVEN
    """Guidance: logits are uncond + cfg_scale · (cond − uncond). At 1 and below, the unconditional row is not run.

    A number, a `Schedule` or its text (`linear:1,5`), or a function of (position, N) that returns a number.
    """
    cfg_interval: int | tuple[int, int] = NOT_GIVEN
    """The guided tokens: (start, stop) means target tokens start to stop − 1.

    A single number follows EditAR: guidance stops after the decode step with this index, i.e. (0, cfg_interval + 2),
    because token 0 comes from the prefill. -1 never stops it.
    """
    temperature: float = NOT_GIVEN
    """Divides the logits after top-k; above 0."""
    top_k: int = NOT_GIVEN
    """Keep this many of the largest logits, and those equal to the last of them; 0 turns this off."""
    top_p: float = NOT_GIVEN
    """Keep the most likely tokens until their probabilities sum to more than this; 1 turns this off."""
    seed: int = NOT_GIVEN
    """0 to 2⁶⁴ − 1."""
    greedy: bool = NOT_GIVEN
    """Take the largest logit; temperature, top_k, top_p, seed and noise are then unused."""
    noise: str = NOT_GIVEN
    """How a seed draws from the distribution: `uniform` or `gumbel` (`generation/noise.py`). The same distribution, but
    other tokens for the same seed. Drafts hold more often with `gumbel`."""

    def __post_init__(self) -> None:
        fields = dataclasses.fields(self)
        names = tuple(field.name for field in fields if getattr(self, field.name) is not NOT_GIVEN)
        object.__setattr__(self, "_names_given", names)  # of no comparison
        for field in fields:
            if field.name not in names:
                object.__setattr__(self, field.name, EDITARS[field.name])
        object.__setattr__(self, "cfg_scale", read_scale(self.cfg_scale))
        for name in ("temperature", "top_p"):  # checked as they are used: NumPy has smaller numbers than float64's
            if is_finite(value := getattr(self, name)):
                object.__setattr__(self, name, float(value))
        if isinstance(self.cfg_interval, list | tuple):
            object.__setattr__(self, "cfg_interval", tuple(self.cfg_interval))
            good = len(self.cfg_interval) == 2 and all(map(is_integer, self.cfg_interval))
            good = good and 0 <= self.cfg_interval[0] < self.cfg_interval[1]
            _require(good, "cfg_interval", "-1 or more, or (start, stop) with 0 <= start < stop", self.cfg_interval)
        else:
            good = is_integer(self.cfg_interval) and self.cfg_interval >= -1
            _require(good, "cfg_interval", "-1 or more, or (start, stop)", self.cfg_interval)
        good = is_finite(self.temperature) and self.temperature > 0
        _require(good, "temperature", "a finite number above 0", self.temperature)
        _require(is_integer(self.top_k) and self.top_k >= 0, "top_k", "0 (off) or more", self.top_k)
        _require(is_finite(self.top_p) and 0 < self.top_p <= 1, "top_p", "in (0, 1]", self.top_p)
        _require(is_integer(self.seed) and 0 <= self.seed < 2**64, "seed", "0 to 2^64 - 1", self.seed)
        _require(isinstance(self.greedy, bool | np.bool_), "greedy", "True or False", self.greedy)
        good = isinstance(self.noise, str) and self.noise in NOISES
        _require(good, "noise", " or ".join(NOISES), f"{self.noise!r:.60}")
        # Convert NumPy's numbers to Python's, which JSON and seeds above 2⁶³ need.
        kinds = {"top_k": int, "seed": int, "greedy": bool}
        for name, kind in kinds.items():
            object.__setattr__(self, name, kind(getattr(self, name)))
        interval = self.cfg_interval
        integers = tuple(map(int, interval)) if isinstance(interval, tuple) else int(interval)
        object.__setattr__(self, "cfg_interval", integers)

    @property
    def given(self) -> dict[str, Any]:
        """The fields that the caller gave."""
        names: tuple[str, ...] = vars(self)["_names_given"]
        return {name: getattr(self, name) for name in names}

    @property
    def filters(self) -> tuple[float, int, float, bool, str]:
        """What turns guided logits and random numbers into a token; pictures that share it are sampled together."""
        return self.temperature, self.top_k, self.top_p, self.greedy, self.noise

    @property
    def guided(self) -> bool:
        """Whether any token may need the unconditional row."""
        scale = self.cfg_scale
        return callable(scale) or (scale.largest if isinstance(scale, Schedule) else float(scale)) > 1

    def scales(self, count: int) -> NDArray[np.float64]:
        """The guidance scale of every target token, [count]; 1, which means none, outside the interval.

        Raises:
            OptionError: a schedule of another length, or a function that returns a value out of range.
        """
        scales = scales_of(self.cfg_scale, count)
        start, stop = self.cfg_interval if isinstance(self.cfg_interval, tuple) else (0, self.cfg_interval + 2)
        if self.cfg_interval != -1:
            scales[:start] = scales[stop:] = 1
        return np.maximum(scales, 1)

    @classmethod
    def checked(cls, given: Sampling | None, usual: Sampling) -> Sampling:
        """The caller's sampling over the usual one; the usual one for None.

        Raises:
            OptionError: not a Sampling.
        """
        if given is None:
            return usual
        if not isinstance(given, cls):
            raise OptionError(f"sampling must be an editar_rt.Sampling, got {type(given).__name__}")
        return dataclasses.replace(usual, **given.given)

    def settings(self, count: int | None = None) -> dict[str, str | int | float | bool | list[int]]:
        """The fields as JSON values; `Sampling(**settings)` restores them.

        Args:
            count: N; a function given as `cfg_scale` is replaced by its values for this many tokens.
        """
        settings = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        if isinstance(self.cfg_interval, tuple):
            settings["cfg_interval"] = list(self.cfg_interval)
        if callable(self.cfg_scale):
            settings["cfg_scale"] = str(Schedule("values", tuple(scales_of(self.cfg_scale, count or 0).tolist())))
        elif isinstance(self.cfg_scale, Schedule):
            settings["cfg_scale"] = str(self.cfg_scale)
        return settings


def _require(good: object, name: str, allowed: str, value: object) -> None:
    if not good:
        raise OptionError(f"{name} must be {allowed}, got {value}")


def guide(cond: Logits, uncond: Logits, scale: float | Logits) -> Logits:
    """Classifier-free guidance of logits [..., V]; the scale is a number or broadcasts against them."""
    return uncond + np.asarray(scale, np.float32) * (cond - uncond)


def largest_tokens(logits: Logits, count: int) -> NDArray[np.intp]:
    """Indices of the `count` largest logits [V], ascending, with those equal to the last of them.

    Sorting all of them would dominate the time of sampling. The `count`-th largest maximum of disjoint groups is a
    lower bound of the `count`-th largest logit, so everything smaller is dropped before the sort.
    """
    size = logits.shape[0]
    if not 0 < count < size:
        return np.arange(size)
    candidates: NDArray[np.intp] = np.arange(size)
    groups = size // (2 * count)  # twice as many groups as `count` keep the bound tight
    if groups > 1:
        width = size // groups
        peaks = logits[: groups * width].reshape(groups, width).max(axis=0)
        candidates = np.flatnonzero(logits >= np.partition(peaks, width - count)[width - count])
    values = logits[candidates]
    threshold = np.partition(values, len(values) - count)[len(values) - count]
    return np.asarray(candidates[values >= threshold])


def finite_peak(logits: Logits) -> float:
    """The largest of logits [V].

    Raises:
        NotFiniteError: NaN or +∞ among them.
    """
    peak = float(logits.max())
    if not math.isfinite(peak):
        raise NotFiniteError(
            f"the decoder's logits are not finite (the largest is {peak}); the engine or bundle is faulty"
        )
    return peak


def candidates(logits: Logits, sampling: Sampling) -> tuple[NDArray[np.intp], NDArray[np.float64]]:
    """The tokens that top-k and then top-p keep of logits [V], ascending, and their weights, the largest of which is 1.

    Top-k looks at the logits before the temperature, which does not change their order. Top-p drops a token if the
    more likely ones already weigh more than `top_p` of all; the most likely token always stays.

    Raises:
        NotFiniteError: NaN or +∞ among the logits. −∞ marks a token that is never sampled.
    """
    peak = finite_peak(logits)
    kept = largest_tokens(logits, sampling.top_k)
    weights = weigh(logits[kept], sampling.temperature, peak)
    if sampling.top_p < 1:
        order = np.argsort(-weights, kind="stable")
        sums = np.cumsum(weights[order])
        # The sum of the more likely tokens: shifted, not subtracted, so that it is exactly 0 for the first.
        before = np.concatenate([[0.0], sums[:-1]])
        stay = np.sort(order[before <= sampling.top_p * sums[-1]])
        kept, weights = kept[stay], weights[stay]
    return kept, weights


def distribution(logits: Logits, sampling: Sampling) -> tuple[NDArray[np.intp], NDArray[np.float64]]:
    """`candidates` with probabilities in the place of weights.

    Raises:
        NotFiniteError: NaN or +∞ among the logits.
    """
    kept, weights = candidates(logits, sampling)
    return kept, np.asarray(weights / weights.sum())


def weigh(logits: Logits, temperature: float, peak: float | Logits) -> NDArray[np.float64]:
    """Unnormalized probabilities of logits: 1 for the peak.

    In float64: a running sum of 16384 float32 terms drifts by more than the smallest term, and any temperature above 0
    stays finite after the peak is subtracted.

    Args:
        peak: the largest logit; broadcasts against the logits.
    """
    return exact.exp(below_peak(logits, temperature, peak))


def below_peak(logits: Logits, temperature: float, peak: float | Logits) -> NDArray[np.float64]:
    """Logits after the temperature, less the peak's: 0 for the peak, −∞ where a low temperature leaves float64."""
    with np.errstate(over="ignore"):
        return np.asarray((logits.astype(np.float64) - peak) / temperature)


def softmax(logits: Logits) -> NDArray[np.float64]:
    """Probabilities of [K] logits at temperature 1."""
    weights = weigh(logits, 1.0, float(logits.max()))
    return np.asarray(weights / weights.sum())


def sample(logits: Logits, sampling: Sampling, number: float) -> int:
    """One token from logits [V]: the inverse of the cumulative distribution at `number` in [0, 1).

    The first candidate at which the running sum of the weights exceeds `number` times their total. Exact operations and
    sums in the order of the tokens: every runtime draws the same token from the same logits.

    Raises:
        NotFiniteError: NaN or +∞ among the logits.
    """
    if sampling.greedy:
        finite_peak(logits)
        return int(logits.argmax())
    kept, weights = candidates(logits, sampling)
    sums = np.cumsum(weights)
    # side="right" never selects a weight of 0.
    place = int(np.searchsorted(sums, number * sums[-1], side="right"))
    return int(kept[min(place, len(kept) - 1)])


def sample_alike(logits: Logits, sampling: Sampling, numbers: NDArray[np.float64]) -> list[int]:
    """`sample` for rows [M, V] that share their settings; bit by bit the same arithmetic, on all rows at once.

    That pays where top-k keeps a good part of the vocabulary. Otherwise, and where a row has ties or is not finite,
    rows are sampled one by one.

    Args:
        numbers: [M], in [0, 1).
    """
    (rows, size), kept = logits.shape, sampling.top_k
    if rows > 1 and not sampling.greedy and sampling.top_p == 1 and 0 < kept < size <= 4 * kept:
        peaks = logits.max(axis=1, keepdims=True)
        threshold = np.partition(logits, size - kept, axis=1)[:, size - kept, None]
        stay = logits >= threshold
        if np.isfinite(peaks).all() and (np.count_nonzero(stay, axis=1) == kept).all():
            flat = np.flatnonzero(stay)
            values = logits.ravel()[flat].reshape(rows, kept)
            sums = np.cumsum(weigh(values, sampling.temperature, peaks), axis=1)
            places = np.minimum((sums <= (numbers * sums[:, -1])[:, None]).sum(axis=1), kept - 1)
            begins = np.arange(rows)
            found: list[int] = (flat[begins * kept + places] - begins * size).tolist()
            return found
    return [sample(row, sampling, number) for row, number in zip(logits, numbers.tolist())]


def sample_with_gumbel(logits: Logits, sampling: Sampling, words: NDArray[np.uint64]) -> int:
    """One token from logits [V]: the candidate with the largest sum of its logit over the temperature and its noise.

    In float64, after the largest logit is subtracted; of equal sums the first token.

    Args:
        words: [V], random words of all tokens; noise is computed for the candidates only.

    Raises:
        NotFiniteError: NaN or +∞ among the logits.
    """
    if sampling.top_p < 1:
        kept, _ = candidates(logits, sampling)
        peak = float(logits.max())
    else:
        peak = finite_peak(logits)
        kept = largest_tokens(logits, sampling.top_k)
    sums = below_peak(logits[kept], sampling.temperature, peak)
    # The C library's logarithms are several times as fast as exact ones, which only the close ones need.
    rough = sums + nearly_gumbel(words[kept])
    close = np.flatnonzero(rough >= rough.max() - CLOSE)
    if len(close) > 1:
        close = close[[(sums[close] + gumbel(words[kept[close]])).argmax()]]
    return int(kept[close[0]])


@dataclasses.dataclass(frozen=True)
class Draw:
    """The sampling of one batch: P pictures, at the last K positions of each one's chunk."""

    cond: NDArray[np.int32]
    """[P], index in the batch of each picture's conditional row."""
    uncond: NDArray[np.int32]
    """[P], index of its unconditional row; equal to `cond` without guidance."""
    settings: tuple[Sampling, ...]
    """Sampling settings of each picture."""
    scales: NDArray[np.float64]
    """[P, K], guidance scales; 1 means no guidance."""
    seeds: tuple[int, ...]
    """[P], 0 to 2⁶⁴ − 1: the key of each picture's random numbers."""
    positions: tuple[int, ...]
    """[P], the first of the K target positions, 0 to N − 1."""

    @functools.cached_property
    def numbers(self) -> NDArray[np.float64]:
        """[P, K] in [0, 1): the random numbers of pictures that draw with uniform noise; 0 for the others."""
        count = self.scales.shape[1]
        numbers = np.zeros(self.scales.shape)
        for picture, (own, seed, start) in enumerate(zip(self.settings, self.seeds, self.positions)):
            if own.noise == "uniform" and not own.greedy:
                numbers[picture] = [uniform(seed, 0, position) for position in range(start, start + count)]
        return numbers

    def words(self, picture: int, place: int, vocabulary: int) -> NDArray[np.uint64]:
        """[V], the random words of a picture's K-th position, for Gumbel noise."""
        return words(self.seeds[picture], 0, self.positions[picture] + place, vocabulary)

    def guided(self, logits: Logits) -> Logits:
        """Logits [R, K, V] of a batch's rows → the guided logits of its pictures, [P, K, V]."""
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
            drawn: tokens that a device has sampled already, [P, K]; negative ones are sampled here.
        """
        if drawn is not None and (drawn >= 0).all():
            return drawn
        guided, tokens = self.guided(logits), np.empty(self.scales.shape, np.int32)
        alike: dict[tuple[Any, ...], list[int]] = {}
        for picture, own in enumerate(self.settings):
            alike.setdefault(own.filters, []).append(picture)
        for pictures in alike.values():
            sampling = self.settings[pictures[0]]
            if sampling.noise == "gumbel" and not sampling.greedy:
                for picture in pictures:
                    for place, row in enumerate(guided[picture]):
                        if drawn is None or drawn[picture, place] < 0:
                            own_words = self.words(picture, place, len(row))
                            tokens[picture, place] = sample_with_gumbel(row, sampling, own_words)
                continue
            rows = guided if len(alike) == 1 else guided[pictures]
            numbers = self.numbers[pictures]
            wanted = slice(None) if drawn is None else np.flatnonzero(drawn[pictures] < 0)
            found = np.empty(numbers.size, np.int32)
            found[wanted] = sample_alike(rows.reshape(-1, rows.shape[-1])[wanted], sampling, numbers.ravel()[wanted])
            tokens[pictures] = found.reshape(numbers.shape)
        return tokens if drawn is None else np.where(drawn < 0, tokens, drawn)
