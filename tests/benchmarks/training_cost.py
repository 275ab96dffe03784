"""What training's shortcuts save: each beside what it replaced, in turns, in one process.

OMP_NUM_THREADS=1 python -m tests.benchmarks.training_cost

A line a comparison: the median of the seconds before and after, and their ratio. Turns are taken one after the other,
so that what else the machine does meanwhile falls on both; seconds are the processor's, but for what waits or runs on
several threads.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import click
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from training.batches import draw
from training.config import TransformerConfig
from training.models.transformer import Transformer, causal_mask
from training.prefetch import Coming

TURNS = 3
RECORDS = 3_000_000
# Four layers on full-size pictures: 1024 tokens each, 120 positions of text, heads of 64.
LAYERS = TransformerConfig(dim=384, n_layer=4, n_head=6, vocab_size=64, caption_dim=64)


def compare(
    name: str,
    before: Callable[[], object],
    after: Callable[[], object],
    clock: Callable[[], float] = time.process_time,
) -> None:
    seconds: tuple[list[float], list[float]] = ([], [])
    for work in (before, after):  # the first call of each warms up
        work()
    for _ in range(TURNS):
        for work, taken in zip((before, after), seconds):
            begun = clock()
            work()
            taken.append(clock() - begun)
    old, new = map(statistics.median, seconds)
    click.echo(f"{name:<60} {old:9.4f} s {new:9.4f} s  {old / new:8.2f} times")


def shuffled_anew(seed: int, first: int, count: int, size: int) -> np.ndarray:
    """As epochs were drawn: a whole permutation a step."""
    indices = np.arange(first, first + count)
    orders = {e: np.random.default_rng([seed, int(e)]).permutation(size) for e in np.unique(indices // size)}
    return np.asarray([orders[i // size][i % size] for i in indices])


def batch(rows: int) -> tuple[Tensor, Tensor, Tensor]:
    """Tokens [rows, N], states of texts [rows, T, C], and which row drops what: none."""
    tokens = torch.zeros(rows, LAYERS.block_size, dtype=torch.long)
    states = torch.zeros(rows, LAYERS.cls_token_num, LAYERS.caption_dim)
    return tokens, states, torch.zeros(rows, dtype=torch.bool)


def plain(model: Transformer, rows: int) -> None:
    tokens, states, keep = batch(rows)
    model(tokens, states, tokens, keep, keep).sum().backward()


def instructed(model: Transformer, pictures: int, rows: int, dropped: bool) -> None:
    tokens, states, keep = batch(rows)
    model(tokens[:pictures], states, tokens, keep, keep, picture_is_dropped=dropped).sum().backward()


def through_shared_pictures(model: Transformer, rows: int) -> None:
    """As every batch was run: pictures, and one more that stands in for them, handed out to rows with a mask."""
    config, (tokens, states, keep) = model.config, batch(rows)
    x = torch.cat((model.project_text(states), model.embed_picture(tokens)[:, :-1]), dim=1)
    picture, picture_of_row = model._shared_pictures(tokens, keep, picture_is_dropped=True)
    end = config.block_size + x.shape[1]
    mask = causal_mask(x.shape[1], end, x.device)
    for layer in model.layers:
        first = config.cls_token_num - 1 if layer is model.layers[-1] else 0
        picture, x = layer(picture, x, picture_of_row, model.rotary_cos[:end], model.rotary_sin[:end], mask, first)
    model.logits(model.norm(x)).sum().backward()


def attention(masked: bool, rows: int = 4) -> None:
    """Forward and backward, over the whole of a sequence."""
    length, size = LAYERS.max_positions - 1, LAYERS.head_dim
    queries, keys, values = (torch.zeros(rows, LAYERS.n_head, length, size, requires_grad=True) for _ in range(3))
    mask = causal_mask(length, length, queries.device) if masked else None
    F.scaled_dot_product_attention(queries, keys, values, mask, is_causal=not masked).sum().backward()


def prepared(workers: int) -> None:
    """64 steps whose batches take a picture each to decode and to scale."""
    from io import BytesIO

    from PIL import Image

    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (512, 512, 3), np.uint8))
    picture = noise.resize((1024, 1024))
    stream = BytesIO()
    picture.save(stream, "JPEG", quality=90)

    def decode(step: int) -> int:
        with Image.open(BytesIO(stream.getvalue())) as image:
            return len(image.convert("RGB").resize((512, 512), Image.Resampling.LANCZOS).tobytes())

    with Coming(decode, 64, 8, workers) as coming:
        for step in range(64):
            coming.take(step)


def resumed(path: Path, mapped: bool) -> None:
    """One of several processes that take up their share, an eighth, of a checkpoint."""
    state = torch.load(path, weights_only=True, mmap=mapped)
    for tensor in list(state.values())[::8]:
        tensor.clone()


@click.command(help=__doc__)
def main() -> None:
    torch.manual_seed(0)
    click.echo(f"{torch.get_num_threads()} thread(s), PyTorch {torch.__version__}; before, after, ratio")
    places = iter(range(0, RECORDS, 64))
    compare(
        "64 of 3 million records: an order a step, an order an epoch",
        lambda: shuffled_anew(0, next(places), 64, RECORDS),
        lambda: draw([0], next(places), 64, RECORDS),
    )
    model = Transformer(LAYERS)
    for rows in (1, 4):
        compare(
            f"layers, {rows} row(s): shared picture and mask, plain causal",
            lambda rows=rows: through_shared_pictures(model, rows),
            lambda rows=rows: plain(model, rows),
        )
    compare(
        "layers, 2 rows a picture, 4 rows: null picture always, asked for",
        lambda: instructed(model, 2, 4, dropped=True),
        lambda: instructed(model, 2, 4, dropped=False),
    )
    compare("attention of 4 rows: a mask, plain causal", lambda: attention(True), lambda: attention(False))
    compare(
        "64 pictures decoded and scaled: one thread, two", lambda: prepared(1), lambda: prepared(2), time.perf_counter
    )
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "last.pt"
        torch.save({str(i): torch.zeros(2**21) for i in range(64)}, path)  # 512 MiB
        compare(
            "a checkpoint's eighth: read whole, mapped",
            lambda: resumed(path, mapped=False),
            lambda: resumed(path, mapped=True),
            time.perf_counter,
        )


if __name__ == "__main__":
    main()
