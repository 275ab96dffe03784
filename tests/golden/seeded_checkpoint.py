"""Checkpoints in the official EditAR / LlamaGen layout whose values follow from the tensors' names alone.

The golden files hold what the reference implementation answers for exactly these weights.
"""

from __future__ import annotations

import hashlib

import numpy as np


def seeded(name: str, shape: tuple[int, ...], scale: float) -> np.ndarray:
    seed = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "little")
    rng = np.random.Generator(np.random.PCG64(seed))
    return rng.standard_normal(size=shape, dtype=np.float32) * np.float32(scale)


def value(prefix: str, key: str, shape: tuple[int, ...]) -> np.ndarray:
    name = prefix + key
    if key.endswith("codebook_used"):
        return np.zeros(shape, np.float32)
    if len(shape) == 1 and key.endswith("weight"):
        return 1 + seeded(name, shape, 0.1)
    if len(shape) == 1:
        return seeded(name, shape, 0.05)
    if len(shape) == 4:
        return seeded(name, shape, (shape[1] * shape[2] * shape[3]) ** -0.5)
    if "tok_embeddings" in key or "uncond" in key or key.endswith("quantize.embedding.weight"):
        return seeded(name, shape, 1.0)
    if key == "output.weight":
        return seeded(name, shape, 2.0 * shape[1] ** -0.5)
    return seeded(name, shape, shape[-1] ** -0.5)


def gpt_shapes(c: dict) -> dict[str, tuple[int, ...]]:
    d, v = c["dim"], c["vocab_size"]
    m = c.get("multiple_of", 256)
    h = int(2 * 4 * d / 3)
    h = h if h % m == 0 else h + m - h % m
    s = {
        "img_uncond_embedding": (c["block_size"], d),
        "cls_embedding.uncond_embedding": (120, c["caption_dim"]),
        "cls_embedding.cap_proj.fc1.weight": (d, c["caption_dim"]),
        "cls_embedding.cap_proj.fc2.weight": (d, d),
        "tok_embeddings.weight": (v, d),
    }
    for i in range(c["n_layer"]):
        p = f"layers.{i}."
        s |= {
            p + "attention.wqkv.weight": (3 * d, d),
            p + "attention.wo.weight": (d, d),
            p + "feed_forward.w1.weight": (h, d),
            p + "feed_forward.w3.weight": (h, d),
            p + "feed_forward.w2.weight": (d, h),
            p + "attention_norm.weight": (d,),
            p + "ffn_norm.weight": (d,),
        }
    return s | {"norm.weight": (d,), "output.weight": (v, d)}


def gpt_state(prefix: str, config: dict) -> dict[str, np.ndarray]:
    return {k: np.ascontiguousarray(value(prefix, k, s), np.float32) for k, s in gpt_shapes(config).items()}


def vq_state(shapes: dict[str, list[int]]) -> dict[str, np.ndarray]:
    return {k: np.ascontiguousarray(value("vq16/", k, tuple(s)), np.float32) for k, s in shapes.items()}


def main() -> None:
    import json
    import sys
    from pathlib import Path

    import torch

    name, out = sys.argv[1], sys.argv[2]
    spec = json.loads((Path(__file__).parent / f"{name}.json").read_text())
    state = vq_state(spec["shapes"]) if name == "vq16" else gpt_state(name + "/", spec["config"])
    torch.save({"model": {k: torch.from_numpy(v) for k, v in state.items()}}, out)


if __name__ == "__main__":
    main()
