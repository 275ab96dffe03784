"""A finished bundle as the source of another: `python -m export convert`."""

from __future__ import annotations

import dataclasses
import filecmp
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest

import editar_rt
from editar_rt import names
from editar_rt.backends import kept_folder
from editar_rt.backends.ort import prepacked
from editar_rt.bundle.folder import Bundle, file_digest
from editar_rt.errors import BundleError, MissingPartError
from export.bundle_reader import transformer_tensors
from export.checkpoint_reader import read_transformer
from tests.commands import Command
from tests.conftest import GPT_TINY_HEADS, golden_weights


def test_a_bundle_gives_back_its_checkpoint(golden_gpt_bundle: Path) -> None:
    weights, found = golden_weights("gpt_tiny"), read_transformer(golden_gpt_bundle)
    assert found.config.n_head == GPT_TINY_HEADS  # which no shape tells
    assert found.tensors.keys() == weights.keys()
    assert all(np.array_equal(found.tensors[name], weights[name]) for name in weights)


def test_the_other_parts_are_taken_over_and_the_decoder_is_stored_anew(
    exporter: Command, tiny_bundle: Path, tmp_path: Path
) -> None:
    done = exporter("convert", tiny_bundle, "--precision", "int8", "--kv-cache", "int8", "-o", tmp_path / "int8")
    assert done.code == 0, done.stderr
    made, source = Bundle.open(tmp_path / "int8"), Bundle.open(tiny_bundle)
    assert [*made.manifest.parts, names.SAMPLER] == list(names.PARTS)
    assert (made.manifest.precision, made.manifest.kv_cache) == ("int8", "int8")
    for part in (names.VQ_ENCODER, names.VQ_DECODER, names.TEXT_ENCODER):
        assert filecmp.cmp(made.part_path(part), source.part_path(part), shallow=False)
    picture = np.full((8, 8, 3), 200, np.uint8)
    assert editar_rt.load(made.folder).edit(picture, "make the ball red").tokens.shape == (16,)


def test_stored_as_it_was_it_has_the_same_weights_and_tokens(
    exporter: Command, tiny_bundle: Path, tmp_path: Path
) -> None:
    done = exporter("convert", tiny_bundle, "-o", tmp_path / "again")
    assert done.code == 0, done.stderr
    weights = "decoder.onnx.data"
    assert filecmp.cmp(tmp_path / "again" / weights, tiny_bundle / weights, shallow=False)


def test_int4_and_a_sampling_head_for_tensorrt(exporter: Command, golden_gpt_bundle: Path, tmp_path: Path) -> None:
    target = ("--target", "jetson-thor-jp7", "--precision", "int4", "--sampling-head")
    done = exporter("convert", golden_gpt_bundle, *target, "-o", tmp_path / "int4")
    assert done.code == 0, done.stderr
    manifest = Bundle.open(tmp_path / "int4").manifest
    assert (manifest.precision, manifest.dialect, manifest.sampler_top_k) == ("int4", "delta", 256)
    assert list(manifest.parts) == [names.PREFIX_GRAPH, names.DECODER, names.SAMPLER]
    for options, sentence in (
        (
            ("--target", "jetson-orin-jp5", "--precision", "int4"),
            "cannot read precision int4; use --precision fp32 or",
        ),
        (("--sampling-head",), "the sampling head needs the dialect delta"),
    ):
        done = exporter("convert", golden_gpt_bundle, *options, "-o", tmp_path / "none")
        assert done.code == 2 and sentence in done.stderr and len(done.stderr.splitlines()) == 1


def test_what_rounding_took_away_is_not_made_up(
    exporter: Command, golden_gpt_bundle_fp16: Path, tmp_path: Path
) -> None:
    done = exporter("convert", golden_gpt_bundle_fp16, "-o", tmp_path / "out")
    assert done.code == 1
    assert "stores its weights in fp16; only an fp32 bundle can be converted" in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_a_bundle_without_a_transformer_is_refused(golden_vq_bundle: Path) -> None:
    with pytest.raises(MissingPartError, match="it has no transformer to read"):
        transformer_tensors(golden_vq_bundle)


def open_session(bundle: Path) -> None:
    editar_rt.load(bundle, "cpu", 1, cache=False).backend.session("decoder")  # type: ignore[attr-defined]


def keep_weights(bundle: Path) -> None:
    editar_rt.load(bundle, "cpu", 1).backend.session("decoder")  # type: ignore[attr-defined]


def check(bundle: Path) -> None:
    Bundle.open(bundle).check()


@pytest.mark.parametrize("read", [open_session, keep_weights, transformer_tensors, read_transformer, check])
def test_nobody_reads_weights_from_outside_of_a_bundle(
    golden_gpt_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, read: Callable[[Path], object]
) -> None:
    """A converter that did would carry the file's content away in what it writes."""
    monkeypatch.setattr(prepacked, "PAYS_FROM", 0)
    monkeypatch.setenv(kept_folder.VARIABLE, str(tmp_path / "cache"))
    bundle = Path(shutil.copytree(golden_gpt_bundle, tmp_path / "bundle"))
    shutil.copy2(bundle / "decoder.onnx.data", tmp_path / "evil.data")
    manifest = json.loads((bundle / "bundle.json").read_text())
    for file in ("decoder.onnx", "decoder_chunks.onnx"):
        graph = onnx.load(bundle / file, load_external_data=False)
        stored = next(tensor for tensor in graph.graph.initializer if tensor.external_data)
        next(entry for entry in stored.external_data if entry.key == "location").value = "../evil.data"
        onnx.save(graph, bundle / file)
        manifest["files"][file] = dataclasses.asdict(file_digest(bundle / file))
    (bundle / "bundle.json").write_text(json.dumps(manifest))
    with pytest.raises(BundleError, match=r"'\.\./evil\.data', which is not a file inside the bundle"):
        read(bundle)
    assert not (tmp_path / "cache").exists() or not list((tmp_path / "cache").iterdir())


def test_a_bundle_for_a_gpu_alone_is_converted_with_its_sampling_head(
    exporter: Command, golden_gpt_bundle: Path, tmp_path: Path
) -> None:
    """No CPU runs its decoder in bfloat16; all parts have answers for the device that does."""
    options = ["--precision", "bf16", "--provider", "cuda", "--dialect", "delta", "--sampling-head"]
    done = exporter("convert", golden_gpt_bundle, *options, "-o", tmp_path / "bf16")
    assert done.code == 0, done.stderr
    manifest = Bundle.open(tmp_path / "bf16").manifest
    assert (manifest.precision, manifest.providers) == ("bf16", ["cuda"]) and "sampler" in manifest.parts
    assert manifest.self_test is not None and manifest.self_test.keys() == manifest.parts.keys()
