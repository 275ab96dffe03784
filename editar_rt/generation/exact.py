"""Exponential and logarithm that give the same bits on every machine and in every language.

A library's `exp` and `log` differ in the last bit from one processor, C library or NumPy to the next. These are
sequences of single IEEE 754 operations in float64: sums, products and one quotient, each rounded to nearest, rounding
to an integer (half to even), and scaling by powers of two, which is exact. C++ has the same bits if its compiler does
not fuse products and sums (`-ffp-contract=off`). `tests/golden/exact.txt` lists bits.

Errors are below 1 unit in the last place (`exp`) and 1.5 units (`log`).
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

Doubles = NDArray[np.float64]

LOWEST = -700.0
"""`exp` is 0 below this, so that no result is subnormal."""

# ln 2 as a sum. The first has 43 bits, so that its product with an exponent of 10 bits is exact.
_LN2_HIGH = float.fromhex("0x1.62e42fefa38p-1")
_LN2_LOW = float.fromhex("0x1.ef35793c7673p-45")
_PER_LN2 = float.fromhex("0x1.71547652b82fep+0")
_ROOT_HALF = float.fromhex("0x1.6a09e667f3bcdp-1")
_EXP = [1 / math.factorial(n) for n in range(13, -1, -1)]  # Taylor: the next term is below 2^-57
_LOG = [2 / (2 * n + 1) for n in range(11, 0, -1)]  # of the inverse hyperbolic tangent, doubled; likewise


def exp(x: Doubles) -> Doubles:
    """e to the power of each x, which is at most 700; 0 below `LOWEST`.

    x = k · ln 2 + r with an integer k and |r| <= ln 2 / 2; e^x = 2^k · e^r.
    """
    bounded = np.maximum(x, LOWEST)
    k = np.rint(bounded * _PER_LN2)
    r = bounded - k * _LN2_HIGH
    r -= k * _LN2_LOW
    sums = np.full(r.shape, _EXP[0])
    for coefficient in _EXP[1:]:
        sums *= r
        sums += coefficient
    sums *= ((k.astype(np.int64) + 1023) << 52).view(np.float64)  # 2^k
    sums *= x >= LOWEST
    return sums


def log(x: Doubles) -> Doubles:
    """The natural logarithm of each x, a positive normal number.

    x = 2^k · (1 + f) with 1 + f between √½ and √2; log(1 + f) = 2 · artanh(s) with s = f / (2 + f).
    """
    fraction, exponent = np.frexp(x)
    low = fraction < _ROOT_HALF
    k = (exponent - low).astype(np.float64)
    f = np.where(low, fraction + fraction, fraction) - 1.0
    s = f / (f + 2.0)
    z = s * s
    sums = np.full(z.shape, _LOG[0])
    for coefficient in _LOG[1:]:
        sums *= z
        sums += coefficient
    sums *= z
    # 2 · artanh(s) = f − s · (f − 2 · (s² / 3 + s⁴ / 5 + …)), because 2 · s = f − s · f.
    tail: Doubles = (f - s * (f - sums)) + k * _LN2_LOW
    return k * _LN2_HIGH + tail
