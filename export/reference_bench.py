"""The PyTorch model as a subject of `editar_rt.measure.bench`, for comparison with bundles in one run.

It decodes like the research code: both guidance rows through the complete prefix, then one step per token, with all
weights in one type. The compiled modes use torch.compile, which takes minutes before the first step.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from editar_rt.machine import read_bandwidth
from editar_rt.measure.bench import STEP, Plan, Timing
from export.checkpoint_reader import Checkpoint, build_transformer
from training.config import TransformerConfig
from training.models.transformer import KVCache

MODES: dict[str, tuple[torch.dtype, bool]] = {
    "fp32": (torch.float32, False),
    "bf16": (torch.bfloat16, False),
    "compiled-fp32": (torch.float32, True),
    "compiled-bf16": (torch.bfloat16, True),
}
ROWS = 2  # conditional and unconditional
SCALE, TOP_K = 3.0, 1000  # EditAR's


class ReferenceSubject:
    """A checkpoint's model in one of `MODES`, on a PyTorch device."""

    def __init__(self, checkpoint: Checkpoint[TransformerConfig], mode: str, device: str = "cpu") -> None:
        dtype, compiled = MODES[mode]
        self.mode, self.device = mode, torch.device(device)
        self.model = build_transformer(checkpoint).to(self.device, dtype)
        self.config = checkpoint.config
        forward: Callable[..., Tensor] = self.model.forward_chunk
        self._forward = torch.compile(forward, dynamic=True) if compiled else forward
        self._cache: KVCache | None = None

    @property
    def picture_tokens(self) -> int:
        return self.config.block_size

    def describe(self) -> dict[str, Any]:
        where = f"PyTorch {torch.__version__} ({self.device})"
        return {"name": f"PyTorch {self.mode}", "backend": where, "precision": self.mode, "rows": ROWS}

    def bytes_per_step(self, plan: Plan) -> int | None:
        layers = sum(p.nbytes for p in (*self.model.layers.parameters(), *self.model.output.parameters()))
        prefix = self.config.block_size + self.config.cls_token_num
        filled = plan.mean_cached(prefix, self.picture_tokens)
        element = self.model.output.weight.itemsize
        return layers + int(ROWS * filled * 2 * self.config.n_layer * self.config.dim * element)

    def read_bandwidth(self) -> float | None:
        return read_bandwidth(torch.get_num_threads()) if self.device.type == "cpu" else None

    def shared_bytes(self) -> int:
        return 0

    @torch.inference_mode()
    def run(self, plan: Plan) -> Iterator[Timing]:
        config, model = self.config, self.model
        generator = torch.Generator().manual_seed(0)
        states = torch.randn(1, config.cls_token_num, config.caption_dim, generator=generator)
        picture, filler = (
            torch.randint(config.vocab_size, (1, config.block_size), generator=generator).to(self.device)
            for _ in range(2)
        )
        dtype = model.output.weight.dtype
        self._cache = None  # its memory goes before the next one is made
        begun = self._now()
        text = model.project_text(states.to(self.device, dtype))
        both = torch.cat((model.embed_prefix(text, picture), model.embed_prefix(model.null_text(), picture)))
        cache = self._cache = model.make_cache(ROWS)
        logits = model.logits(self._forward(both, 0, cache)[:, -1])
        yield "prefill", self._now() - begun
        prefix = both.shape[1]
        fed = plan.positions(prefix, self.picture_tokens)
        if fed.start > prefix:
            known = model.tok_embeddings(filler[:, : fed.start - prefix]).expand(ROWS, -1, -1)
            self._forward(known, prefix, cache)
        for position in fed:
            begun = self._now()
            token = self._draw(logits)
            step = model.tok_embeddings(token)[:, None].expand(ROWS, -1, -1)
            logits = model.logits(self._forward(step, position, cache)[:, -1])
            yield STEP, self._now() - begun

    def _draw(self, logits: Tensor) -> Tensor:
        """One token by guidance and top-k, [1]."""
        cond, null = logits.chunk(2)
        guided = null + SCALE * (cond - null)
        smallest = guided.topk(min(TOP_K, guided.shape[-1])).values[:, -1:]
        return torch.multinomial(guided.masked_fill(guided < smallest, -torch.inf).softmax(-1), 1)[:, 0]

    def _now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()
