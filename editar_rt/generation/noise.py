"""The random numbers of a token, from a counter-based generator keyed by seed, picture and position.

The generator is Philox 4×64 with ten rounds (Salmon et al., 2011), as NumPy has it: the key is the seed, and a block of
four words follows from a counter of four words. Two kinds of noise draw from a distribution:

- uniform: one number in [0, 1) for the inverse of the cumulative distribution, from the block (1, 0, index, position);
- Gumbel: one number per token of the vocabulary; the token with the largest sum of log-probability and noise is drawn.
  Token t has word t mod 4 of the block (t div 4 + 1, 0, index + 2³², position).

Both give the same distribution. Where two distributions are close to each other, Gumbel noise draws the same token from
both more often: all tokens keep their own noise, while a change of one probability shifts all later intervals of the
cumulative distribution. That is why it suits drafts, which are drawn from one distribution and verified with another.
"""

from __future__ import annotations

import functools

import numpy as np
from numpy.typing import NDArray

from editar_rt.generation import exact

NOISES = ("uniform", "gumbel")
CLOSE = 1e-9
"""Sums of logits and `nearly_gumbel` that differ by more are in the order of the exact sums; rounding is far less."""
_WORD = 2**64 - 1
_MULTIPLIERS = 0xD2E7470EE14C6C93, 0xCA5A826395121157
_WEYL = 0x9E3779B97F4A7C15, 0xBB67AE8584CAA73B


@functools.lru_cache(1024)
def uniform(seed: int, index: int, position: int) -> float:
    """The number in [0, 1) of one token: the top 53 bits of its word. In Python's integers it takes half the time of
    making a NumPy generator.

    Args:
        seed: 0 to 2⁶⁴ − 1.
        index: of the picture among several that share a seed, below 2³²; 0 for a single one.
        position: of the target token, 0 to N − 1.
    """
    c0, c1, c2, c3 = 1, 0, index, position  # NumPy counts up before it draws
    k0, k1 = seed, 0
    for _ in range(10):
        first, second = _MULTIPLIERS[0] * c0, _MULTIPLIERS[1] * c2
        c0, c1, c2, c3 = (second >> 64) ^ c1 ^ k0, second & _WORD, (first >> 64) ^ c3 ^ k1, first & _WORD
        k0, k1 = (k0 + _WEYL[0]) & _WORD, (k1 + _WEYL[1]) & _WORD
    return (c0 >> 11) * 2.0**-53


@functools.lru_cache(64)  # verifying drafts draws at most positions several times
def words(seed: int, index: int, position: int, vocabulary: int) -> NDArray[np.uint64]:
    """The words [V] of all tokens at one position, for Gumbel noise; read-only. Arguments as for `uniform`."""
    generator = np.random.Philox(key=seed, counter=[0, 0, index + 2**32, position])
    drawn = np.asarray(generator.random_raw(vocabulary), np.uint64)
    drawn.flags.writeable = False
    return drawn


def unit(words: NDArray[np.uint64]) -> NDArray[np.float64]:
    """Words as numbers between 0 and 1, neither of which is reached: the top 52 bits and a half, times 2⁻⁵².

    With 53 bits the half would be rounded away, and the largest word would be 1.
    """
    return ((words >> np.uint64(12)).astype(np.float64) + 0.5) * 2.0**-52


def nearly_gumbel(words: NDArray[np.uint64]) -> NDArray[np.float64]:
    """`gumbel` by the C library's logarithm: off by much less than half of `CLOSE`, differently on every machine."""
    return -np.log(-np.log(unit(words)))


def gumbel(words: NDArray[np.uint64]) -> NDArray[np.float64]:
    """Gumbel noise of words: −log(−log(u)) of `unit`, −3.6 to 36.8."""
    return -exact.log(-exact.log(unit(words)))
