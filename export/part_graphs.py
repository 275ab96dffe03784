"""The graphs of a bundle's parts, each with PyTorch's expected outputs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import onnx_ir as ir
from torch import Tensor

import editar_rt
from editar_rt import names
from editar_rt.backends import host_device, make_backend
from editar_rt.bundle.manifest import ModelInfo
from editar_rt.bundle.samples import Sample
from editar_rt.bundle.words import INT8
from editar_rt.errors import OptionError
from editar_rt.text.tokenizer import TextTokenizer
from export import calibration, parity
from export.checkpoint_reader import Checkpoint, build_transformer, build_vq
from export.decoder_graph import decoder_graph, prefix_graph
from export.dialects.base import Scales
from export.model_info import Options, Sources
from export.module_graphs import half_copy, text_encoder_graph, vq_decoder_graph, vq_encoder_graph
from export.precision import Storage
from export.sampler_graph import MOST, sampler_graph
from export.text_reader import TextEncoder
from training.config import TransformerConfig

Cases = Callable[[Path], Sequence[parity.Case]]
"""Returns inputs and PyTorch's outputs for the graph at a path."""


def listed_examples(sources: Sources, options: Options) -> Sequence[Sample]:
    """The pictures for the scales of an int8 cache, checked before the work; empty if there are none.

    Raises:
        OptionError: the pictures cannot be read, or are not needed.
    """
    if options.storage.kv_cache != INT8:
        if options.calibration is not None:
            raise OptionError("only an int8 cache needs calibration; give --kv-cache int8, or leave --calibration out")
        return ()
    folder, kept = options.calibration or options.samples, sources.kept
    readable = sources.vq is not None and sources.text_encoder is not None
    if kept is not None:
        folder = folder or (kept.path(kept.manifest.samples).parent if kept.manifest.samples else None)
        readable = {names.TEXT_ENCODER, names.VQ_ENCODER} <= kept.manifest.parts.keys()
    if folder is None or not readable:
        if options.calibration is not None:
            raise OptionError("calibration with pictures also needs --vq and --text-encoder")
        return ()
    return calibration.read_list(folder)


def part_graphs(
    sources: Sources,
    options: Options,
    info: ModelInfo,
    listed: Sequence[Sample],
    report: Callable[[str], None],
) -> Iterator[tuple[str, ir.Model, Cases]]:
    """Every part's name, graph and cases, one at a time to limit memory."""
    if sources.vq is not None:
        assert info.image_size is not None  # ensured by `model_info`
        vq, size = sources.vq, info.image_size
        yield (
            names.VQ_ENCODER,
            vq_encoder_graph(build_vq(vq), size),
            lambda _: [parity.case(names.VQ_ENCODER, build_vq(vq), parity.vq_encoder_inputs(size))],
        )
        yield (
            names.VQ_DECODER,
            vq_decoder_graph(build_vq(vq), size),
            lambda _: [parity.case(names.VQ_DECODER, build_vq(vq), parity.vq_decoder_inputs(vq.config, size))],
        )
    if sources.text_encoder is not None:
        assert info.text_tokens is not None
        text, text_tokens = sources.text_encoder, info.text_tokens
        precision = options.storage.text_precision
        yield (
            names.TEXT_ENCODER,
            _text_graph(text, text_tokens, precision),
            lambda _: [
                parity.case(
                    names.TEXT_ENCODER,
                    text.build(),
                    parity.text_encoder_inputs(text.tokenizer.get_vocab_size(), text_tokens),
                )
            ],
        )
    if sources.transformer is not None:
        checkpoint, storage = sources.transformer, options.storage
        yield (
            names.PREFIX_GRAPH,
            prefix_graph(checkpoint.config, checkpoint.tensors),
            lambda _: [
                parity.case(names.PREFIX_GRAPH, build_transformer(checkpoint), parity.prefix_inputs(checkpoint.config))
            ],
        )
        scales: Scales = ()
        if storage.kv_cache == INT8:
            examples = _examples(sources, info, listed, report)
            scales = calibration.cache_scales(build_transformer(checkpoint), examples)
        yield (
            names.DECODER,
            decoder_graph(checkpoint.config, checkpoint.tensors, storage, scales),
            lambda path: parity.decoder_cases(build_transformer(checkpoint), path),
        )
        if storage.sampling_head:
            size = checkpoint.config.vocab_size
            yield names.SAMPLER, sampler_graph(size), lambda _: parity.sampler_cases(size, min(MOST, size))


def _text_graph(text: TextEncoder, text_tokens: int, precision: str) -> ir.Model:
    encoder = text.build()
    if precision == "fp16":
        encoder = half_copy(encoder)  # the float32 one is released before the copy is traced
    return text_encoder_graph(encoder, text_tokens)


def twin_graph(checkpoint: Checkpoint[TransformerConfig], storage: Storage) -> ir.Model:
    """A stand-in, which any CPU runs, for a decoder that no CPU runs: the same graph with rounded weights."""
    return decoder_graph(checkpoint.config, _RoundedToBfloat16(checkpoint.tensors), twin_storage(storage.dialect))


def twin_storage(dialect: str) -> Storage:
    """The storage of a decoder's twin."""
    return Storage(dialect=dialect)


class _RoundedToBfloat16(Mapping[str, Tensor]):
    """Weights rounded to bfloat16, in float32."""

    def __init__(self, weights: Mapping[str, Tensor]) -> None:
        self.weights = weights

    def __getitem__(self, name: str) -> Tensor:
        return self.weights[name].bfloat16().float()

    def __iter__(self) -> Iterator[str]:
        return iter(self.weights)

    def __len__(self) -> int:
        return len(self.weights)


def _examples(
    sources: Sources, info: ModelInfo, listed: Sequence[Sample], report: Callable[[str], None]
) -> Iterator[calibration.Example]:
    """The examples for the scales of an int8 cache."""
    text, vq = sources.text_encoder, sources.vq
    if listed:
        folder = Path(listed[0].picture).parent.name
        report(f"calibrating the cache with {len(listed)} pictures of {folder}")
        if sources.kept is not None:
            backend = make_backend(sources.kept, host_device(sources.kept.manifest))
            return calibration.bundle_examples(listed, editar_rt.Editor(sources.kept, backend))
        assert text is not None and vq is not None and info.image_size is not None and info.text_tokens is not None
        tokenizer = TextTokenizer(text.tokenizer, info.text_tokens)
        return calibration.examples(listed, build_vq(vq), info.image_size, text, tokenizer)
    assert sources.transformer is not None
    report("calibrating the cache with random tokens; give --calibration, --vq and --text-encoder for better scales")
    return calibration.random_examples(sources.transformer.config)
