"""The sources and options of a bundle, and the sizes that follow from them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from editar_rt import names
from editar_rt.bundle.folder import Bundle
from editar_rt.bundle.manifest import ModelInfo
from editar_rt.errors import OptionError
from export.checkpoint_reader import Checkpoint
from export.decoder_graph import dialect_of
from export.precision import Storage
from export.text_reader import TextEncoder
from training.config import TransformerConfig, VQConfig

TEXT_TOKENS = 120  # EditAR's; a transformer has its own number
# The tensors of each part, by prefixes of their names. The codebook is in both VQ parts.
PART_WEIGHTS = {
    names.VQ_ENCODER: ("encoder.", "quant_conv.", "quantize."),
    names.VQ_DECODER: ("decoder.", "post_quant_conv.", "quantize."),
    names.PREFIX_GRAPH: ("cls_embedding.", "img_uncond_embedding"),
    names.DECODER: ("tok_embeddings.", "layers.", "norm.", "output."),
}


@dataclass(frozen=True)
class Sources:
    """The sources of a bundle; any may be absent."""

    transformer: Checkpoint[TransformerConfig] | None = None
    vq: Checkpoint[VQConfig] | None = None
    text_encoder: TextEncoder | None = None
    kept: Bundle | None = None
    """A bundle whose other parts, tokenizer and samples are copied unchanged."""


@dataclass(frozen=True)
class Options:
    """Options for making a bundle."""

    storage: Storage = field(default_factory=Storage)
    """Storage of the decoder; `Storage.text_precision` applies to the text encoder."""
    image_size: int | None = None
    """Side of the pictures in pixels; needed without a transformer."""
    text_tokens: int | None = None
    """Number of text positions including padding; None means the transformer's, or EditAR's without one."""
    samples: Path | None = None
    """Folder of sample pictures with samples.json, copied into the bundle."""
    calibration: Path | None = None
    """Such a folder for the scales of an int8 cache; None means `samples`."""
    sampling: Mapping[str, int | float | str] = field(default_factory=dict)
    """Sampling defaults of this model."""
    command: str = ""
    """The command that makes the bundle, recorded in the manifest."""


def model_info(sources: Sources, options: Options) -> ModelInfo:
    """The sizes for the manifest. Rejects sources that do not fit each other."""
    transformer, vq, text = sources.transformer, sources.vq, sources.text_encoder
    config = transformer.config if transformer is not None else None
    if config is not None:
        dialect_of(options.storage).check(config)
        options.storage.check_width(config.dim)
    if sources.kept is not None:
        return replace(
            sources.kept.manifest.model, activations=dict(sources.kept.manifest.model.activations), step_weight_bytes={}
        )
    if transformer is None and vq is None and text is None:
        raise OptionError("nothing to export: give a transformer, a VQ tokenizer or a text encoder")
    if config is not None and vq is not None and config.vocab_size != vq.config.codebook_size:
        raise OptionError(
            f"the transformer has {config.vocab_size} picture tokens, but the VQ tokenizer's codebook has "
            f"{vq.config.codebook_size}: they were not trained together"
        )
    if config is not None and text is not None and config.caption_dim != text.dim:
        raise OptionError(
            f"the transformer reads text states of width {config.caption_dim}, but the text encoder's have width "
            f"{text.dim}: they were not trained together"
        )
    text_tokens = options.text_tokens
    if config is not None:
        if text_tokens not in (None, config.cls_token_num):
            raise OptionError(f"the transformer reads {config.cls_token_num} text positions, not {text_tokens}")
        text_tokens = config.cls_token_num
    elif text is not None:
        text_tokens = text_tokens or TEXT_TOKENS
    size, grid = _picture(config, vq.config if vq is not None else None, options.image_size)
    return ModelInfo(
        image_size=size,
        downsampling=vq.config.downsampling if vq is not None else None,
        grid=grid,
        picture_tokens=grid**2 if grid is not None else None,
        codebook_size=vq.config.codebook_size if vq is not None else None,
        codebook_dim=vq.config.codebook_dim if vq is not None else None,
        vocab_size=config.vocab_size if config is not None else None,
        dim=config.dim if config is not None else None,
        layers=config.n_layer if config is not None else None,
        heads=config.n_head if config is not None else None,
        head_dim=config.head_dim if config is not None else None,
        text_tokens=text_tokens,
        text_dim=config.caption_dim if config is not None else text.dim if text is not None else None,
        parameters=_parameters(sources),
    )


def _picture(
    transformer: TransformerConfig | None, vq: VQConfig | None, asked: int | None
) -> tuple[int | None, int | None]:
    """Side of the pictures in pixels and in tokens, as far as they are known."""
    grid = transformer.grid if transformer is not None else None
    if vq is None:
        return asked, grid
    if grid is None and asked is None:
        raise OptionError(
            "a VQ tokenizer accepts pictures of any size; choose one with --image-size, such as 256 or 512"
        )
    size = asked if asked is not None else (grid or 0) * vq.downsampling
    if size % vq.downsampling:
        raise OptionError(f"--image-size must be a multiple of {vq.downsampling}, the size of a token; got {size}")
    if grid is not None and size != grid * vq.downsampling:
        raise OptionError(
            f"the transformer's pictures have {grid}×{grid} tokens, which is {grid * vq.downsampling} pixels per side "
            f"with this VQ tokenizer, not {size}"
        )
    return size, size // vq.downsampling


def _parameters(sources: Sources) -> dict[str, int]:
    shapes: dict[str, torch.Size] = {}
    for checkpoint in (sources.vq, sources.transformer):
        if checkpoint is not None:
            shapes |= checkpoint.shapes
    counts = {
        part: sum(shape.numel() for name, shape in shapes.items() if name.startswith(prefixes))
        for part, prefixes in PART_WEIGHTS.items()
    }
    if sources.text_encoder is not None:
        counts[names.TEXT_ENCODER] = sources.text_encoder.parameters
    return {part: counts[part] for part in names.PARTS if counts.get(part)}
