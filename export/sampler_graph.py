"""The sampling head of the dialects for TensorRT: a graph that samples from the decoder's logits on the device.

It samples the same token as `editar_rt.generation.sampling` from the same logits and random numbers, or answers that it
cannot decide. The host computes in float64, which engines do not have, and an engine may compute guidance with one
rounding where NumPy has two. Therefore the graph bounds the effect of all roundings, and returns `names.UNCLEAR` if the
choice, or a limit of top-k or top-p, is closer to a boundary than that; then the host reads the logits and samples
itself. All other tokens equal the host's by construction, for any order of sums, given
- float32 sums, differences and products that are correctly rounded, fused or not,
- quotients with an error of at most 2 units in the last place, and
- exponentials with an error of at most 2 + 1.2 |x| of these, as CUDA guarantees even for its fast ones.
NaN and infinities make the bound NaN, for which all comparisons are false: the host then rejects these logits.

Settings are inputs, for each row and position, so that one engine serves all of them and pictures that differ in them.
Greedy is a top-k of 1 with the number 0. A negative number means that the noise decides: the candidate with the largest
sum of its logit and its noise. TensorRT can sort only with TopK, with a constant k of at most 3840. Therefore `most`
values are sorted: top-k is at most `most` or off, and top-p needs a top-k. Running sums are computed in blocks, because
TensorRT's CumSum is a loop over the tokens.

Shapes in comments: B rows, K positions, V vocabulary, M values sorted.
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
    """The graph over the logits of a step, or of a chunk whose drafts are verified.

    Inputs: logits float32 [B, K, V] and the sampler's inputs in `names`. Output: drawn int32 [B, K].

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
        drawn_shape = [names.ROWS_DIM, names.POSITIONS_DIM]
        logits = writer.input(names.LOGITS, FLOAT, [*drawn_shape, size])
        uncond_rows = writer.input(names.NULL_ROWS, INT32, [names.ROWS_DIM])
        settings = [
            op.Unsqueeze(writer.input(name, FLOAT, drawn_shape), self.whole(2))  # [B, K, 1]
            for name in (names.NUMBERS, names.CFG_SCALE, names.TEMPERATURE, names.TOP_P)
        ]
        numbers, scale, self.temperature, top_p = settings
        top_k = op.Cast(writer.input(names.TOP_K, INT32, drawn_shape), to=FLOAT)  # at most `most`: exact
        top_k = op.Unsqueeze(top_k, self.whole(2))
        noise = writer.input(names.NOISE, FLOAT, [*drawn_shape, size])
        self.zero, self.one, self.large = (self.real(v) for v in (0, 1, LARGE))

        # Guidance, as `sampling.guide` writes it.
        uncond = op.Gather(logits, uncond_rows, axis=0)  # [B, K, V]
        push = op.Mul(scale, op.Sub(logits, uncond))
        self.guided = op.Add(uncond, push)
        # Error bound of a guided logit, in units. A fused product is not rounded before it is added.
        off = op.Add(self.absolute(push), op.Mul(self.real(2), self.absolute(self.guided)))
        most_off = op.ReduceMax(off, axes=[2])  # [B, K, 1]
        self.near = op.Mul(self.real(4 * UNIT), most_off)

        # Top-k: keep the logits that are at least the k-th largest.
        sorted_, _ = op.TopK(self.guided, self.whole(most), axis=2, _outputs=2)  # [B, K, M]
        self.peak = op.Slice(sorted_, self.whole(0), self.whole(1), self.whole(2))  # [B, K, 1]
        ranks = self.constant("ranks", np.arange(most, dtype=np.float32)[None, None])
        among = op.Where(op.Less(ranks, top_k), sorted_, self.peak)
        is_off = op.Less(top_k, self.real(0.5))
        least = op.Where(is_off, self.real(-LARGE), op.ReduceMin(among, axes=[2]))  # [B, K, 1]
        exponents = self.exponents(self.guided)
        self.weights = op.Exp(exponents)  # [B, K, V], 1 for the largest
        self.off = op.Add(  # error bound of each weight, in units
            op.Sub(self.real(WEIGHT), op.Mul(self.real(WEIGHT_BY_EXPONENT), exponents)),
            op.Div(op.Add(off, most_off), self.temperature),
        )
        kept = op.Where(op.LessOrEqual(least, self.guided), self.weights, self.zero)

        least, close = self._top_p(sorted_, least, kept, top_p)

        # The choice by number: the first token at which the running sum exceeds the number's share of the total.
        kept = op.Where(op.LessOrEqual(least, self.guided), kept, self.zero)
        sums, total = self.running_sums(kept, size)
        target = op.Mul(numbers, total)  # [B, K, 1]
        passed = op.LessOrEqual(sums, target)
        before = op.ReduceMax(op.Where(passed, sums, self.zero), axes=[2])
        after = op.ReduceMin(op.Where(passed, self.large, sums), axes=[2])
        # An empty sum is exactly 0.
        room = op.Where(op.LessOrEqual(before, self.zero), self.large, op.Sub(target, before))
        slack = self._slack(kept, total, least)
        by_number = self.where_all(self.count(passed), op.Less(slack, room), op.Less(slack, op.Sub(after, target)))

        by_noise = self._by_noise(op.Add(exponents, noise), noise, least)
        drawn = op.Where(op.Less(numbers, self.zero), by_noise, by_number)
        # The slack is NaN where logits are not finite.
        drawn = self.where_all(drawn, op.Less(close, self.real(0.5)), op.Less(slack, self.large))  # [B, K, 1]
        self.writer.output(op.Cast(op.Reshape(drawn, self.whole(0, 0)), to=INT32), names.DRAWN, INT32, drawn_shape)

    def _by_noise(self, sums: ir.Value, noise: ir.Value, least: ir.Value) -> ir.Value:
        """The candidate with the largest sum of logit and noise, or UNCLEAR, [B, K, 1].

        Args:
            sums: exponents and noise, [B, K, V].
        """
        op = self.op
        # Error bound of each sum: the exponent's is below that of its weight; the sum and the noise are rounded once.
        units = op.Add(self.off, op.Mul(self.real(3), self.absolute(noise)))
        bound = op.Mul(self.real(MARGIN * UNIT), units)
        kept = op.LessOrEqual(least, self.guided)
        best = op.ReduceMax(op.Where(kept, sums, self.real(-LARGE)), axes=[2])  # [B, K, 1]
        is_best = op.LessOrEqual(best, op.Where(kept, sums, self.real(-LARGE)))
        lower = op.Sub(best, op.ReduceMax(op.Where(is_best, bound, self.zero), axes=[2]))
        # All others that rounding may leave among the candidates.
        possible = op.LessOrEqual(op.Sub(least, self.near), self.guided)
        others = op.Where(is_best, self.real(-LARGE), op.Add(sums, bound))
        others = op.ReduceMax(op.Where(possible, others, self.real(-LARGE)), axes=[2])
        # The best itself must be a candidate: not at a boundary that it shares with others.
        logit = op.ReduceMax(op.Where(is_best, self.guided, self.real(-LARGE)), axes=[2])
        far = op.Where(op.Less(self.real(1.5), self.count(self.at_border(least))), op.Sub(logit, least), self.large)
        tokens = self.constant("tokens", np.arange(self.size, dtype=np.float32)[None, None])
        chosen = self.sum(op.Where(is_best, tokens, self.zero))
        return self.where_all(
            chosen,
            op.Less(others, lower),
            op.Less(self.near, far),
            op.Less(self.count(is_best), self.real(1.5)),
        )

    def at_border(self, least: ir.Value) -> ir.Value:
        """Logits that rounding may move across the boundary, [B, K, V]. A single one is the boundary itself."""
        return self.op.LessOrEqual(self.absolute(self.op.Sub(self.guided, least)), self.near)

    def where_all(self, token: ir.Value, *conditions: ir.Value) -> ir.Value:
        """The token where all conditions hold; otherwise UNCLEAR, [B, K, 1]."""
        for condition in conditions:
            token = self.op.Where(condition, token, self.real(names.UNCLEAR))
        return token

    def _top_p(self, sorted_: ir.Value, least: ir.Value, kept: ir.Value, top_p: ir.Value) -> tuple[ir.Value, ir.Value]:
        """(the least logit that top-p keeps, how many sums are too close to its boundary to decide), [B, K, 1] each."""
        op, most = self.op, self.most
        total = self.total(kept)
        listed = op.LessOrEqual(least, sorted_)  # [B, K, M]
        weights = op.Where(listed, op.Exp(self.exponents(sorted_)), self.zero)
        # The sum of the more likely tokens: shifted, not subtracted, so that it is exactly 0 for the first.
        before, _ = self.running_sums(self.shifted(weights, most), most)
        border = op.Mul(top_p, total)
        stays = op.LessOrEqual(before, border)
        last = op.ReduceMin(op.Where(stays, op.Where(listed, sorted_, self.peak), self.peak), axes=[2])
        slack = self._slack(kept, total, least)
        is_close = op.LessOrEqual(self.absolute(op.Sub(before, border)), slack)
        close = self.sum(op.Where(is_close, op.Where(listed, self.one, self.zero), self.zero))
        is_on = op.Less(top_p, self.one)
        return op.Where(is_on, last, least), op.Where(is_on, close, self.zero)

    def _slack(self, kept: ir.Value, total: ir.Value, least: ir.Value) -> ir.Value:
        """Bound on the rounding error of the difference between a running sum and a share of the total, [B, K, 1]."""
        op = self.op
        units = op.Add(op.Mul(self.real(2 * self.depth(self.size) + 4), total), self.sum(op.Mul(kept, self.off)))
        at_border = self.at_border(least)
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
        """(running sums of values [B, K, size], the last of them [B, K, 1])."""
        sums = self._running_sums(values, size)
        return sums, self.op.Slice(sums, self.whole(size - 1), self.whole(size), self.whole(2))

    def _running_sums(self, values: ir.Value, size: int) -> ir.Value:
        op = self.op
        blocks = -(-size // BLOCK)
        width = BLOCK if blocks > 1 else size
        if blocks * width > size:
            values = op.Pad(values, self.whole(0, 0, 0, 0, 0, blocks * width - size))
        # Element-wise products and sums, not a matmul, which TF32 would round. A 0 keeps the dimension.
        inside = op.ReduceSum(
            op.Mul(op.Reshape(values, self.whole(0, 0, blocks, width, 1)), self.triangle(width)),
            self.whole(3),
            keepdims=0,
        )  # [B, K, blocks, width]
        if blocks > 1:
            last = op.Slice(inside, self.whole(width - 1), self.whole(width), self.whole(3))
            outside = self._running_sums(op.Reshape(last, self.whole(0, 0, blocks)), blocks)
            inside = op.Add(inside, op.Unsqueeze(self.shifted(outside, blocks), self.whole(3)))
        sums = op.Reshape(inside, self.whole(0, 0, blocks * width))
        if blocks * width > size:
            sums = op.Slice(sums, self.whole(0), self.whole(size), self.whole(2))
        return sums

    def total(self, values: ir.Value) -> ir.Value:
        """The sum of values [B, K, V], [B, K, 1], with no more roundings than the running sums."""
        size = self.size
        while size > 1:
            blocks = -(-size // BLOCK)
            if blocks * BLOCK > size:
                values = self.op.Pad(values, self.whole(0, 0, 0, 0, 0, blocks * BLOCK - size))
            values = self.op.ReduceSum(
                self.op.Reshape(values, self.whole(0, 0, blocks, BLOCK)), self.whole(3), keepdims=0
            )  # [B, K, blocks]
            size = blocks
        return values

    def shifted(self, values: ir.Value, size: int) -> ir.Value:
        """Values [B, K, size] shifted by one, with 0 first."""
        padded = self.op.Pad(values, self.whole(0, 0, 1, 0, 0, 0))
        return self.op.Slice(padded, self.whole(0), self.whole(size), self.whole(2))

    def absolute(self, value: ir.Value) -> ir.Value:
        return self.op.Max(value, self.op.Neg(value))

    def count(self, condition: ir.Value) -> ir.Value:
        """The number of true values in [B, K, n], [B, K, 1]."""
        return self.sum(self.op.Where(condition, self.one, self.zero))

    def sum(self, values: ir.Value) -> ir.Value:
        """The sum of [B, K, n], [B, K, 1]."""
        return self.op.ReduceSum(values, self.whole(2))

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
