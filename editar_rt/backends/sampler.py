"""The inputs of a sampling head: a `Draw` in the types that a device takes."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from editar_rt import names
from editar_rt.generation.sampling import Draw, Sampling


class SamplerInputs(NamedTuple):
    """Inputs for R rows of logits. All rows share the same settings."""

    uncond_rows: NDArray[np.int32]
    """[R], for each row, the index of its unconditional row; its own index without guidance."""
    numbers: NDArray[np.float32]
    """[R], in [0, 1]; NaN makes the sampler answer UNCLEAR."""
    cfg_scale: float
    temperature: float
    top_k: int
    """0 turns it off."""
    top_p: float

    @classmethod
    def prepare(
        cls, sampling: Sampling, scale: float, number: float, uncond_rows: NDArray[np.int32], most: int, vocabulary: int
    ) -> SamplerInputs | None:
        """Inputs for one picture's settings, with the same number for all rows.

        Args:
            scale: guidance, 1 or above.
            number: in [0, 1).
            most: the largest top-k of the sampler, which sorts this many logits.

        Returns:
            None if the host must sample: for a top-k above `most`, and for top-p without a top-k.
        """
        if sampling.greedy:  # the number 0 selects the first of the largest
            return cls(uncond_rows, np.zeros(len(uncond_rows), np.float32), scale, 1.0, 1, 1.0)
        top_k = 0 if sampling.top_k >= vocabulary else sampling.top_k
        if top_k > most or (sampling.top_p < 1 and not top_k and most < vocabulary):
            return None
        # 0 could select a token of negligible weight in float64; NaN makes the sampler answer UNCLEAR.
        numbers = np.full(len(uncond_rows), number or np.nan, np.float32)
        return cls(uncond_rows, numbers, scale, sampling.temperature, top_k, sampling.top_p)

    @classmethod
    def of(cls, draw: Draw, rows: int, most: int, vocabulary: int) -> SamplerInputs | None:
        """Inputs for a batch of `rows` rows; None if the host must sample, for example because settings differ."""
        first, scale = draw.settings[0], float(draw.scales[0, 0])
        if any(each.filters != first.filters for each in draw.settings) or (draw.scales != scale).any():
            return None
        inputs = cls.prepare(first, scale, 0.5, np.arange(rows, dtype=np.int32), most, vocabulary)
        if inputs is None or first.greedy:
            numbers = np.zeros(len(draw.settings), np.float32)
        else:
            numbers = np.where(draw.numbers[:, 0] == 0, np.nan, draw.numbers[:, 0]).astype(np.float32)
        if inputs is not None:
            inputs.uncond_rows[draw.cond] = draw.uncond
            inputs.numbers[draw.cond] = numbers
        return inputs

    def among(self, rows: int, skipped: int) -> SamplerInputs:
        """The same inputs for an engine of `rows` rows, of which the first `skipped` are unused."""
        uncond = np.arange(rows, dtype=np.int32)
        numbers = np.zeros(rows, np.float32)
        taken = slice(skipped, skipped + len(self.numbers))
        uncond[taken], numbers[taken] = self.uncond_rows + skipped, self.numbers
        return self._replace(uncond_rows=uncond, numbers=numbers)

    def arrays(self) -> dict[str, NDArray[Any]]:
        """The arrays by the names of a sampler's inputs."""
        return {
            names.NULL_ROWS: self.uncond_rows,
            names.NUMBERS: self.numbers,
            names.CFG_SCALE: np.asarray([self.cfg_scale], np.float32),
            names.TEMPERATURE: np.asarray([self.temperature], np.float32),
            names.TOP_K: np.asarray([self.top_k], np.int32),
            names.TOP_P: np.asarray([self.top_p], np.float32),
        }
