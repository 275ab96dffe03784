"""One home for each word: a precision is one row, a dialect one row and a module of its own."""

from __future__ import annotations

import json
import sys
import types
from pathlib import Path

import pytest
from click.testing import CliRunner

import editar_rt
from editar_rt.bundle import words
from editar_rt.bundle.folder import Bundle
from editar_rt.bundle.manifest import Manifest
from editar_rt.errors import OptionError
from editar_rt.measure.memory import memory_needs
from editar_rt.measure.selftest import verify
from export.bundle_writer import write_bundle
from export.cli import cli
from export.decoder_graph import dialect_of
from export.dialects import ort
from export.model_info import Options, Sources
from export.precision import Storage, storage
from tests.runtime.demo import BUNDLE


@pytest.mark.parametrize("dialect", words.DIALECTS)
def test_every_dialect_has_a_module_that_writes_it(dialect: str) -> None:
    assert dialect_of(Storage(dialect=dialect)).__module__ == f"export.dialects.{dialect}"


def test_a_precision_is_one_row(tiny_sources: Sources, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    row = words.Precision("float32", 8e-2, words.Blocks(8, 32), words.Blocks(8, 32))
    monkeypatch.setitem(words.PRECISIONS, "int8-32", row)
    write_bundle(tmp_path / "bundle", _transformer(tiny_sources), Options(storage=Storage("int8-32")))
    assert all(check.holds for check in verify(editar_rt.load(tmp_path / "bundle", "cpu", cache=False)))
    with pytest.raises(OptionError, match="MatMulNBits"):
        Storage("int8-32", dialect="standard")


def test_a_dialect_is_one_row_and_a_module(
    tiny_sources: Sources, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = types.ModuleType("export.dialects.mine")
    module.choose = ort.choose  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setitem(words.DIALECTS, "mine", words.Dialect())
    write_bundle(tmp_path / "bundle", _transformer(tiny_sources), Options(storage=Storage(dialect="mine")))
    assert all(check.holds for check in verify(editar_rt.load(tmp_path / "bundle", "cpu", cache=False)))
    with pytest.raises(OptionError, match="only GroupQueryAttention of the dialect ort reads an int8 cache"):
        Storage(dialect="mine", kv_cache=words.INT8)


def test_the_manifest_keeps_its_key() -> None:
    """Bundles written before say "spelling", and so do those written now."""
    text = (BUNDLE / "bundle.json").read_text(encoding="utf-8")
    assert json.loads(text)["spelling"] == "ort" == Bundle.open(BUNDLE).manifest.dialect
    assert json.loads(Manifest.from_json(text).to_json()) == json.loads(text)


def test_the_option_of_version_0_1_still_works(golden_gpt_bundle: Path, tmp_path: Path) -> None:
    command = ["convert", str(golden_gpt_bundle), "--spelling", "standard", "-o", str(tmp_path / "bundle")]
    done = CliRunner().invoke(cli, command, catch_exceptions=False)
    assert done.exit_code == 0 and "use --dialect" in done.stderr
    assert Bundle.open(tmp_path / "bundle").manifest.dialect == "standard"
    assert "--spelling" not in CliRunner().invoke(cli, ["convert", "--help"]).output


def test_the_recipe_field_of_version_0_1_still_works(tmp_path: Path) -> None:
    recipe = tmp_path / "mine.toml"
    recipe.write_text('[onnx]\nspelling = "standard"\n', encoding="utf-8")
    assert storage(str(recipe)) == Storage(dialect="standard")
    recipe.write_text('[onnx]\nspelling = "standard"\ndialect = "ort"\n', encoding="utf-8")
    with pytest.raises(OptionError, match="has no field spelling"):
        storage(str(recipe))


@pytest.mark.parametrize(
    ("precision", "dialect", "text", "bound", "replay"),
    [
        ("fp32", "ort", "fp32", 2e-4, 1e-2),
        ("fp16", "ort", "fp16", 1e-2, 1e-2),
        ("bf16", "ort", "fp16", 8e-2, 8e-2),
        ("int8", "ort", "fp32", 8e-2, 1e-2),
        ("int4", "ort", "fp32", 8e-2, 1e-2),
        ("int4", "delta", "fp16", 1e-2, 1e-2),
    ],
)
def test_what_follows_from_a_precision(precision: str, dialect: str, text: str, bound: float, replay: float) -> None:
    assert words.text_precision(precision, dialect) == text
    assert words.error_bound("decoder", precision, words.SAME, dialect) == bound
    assert words.error_bound("decoder", precision, words.INT8, dialect) == 1e-1
    assert words.error_bound("text_encoder", precision, words.SAME, dialect) == words.PRECISIONS[text].bound
    assert words.error_bound("vq_encoder", precision, words.SAME, dialect) == 2e-4
    assert words.replay_bound(precision, words.SAME) == replay
    assert words.replay_bound(precision, words.INT8) == 2 * replay


def test_cpus_widen_weights_of_16_bits(golden_gpt_bundle: Path, golden_gpt_bundle_fp16: Path) -> None:
    for bundle, widened in ((golden_gpt_bundle, False), (golden_gpt_bundle_fp16, True)):
        needs = memory_needs(Bundle.open(bundle))
        assert (needs["cpu"].weights > needs["cuda"].weights) == widened


def _transformer(sources: Sources) -> Sources:
    return Sources(transformer=sources.transformer)
