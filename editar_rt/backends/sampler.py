"""The inputs of a sampling head: a `Draw` in the types that a device takes."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from editar_rt import names
from editar_rt.generation.noise import unit
from editar_rt.generation.sampling import Draw, Sampling

BY_NOISE = -1.0
"""In the place of a random number: the noise decides."""
COLDEST, HOTTEST = float(np.finfo(np.float32).tiny), float(np.finfo(np.float32).max)
"""Temperatures that float32 has."""


class SamplerInputs(NamedTuple):
    """Inputs for R rows of logits with K positions, each with settings of its own."""

    uncond_rows: NDArray[np.int32]
    """[R], for each row, the index of its unconditional row; its own index without guidance."""
    numbers: NDArray[np.float32]
    """[R, K], in [0, 1], or `BY_NOISE`; NaN makes the sampler answer UNCLEAR."""
    cfg_scale: NDArray[np.float32]
    """[R, K], like the following."""
    temperature: NDArray[np.float32]
    top_k: NDArray[np.int32]
    """0 turns it off."""
    top_p: NDArray[np.float32]
    noise: NDArray[np.float32] | None = None
    """[R, K, V]; None if no number is `BY_NOISE`."""

    @classmethod
    def unused(cls, rows: int, positions: int) -> SamplerInputs:
        """Inputs of rows whose tokens are not used."""
        shape = (rows, positions)
        real, integers = np.ones(shape, np.float32), np.ones(shape, np.int32)
        uncond = np.arange(rows, dtype=np.int32)
        return cls(uncond, np.zeros(shape, np.float32), real, real.copy(), integers, real.copy())

    def set(self, row: int, sampling: Sampling, most: int, vocabulary: int) -> bool:
        """Set one row's sampling, except scale and numbers. Returns False if the host must sample instead.

        The host samples for a top-k above `most`, which is how many logits the sampler sorts, for top-p without a
        top-k, and for a temperature that float32 does not have.
        """
        if sampling.greedy:  # the number 0 selects the first of the largest
            return True
        top_k = 0 if sampling.top_k >= vocabulary else sampling.top_k
        if top_k > most or (sampling.top_p < 1 and not top_k and most < vocabulary):
            return False
        if not COLDEST <= sampling.temperature <= HOTTEST:
            return False
        self.temperature[row], self.top_k[row], self.top_p[row] = sampling.temperature, top_k, sampling.top_p
        return True

    @classmethod
    def of(cls, draw: Draw, rows: int, most: int, vocabulary: int) -> SamplerInputs | None:
        """Inputs for a batch of `rows` rows; None if the host must sample for some picture."""
        positions = draw.scales.shape[1]
        inputs = cls.unused(rows, positions)
        noise: NDArray[np.float32] | None = None
        for picture, (row, sampling) in enumerate(zip(draw.cond.tolist(), draw.settings)):
            if not inputs.set(row, sampling, most, vocabulary):
                return None
            if sampling.greedy:
                continue
            if sampling.noise == "gumbel":
                noise = np.zeros((rows, positions, vocabulary), np.float32) if noise is None else noise
                for place in range(positions):
                    noise[row, place] = rounded_gumbel(draw.words(picture, place, vocabulary))
                inputs.numbers[row] = BY_NOISE
            else:
                numbers = draw.numbers[picture]
                # 0 could select a token of negligible weight in float64; NaN makes the sampler answer UNCLEAR.
                inputs.numbers[row] = np.where(numbers == 0, np.nan, numbers)
        inputs.uncond_rows[draw.cond] = draw.uncond
        inputs.cfg_scale[draw.cond] = draw.scales
        return inputs._replace(noise=noise)

    def among(self, rows: int, skipped: int, positions: int) -> SamplerInputs:
        """The same inputs for an engine of `rows` rows, of which the first `skipped` are unused, and `positions`."""
        whole = self.unused(rows, positions)
        taken = slice(skipped, skipped + len(self.numbers)), slice(self.numbers.shape[1])
        whole.uncond_rows[taken[0]] = self.uncond_rows + skipped
        for there, here in zip(whole[1:6], self[1:6]):
            there[taken] = here
        noise = self.noise
        if noise is not None:
            noise = np.zeros((rows, positions, noise.shape[2]), np.float32)
            noise[taken] = self.noise
        return whole._replace(noise=noise)

    def arrays(self) -> dict[str, NDArray[Any]]:
        """The arrays by the names of a sampler's inputs; the noise only if there is some."""
        given = {
            names.NULL_ROWS: self.uncond_rows,
            names.NUMBERS: self.numbers,
            names.CFG_SCALE: self.cfg_scale,
            names.TEMPERATURE: self.temperature,
            names.TOP_K: self.top_k,
            names.TOP_P: self.top_p,
        }
        return given if self.noise is None else {**given, names.NOISE: self.noise}


def rounded_gumbel(words: NDArray[np.uint64]) -> NDArray[np.float32]:
    """`noise.gumbel` in float32, by the C library's logarithm, which is several times as fast.

    Its last bits may differ. The sampler's bound allows for an error of two roundings to float32.
    """
    return np.asarray(-np.log(-np.log(unit(words))), np.float32)
