"""Computes the scales of an int8 KV cache by running the transformer on examples.

A cached value is an integer from -127 to 127 times a scale; every layer has one scale for keys and one for values.
Values larger than those of all examples are clipped, so the examples should resemble users' edits: pictures with
instructions, in a folder as written by `python -m training samples`. The picture's own tokens replace the edited ones:
their distribution is similar, and generating tokens would take minutes at full size.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from editar_rt.bundle.samples import LIST, Sample, parse_samples
from editar_rt.editor import Editor
from editar_rt.errors import BundleError, EditarError, OptionError
from editar_rt.images.pixels import open_picture, read_pixels
from editar_rt.text.prompts import build_prompt
from editar_rt.text.tokenizer import TextTokenizer
from export.text_reader import TextEncoder
from training.config import TransformerConfig
from training.models.text_encoder import encode
from training.models.transformer import Transformer
from training.models.vq import VQModel

MOST = 32  # examples; more hardly change the largest values
RANDOM = 2  # sequences of random tokens, without examples
LARGEST = 127


@dataclass(frozen=True)
class Example:
    """One complete sequence."""

    text_states: Tensor  # [1, T, C]
    picture: Tensor  # tokens [1, N], used as condition and as target


def read_list(folder: Path) -> list[Sample]:
    """Read up to `MOST` entries of a folder's samples.json, and check that every picture can be opened.

    Raises:
        OptionError: the file is missing, does not list pictures with tasks and instructions, or has an unknown task.
        PictureError: a picture cannot be read.
    """
    path = folder / LIST
    try:
        listed = parse_samples(path.read_text(encoding="utf-8"), path)[:MOST]
    except OSError as error:
        raise OptionError(
            f"{path} cannot be read ({error.strerror}); it must list the pictures of its folder with instructions"
        ) from None
    except (BundleError, UnicodeDecodeError) as error:
        raise OptionError(str(error)) from None
    found = [sample._replace(picture=str(folder / Path(sample.picture).name)) for sample in listed]
    for sample in found:
        open_picture(sample.picture)
    return found


@torch.inference_mode()
def examples(
    listed: Sequence[Sample], vq: VQModel, image_size: int, text: TextEncoder, tokenizer: TextTokenizer
) -> Iterator[Example]:
    """The listed pictures, encoded."""
    encoder = text.build()
    for entry in listed:
        prompt = tokenizer.encode([build_prompt(entry.task, entry.instruction)])
        states = encode(encoder, torch.from_numpy(prompt.ids), torch.from_numpy(prompt.mask))
        yield Example(states, vq.encode(torch.from_numpy(read_pixels(entry.picture, image_size))))


def bundle_examples(listed: Sequence[Sample], editor: Editor) -> Iterator[Example]:
    """The listed pictures, encoded by a bundle."""
    for entry in listed:
        states = editor.encode_text([entry.instruction], entry.task)
        tokens = editor.encode_pixels(read_pixels(entry.picture, editor.image_size))
        yield Example(torch.from_numpy(states), torch.from_numpy(tokens).long())


def random_examples(config: TransformerConfig) -> Iterator[Example]:
    """Seeded random sequences, for a transformer without the parts that encode pictures and texts."""
    generator = torch.Generator().manual_seed(0)
    for _ in range(RANDOM):
        states = torch.randn(1, config.cls_token_num, config.caption_dim, generator=generator)
        yield Example(states, torch.randint(config.vocab_size, (1, config.block_size), generator=generator))


@torch.inference_mode()
def cache_scales(transformer: Transformer, sequences: Iterator[Example]) -> list[tuple[float, float]]:
    """(keys' scale, values' scale) of every layer.

    Raises:
        EditarError: a value is not finite, or there are no examples.
    """
    config = transformer.config
    largest = np.zeros((config.n_layer, 2))
    count = 0
    for example in sequences:
        cache = transformer.make_cache(1)
        prefix = transformer.embed_prefix(transformer.project_text(example.text_states), example.picture)
        target = transformer.tok_embeddings(example.picture[:, :-1])
        transformer.forward_chunk(torch.cat((prefix, target), dim=1), 0, cache)
        of_example = [
            [float(stored[i].abs().max()) for stored in (cache.keys, cache.values)] for i in range(len(largest))
        ]
        largest = np.maximum(largest, of_example)
        count += 1
    if not count or not np.isfinite(largest).all() or not largest.all():
        raise EditarError(f"the cache's scales cannot be computed: {count} examples, largest values {largest.tolist()}")
    return [(float(keys), float(values)) for keys, values in largest / LARGEST]
