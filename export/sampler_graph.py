"""The sampling head of the dialects for TensorRT: a graph that samples a step's tokens from its logits on the device.

It samples the same token as `editar_rt.generation.sampling` from the same logits and random numbers, or answers that it
cannot decide. The host sums in float64, which engines do not have, and an engine may compute guidance with one rounding
where NumPy has two. Therefore the graph bounds the effect of all roundings, and returns `names.UNCLEAR` if the choice,
or a limit of top-k or top-p, is closer to a boundary than that; then the host reads the logits and samples itself. All
other tokens equal the host's by construction, for any order of sums, given
- float32 sums, differences and products that are correctly rounded, fused or not,
- quotients with an error of at most 2 units in the last place, and
- exponentials with an error of at most 2 + 1.2 |x| of these, as CUDA guarantees even for its fast ones.
NaN and infinities make the bound NaN, for which all comparisons are false: the host then rejects these logits.

Settings are inputs, so that one engine serves all of them. Greedy is a top-k of 1 with the number 0. TensorRT can sort
only with TopK, with a constant k of at most 3840. Therefore `most` values are sorted: top-k is at most `most` or off,
and top-p needs a top-k. Running sums are computed in blocks, because TensorRT's CumSum is a loop over the tokens.

Shapes in comments: B rows, V vocabulary, M values sorted.
"""

from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir

from editar_rt import names
from export.graph_writer import FLOAT, INT32, GraphWriter

MOST = 1024  # number of values that are sorted; the whole vocabulary if it is smaller
BLOCK = 16  # terms per sum
UNIT = 2.0**-24  # largest relative error of rounding to float32
# Largest relative error of a weight exp(x), in UNIT (2 of them are one unit in the last place), as WEIGHT +
# WEIGHT_BY_EXPONENT · |x|:
#   exponential   4 + 2.4 |x|
#   quotient          4   |x|
#   difference        1   |x|
#   temperature       1   |x|
#   total         4 + 8.4 |x|, rounded up
WEIGHT, WEIGHT_BY_EXPONENT = 4.0, 9.0
LEAST = -100.0  # lower limit of exponents: weights of 1e-44 are negligible; the largest is 1
LARGE = 3e38
MARGIN = 1.1  # because the bound is computed with rounding too


def sampler_graph(vocab_size: int, most: int = MOST) -> ir.Model:
    """The graph over the logits of a step.

    Inputs: logits float32 [B, 1, V] and the sampler's inputs in `names`. Output: drawn int32 [B].

    Args:
        most: the largest supported top-k, at most `vocab_size`.
    """
    return _Sampler(vocab_size, min(most, vocab_size)).writer.model(ir_version=8)


class _Sampler:
    """The graph being written: guidance, top-k and top-p, the choice of the token, and the bound on rounding errors."""

    def __init__(self, size: int, most: int) -> None:
        self.writer = GraphWriter(names.SAMPLER, {"": 17}, {}, FLOAT)
        self.op, self.size, self.most = self.writer.op, size, most
        self.constants: dict[str, ir.Value] = {}
        op, writer = self.op, self.writer
        logits = writer.input(names.LOGITS, FLOAT, [names.ROWS_DIM, 1, size])
        uncond_rows = writer.input(names.NULL_ROWS, INT32, [names.ROWS_DIM])
        numbers = writer.input(names.NUMBERS, FLOAT, [names.ROWS_DIM])
        scale, self.temperature, top_p = (
            writer.input(name, FLOAT, [1]) for name in (names.CFG_SCALE, names.TEMPERATURE, names.TOP_P)
        )
        top_k = writer.input(names.TOP_K, INT32, [1])
        self.zero, self.one, self.large = (self.real(v) for v in (0, 1, LARGE))

        # Guidance, as `sampling.guide` writes it.
        cond = op.Reshape(logits, self.whole(-1, size))  # [B, V]
        uncond = op.Gather(cond, uncond_rows, axis=0)
        push = op.Mul(scale, op.Sub(cond, uncond))
        self.guided = op.Add(uncond, push)
        # Error bound of a guided logit, in units. A fused product is not rounded before it is added.
        off = op.Add(self.absolute(push), op.Mul(self.real(2), self.absolute(self.guided)))
        most_off = op.ReduceMax(off, axes=[1])  # [B, 1]
        self.near = op.Mul(self.real(4 * UNIT), most_off)

        # Top-k: keep the logits that are at least the k-th largest.
        sorted_, _ = op.TopK(self.guided, self.whole(most), axis=1, _outputs=2)  # [B, M]
        self.peak = op.Slice(sorted_, self.whole(0), self.whole(1), self.whole(1))  # [B, 1]
        whole_one = writer.constant([1], np.int32, "first")
        place = op.Sub(op.Max(top_k, whole_one), whole_one)
        is_off = op.Less(top_k, whole_one)
        least = op.Where(is_off, self.real(-LARGE), op.Gather(sorted_, place, axis=1))  # [B, 1]
        exponents = self.exponents(self.guided)
        self.weights = op.Exp(exponents)  # [B, V], 1 for the largest
        self.off = op.Add(  # error bound of each weight, in units
            op.Sub(self.real(WEIGHT), op.Mul(self.real(WEIGHT_BY_EXPONENT), exponents)),
            op.Div(op.Add(off, most_off), self.temperature),
        )
        kept = op.Where(op.LessOrEqual(least, self.guided), self.weights, self.zero)

        least, close = self._top_p(sorted_, least, kept, top_p)

        # The choice: the first token at which the running sum exceeds the number's share of the total.
        kept = op.Where(op.LessOrEqual(least, self.guided), kept, self.zero)
        sums, total = self.running_sums(kept, size)
        target = op.Mul(op.Unsqueeze(numbers, self.whole(1)), total)  # [B, 1]
        passed = op.LessOrEqual(sums, target)
        before = op.ReduceMax(op.Where(passed, sums, self.zero), axes=[1])
        after = op.ReduceMin(op.Where(passed, self.large, sums), axes=[1])
        # An empty sum is exactly 0.
        room = op.Where(op.LessOrEqual(before, self.zero), self.large, op.Sub(target, before))
        slack = self._slack(kept, total, least)
        clear = self.one
        for good in (
            op.Less(slack, room),
            op.Less(slack, op.Sub(after, target)),
            op.Less(close, self.real(0.5)),
        ):
            clear = op.Where(good, clear, self.zero)
        drawn = op.Where(op.Less(self.real(0.5), clear), self.count(passed), self.real(names.UNCLEAR))  # [B, 1]
        self.writer.output(op.Cast(op.Reshape(drawn, self.whole(-1)), to=INT32), names.DRAWN, INT32, [names.ROWS_DIM])

    def _top_p(self, sorted_: ir.Value, least: ir.Value, kept: ir.Value, top_p: ir.Value) -> tuple[ir.Value, ir.Value]:
        """(the least logit that top-p keeps, the number of sums too close to its boundary to decide), [B, 1] each."""
        op, most = self.op, self.most
        total = self.total(kept)
        listed = op.LessOrEqual(least, sorted_)  # [B, M]
        weights = op.Where(listed, op.Exp(self.exponents(sorted_)), self.zero)
        # The sum of the more likely tokens: shifted, not subtracted, so that it is exactly 0 for the first.
        before, _ = self.running_sums(self.shifted(weights, most), most)
        border = op.Mul(top_p, total)
        stays = op.LessOrEqual(before, border)
        last = op.ReduceMin(op.Where(stays, op.Where(listed, sorted_, self.peak), self.peak), axes=[1])
        slack = self._slack(kept, total, least)
        is_close = op.LessOrEqual(self.absolute(op.Sub(before, border)), slack)
        close = self.sum(op.Where(is_close, op.Where(listed, self.one, self.zero), self.zero))
        is_on = op.Less(top_p, self.one)
        return op.Where(is_on, last, least), op.Where(is_on, close, self.zero)

    def _slack(self, kept: ir.Value, total: ir.Value, least: ir.Value) -> ir.Value:
        """Bound on the rounding error of the difference between a running sum and a share of the total, [B, 1]."""
        op = self.op
        units = op.Add(op.Mul(self.real(2 * self.depth(self.size) + 4), total), self.sum(op.Mul(kept, self.off)))
        # Logits that rounding may move across the boundary. A single one is the boundary itself.
        at_border = op.LessOrEqual(self.absolute(op.Sub(self.guided, least)), self.near)
        at_risk = self.sum(op.Where(at_border, self.weights, self.zero))
        at_risk = op.Where(op.Less(self.real(1.5), self.count(at_border)), at_risk, self.zero)
        return op.Mul(self.real(MARGIN), op.Add(op.Mul(self.real(UNIT), units), at_risk))

    def exponents(self, logits: ir.Value) -> ir.Value:
        shifted = self.op.Div(self.op.Sub(logits, self.peak), self.temperature)
        return self.op.Max(shifted, self.real(LEAST))

    @staticmethod
    def depth(size: int) -> int:
        """Number of roundings in a running sum of `size` terms."""
        return BLOCK * max(1, math.ceil(math.log(size, BLOCK) - 1e-9))

    def running_sums(self, values: ir.Value, size: int) -> tuple[ir.Value, ir.Value]:
        """(running sums of values [B, size], the last of them [B, 1])."""
        sums = self._running_sums(values, size)
        return sums, self.op.Slice(sums, self.whole(size - 1), self.whole(size), self.whole(1))

    def _running_sums(self, values: ir.Value, size: int) -> ir.Value:
        op = self.op
        blocks = -(-size // BLOCK)
        width = BLOCK if blocks > 1 else size
        if blocks * width > size:
            values = op.Pad(values, self.whole(0, 0, 0, blocks * width - size))
        # Element-wise products and sums, not a matmul, which TF32 would round.
        inside = op.ReduceSum(
            op.Mul(op.Reshape(values, self.whole(-1, blocks, width, 1)), self.triangle(width)),
            self.whole(2),
            keepdims=0,
        )  # [B, blocks, width]
        if blocks > 1:
            last = op.Slice(inside, self.whole(width - 1), self.whole(width), self.whole(2))
            outside = self._running_sums(op.Reshape(last, self.whole(-1, blocks)), blocks)
            inside = op.Add(inside, op.Unsqueeze(self.shifted(outside, blocks), self.whole(2)))
        sums = op.Reshape(inside, self.whole(-1, blocks * width))
        if blocks * width > size:
            sums = op.Slice(sums, self.whole(0), self.whole(size), self.whole(1))
        return sums

    def total(self, values: ir.Value) -> ir.Value:
        """The sum of values [B, V], [B, 1], with no more roundings than the running sums."""
        size = self.size
        while size > 1:
            blocks = -(-size // BLOCK)
            if blocks * BLOCK > size:
                values = self.op.Pad(values, self.whole(0, 0, 0, blocks * BLOCK - size))
            values = self.op.ReduceSum(
                self.op.Reshape(values, self.whole(-1, blocks, BLOCK)), self.whole(2), keepdims=0
            )  # [B, blocks]
            size = blocks
        return values

    def shifted(self, values: ir.Value, size: int) -> ir.Value:
        """Values [B, size] shifted by one, with 0 first."""
        padded = self.op.Pad(values, self.whole(0, 1, 0, 0))
        return self.op.Slice(padded, self.whole(0), self.whole(size), self.whole(1))

    def absolute(self, value: ir.Value) -> ir.Value:
        return self.op.Max(value, self.op.Neg(value))

    def count(self, condition: ir.Value) -> ir.Value:
        """The number of true values in [B, n], [B, 1]."""
        return self.sum(self.op.Where(condition, self.one, self.zero))

    def sum(self, values: ir.Value) -> ir.Value:
        """The sum of [B, n], [B, 1]."""
        return self.op.ReduceSum(values, self.whole(1))

    def triangle(self, size: int) -> ir.Value:
        """[terms, sums], 1 where a term belongs to a running sum."""
        return self.constant(f"triangle_{size}", np.triu(np.ones((size, size), np.float32)))

    def real(self, value: float) -> ir.Value:
        return self.constant(f"real_{value:g}".replace("-", "minus_"), np.asarray(value, np.float32))

    def whole(self, *values: int) -> ir.Value:
        # Shapes, axes and bounds are int64 in ONNX; TensorRT reads such constants when it parses.
        name = "whole_" + "_".join(map(str, values))
        return self.constant(name.replace("-", "minus_"), np.asarray(values, np.int64))

    def constant(self, name: str, values: np.ndarray) -> ir.Value:
        if name not in self.constants:
            self.constants[name] = self.writer.constant(values, values.dtype, name)
        return self.constants[name]
