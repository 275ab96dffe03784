"""Puts a bundle together: which parts there are, that they fit, their graphs, and the manifest.

The parts are written one after the other, and each is compared with its PyTorch model before the bundle takes its final
name. Weights are opened when needed and let go: while ONNX Runtime runs a graph, PyTorch's model is not in memory.
"""

from __future__ import annotations

import datetime
import gc
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import onnx_ir as ir
import torch
from torch import Tensor

import editar_rt
from editar_rt import names
from editar_rt.backends.engines.plan import DELTA
from editar_rt.backends.ort.backend import OnnxRuntimeBackend
from editar_rt.bundle.folder import Bundle, list_files, publishing
from editar_rt.bundle.manifest import MANIFEST_NAME, UNPRINTABLE, Manifest, ModelInfo, Part, TensorInfo
from editar_rt.errors import EditarError, OptionError
from editar_rt.measure import selftest
from editar_rt.text.tokenizer import TextTokenizer
from editar_rt.version import __version__
from export import calibration, graph_writer, parity
from export.calibration import cache_scales
from export.checkpoint_reader import Checkpoint, build_transformer, build_vq
from export.decoder_graph import decoder_graph, prefix_graph, spelling_of
from export.module_graphs import half_copy, text_encoder_graph, vq_decoder_graph, vq_encoder_graph
from export.precision import INT8, Storage
from export.sampler_graph import MOST, sampler_graph
from export.spelling import Scales
from export.text_reader import TextEncoder
from export.weight_ranges import decoder_types, largest_values, require_range, text_types
from training.config import TransformerConfig, VQConfig

TOKENIZER = "tokenizer.json"
SAMPLES = "samples/samples.json"
CPU, TENSORRT = "cpu", "tensorrt"
TWIN = "decoder-twin"  # written, compared, asked for the self-test and removed
TRANSFORMER_PARTS = (names.PREFIX_GRAPH, names.DECODER, names.SAMPLER)
TEXT_TOKENS = 120  # of EditAR; a transformer says how many it reads
LIBRARIES = ("torch", "onnx", "onnxscript", "onnxruntime", "transformers")  # noted in the manifest

# Which tensors of a checkpoint make up a part, by the beginning of their names. The codebook is in both VQ parts.
PART_WEIGHTS = {
    names.VQ_ENCODER: ("encoder.", "quant_conv.", "quantize."),
    names.VQ_DECODER: ("decoder.", "post_quant_conv.", "quantize."),
    names.PREFIX_GRAPH: ("cls_embedding.", "img_uncond_embedding"),
    names.DECODER: ("tok_embeddings.", "layers.", "norm.", "output."),
}


class ParityError(EditarError):
    """A graph that does not answer as PyTorch does."""


@dataclass(frozen=True)
class Sources:
    """What a bundle is made of; any may be absent."""

    transformer: Checkpoint[TransformerConfig] | None = None
    vq: Checkpoint[VQConfig] | None = None
    text_encoder: TextEncoder | None = None
    kept: Bundle | None = None
    """A bundle whose other parts, tokenizer and samples are taken over as they are."""


@dataclass(frozen=True)
class Options:
    """How a bundle is made."""

    storage: Storage = field(default_factory=Storage)
    """Of the decoder; `Storage.text_precision` is the text encoder's."""
    image_size: int | None = None
    """Side of the pictures in pixels; needed where no transformer says it."""
    text_tokens: int | None = None
    """Positions of a text, padding included; a transformer says it, else EditAR's number."""
    samples: Path | None = None
    """Folder of sample pictures with its samples.json, copied in."""
    calibration: Path | None = None
    """Such a folder for an int8 cache's scales; `samples` where None."""
    sampling: Mapping[str, float | int] = field(default_factory=dict)
    """Defaults of `editar_rt.Sampling` that suit this model."""
    command: str = ""
    """What made the bundle, noted in the manifest."""


def write_bundle(
    folder: Path,
    sources: Sources,
    options: Options,
    force: bool = False,
    report: Callable[[str], None] = lambda line: None,
) -> Manifest:
    """Write a bundle, check every graph in it, and only then give it its name.

    Args:
        force: replace a bundle of that name.
        report: is called with one line for every graph compared.

    Raises:
        OptionError: parts that do not fit each other or the options.
        ParityError: a graph that does not answer as PyTorch does.
        BundleError: `folder` exists, or cannot be written.
    """
    info, storage = model_info(sources, options), options.storage
    listed = _listed_examples(sources, options)
    _check_weights(sources, storage)
    if options.samples is not None and not (options.samples / Path(SAMPLES).name).is_file():
        raise OptionError(f"{options.samples} holds no {Path(SAMPLES).name}, which says what the sample pictures are")
    if sources.kept is not None and sources.transformer is not None:
        # Before anything is made of them: are the weights that were read the ones that this bundle computes with?
        source, bound = sources.kept.part_path(names.DECODER), selftest.BOUNDS["fp32"]
        expected = parity.decoder_cases(build_transformer(sources.transformer), source)
        _require_parity(source, expected, bound, lambda line: report(f"{line}, the source"))
    with publishing(folder, force) as partial:
        parts = _take_over(sources.kept, partial) if sources.kept is not None else {}
        twin: Part | None = None
        tokenizer, samples = _text_and_samples(sources, options, partial)
        for name, model, cases in _graphs(sources, options, info, listed, report):
            path = partial / f"{name}.onnx"
            if name in (names.VQ_ENCODER, names.VQ_DECODER, names.TEXT_ENCODER):
                info.activations[name] = graph_writer.working_set(model)
            if name == names.DECODER:
                engines = [TENSORRT] if options.storage.spelling == DELTA else []
                for provider in [*options.storage.providers, *engines]:
                    info.step_weight_bytes[provider] = graph_writer.weight_bytes(model, provider)
            graph_writer.save(model, path)
            parts[name] = Part(path.name, _describe(model.graph.inputs), _describe(model.graph.outputs))
            if name == names.DECODER and CPU not in options.storage.providers:
                path, twin = _twin(sources, options.storage, partial)
            bound = selftest.bound_of(name, storage.precision, storage.kv_cache, storage.spelling)
            _require_parity(path, cases(path), bound, report)
        manifest = Manifest(
            model=info,
            parts={name: parts[name] for name in names.PARTS if name in parts},
            files=list_files(partial),
            precision=options.storage.precision,
            spelling=options.storage.spelling,
            kv_cache=options.storage.kv_cache,
            sampler_top_k=min(MOST, info.vocab_size or 0) if names.SAMPLER in parts else None,
            providers=options.storage.providers,
            tokenizer=tokenizer,
            samples=samples,
            sampling=dict(options.sampling),
            made_by=_made_by(options),
        )
        # The answers of this machine are what `editar verify` expects.
        manifest = replace(manifest, self_test=_self_test(partial, manifest, twin))
        if twin is not None:
            manifest = replace(manifest, files={f: d for f, d in manifest.files.items() if not _is_twins(f)})
            for leftover in partial.glob(f"{TWIN}.*"):
                leftover.unlink()
        _write_manifest(partial, manifest)
        Bundle.open(partial)  # a bundle that the runtime would refuse is not published
    return manifest


def _write_manifest(folder: Path, manifest: Manifest) -> None:
    (folder / MANIFEST_NAME).write_text(manifest.to_json(), encoding="utf-8")


def _self_test(folder: Path, manifest: Manifest, twin: Part | None) -> dict[str, Any]:
    """What a bundle answers here, part by part, so that memory is needed for one at a time.

    Args:
        twin: answers in the place of a decoder that no CPU runs; its files lie in the folder and in the manifest.
    """
    if twin is not None:
        own = Storage(spelling=manifest.spelling)
        manifest = replace(
            manifest,
            parts=manifest.parts | {names.DECODER: twin},
            precision=own.precision,
            kv_cache=own.kv_cache,
            providers=own.providers,
        )
    _write_manifest(folder, manifest)
    found: dict[str, Any] = {}
    transformer = [part for part in manifest.parts if part in TRANSFORMER_PARTS]
    for together in (*([part] for part in manifest.parts if part not in transformer), transformer):
        editor = editar_rt.load(folder, CPU, cache=False)
        if together != transformer and isinstance(editor.backend, OnnxRuntimeBackend):
            editor.backend.prepack = False  # one run does not pay for it
        found |= selftest.answers(editor, together)
        del editor
        gc.collect()
    return found


def _take_over(kept: Bundle, folder: Path) -> dict[str, Part]:
    """The parts of a bundle that are not made anew, their files copied."""
    parts = {name: part for name, part in kept.manifest.parts.items() if name not in TRANSFORMER_PARTS}
    for part in parts.values():
        for name in kept.manifest.files:
            if name == part.file or name.startswith(f"{part.file}."):
                shutil.copy2(kept.path(name), folder / name)
    return parts


def _text_and_samples(sources: Sources, options: Options, folder: Path) -> tuple[str | None, str | None]:
    """Puts the tokenizer and the sample pictures into a folder; their names in the manifest, where there are any."""
    kept = sources.kept.manifest if sources.kept is not None else None
    tokenizer, samples = (kept.tokenizer, kept.samples) if kept is not None else (None, None)
    if sources.kept is not None:
        listed = [name for name in sources.kept.manifest.files if samples and Path(name).parent == Path(samples).parent]
        for name in [*listed, *([tokenizer] if tokenizer else [])]:
            (folder / name).parent.mkdir(exist_ok=True)
            shutil.copy2(sources.kept.path(name), folder / name)
    if sources.text_encoder is not None:
        tokenizer = TOKENIZER
        sources.text_encoder.tokenizer.save(str(folder / TOKENIZER))
    if options.samples is not None:
        samples = SAMPLES
        shutil.copytree(options.samples, folder / Path(SAMPLES).parent)
    return tokenizer, samples


def model_info(sources: Sources, options: Options) -> ModelInfo:
    """The sizes that the manifest gives; refuses sources that do not fit each other."""
    transformer, vq, text = sources.transformer, sources.vq, sources.text_encoder
    if sources.kept is not None:
        if transformer is not None:
            spelling_of(options.storage).check(transformer.config)
        return replace(
            sources.kept.manifest.model, activations=dict(sources.kept.manifest.model.activations), step_weight_bytes={}
        )
    if transformer is None and vq is None and text is None:
        raise OptionError("nothing to export: give a transformer, a VQ tokenizer or a text encoder")
    config = transformer.config if transformer is not None else None
    if config is not None:
        spelling_of(options.storage).check(config)
    if config is not None and vq is not None and config.vocab_size != vq.config.codebook_size:
        raise OptionError(
            f"the transformer has {config.vocab_size} picture tokens and the VQ tokenizer's codebook "
            f"{vq.config.codebook_size}: they were not trained together"
        )
    if config is not None and text is not None and config.caption_dim != text.dim:
        raise OptionError(
            f"the transformer reads text states of width {config.caption_dim} and the text encoder gives {text.dim}: "
            "they were not trained together"
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
    """Side of the pictures in pixels and in tokens, as far as the parts say them."""
    grid = transformer.grid if transformer is not None else None
    if vq is None:
        return asked, grid
    if grid is None and asked is None:
        raise OptionError(
            "a VQ tokenizer alone takes pictures of any size: say which with --image-size, such as 256 or 512"
        )
    size = asked if asked is not None else (grid or 0) * vq.downsampling
    if size % vq.downsampling:
        raise OptionError(f"--image-size must be a multiple of {vq.downsampling}, the tokens' size; got {size}")
    if grid is not None and size != grid * vq.downsampling:
        raise OptionError(
            f"the transformer's pictures have {grid}×{grid} tokens, which is {grid * vq.downsampling} pixels a side "
            f"with this VQ tokenizer, not {size}"
        )
    return size, size // vq.downsampling


Cases = Callable[[Path], Sequence[parity.Case]]
"""What PyTorch answers to the graph that lies at a path."""


def _graphs(
    sources: Sources,
    options: Options,
    info: ModelInfo,
    listed: Sequence[calibration.Listed],
    report: Callable[[str], None],
) -> Iterator[tuple[str, ir.Model, Cases]]:
    """Every part's name and graph, and its cases; one at a time, so that memory is needed for one."""
    if sources.vq is not None:
        assert info.image_size is not None  # `_picture` saw to it
        vq, size = sources.vq, info.image_size
        yield (
            names.VQ_ENCODER,
            vq_encoder_graph(build_vq(vq), size),
            lambda _: [parity.vq_encoder_case(build_vq(vq), size)],
        )
        yield (
            names.VQ_DECODER,
            vq_decoder_graph(build_vq(vq), size),
            lambda _: [parity.vq_decoder_case(build_vq(vq), size)],
        )
    if sources.text_encoder is not None:
        assert info.text_tokens is not None
        text, text_tokens = sources.text_encoder, info.text_tokens
        precision = options.storage.text_precision
        yield (
            names.TEXT_ENCODER,
            _text_graph(text, text_tokens, precision),
            lambda _: [parity.text_encoder_case(text.build(), text_tokens)],
        )
    if sources.transformer is not None:
        checkpoint, storage = sources.transformer, options.storage
        yield (
            names.PREFIX_GRAPH,
            prefix_graph(checkpoint.config, checkpoint.tensors),
            lambda _: [parity.prefix_case(build_transformer(checkpoint))],
        )
        scales: Scales = ()
        if storage.kv_cache == INT8:
            examples = _examples(sources, info, listed, report)
            scales = cache_scales(build_transformer(checkpoint), examples)
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
        encoder = half_copy(encoder)  # and the whole one is let go before the copy is traced
    return text_encoder_graph(encoder, text_tokens)


class _RoundedToBfloat16(Mapping[str, Tensor]):
    """Weights that have lost what bfloat16 does not keep, in float32."""

    def __init__(self, weights: Mapping[str, Tensor]) -> None:
        self.weights = weights

    def __getitem__(self, name: str) -> Tensor:
        return self.weights[name].bfloat16().float()

    def __iter__(self) -> Iterator[str]:
        return iter(self.weights)

    def __len__(self) -> int:
        return len(self.weights)


def _twin(sources: Sources, storage: Storage, folder: Path) -> tuple[Path, Part]:
    """A decoder that no CPU runs, as one that every CPU runs: the same definition over the rounded weights."""
    assert sources.transformer is not None
    path = folder / f"{TWIN}.onnx"
    weights = _RoundedToBfloat16(sources.transformer.tensors)
    model = decoder_graph(sources.transformer.config, weights, Storage(spelling=storage.spelling))
    graph_writer.save(model, path)
    return path, Part(path.name, _describe(model.graph.inputs), _describe(model.graph.outputs))


def _is_twins(file: str) -> bool:
    return file.startswith(f"{TWIN}.")


def _listed_examples(sources: Sources, options: Options) -> Sequence[calibration.Listed]:
    """The pictures that an int8 cache's scales are found on, looked through before the work; none where there are none.

    Raises:
        OptionError: pictures that cannot be read, or that nothing reads.
    """
    if options.storage.kv_cache != INT8:
        if options.calibration is not None:
            raise OptionError("only an int8 cache is calibrated: give --kv-cache int8, or leave --calibration out")
        return ()
    folder, kept = options.calibration or options.samples, sources.kept
    readable = sources.vq is not None and sources.text_encoder is not None
    if kept is not None:
        folder = folder or (kept.path(kept.manifest.samples).parent if kept.manifest.samples else None)
        readable = {names.TEXT_ENCODER, names.VQ_ENCODER} <= kept.manifest.parts.keys()
    if folder is None or not readable:
        if options.calibration is not None:
            raise OptionError("pictures to calibrate on need --vq and --text-encoder too")
        return ()
    return calibration.read_list(folder)


def _examples(
    sources: Sources, info: ModelInfo, listed: Sequence[calibration.Listed], report: Callable[[str], None]
) -> Iterator[calibration.Example]:
    """What an int8 cache's scales are found on."""
    text, vq = sources.text_encoder, sources.vq
    if listed:
        folder = listed[0].picture.parent.name
        report(f"calibrating the cache on {len(listed)} pictures of {folder}")
        if sources.kept is not None:
            return calibration.bundle_examples(listed, editar_rt.load(sources.kept.folder, device=CPU))
        assert text is not None and vq is not None and info.image_size is not None and info.text_tokens is not None
        tokenizer = TextTokenizer(text.tokenizer, info.text_tokens)
        return calibration.examples(listed, build_vq(vq), info.image_size, text, tokenizer)
    assert sources.transformer is not None
    report("calibrating the cache on random tokens: give --calibration, --vq and --text-encoder for better scales")
    return calibration.random_examples(sources.transformer.config)


def _check_weights(sources: Sources, storage: Storage) -> None:
    """Refuse weights that the graphs' numbers cannot hold.

    Raises:
        CheckpointError: naming them.
    """
    if sources.transformer is not None:
        checkpoint = sources.transformer
        require_range(checkpoint.path, largest_values(checkpoint.tensors), decoder_types(storage))
    if sources.vq is not None:
        require_range(sources.vq.path, largest_values(sources.vq.tensors), lambda _: torch.float32)
    if sources.text_encoder is not None:
        require_range(sources.text_encoder.folder, sources.text_encoder.largest, text_types(storage))


def _require_parity(path: Path, cases: Sequence[parity.Case], bound: float, report: Callable[[str], None]) -> None:
    for found in parity.compare(path, cases, bound):
        report(str(found))
        if not found.holds:
            raise ParityError(
                f"{path.stem} does not answer as PyTorch does ({found.label}: error {found.error:.1e}, allowed "
                f"{found.bound:.0e}); nothing was written"
            )


def _describe(values: Sequence[ir.Value]) -> list[TensorInfo]:
    described = []
    for value in values:
        assert value.name is not None and value.dtype is not None and value.shape is not None
        shape = [d if isinstance(d, int) else str(d.value) for d in value.shape]
        described.append(TensorInfo(value.name, value.dtype.numpy().name, shape))
    return described


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


def _made_by(options: Options) -> dict[str, str]:
    now = datetime.datetime.now(datetime.timezone.utc)
    return {
        "tool": "python -m export onnx",
        "version": __version__,
        "command": UNPRINTABLE.sub("\ufffd", options.command),  # paths may hold anything
        "date": now.isoformat(timespec="seconds"),
        **{library: version(library) for library in LIBRARIES},
    }
