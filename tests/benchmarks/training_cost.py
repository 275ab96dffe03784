"""What training's shortcuts save: each beside what it replaced, in turns, in one process.

OMP_NUM_THREADS=1 python -m tests.benchmarks.training_cost

A line a comparison: the median of the seconds before and after, and their ratio. Turns are taken one after the other,
so that what else the machine does meanwhile falls on both.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from training.batches import draw
from training.config import TransformerConfig
from training.engine import Coming
from training.models.transformer import Transformer, causal_mask

TURNS = 5
RECORDS = 3_000_000
# One layer of GPT-B's width on full-size pictures: 1024 tokens each, 120 positions of text.
LAYER = TransformerConfig(dim=768, n_layer=1, n_head=12, vocab_size=64, caption_dim=64)


def compare(name: str, before: Callable[[], object], after: Callable[[], object]) -> None:
    seconds: tuple[list[float], list[float]] = ([], [])
    for work in (before, after):  # the first call of each warms up
        work()
    for _ in range(TURNS):
        for work, taken in zip((before, after), seconds):
            begun = time.perf_counter()
            work()
            taken.append(time.perf_counter() - begun)
    old, new = map(statistics.median, seconds)
    print(f"{name:<60} {old:9.4f} s {new:9.4f} s  {old / new:8.2f} times", flush=True)


def shuffled_anew(seed: int, first: int, count: int, size: int) -> np.ndarray:
    """As epochs were drawn: a whole permutation a step."""
    indices = np.arange(first, first + count)
    orders = {e: np.random.default_rng([seed, int(e)]).permutation(size) for e in np.unique(indices // size)}
    return np.asarray([orders[i // size][i % size] for i in indices])


def train_once(model: Transformer, rows: int, shared: bool, null: bool | None) -> None:
    """A forward and a backward pass.

    Args:
        shared: as every batch was run: pictures once, handed out to their rows, attention with a mask.
        null: whether a dropped picture is run too.
    """
    config = model.config
    tokens = torch.zeros(rows, config.block_size, dtype=torch.long)
    states, keep = torch.zeros(rows, config.cls_token_num, config.caption_dim), torch.zeros(rows, dtype=torch.bool)
    if not shared:
        logits = model(tokens, states, tokens, keep, keep)
    else:
        logits = through_shared_pictures(model, tokens, states, keep, null)
    logits.sum().backward()


def through_shared_pictures(
    model: Transformer, tokens: Tensor, states: Tensor, keep: Tensor, null: bool | None
) -> Tensor:
    config = model.config
    x = torch.cat((model.project_text(states), model.embed_picture(tokens)[:, :-1]), dim=1)
    picture, picture_of_row = model._shared_pictures(tokens, keep, null)
    end = config.block_size + x.shape[1]
    mask = causal_mask(x.shape[1], end, x.device)
    for layer in model.layers:
        first = config.cls_token_num - 1 if layer is model.layers[-1] else 0
        picture, x = layer(picture, x, picture_of_row, model.rotary_cos[:end], model.rotary_sin[:end], mask, first)
    return model.logits(model.norm(x))


def prepared(workers: int) -> None:
    """Sixteen steps whose batches take a photograph each to decode."""
    from io import BytesIO

    from PIL import Image

    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (512, 512, 3), np.uint8))
    stream = BytesIO()
    picture.save(stream, "JPEG", quality=90)

    def decode(step: int) -> int:
        with Image.open(BytesIO(stream.getvalue())) as image:
            return len(image.convert("RGB").resize((448, 448), Image.Resampling.LANCZOS).tobytes())

    with Coming(decode, 0, 16, 4, workers) as coming:
        for step in range(16):
            coming.take(step)


def resumed(path: Path, mapped: bool) -> None:
    """One of several processes that take up their share, an eighth, of a checkpoint."""
    state = torch.load(path, weights_only=True, mmap=mapped)
    for tensor in list(state.values())[::8]:
        tensor.clone()


def main() -> None:
    torch.manual_seed(0)
    print(f"{torch.get_num_threads()} thread(s), PyTorch {torch.__version__}; before, after, ratio")
    places = iter(range(0, RECORDS, 64))
    compare(
        "64 of 3 million records: an order a step, an order an epoch",
        lambda: shuffled_anew(0, next(places), 64, RECORDS),
        lambda: draw([0], next(places), 64, RECORDS),
    )
    model = Transformer(LAYER)
    for rows in (1, 4):
        compare(
            f"layer, {rows} row(s): shared picture and mask, plain causal",
            lambda rows=rows: train_once(model, rows, shared=True, null=True),
            lambda rows=rows: train_once(model, rows, shared=False, null=None),
        )
    compare(
        "layer, 4 rows with a shared path: null picture always, when asked for",
        lambda: train_once(model, 4, shared=True, null=True),
        lambda: train_once(model, 4, shared=True, null=False),
    )
    compare("16 photographs decoded: one thread, two", lambda: prepared(1), lambda: prepared(2))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "last.pt"
        torch.save({str(i): torch.zeros(2**21) for i in range(64)}, path)  # 512 MiB
        compare("a checkpoint's eighth: read whole, mapped", lambda: resumed(path, False), lambda: resumed(path, True))


if __name__ == "__main__":
    main()
