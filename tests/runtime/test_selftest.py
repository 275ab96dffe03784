"""The self-test a bundle carries: it passes where the bundle was made, and finds what has changed."""

from __future__ import annotations

import json
import shutil
from importlib.metadata import version
from pathlib import Path

import pytest

import editar_rt
from editar_rt import names
from editar_rt.errors import BundleError
from editar_rt.measure import selftest
from tests.commands import Command
from tests.runtime.test_cli import refused
from tests.runtime.test_schedules import unpaired


@pytest.fixture(scope="module")
def editor(tiny_bundle: Path) -> editar_rt.Editor:
    return editar_rt.load(tiny_bundle, device="cpu")


def changed_self_test(bundle: Path, folder: Path, part: str, output: str, **answer: object) -> Path:
    """A copy of a bundle whose exporting machine answered something else."""
    copy = Path(shutil.copytree(bundle, folder / "bundle"))
    path = copy / "bundle.json"
    manifest = json.loads(path.read_text())
    manifest["self_test"][part][output] |= answer
    path.write_text(json.dumps(manifest))
    return copy


def test_the_exporting_machine_answers_the_same_again_to_the_bit(editor: editar_rt.Editor) -> None:
    checks = selftest.verify(editor)
    assert {check.part for check in checks} == set(names.PARTS) - {names.DECODER_CHUNKS, names.SAMPLER}
    assert all(check.holds for check in checks)
    # Threads may add in another order; tokens do not depend on that here.
    assert all(check.identical for check in checks if "tokens" in check.output)


def test_another_answer_is_named(editar: Command, tiny_bundle: Path, tmp_path: Path) -> None:
    bundle = changed_self_test(tiny_bundle, tmp_path, names.DECODER, names.LOGITS, values=[0.0] * 16, sha256="")
    failed = [check for check in selftest.verify(editar_rt.load(bundle)) if not check.holds]
    assert [(check.part, check.output) for check in failed] == [(names.DECODER, names.LOGITS)]
    done = editar("verify", bundle, "--json")
    assert done.code == 1 and "decoder: logits" in done.stderr and "Traceback" not in done.stderr
    document = json.loads(done.stdout.splitlines()[-1])
    assert document["holds"] is False


def test_a_token_may_differ_only_where_two_were_about_equally_likely(tiny_bundle: Path, tmp_path: Path) -> None:
    expected = editar_rt.load(tiny_bundle).bundle.manifest.self_test
    assert expected is not None
    tokens, margins = (expected[names.DECODER]["greedy_tokens"][k] for k in ("tokens", "margins"))
    other = [*tokens[:5], (tokens[5] + 1) % 256, *tokens[6:]]
    for margin, holds in ((1e-7, True), (0.1, False)):
        margins = [*margins[:5], margin, *margins[6:]]
        folder = tmp_path / str(holds)
        bundle = changed_self_test(tiny_bundle, folder, names.DECODER, "greedy_tokens", tokens=other, margins=margins)
        checks = selftest.verify(editar_rt.load(bundle))
        assert all(check.holds for check in checks) == holds


def other_bit(bundle: Path, folder: Path, **made_by: str) -> Path:
    """A copy of a bundle whose exporter had another bit in its logits, elsewhere than in the values that are kept."""
    copy = changed_self_test(bundle, folder, names.DECODER, names.LOGITS, sha256="0" * 64)
    return by_another(copy, **made_by)


def by_another(bundle: Path, **made_by: str) -> Path:
    path = bundle / "bundle.json"
    manifest = json.loads(path.read_text())
    manifest["made_by"] |= made_by
    path.write_text(json.dumps(manifest))
    return bundle


def test_integers_rounded_by_another_version_fail_and_both_versions_are_named(
    editar: Command, golden_gpt_bundle_quantized: Path, tmp_path: Path
) -> None:
    done = editar("verify", other_bit(golden_gpt_bundle_quantized, tmp_path, onnxruntime="1.27.0"), "--device", "cpu")
    assert done.code == 1 and "Traceback" not in done.stderr
    assert f"ONNX Runtime {version('onnxruntime')} (CPU) rounds the integers" in done.stderr
    assert "the exporter's version, 1.27.0 (decoder: logits), so that edits get other tokens" in done.stderr
    assert "pip install onnxruntime==1.27.0" in done.stderr


@pytest.mark.parametrize("made_by", [{}, {"onnxruntime": "1.27.0", "machine": "another"}], ids=["version", "machine"])
def test_another_bit_is_no_fault_of_the_same_version_or_of_another_kind_of_machine(
    editar: Command, golden_gpt_bundle_quantized: Path, tmp_path: Path, made_by: dict[str, str]
) -> None:
    assert editar("verify", other_bit(golden_gpt_bundle_quantized, tmp_path, **made_by), "--device", "cpu").code == 0


def test_another_version_with_the_same_bits_is_as_good(
    editar: Command, golden_gpt_bundle_quantized: Path, tmp_path: Path
) -> None:
    copy = Path(shutil.copytree(golden_gpt_bundle_quantized, tmp_path / "bundle"))
    assert editar("verify", by_another(copy, onnxruntime="1.31.0"), "--device", "cpu").code == 0


def test_another_bit_of_floats_is_no_fault_of_any_version(editar: Command, tiny_bundle: Path, tmp_path: Path) -> None:
    assert editar("verify", other_bit(tiny_bundle, tmp_path, onnxruntime="1.27.0"), "--device", "cpu").code == 0


def test_the_command_line_says_what_was_compared(editar: Command, tiny_bundle: Path) -> None:
    done = editar("verify", tiny_bundle)
    assert done.code == 0, done.stderr
    assert all(part in done.stdout for part in names.PARTS if part not in (names.DECODER_CHUNKS, names.SAMPLER))


def test_a_bundle_without_a_self_test_is_refused(editar: Command, tiny_bundle: Path, tmp_path: Path) -> None:
    bundle = Path(shutil.copytree(tiny_bundle, tmp_path / "bundle"))
    path = bundle / "bundle.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"self_test": None}))
    refused(editar("verify", bundle), 1, "has no self-test; export it again")
    path.write_text(json.dumps(json.loads(path.read_text()) | {"self_test": {"decoder": {}}}))
    with pytest.raises(BundleError, match="not complete"):
        selftest.verify(editar_rt.load(bundle))


def test_other_tokens_without_margins_are_not_complete(tiny_bundle: Path, tmp_path: Path) -> None:
    bundle = changed_self_test(tiny_bundle, tmp_path, names.DECODER, "greedy_tokens", tokens=[-1] * 8, margins=[])
    with pytest.raises(BundleError, match="not complete"):
        selftest.verify(editar_rt.load(bundle))


def test_a_row_answers_alone_as_among_others(golden_gpt_bundle_quantized: Path) -> None:
    checks = selftest.batch_checks(editar_rt.load(golden_gpt_bundle_quantized, device="cpu", threads=1))
    assert len(checks) == 6 and all(check.identical for check in checks)


def test_an_engine_whose_answer_depends_on_the_batch_is_noticed(
    golden_gpt_bundle_quantized: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    editor = editar_rt.load(golden_gpt_bundle_quantized, device="cpu", threads=1)
    unpaired(editor, monkeypatch)
    assert not all(check.holds for check in selftest.batch_checks(editor))
