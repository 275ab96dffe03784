"""`python -m export verify`: a bundle against the checkpoints it came from, part by part and end to end.

Parts are compared with Polygraphy's Comparator on the inputs of `export.parity`: PyTorch against ONNX Runtime, and
against the runtime's own backend on another device, such as TensorRT's engines. Then both sides generate greedily with
guidance from the same text and picture. The first token that differs is shown with the margin of the logits there: a
small one is rounding, a large one a fault.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from polygraphy.backend.base import BaseRunner
from polygraphy.backend.onnxrt import OnnxrtRunner
from polygraphy.common import TensorMetadata
from polygraphy.comparator import Comparator, SimpleCompareFunc
from polygraphy.logger import G_LOGGER

import editar_rt
from editar_rt import names
from editar_rt.backends.engines.folder import find_folders
from editar_rt.bundle.folder import Bundle
from editar_rt.errors import BackendError, OptionError
from editar_rt.generation.sampling import Sampling
from editar_rt.measure.selftest import bound_of
from export import parity
from export.checkpoint_reader import build_transformer, build_vq
from export.model_info import Sources
from training.errors import first_line
from training.models.transformer import Transformer

CPU, TENSORRT = "cpu", "tensorrt"


@dataclass(frozen=True)
class Compared:
    """One output of one part: PyTorch against what runs the bundle."""

    part: str
    output: str
    largest_error: float
    """Absolute; for tokens the number that differ."""
    relative_error: float
    """Over the largest value of PyTorch's; for tokens the share that differs."""
    bound: float
    """Of the relative error; tokens must be equal where the codebook decides clearly."""

    @property
    def holds(self) -> bool:
        return self.relative_error <= self.bound  # false for NaN


@dataclass(frozen=True)
class Generated:
    """Greedy generation, both sides from the same beginning."""

    steps: int
    cfg_scale: float
    first_difference: int | None
    """Position of the first token that differs; None where all agree."""
    margin: float | None
    """There: how far PyTorch's best logit lies above that of the token which the bundle took, over the largest."""
    bound: float

    @property
    def holds(self) -> bool:
        return self.margin is None or self.margin <= self.bound


@dataclass(frozen=True)
class Report:
    """All that was compared."""

    backend: str
    precision: str
    parts: list[Compared]
    generated: list[Generated] = field(default_factory=list)

    @property
    def holds(self) -> bool:
        return all(c.holds for c in self.parts) and all(g.holds for g in self.generated)

    def to_json(self) -> dict[str, Any]:
        return {
            "backend": self.backend,
            "precision": self.precision,
            "holds": self.holds,
            "parts": [asdict(c) | {"holds": c.holds} for c in self.parts],
            "generated": [asdict(g) | {"holds": g.holds} for g in self.generated],
        }

    def lines(self) -> Iterator[str]:
        yield f"{'part':12}  {'output':30}  {'largest':>9}  {'relative':>9}  {'bound':>7}"
        for c in self.parts:
            verdict = "ok" if c.holds else "TOO FAR"
            errors = f"{c.largest_error:9.1e}  {c.relative_error:9.1e}  {c.bound:7.0e}"
            yield f"{c.part:12}  {c.output:30}  {errors}  {verdict}"
        for g in self.generated:
            label = f"greedy, {g.steps} tokens, cfg_scale {g.cfg_scale:g}"
            if g.first_difference is None:
                yield f"{label}: equal"
            else:
                verdict = "ok" if g.holds else "TOO FAR"
                yield f"{label}: first differs at {g.first_difference}, margin {g.margin:.1e}, {g.bound:.0e}  {verdict}"


def verify(
    folder: Path,
    sources: Sources,
    steps: int,
    on_part: Callable[[str], None] = lambda part: None,
    device: str | None = None,
) -> Report:
    """Compare every part of a bundle for which there is a source.

    Args:
        device: that the bundle is run on besides, and generates on; None takes TensorRT where its engines lie in the
            bundle, else the CPU alone. A decoder's engines are compared by what they generate.
        steps: tokens of the greedy generations, up to a whole picture; 0 leaves them out.

    Raises:
        OptionError: no part of the bundle has a source, or sizes differ.
        BackendError: ONNX Runtime does not load or run a graph.
    """
    bundle = Bundle.open(folder)
    manifest = bundle.manifest
    device = device or (TENSORRT if find_folders(bundle) else CPU)
    editor = editar_rt.load(folder, device)
    compared: list[Compared] = []
    for part, cases in _cases(bundle, sources):
        on_part(part)
        bound = bound_of(part, manifest.precision, manifest.kv_cache, manifest.spelling)
        for case in cases:
            compared += _compare(bundle.part_path(part), case, bound)
            if device != CPU and part != names.DECODER:
                compared += _compare_backend(editor, case, bound)
    if not compared:
        raise OptionError(
            f"none of the checkpoints belongs to a part of {folder}, which holds {', '.join(manifest.parts)}"
        )
    generated = []
    if steps and sources.transformer is not None and names.DECODER in manifest.parts:
        model = build_transformer(sources.transformer)
        bound = bound_of(names.DECODER, manifest.precision, manifest.kv_cache, manifest.spelling)
        with parity.products_as_stored(model, bundle.part_path(names.DECODER)):
            for cfg_scale in (1.0, 3.0):
                on_part(f"generation, cfg_scale {cfg_scale:g}")
                generated.append(_generate(editor, model, steps, cfg_scale, bound))
    return Report(editor.backend.name, manifest.precision, compared, generated)


def _cases(bundle: Bundle, sources: Sources) -> Iterator[tuple[str, Sequence[parity.Case]]]:
    parts, model = bundle.manifest.parts, bundle.manifest.model
    if sources.vq is not None and names.VQ_ENCODER in parts:
        assert model.image_size is not None
        yield names.VQ_ENCODER, [parity.vq_encoder_case(build_vq(sources.vq), model.image_size)]
        yield names.VQ_DECODER, [parity.vq_decoder_case(build_vq(sources.vq), model.image_size)]
    if sources.text_encoder is not None and names.TEXT_ENCODER in parts:
        assert model.text_tokens is not None
        yield names.TEXT_ENCODER, [parity.text_encoder_case(sources.text_encoder.build(), model.text_tokens)]
    if sources.transformer is not None and names.DECODER in parts:
        config = sources.transformer.config
        sizes = (config.dim, config.n_layer, config.n_head, config.vocab_size)
        if sizes != (model.dim, model.layers, model.heads, model.vocab_size):
            raise OptionError(
                f"{sources.transformer.path} is another transformer than the bundle's: (width, layers, heads, tokens) "
                f"{sizes} against {(model.dim, model.layers, model.heads, model.vocab_size)}"
            )
        # Built for each, so that no model is in memory while ONNX Runtime runs a graph.
        yield names.PREFIX_GRAPH, [parity.prefix_case(build_transformer(sources.transformer))]
        path = bundle.part_path(names.DECODER)
        yield names.DECODER, parity.decoder_cases(build_transformer(sources.transformer), path)


class _PyTorchRunner(BaseRunner):  # type: ignore[misc]  # Polygraphy has no type information
    """PyTorch's answers to a case, computed when the case was made."""

    def __init__(self, case: parity.Case, inputs: Mapping[str, parity.Array]) -> None:
        super().__init__(name="PyTorch")
        self.case, self.inputs = case, inputs

    def get_input_metadata_impl(self) -> Any:
        metadata = TensorMetadata()
        for name, array in self.inputs.items():
            metadata.add(name, array.dtype, array.shape)
        return metadata

    def infer_impl(self, feed_dict: Any) -> Any:
        self.inference_time = 0.0
        return OrderedDict(self.case.expected)


class _BackendRunner(BaseRunner):  # type: ignore[misc]  # Polygraphy has no type information
    """A part through the runtime's own backend."""

    def __init__(self, editor: editar_rt.Editor, case: parity.Case) -> None:
        super().__init__(name=editor.backend.name)
        self.editor, self.case = editor, case

    def get_input_metadata_impl(self) -> Any:
        return _PyTorchRunner(self.case, self.case.inputs).get_input_metadata_impl()

    def infer_impl(self, feed_dict: Any) -> Any:
        self.inference_time = 0.0
        return OrderedDict(self.editor.backend.run(self.case.part, dict(feed_dict)))


def _compare_backend(editor: editar_rt.Editor, case: parity.Case, bound: float) -> list[Compared]:
    runners = [_PyTorchRunner(case, case.inputs), _BackendRunner(editor, case)]
    with G_LOGGER.verbosity(G_LOGGER.CRITICAL):
        results = Comparator.run(runners, data_loader=[case.inputs])
        return _measured(case, results, bound, f" on {editor.backend.device}")


def _compare(path: Path, case: parity.Case, bound: float) -> list[Compared]:
    with G_LOGGER.verbosity(G_LOGGER.CRITICAL):
        try:
            session = parity.open_session(path)
            inputs = parity.feeds(session, case.inputs)
            runners = [_PyTorchRunner(case, inputs), OnnxrtRunner(session, name="ONNX Runtime")]
            results = Comparator.run(runners, data_loader=[inputs])
        except Exception as error:  # Polygraphy's and the binding's own classes
            raise BackendError(f"ONNX Runtime does not run {path.name}: {first_line(error)}") from None
        return _measured(case, results, bound)


def _measured(case: parity.Case, results: Any, bound: float, where: str = "") -> list[Compared]:
    """The errors of the second runner's answers to a case; the first one's are PyTorch's."""
    expected, found = (iterations[0] for iterations in results.values())
    for name in [n for n in found if n not in expected]:
        del found.dct[name]  # the cache
    compared = []
    for name, right in case.expected.items():
        label = (f"{name}, {case.label}" if case.label else name) + where
        if np.issubdtype(right.dtype, np.integer):
            differ = (found[name] != right)[right >= 0]
            compared.append(Compared(case.part, label, float(differ.sum()), float(differ.mean()), 0.0))
            continue
        largest = float(np.abs(right).max())
        check = SimpleCompareFunc(atol=bound * largest, rtol=0, check_error_stat="max")
        difference = float(check(expected, found)[name].max_absdiff)
        compared.append(Compared(case.part, label, difference, difference / largest, bound))
    return compared


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
