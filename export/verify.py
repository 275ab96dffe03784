"""`python -m export verify`: compares a bundle with its checkpoints, part by part and end to end.

Parts are compared by Polygraphy's Comparator on the inputs of `export.parity`: PyTorch with ONNX Runtime, and with the
runtime's backend on another device, such as TensorRT. Then both sides generate greedily from the same text and picture.
The first token that differs is reported with the margin of the logits: a small margin means rounding, a large one an
error.
"""

from __future__ import annotations

import gc
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from polygraphy.backend.base import BaseRunner
from polygraphy.backend.onnxrt import OnnxrtRunner
from polygraphy.common import TensorMetadata
from polygraphy.comparator import Comparator
from polygraphy.logger import G_LOGGER

import editar_rt
from editar_rt import names
from editar_rt.backends import CPU, default_device, make_backend
from editar_rt.bundle.compare import Comparison
from editar_rt.bundle.folder import Bundle
from editar_rt.errors import BackendError, OptionError
from editar_rt.generation.sampling import Sampling
from export import parity
from export.checkpoint_reader import Checkpoint, build_transformer, build_vq
from export.dialects.base import Scales
from export.model_info import Sources
from training.config import TransformerConfig
from training.errors import first_line
from training.models.transformer import Transformer


@dataclass(frozen=True)
class Generated:
    """Greedy generation of both sides from the same input."""

    steps: int
    cfg_scale: float
    first_difference: int | None
    """Position of the first token that differs; None if all are equal."""
    margin: float | None
    """PyTorch's best logit there minus its logit of the bundle's token, divided by the largest logit."""
    bound: float

    @property
    def holds(self) -> bool:
        return self.margin is None or self.margin <= self.bound


@dataclass(frozen=True)
class Report:
    """All comparisons."""

    backend: str
    precision: str
    parts: list[Comparison]
    generated: list[Generated] = field(default_factory=list)

    @property
    def holds(self) -> bool:
        return all(c.holds for c in self.parts) and all(g.holds for g in self.generated)

    def to_json(self) -> dict[str, Any]:
        return {
            "backend": self.backend,
            "precision": self.precision,
            "holds": self.holds,
            "parts": [_to_json(c) for c in self.parts],
            "generated": [asdict(g) | {"holds": g.holds} for g in self.generated],
        }

    def lines(self) -> Iterator[str]:
        yield f"{'part':12}  {'output':30}  {'largest':>9}  {'relative':>9}  {'bound':>7}"
        for c in self.parts:
            verdict = "ok" if c.holds else "TOO FAR"
            errors = f"{c.difference:9.1e}  {c.error:9.1e}  {c.bound:7.0e}"
            yield f"{c.part:12}  {c.output:30}  {errors}  {verdict}"
        for g in self.generated:
            label = f"greedy, {g.steps} tokens, cfg_scale {g.cfg_scale:g}"
            if g.first_difference is None:
                yield f"{label}: equal"
            else:
                verdict = "ok" if g.holds else "TOO FAR"
                yield f"{label}: first differs at {g.first_difference}, margin {g.margin:.1e}, {g.bound:.0e}  {verdict}"


def _to_json(compared: Comparison) -> dict[str, Any]:
    values = compared.to_json()
    return {
        "part": values["part"],
        "output": values["output"],
        "largest_error": values["difference"],
        "relative_error": values["error"],
        "bound": values["bound"],
        "holds": values["holds"],
    }


def verify(
    folder: Path,
    sources: Sources,
    steps: int,
    on_part: Callable[[str], None] = lambda part: None,
    device: str | None = None,
) -> Report:
    """Compare every part of a bundle that has a source.

    Args:
        device: also run the bundle on this device, and generate on it; None means `default_device`. Decoder engines are
            compared only by their generations.
        steps: number of tokens to generate greedily, at most a complete picture; 0 turns this off.

    Raises:
        OptionError: no part of the bundle has a source, or sizes differ.
        BackendError: ONNX Runtime cannot load or run a graph.
    """
    bundle = Bundle.open(folder)
    manifest = bundle.manifest
    device = device or default_device(bundle)
    editor = editar_rt.Editor(bundle, make_backend(bundle, device))
    compared: list[Comparison] = []
    for question in _questions(bundle, sources):
        on_part(question.part)
        bound = manifest.bound(question.part)
        compared += _compare(bundle, question, bound)
        if device != CPU and question.part not in parity.DECODER_CASES:
            compared += _compare_backend(editor, question, bound)
    if not compared:
        raise OptionError(
            f"none of the checkpoints belongs to a part of {folder}, whose parts are {', '.join(manifest.parts)}"
        )
    generated = []
    if steps and sources.transformer is not None and names.DECODER in manifest.parts:
        model = build_transformer(sources.transformer)
        bound = manifest.bound(names.DECODER)
        with parity.matmuls_as_stored(model, bundle.part_path(names.DECODER)):
            for cfg_scale in (1.0, 3.0):
                on_part(f"generation, cfg_scale {cfg_scale:g}")
                generated.append(_generate(editor, model, steps, cfg_scale, bound))
    return Report(editor.backend.name, manifest.precision, compared, generated)


@dataclass(frozen=True)
class _Question:
    """Inputs of a part, and its PyTorch model."""

    part: str
    label: str
    inputs: dict[str, parity.Array]
    build: Callable[[], Any]
    decoder: Path | None = None
    """The graph of a decoder, whose integer matmuls PyTorch imitates."""
    scales: Scales = ()


def _questions(bundle: Bundle, sources: Sources) -> Iterator[_Question]:
    parts, model = bundle.manifest.parts, bundle.manifest.model
    if sources.vq is not None and names.VQ_ENCODER in parts:
        assert model.image_size is not None
        build, config = partial(build_vq, sources.vq), sources.vq.config
        yield _Question(names.VQ_ENCODER, "", parity.vq_encoder_inputs(model.image_size), build)
        yield _Question(names.VQ_DECODER, "", parity.vq_decoder_inputs(config, model.image_size), build)
    if sources.text_encoder is not None and names.TEXT_ENCODER in parts:
        assert model.text_tokens is not None
        text = sources.text_encoder
        inputs = parity.text_encoder_inputs(text.tokenizer.get_vocab_size(), model.text_tokens)
        yield _Question(names.TEXT_ENCODER, "", inputs, text.build)
    if sources.transformer is not None and names.DECODER in parts:
        yield from _transformer_questions(bundle, sources.transformer)


def _transformer_questions(bundle: Bundle, checkpoint: Checkpoint[TransformerConfig]) -> Iterator[_Question]:
    config, model = checkpoint.config, bundle.manifest.model
    sizes = (config.dim, config.n_layer, config.n_head, config.vocab_size)
    if sizes != (model.dim, model.layers, model.heads, model.vocab_size):
        raise OptionError(
            f"{checkpoint.path} is not the bundle's transformer: its (width, layers, heads, tokens) are "
            f"{sizes}, the bundle's {(model.dim, model.layers, model.heads, model.vocab_size)}"
        )
    build = partial(build_transformer, checkpoint)
    yield _Question(names.PREFIX_GRAPH, "", parity.prefix_inputs(config), build)
    path, embeddings = bundle.part_path(names.DECODER), checkpoint.tensors["tok_embeddings.weight"].float()
    scales = parity.cache_scales_of(path, config.n_layer)
    for part, cases in parity.DECODER_CASES.items():
        if part not in bundle.manifest.parts or not parity.runs_here(part):
            continue
        for label, rows, filled, chunk in cases:
            inputs = parity.decoder_inputs(config, embeddings, scales, rows, filled, chunk)
            yield _Question(part, label, inputs, build, path, scales)


class _PyTorchRunner(BaseRunner):  # type: ignore[misc]  # Polygraphy has no type information
    """A part's PyTorch model, in memory only while it runs."""

    def __init__(self, question: _Question, feed: Mapping[str, parity.Array]) -> None:
        super().__init__(name="PyTorch")
        self.question, self.feed = question, feed

    def get_input_metadata_impl(self) -> Any:
        return _metadata(self.feed)

    def activate_impl(self) -> None:
        self.model = self.question.build()

    def infer_impl(self, feed_dict: Any) -> Any:
        question, begun = self.question, time.perf_counter()
        stored = parity.matmuls_as_stored(self.model, question.decoder) if question.decoder else nullcontext()
        with stored:
            found = OrderedDict(parity.answers(question.part, self.model, feed_dict, question.scales))
        self.inference_time = time.perf_counter() - begun
        return found

    def deactivate_impl(self) -> None:
        del self.model
        gc.collect()


class _BackendRunner(BaseRunner):  # type: ignore[misc]  # Polygraphy has no type information
    """A part on the runtime's backend."""

    def __init__(self, editor: editar_rt.Editor, question: _Question) -> None:
        super().__init__(name=editor.backend.name)
        self.editor, self.question = editor, question

    def get_input_metadata_impl(self) -> Any:
        return _metadata(self.question.inputs)

    def infer_impl(self, feed_dict: Any) -> Any:
        begun = time.perf_counter()
        found = OrderedDict(self.editor.backend.run(self.question.part, dict(feed_dict)))
        self.inference_time = time.perf_counter() - begun
        return found


def _metadata(feed: Mapping[str, parity.Array]) -> Any:
    metadata = TensorMetadata()
    for name, array in feed.items():
        metadata.add(name, array.dtype, array.shape)
    return metadata


def _compare_backend(editor: editar_rt.Editor, question: _Question, bound: float) -> list[Comparison]:
    runners = [_PyTorchRunner(question, question.inputs), _BackendRunner(editor, question)]
    with G_LOGGER.verbosity(G_LOGGER.CRITICAL):
        results = Comparator.run(runners, data_loader=[question.inputs])
        return _measured(question, results, bound, f" on {editor.backend.device}")


def _compare(bundle: Bundle, question: _Question, bound: float) -> list[Comparison]:
    path, described = bundle.part_path(question.part), bundle.manifest.parts[question.part].inputs
    # PyTorch's model may need inputs that this dialect lacks; Polygraphy passes each runner its own.
    feed = question.inputs | {
        t.name: parity.fitted(question.inputs[t.name], t.dtype == "float16", t.shape) for t in described
    }
    # The session is opened after PyTorch's model was released.
    runners = [_PyTorchRunner(question, feed), OnnxrtRunner(partial(parity.open_session, path), name="ONNX Runtime")]
    with G_LOGGER.verbosity(G_LOGGER.CRITICAL):
        try:
            results = Comparator.run(runners, data_loader=[feed])
        except Exception as error:  # Polygraphy's and the binding's own classes
            raise BackendError(f"ONNX Runtime cannot run {path.name}: {first_line(error)}") from None
        return _measured(question, results, bound)


def _measured(question: _Question, results: Any, bound: float, where: str = "") -> list[Comparison]:
    """Compare the outputs of the second runner with those of the first one, PyTorch."""
    expected, found = (iterations[0] for iterations in results.values())
    label = (f", {question.label}" if question.label else "") + where
    return [
        Comparison.of(question.part, name + label, np.asarray(found[name]), np.asarray(expected[name]), bound)
        for name in expected
    ]


def _generate(editor: editar_rt.Editor, model: Transformer, steps: int, cfg_scale: float, bound: float) -> Generated:
    config = model.config
    steps = min(steps, config.block_size)
    generator = torch.Generator().manual_seed(parity.SEED)
    states = torch.randn(1, config.cls_token_num, config.caption_dim, generator=generator)
    condition = torch.randint(config.vocab_size, (1, config.block_size), generator=generator)
    sampling = Sampling(cfg_scale=cfg_scale, greedy=True)
    drawn = editor.steps(states.numpy(), condition.numpy().astype(np.int32), sampling, steps)
    taken = [int(step.tokens[0, 0]) for step in drawn]
    right = model.generate(states, condition, cfg_scale, greedy=True, count=steps)[0].tolist()
    differ = [i for i, (a, b) in enumerate(zip(taken, right, strict=True)) if a != b]
    if not differ:
        return Generated(steps, cfg_scale, None, None, bound)
    first = differ[0]
    forced = torch.zeros(1, config.block_size, dtype=torch.long)
    forced[0, :first] = torch.tensor(right[:first])
    with_text, without = (logits[0, first] for logits in model.score(states, condition, forced))
    logits = without + cfg_scale * (with_text - without) if sampling.guided else with_text
    margin = float((logits[right[first]] - logits[taken[first]]) / logits.abs().max())
    # Guidance multiplies the errors of the two rows.
    return Generated(steps, cfg_scale, first, margin, bound * max(1.0, 2 * cfg_scale - 1))
