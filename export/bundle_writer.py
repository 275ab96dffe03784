"""Writes a bundle: graphs compared with PyTorch, parts copied from another bundle, and the manifest.

The parts are written one after the other, and each is compared with its PyTorch model before the bundle gets its final
name. Weights are loaded when needed and then released: while ONNX Runtime runs a graph, PyTorch's model is not in
memory.
"""

from __future__ import annotations

import datetime
import gc
import platform
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import onnx_ir as ir
import torch

from editar_rt import names
from editar_rt.backends import Settings, host_device, make_backend
from editar_rt.bundle.folder import Bundle, list_files, publishing
from editar_rt.bundle.manifest import MANIFEST_NAME, UNPRINTABLE, Manifest, ModelInfo, Part, TensorInfo
from editar_rt.bundle.samples import FOLDER, LIST
from editar_rt.bundle.words import DIALECTS, PRECISIONS
from editar_rt.editor import Editor
from editar_rt.errors import EditarError, OptionError
from editar_rt.measure import selftest
from editar_rt.version import __version__
from export import graph_writer, parity
from export.checkpoint_reader import build_transformer
from export.dialects.ort import add_chunk_lengths
from export.model_info import Options, Sources, model_info
from export.part_graphs import listed_examples, part_graphs, twin_graph, twin_storage
from export.precision import Storage
from export.sampler_graph import MOST
from export.weight_ranges import decoder_types, largest_values, require_range, text_types

TOKENIZER = "tokenizer.json"
SAMPLES = f"{FOLDER}/{LIST}"
CPU, TENSORRT = "cpu", "tensorrt"
TWIN = "decoder-twin"  # written, compared, run for the self-test, and removed
CHUNKS = names.DECODER_CHUNKS.removeprefix(names.DECODER)
TRANSFORMER_PARTS = (names.PREFIX_GRAPH, names.DECODER, names.DECODER_CHUNKS, names.SAMPLER)
LIBRARIES = ("torch", "onnx", "onnxscript", "onnxruntime", "transformers")  # versions recorded in the manifest


class ParityError(EditarError):
    """The outputs of a graph differ from PyTorch's."""


def write_bundle(
    folder: Path,
    sources: Sources,
    options: Options,
    force: bool = False,
    report: Callable[[str], None] = lambda line: None,
) -> Manifest:
    """Write a bundle, and publish it only after every graph was checked.

    Args:
        force: replace an existing bundle.
        report: called with one line for every comparison.

    Raises:
        OptionError: the parts do not fit each other or the options.
        ParityError: the outputs of a graph differ from PyTorch's.
        BundleError: `folder` exists, or cannot be written.
    """
    info, storage = model_info(sources, options), options.storage
    twin: Part | None = None
    listed = listed_examples(sources, options)
    _check_weights(sources, storage)
    if options.samples is not None and not (options.samples / LIST).is_file():
        raise OptionError(f"{options.samples} contains no {LIST}, which must describe the sample pictures")
    if sources.kept is not None and sources.transformer is not None:
        # First check that the weights read from the bundle are those that it computes with.
        source, bound = sources.kept.part_path(names.DECODER), PRECISIONS["fp32"].bound
        expected = parity.decoder_cases(build_transformer(sources.transformer), source)
        _require_parity(source, expected, bound, lambda line: report(f"{line}, the source"))
    with publishing(folder, force) as partial:
        parts = _take_over(sources.kept, partial) if sources.kept is not None else {}
        tokenizer, samples = _text_and_samples(sources, options, partial)
        for name, model, cases in part_graphs(sources, options, info, listed, report):
            path = partial / f"{name}.onnx"
            parts[name] = _write_part(name, model, path, info, storage)
            if name == names.DECODER and CPU not in storage.providers:
                assert sources.transformer is not None
                path = partial / f"{TWIN}.onnx"
                twin = _save(twin_graph(sources.transformer, storage), path)
            bound = storage.bound(name)
            _require_parity(path, cases(path), bound, report)
            if name == names.DECODER and _takes_chunks(storage, report):
                assert sources.transformer is not None
                parts[names.DECODER_CHUNKS] = _write_chunks(partial / f"{name}.onnx", partial)
                checked = partial / parts[names.DECODER_CHUNKS].file
                if twin is not None:
                    checked = partial / _write_chunks(path, partial).file
                expected = parity.decoder_cases(build_transformer(sources.transformer), path, names.DECODER_CHUNKS)
                _require_parity(checked, expected, bound, report)
        manifest = Manifest(
            model=info,
            parts={name: parts[name] for name in names.PARTS if name in parts},
            files=list_files(partial),
            precision=storage.precision,
            dialect=storage.dialect,
            kv_cache=storage.kv_cache,
            sampler_top_k=min(MOST, info.vocab_size or 0) if names.SAMPLER in parts else None,
            providers=storage.providers,
            tokenizer=tokenizer,
            samples=samples,
            sampling=dict(options.sampling),
            made_by=_made_by(options),
        )
        manifest = replace(manifest, format_version=manifest.needed_version())
        # `editar verify` compares with the outputs of this machine.
        manifest = replace(manifest, self_test=_self_test(partial, manifest, twin))
        if twin is not None:
            manifest = replace(manifest, files={f: d for f, d in manifest.files.items() if not _is_twins(f)})
            for leftover in partial.glob(f"{TWIN}*"):
                leftover.unlink()
        _write_manifest(partial, manifest)
        Bundle.open(partial)  # a bundle that the runtime would reject is not published
    return manifest


def _write_part(name: str, model: ir.Model, path: Path, info: ModelInfo, storage: Storage) -> Part:
    """Write one part's graph, after recording its sizes in `info`; then its weights are released."""
    if name in (names.VQ_ENCODER, names.VQ_DECODER, names.TEXT_ENCODER):
        info.activations[name] = graph_writer.working_set(model)
    if name == names.DECODER:
        for provider in [*storage.providers, *([TENSORRT] if DIALECTS[storage.dialect].has_fixed_shapes else [])]:
            info.step_weight_bytes[provider] = graph_writer.weight_bytes(model, provider)
    return _save(model, path)


def _takes_chunks(storage: Storage, report: Callable[[str], None]) -> bool:
    """Whether to write the decoder's second graph, which this ONNX Runtime must run for the comparison."""
    if not DIALECTS[storage.dialect].takes_chunk_lengths:
        return False
    runs = parity.runs_here(names.DECODER_CHUNKS)
    if not runs:
        report(f"no {names.DECODER_CHUNKS}: ONNX Runtime here is too old to check it; chunks will run row by row")
    return runs


def _write_chunks(decoder: Path, folder: Path) -> Part:
    """Write the second graph of a decoder, over the same file of weights."""
    model = ir.load(decoder)
    add_chunk_lengths(model)
    path = folder / f"{decoder.stem}{CHUNKS}.onnx"
    ir.save(model, path)
    return Part(path.name, _describe(model.graph.inputs), _describe(model.graph.outputs))


def _save(model: ir.Model, path: Path) -> Part:
    """Write a graph. Returns its description for the manifest."""
    graph_writer.save(model, path)
    return Part(path.name, _describe(model.graph.inputs), _describe(model.graph.outputs))


def _write_manifest(folder: Path, manifest: Manifest) -> None:
    (folder / MANIFEST_NAME).write_text(manifest.to_json(), encoding="utf-8")


def _self_test(folder: Path, manifest: Manifest, twin: Part | None) -> dict[str, Any]:
    """Run the self-test of a bundle, one part at a time to limit memory.

    Args:
        twin: replaces a decoder that no CPU can run; its files are in the folder and in the manifest.
    """
    if twin is not None:
        own = twin_storage(manifest.dialect)
        manifest = replace(
            manifest,
            parts={n: p for n, p in manifest.parts.items() if n != names.DECODER_CHUNKS} | {names.DECODER: twin},
            precision=own.precision,
            kv_cache=own.kv_cache,
            providers=own.providers,
        )
    _write_manifest(folder, manifest)
    bundle, found = Bundle.open(folder), dict[str, Any]()
    transformer = [part for part in manifest.parts if part in TRANSFORMER_PARTS]
    for together in (*([part] for part in manifest.parts if part not in transformer), transformer):
        settings = Settings(cache=False, prepack=together == transformer)
        editor = Editor(bundle, make_backend(bundle, host_device(manifest), settings))
        found |= selftest.answers(editor, together)
        del editor
        gc.collect()
    return found


def _take_over(kept: Bundle, folder: Path) -> dict[str, Part]:
    """Copy the parts of a bundle that stay unchanged."""
    parts = {name: part for name, part in kept.manifest.parts.items() if name not in TRANSFORMER_PARTS}
    for part in parts:
        for name in kept.part_files(part):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(kept.path(name), folder / name)
    return parts


def _text_and_samples(sources: Sources, options: Options, folder: Path) -> tuple[str | None, str | None]:
    """Copy the tokenizer and the sample pictures, if any. Returns their names in the manifest."""
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
        shutil.copytree(options.samples, folder / FOLDER)
    return tokenizer, samples


def _check_weights(sources: Sources, storage: Storage) -> None:
    """Reject weights that the graphs' types cannot represent.

    Raises:
        CheckpointError: with the names of these weights.
    """
    if sources.transformer is not None:
        checkpoint = sources.transformer
        require_range(checkpoint.path, largest_values(checkpoint.tensors), decoder_types(storage))
    if sources.vq is not None:
        require_range(sources.vq.path, largest_values(sources.vq.tensors), lambda _: torch.float32)
    if sources.text_encoder is not None:
        require_range(sources.text_encoder.folder, sources.text_encoder.largest, text_types(storage))


def _require_parity(path: Path, cases: Sequence[parity.Case], bound: float, report: Callable[[str], None]) -> None:
    for compared in parity.compare(path, cases, bound):
        report(str(compared))
        if not compared.holds:
            raise ParityError(
                f"the outputs of {path.stem} differ from PyTorch's ({compared.output}: error {compared.error:.1e}, "
                f"allowed {compared.bound:.0e}); nothing was written"
            )


def _describe(values: Sequence[ir.Value]) -> list[TensorInfo]:
    described = []
    for value in values:
        assert value.name is not None and value.dtype is not None and value.shape is not None
        shape = [d if isinstance(d, int) else str(d.value) for d in value.shape]
        described.append(TensorInfo(value.name, value.dtype.numpy().name, shape))
    return described


def _is_twins(file: str) -> bool:
    return file.startswith(TWIN)


def _made_by(options: Options) -> dict[str, str]:
    now = datetime.datetime.now(datetime.timezone.utc)
    return {
        "tool": "python -m export onnx",
        "version": __version__,
        "command": UNPRINTABLE.sub("\ufffd", options.command),  # paths may contain anything
        "date": now.isoformat(timespec="seconds"),
        **{library: version(library) for library in LIBRARIES},
        "machine": platform.machine(),
    }
