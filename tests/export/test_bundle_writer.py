"""Parts that fit become a bundle that opens; parts that do not, or graphs that answer wrongly, become nothing."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch

import editar_rt
from editar_rt import names
from editar_rt.backends import host_device
from editar_rt.bundle.folder import Bundle
from editar_rt.errors import BundleError, OptionError
from editar_rt.measure import selftest
from export import parity
from export.bundle_writer import Options, ParityError, Sources, model_info, write_bundle
from export.checkpoint_reader import Checkpoint, read_transformer
from export.decoder_graph import decoder_graph
from export.precision import Storage
from tests.conftest import GPT_TINY_HEADS
from training.config import TransformerConfig
from training.models.transformer import Transformer


def changed(checkpoint: Checkpoint[Any], **values: Any) -> Checkpoint[Any]:
    """A checkpoint that says of itself to have other sizes; for what is refused before any graph is made."""
    return dataclasses.replace(checkpoint, config=dataclasses.replace(checkpoint.config, **values))


def test_the_manifest_describes_the_bundle(tiny_bundle: Path) -> None:
    manifest = Bundle.open(tiny_bundle).manifest
    model = manifest.model
    assert (model.image_size, model.downsampling, model.grid, model.picture_tokens) == (32, 8, 4, 16)
    assert (model.vocab_size, model.codebook_size, model.text_tokens, model.text_dim) == (256, 256, 120, 64)
    assert (model.dim, model.layers, model.heads, model.head_dim) == (128, 3, GPT_TINY_HEADS, 32)
    assert [*manifest.parts, names.SAMPLER] == list(names.PARTS)
    assert (manifest.precision, manifest.dialect, manifest.tokenizer) == ("fp32", "ort", "tokenizer.json")
    listed = {path.relative_to(tiny_bundle).as_posix() for path in tiny_bundle.rglob("*") if path.is_file()}
    assert set(manifest.files) | {"bundle.json"} == listed
    assert manifest.made_by["torch"] == torch.__version__


def test_the_manifest_describes_every_graph(tiny_bundle: Path) -> None:
    """Names, types and shapes are those of the files."""
    for part in Bundle.open(tiny_bundle).manifest.parts.values():
        graph = onnx.load(tiny_bundle / part.file, load_external_data=False).graph
        for described, actual in ((part.inputs, graph.input), (part.outputs, graph.output)):
            assert [tensor.name for tensor in described] == [value.name for value in actual]
            for tensor, value in zip(described, actual):
                kind = value.type.tensor_type
                assert tensor.dtype == onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type).name
                assert tensor.shape == [d.dim_param or d.dim_value for d in kind.shape.dim]


def test_parameters_are_counted_by_part(tiny_sources: Sources, tiny_bundle: Path) -> None:
    counts = Bundle.open(tiny_bundle).manifest.model.parameters
    assert tiny_sources.transformer is not None
    assert counts[names.PREFIX_GRAPH] + counts[names.DECODER] == tiny_sources.transformer.parameters
    assert counts[names.PREFIX_GRAPH] == 120 * 64 + 64 * 128 + 128 * 128 + 16 * 128


def test_weights_are_stored_once(tiny_sources: Sources, tiny_bundle: Path) -> None:
    """The decoder's data is its float32 weights and rotary tables, each tensor from a new page on."""
    assert tiny_sources.transformer is not None
    config = tiny_sources.transformer.config
    weights = Bundle.open(tiny_bundle).manifest.model.parameters[names.DECODER]
    tables = config.max_positions * config.head_dim
    tensors = 2 + 5 * config.n_layer + 2
    size = (tiny_bundle / "decoder.onnx.data").stat().st_size
    assert 4 * (weights + tables) * 0.99 < size < 4 * (weights + tables) + 4096 * tensors


def test_graphs_carry_nothing_of_the_machine_they_were_made_on(tiny_bundle: Path) -> None:
    for path in tiny_bundle.glob("*.onnx"):
        content = path.read_bytes()
        for trace in (b"site-packages", b"Traceback", b".py", str(Path.home()).encode() + b"/"):
            assert trace not in content, f"{path.name} holds {trace.decode()}"


def test_a_float16_bundle_stores_decoder_and_cache_in_float16(
    golden_gpt_bundle: Path, golden_gpt_bundle_fp16: Path
) -> None:
    full, half = (bundle / "decoder.onnx.data" for bundle in (golden_gpt_bundle, golden_gpt_bundle_fp16))
    assert half.stat().st_size < 0.55 * full.stat().st_size
    decoder = Bundle.open(golden_gpt_bundle_fp16).manifest.parts[names.DECODER]
    types = {tensor.name: tensor.dtype for tensor in (*decoder.inputs, *decoder.outputs)}
    assert types[names.past_key(0)] == types[names.present_value(2)] == "float16"
    assert types[names.LOGITS] == types[names.PREFIX] == "float32"


def test_samples_and_sampling_defaults_travel_along(tiny_sources: Sources, tmp_path: Path) -> None:
    samples = tmp_path / "pictures"
    (samples / "sub").mkdir(parents=True)
    (samples / "samples.json").write_text("[]")
    (samples / "sub" / "a.png").write_bytes(b"picture")
    options = Options(samples=samples, sampling={"temperature": 0.9, "top_k": 64})
    write_bundle(tmp_path / "bundle", Sources(transformer=tiny_sources.transformer), options)
    manifest = Bundle.open(tmp_path / "bundle").manifest
    assert manifest.samples == "samples/samples.json"
    assert (tmp_path / "bundle/samples/sub/a.png").read_bytes() == b"picture"
    assert manifest.sampling == {"temperature": 0.9, "top_k": 64}
    assert list(manifest.parts) == [names.PREFIX_GRAPH, names.DECODER, names.DECODER_CHUNKS]
    assert manifest.model.codebook_size is None


def test_samples_without_their_list_are_refused(tiny_sources: Sources, tmp_path: Path) -> None:
    with pytest.raises(OptionError, match=r"contains no samples\.json"):
        write_bundle(tmp_path / "bundle", tiny_sources, Options(samples=tmp_path))


def test_a_graph_that_answers_otherwise_is_not_published(
    tiny_sources: Sources, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def with_another_epsilon(config: TransformerConfig, *arguments: Any) -> Any:
        return decoder_graph(dataclasses.replace(config, norm_eps=0.01), *arguments)

    monkeypatch.setattr("export.part_graphs.decoder_graph", with_another_epsilon)
    with pytest.raises(ParityError, match=r"the outputs of decoder differ from PyTorch's .*nothing was written"):
        write_bundle(tmp_path / "bundle", Sources(transformer=tiny_sources.transformer), Options())
    assert list(tmp_path.iterdir()) == []


def test_an_existing_bundle_is_replaced_only_when_asked(tiny_sources: Sources, tmp_path: Path) -> None:
    sources, folder = Sources(transformer=tiny_sources.transformer), tmp_path / "bundle"
    write_bundle(folder, sources, Options())
    before = (folder / "bundle.json").read_text()
    with pytest.raises(BundleError, match="exists; choose another folder, or replace it with --force"):
        write_bundle(folder, sources, Options())
    assert (folder / "bundle.json").read_text() == before
    write_bundle(folder, sources, Options(storage=Storage("fp16")), force=True)
    assert json.loads((folder / "bundle.json").read_text())["precision"] == "fp16"
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]


def test_parts_that_were_not_trained_together_are_refused(tiny_sources: Sources) -> None:
    transformer, vq = tiny_sources.transformer, tiny_sources.vq
    assert transformer is not None and vq is not None
    for sources, options, message in (
        (Sources(), Options(), "nothing to export"),
        (
            Sources(transformer, changed(vq, codebook_size=512)),
            Options(),
            "256 picture tokens, but .* has 512",
        ),
        (
            Sources(changed(transformer, caption_dim=2048), None, tiny_sources.text_encoder),
            Options(),
            "text states of width 2048, but the text encoder's have width 64",
        ),
        (Sources(transformer, vq), Options(image_size=64), "4×4 tokens, which is 32 pixels per side .* not 64"),
        (Sources(transformer), Options(text_tokens=40), "reads 120 text positions, not 40"),
        (Sources(changed(transformer, n_head=32)), Options(), r"multiple of 16; .* is 4 \(128 / 32 heads\)"),
        (Sources(vq=vq), Options(), "choose one with --image-size"),
        (Sources(vq=vq), Options(image_size=100), "must be a multiple of 8, .* got 100"),
    ):
        with pytest.raises(OptionError, match=message):
            model_info(sources, options)


def test_sizes_of_parts_alone(tiny_sources: Sources) -> None:
    vq = model_info(Sources(vq=tiny_sources.vq), Options(image_size=64))
    assert (vq.image_size, vq.grid, vq.picture_tokens, vq.vocab_size) == (64, 8, 64, None)
    text = model_info(Sources(text_encoder=tiny_sources.text_encoder), Options())
    assert (text.text_tokens, text.text_dim, text.image_size) == (120, 64, None)


def test_parity_tells_a_wrong_answer_from_a_right_one(tiny_bundle: Path) -> None:
    rng = np.random.default_rng(0)
    inputs = {names.TEXT_STATES: rng.standard_normal((1, 120, 64), np.float32)}
    path = tiny_bundle / "prefix.onnx"
    nothing = np.full((1, 120, 128), np.nan, np.float32)
    (found,) = parity.compare(path, [parity.Case(names.PREFIX_GRAPH, "", inputs, {names.TEXT_PREFIX: nothing})], 1.0)
    assert not found.holds  # NaN is never near
    assert "TOO FAR" in str(found)


@pytest.mark.parametrize("dialect", ["ort", "standard", "delta"])
@pytest.mark.parametrize(("grid", "text_tokens"), [(1, 1), (4, 10), (4, 11)])  # sequences of 3, 42 and 43 positions
def test_transformers_of_few_positions_are_exported_and_tested(
    tmp_path: Path, grid: int, text_tokens: int, dialect: str
) -> None:
    config = TransformerConfig(
        dim=32,
        n_layer=1,
        n_head=2,
        vocab_size=16,
        block_size=grid**2,
        cls_token_num=text_tokens,
        caption_dim=8,
        multiple_of=8,
    )
    torch.manual_seed(0)
    model = Transformer(config)
    for weight in model.parameters():
        torch.nn.init.normal_(weight, std=0.2)
    torch.save({"model": model.state_dict(), "config": config.to_dict()}, tmp_path / "a.pt")
    sources = Sources(transformer=read_transformer(tmp_path / "a.pt"))
    manifest = write_bundle(tmp_path / "bundle", sources, Options(storage=Storage(dialect=dialect)))
    assert manifest.self_test is not None and names.DECODER in manifest.self_test
    editor = editar_rt.load(tmp_path / "bundle", host_device(manifest))
    assert all(check.holds for check in selftest.verify(editor))
