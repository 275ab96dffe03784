"""From logits to tokens: guidance, temperature, top-k, top-p and one draw. Plain NumPy.

The draw of a token depends on its seed and its position alone, not on how many were drawn before it or what else is
in the batch: a picture gets the same tokens alone and among others, and skipping positions shifts nothing.
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np
from numpy.typing import NDArray

from editar_rt.errors import OptionError

Logits = NDArray[np.float32]


@dataclasses.dataclass(frozen=True)
class Sampling:
    """How tokens are chosen. The defaults are EditAR's.

    Raises:
        OptionError: for a value outside of what the field allows.
    """

    cfg_scale: float = 3.0
    """Guidance: logits are null + cfg_scale · (cond − null). At 1 and below the null row is not run."""
    cfg_interval: int = -1
    """Single steps after this one, counted from 0, go without guidance; -1 keeps it to the end."""
    temperature: float = 1.0
    """Logits are divided by this; above 0."""
    top_k: int = 1000
    """Only this many of the largest logits stay, and those tied with the last of them; 0 is off."""
    top_p: float = 1.0
    """The most likely tokens stay until their probabilities sum to more than this; 1 is off."""
    seed: int = 0
    """0 to 2⁶⁴ − 1."""
    greedy: bool = False
    """Take the largest logit; temperature, top_k, top_p and seed are unused then."""

    def __post_init__(self) -> None:
        _require(math.isfinite(self.cfg_scale) and self.cfg_scale >= 0, "cfg_scale", "0 or more", self.cfg_scale)
        _require(_whole(self.cfg_interval) and self.cfg_interval >= -1, "cfg_interval", "-1 or more", self.cfg_interval)
        _require(math.isfinite(self.temperature) and self.temperature > 0, "temperature", "above 0", self.temperature)
        _require(_whole(self.top_k) and self.top_k >= 0, "top_k", "0 (off) or more", self.top_k)
        _require(0 < self.top_p <= 1, "top_p", "in (0, 1]", self.top_p)
        _require(_whole(self.seed) and 0 <= self.seed < 2**64, "seed", "0 to 2^64 - 1", self.seed)

    @property
    def guided(self) -> bool:
        """Whether the null row is needed at all."""
        return self.cfg_scale > 1

    def guided_at(self, target: int) -> bool:
        """Whether target token `target` (0 from the prefill, then single steps) is drawn with guidance."""
        return self.guided and not 0 <= self.cfg_interval < target - 1


def _whole(value: object) -> bool:
    return isinstance(value, int | np.integer) and not isinstance(value, bool)


def _require(good: bool, name: str, allowed: str, value: object) -> None:
    if not good:
        raise OptionError(f"{name} must be {allowed}, got {value}")


def guide(cond: Logits, null: Logits, scale: float) -> Logits:
    """Classifier-free guidance of [..., V] logits."""
    return null + np.float32(scale) * (cond - null)


def kept_tokens(logits: Logits, top_k: int, top_p: float) -> NDArray[np.intp]:
    """Indices of the tokens of one row [V] that top-k and then top-p leave, in ascending order.

    Ties with the k-th largest logit all stay, as in the reference.
    """
    size = logits.shape[0]
    if 0 < top_k < size:
        threshold = np.partition(logits, size - top_k)[size - top_k]
        kept = np.flatnonzero(logits >= threshold)
    else:
        kept = np.arange(size)
    if top_p < 1:
        order = kept[np.argsort(-logits[kept], kind="stable")]
        probabilities = softmax(logits[order])
        before = np.cumsum(probabilities) - probabilities  # of the more likely ones: 0 for the first, which stays
        kept = np.sort(order[before <= top_p])
    return kept


def softmax(logits: Logits) -> NDArray[np.float64]:
    """Probabilities of [K] logits; in float64, so that their running sum is monotone to the last token."""
    weights = np.exp(logits.astype(np.float64) - logits.max())
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
    scaled = logits if sampling.temperature == 1 else logits / np.float32(sampling.temperature)
    kept = kept_tokens(scaled, sampling.top_k, sampling.top_p)
    cumulative = np.cumsum(softmax(scaled[kept]))
    place = int(np.searchsorted(cumulative, number * cumulative[-1], side="right"))
    return int(kept[min(place, len(kept) - 1)])


def pick_tokens(logits: Logits, sampling: Sampling, position: int) -> NDArray[np.int32]:
    """Tokens int32 [B] from guided logits [B, V] for target token `position`.

    Every row draws with the picture index 0: rows of a batch are independent pictures, each as it would be alone.
    """
    if sampling.greedy:
        return np.asarray(logits.argmax(axis=-1), np.int32)
    number = uniform(sampling.seed, 0, position)
    return np.asarray([draw(row, sampling, number) for row in logits], np.int32)
