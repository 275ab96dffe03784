"""Opening bundles: the good one, and everything a stranger's may have wrong."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

import editar_rt
from editar_rt.bundle import folder as bundle_module
from editar_rt.bundle.folder import Bundle, file_digest, publishing
from editar_rt.bundle.manifest import FORMAT_VERSION, MAX_MANIFEST_BYTES, Manifest
from editar_rt.bundle.samples import read_samples
from editar_rt.errors import BackendError, BundleError
from tests.runtime import crafted
from tests.runtime.filled_rows import FilledRows


@pytest.fixture
def bundle(tiny_bundle: Path, tmp_path: Path) -> Path:
    """A copy to spoil."""
    return Path(shutil.copytree(tiny_bundle, tmp_path / "bundle"))


def rewrite(bundle: Path, change: Callable[[dict[str, Any]], None]) -> None:
    path = bundle / "bundle.json"
    manifest = json.loads(path.read_text())
    change(manifest)
    path.write_text(json.dumps(manifest))


def test_a_good_bundle_opens_and_its_manifest_survives_json(bundle: Path) -> None:
    opened = Bundle.open(bundle)
    opened.check()
    assert Manifest.from_json(opened.manifest.to_json()) == opened.manifest


def test_a_decoder_for_cuda_opens_though_its_inputs_differ(golden_gpt_bundle_cuda: Path) -> None:
    given = {tensor.name for tensor in Bundle.open(golden_gpt_bundle_cuda).manifest.parts["decoder"].inputs}
    assert "last_row" in given and "past_length" not in given


def test_a_missing_file_is_named(bundle: Path) -> None:
    (bundle / "decoder.onnx").unlink()
    with pytest.raises(BundleError, match=r"lacks decoder\.onnx"):
        Bundle.open(bundle)


def test_a_truncated_file_is_named(bundle: Path) -> None:
    path = bundle / "vq_decoder.onnx"
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(BundleError, match=r"vq_decoder\.onnx has \d+ bytes, but the manifest says \d+"):
        Bundle.open(bundle)


def test_an_altered_file_is_named(bundle: Path) -> None:
    path = bundle / "vq_encoder.onnx"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(BundleError, match=r"vq_encoder\.onnx is not the file the manifest describes"):
        Bundle.open(bundle)


def test_a_newer_format_says_how_to_update(bundle: Path) -> None:
    rewrite(bundle, lambda m: m.update(format_version=FORMAT_VERSION + 1))
    with pytest.raises(BundleError, match="newer than the newest this runtime knows.*git pull && pip install \\."):
        Bundle.open(bundle)


FORBIDDEN_PATHS = ["../secret.onnx", "/etc/passwd", "a/../../b", "C:\\x.onnx", "..\\x.onnx", ""]


@pytest.mark.parametrize("path", FORBIDDEN_PATHS)
def test_paths_that_leave_the_bundle_are_refused(bundle: Path, path: str) -> None:
    rewrite(bundle, lambda m: m["parts"]["decoder"].update(file=path))
    with pytest.raises(BundleError, match="not a path inside the bundle"):
        Bundle.open(bundle)


def test_links_that_go_round_in_a_circle_are_refused(bundle: Path) -> None:
    (bundle / "decoder.onnx").unlink()
    (bundle / "decoder.onnx").symlink_to(bundle / "decoder.onnx")
    with pytest.raises(BundleError, match=r"leaves the bundle|lacks decoder\.onnx"):
        Bundle.open(bundle)


def test_links_that_leave_the_bundle_are_refused(bundle: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside.onnx"
    (bundle / "decoder.onnx").rename(outside)
    (bundle / "decoder.onnx").symlink_to(outside)
    with pytest.raises(BundleError, match="a link that leaves the bundle.*cp -rL"):
        Bundle.open(bundle)


def test_a_part_without_a_hash_is_refused(bundle: Path) -> None:
    rewrite(bundle, lambda m: m["files"].pop("decoder.onnx"))
    with pytest.raises(BundleError, match="has no size and hash"):
        Bundle.open(bundle)


DAMAGED_MANIFESTS = [
    ("{", "not JSON"),
    ("[]", "not an EditAR bundle"),
    ('{"format": "editar-bundle"}', "format_version None"),
    ('{"format": "editar-bundle", "format_version": 1}', "lacks files, model, parts"),
    ('{"format": "editar-bundle", "format_version": 1, "model": 3, "parts": {}, "files": {}}', "must be an object"),
    ("[" * 100_000, "not JSON"),
    ("9" * 10_000, "not JSON"),
    ('{"format": "editar-bundle", "format_version": true}', "format_version True"),
    (" " * (MAX_MANIFEST_BYTES + 1), "larger than 4 MiB"),
]


@pytest.mark.parametrize(("content", "says"), DAMAGED_MANIFESTS)
def test_a_damaged_manifest_is_one_sentence(tmp_path: Path, content: str, says: str) -> None:
    (tmp_path / "bundle.json").write_text(content)
    with pytest.raises(BundleError, match=says):
        Bundle.open(tmp_path)


WRONG_MANIFESTS = [
    (lambda m: m["model"].update(picture_tokens="many"), "model: picture_tokens must be int, got 'many'"),
    (lambda m: m["model"].update(layers=0), "model: layers must be 1 to 1024, got 0"),
    (
        lambda m: m["model"].update(picture_tokens=17),
        r"picture_tokens is not grid · grid \(picture_tokens 17, grid 4",
    ),
    (lambda m: m["model"].update(image_size=40), "image_size is not grid · downsampling"),
    (lambda m: m["parts"]["decoder"].pop("inputs"), "decoder lacks inputs"),
    (lambda m: m["parts"]["decoder"]["inputs"][0].update(shape=[1.5]), r"shape\[0\] must be"),
    (lambda m: m["files"]["decoder.onnx"].update(sha256="0"), "gives decoder.onnx no valid size and SHA-256"),
    (lambda m: m["files"]["decoder.onnx"].update(bytes=-1), "gives decoder.onnx no valid size and SHA-256"),
    (lambda m: m["sampling"].update(top_p=10**400), "sampling: top_p is a number of 401 digits"),
    (lambda m: m["model"].pop("layers"), "decoder needs the size layers, which model lacks"),
    (lambda m: m["model"].update(layers=1), "keys and values of 1 layers, as in model, but has 6 such tensors"),
    (lambda m: m["model"].update(layers=1000), "keys and values of 1000 layers, as in model"),
    (lambda m: m["model"].update(layers=10**8), "layers must be 1 to 1024, got 100000000"),
    (lambda m: m["model"].update(image_size=65536, downsampling=16384), "image_size must be 1 to 4096, got 65536"),
    (lambda m: m["model"].update(text_tokens=2**31 - 1), "text_tokens must be 1 to 8192, got 2147483647"),
    (
        lambda m: m["model"].update(layers=1000, text_tokens=8000, dim=65536, heads=64, head_dim=1024),
        "keys and values of one row would have .* elements",
    ),
    (
        lambda m: m["model"].update(heads=2, head_dim=64),
        r"past_key_0 must be \[any, 2, any, 64\], as in model, got \['rows', 4, 'capacity', 32\]",
    ),
    (lambda m: m["model"].update(vocab_size=10), "codebook_size and vocab_size must be equal, got 256 and 10"),
    (lambda m: m["model"].update(vocab_size=10, codebook_size=10), r"logits must be \[any, any, 10\]"),
    (lambda m: m["model"].update(text_tokens=None), "text_encoder needs the size text_tokens"),
    (lambda m: m["model"].update(text_tokens=7), r"input_ids must be \[any, 7\], as in model"),
    (lambda m: m["model"].update(image_size=64, downsampling=16), r"pixels must be \[any, 3, 64, 64\]"),
    (
        lambda m: m["parts"].update(vq_encoder=m["parts"]["vq_decoder"], vq_decoder=m["parts"]["vq_encoder"]),
        "vq_encoder lacks the input pixels",
    ),
    (lambda m: m["parts"]["decoder"].update(inputs=[]), "decoder lacks the input tokens"),
    (lambda m: m["parts"]["decoder"]["inputs"][0].update(dtype="foo"), "dtype must be one of .*, got 'foo'"),
    (lambda m: m.update(spelling="delta"), "decoder lacks the output new_rows"),
    (lambda m: m.update(spelling="cursive"), "spelling must be one of ort, standard, delta, native, got 'cursive'"),
    (lambda m: m.update(precision="fp7"), "precision must be one of .*, got 'fp7'"),
    (lambda m: m.update(kv_cache="none"), "kv_cache must be one of same, int8, got 'none'"),
    (lambda m: m["files"].update({"n" * 300: m["files"]["decoder.onnx"]}), "n{300} is|lacks n{300}|cannot be read"),
    (lambda m: m["files"].update({"\ud800": m["files"]["decoder.onnx"]}), "control characters in the string"),
    (lambda m: m.update(self_test={"x": json.loads("[" * 99 + "]" * 99)}), "nested more than 32 levels deep"),
    (lambda m: m["made_by"].update(tool="\x1b[2J"), r"control characters in the string '\\x1b\[2J'"),
    (lambda m: m["parts"].update({"\u202e": m["parts"]["decoder"]}), r"in the string '\\u202e'"),
]


@pytest.mark.parametrize(("change", "says"), WRONG_MANIFESTS)
def test_what_is_wrong_in_a_manifest_is_named(
    bundle: Path, change: Callable[[dict[str, Any]], None], says: str
) -> None:
    rewrite(bundle, change)
    with pytest.raises(BundleError, match=says):
        Bundle.open(bundle)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root reads everything")
def test_a_folder_without_permission_is_one_sentence(bundle: Path) -> None:
    bundle.chmod(0)
    try:
        with pytest.raises(BundleError, match="cannot be read: Permission denied"):
            Bundle.open(bundle)
    finally:
        bundle.chmod(0o700)


def test_a_folder_that_the_system_refuses_is_one_sentence(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path, **_: Any) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "is_file", refuse)
    with pytest.raises(BundleError, match="cannot be read: Permission denied"):
        Bundle.open(bundle)


def test_a_file_that_was_replaced_since_is_not_opened(tmp_path: Path) -> None:
    """As by a new bundle renamed into the place of the open one: parts of two would not fit each other."""
    crafted.write_bundle(tmp_path / "new")
    editor = editar_rt.load(crafted.write_bundle(tmp_path / "bundle"), "cpu", 1)
    (tmp_path / "bundle").rename(tmp_path / "old")
    (tmp_path / "new").rename(tmp_path / "bundle")
    with pytest.raises(BundleError, match="was replaced or changed after the bundle was opened; open the bundle again"):
        editor.decode_tokens(np.zeros((1, 4), np.int32))


def test_what_is_open_goes_on_when_a_new_bundle_takes_its_place(tmp_path: Path) -> None:
    editor = editar_rt.load(crafted.write_bundle(tmp_path / "bundle"), "cpu", 1)
    tokens = np.arange(4, dtype=np.int32)[None]
    before = editor.decode_tokens(tokens)
    with publishing(tmp_path / "bundle", force=True) as folder:
        crafted.write_bundle(folder, crafted.wide())
    assert np.array_equal(editor.decode_tokens(tokens), before)
    assert not np.array_equal(editar_rt.load(tmp_path / "bundle", "cpu", 1).decode_tokens(tokens), before)


def test_a_bundle_opened_by_a_relative_path_stays_open_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    crafted.write_bundle(tmp_path / "bundle")
    monkeypatch.chdir(tmp_path)
    editor = editar_rt.load("bundle", "cpu", 1)
    monkeypatch.chdir("/")
    assert editor.decode_tokens(np.zeros((1, 4), np.int32)).shape == (1, 3, 4, 4)


def in_hugging_face_cache(root: Path, large: bool = True) -> Path:
    """A crafted bundle as `huggingface_hub` keeps it: a snapshot of links into the repository's blobs.

    Args:
        large: files go by their SHA-256, as large ones do; small ones by another hash.
    """
    source = root / "source"
    source.mkdir(parents=True)
    (source / crafted.DATA).write_bytes(crafted.WEIGHTS.tobytes())
    crafted.write_bundle(source, crafted.model(weights=crafted.external("weights", crafted.DATA)))
    blobs, snapshot = root / "models--a--b" / "blobs", root / "models--a--b" / "snapshots" / "0" / "engines"
    blobs.mkdir(parents=True)
    snapshot.mkdir(parents=True)
    for n, path in enumerate(sorted(source.iterdir())):
        blob = blobs / (file_digest(path).sha256 if large else f"{n:040x}")
        path.rename(blob)
        (snapshot / path.name).symlink_to(os.path.relpath(blob, snapshot))
    return snapshot


@pytest.mark.parametrize("large", [True, False])
def test_a_bundle_in_a_hugging_face_cache_opens(tmp_path: Path, large: bool) -> None:
    editor = editar_rt.load(in_hugging_face_cache(tmp_path, large), "cpu", 1)
    assert editor.decode_tokens(np.zeros((1, 4), np.int32)).shape == (1, 3, 4, 4)


def test_a_link_to_a_blob_of_another_name_is_hashed_however_large(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bundle_module, "HASH_AT_LOAD_BYTES", 0)
    snapshot = in_hugging_face_cache(tmp_path, large=False)
    blob = (snapshot / crafted.DATA).resolve()
    blob.write_bytes(bytes(blob.stat().st_size))
    with pytest.raises(BundleError, match="its SHA-256 differs"):
        Bundle.open(snapshot)


@pytest.mark.parametrize("name", [crafted.DATA, "bundle.json"])
@pytest.mark.parametrize("place", ["models--c--d/blobs", "models--a--b/refs", "elsewhere"])
def test_links_of_a_cache_that_lead_elsewhere_are_refused(tmp_path: Path, name: str, place: str) -> None:
    snapshot = in_hugging_face_cache(tmp_path)
    (tmp_path / place).mkdir(parents=True)
    moved = tmp_path / place / "blob"
    (snapshot / name).resolve().rename(moved)
    (snapshot / name).unlink()
    (snapshot / name).symlink_to(moved)
    with pytest.raises(BundleError, match=r"is a link that leaves the bundle; .*cp -rL"):
        Bundle.open(snapshot)


def test_fields_of_a_later_writer_are_left_alone(bundle: Path) -> None:
    rewrite(bundle, lambda m: m.update(a_field_of_the_future={"x": 1}))
    assert Bundle.open(bundle).manifest.parts


def test_sampling_defaults_keep_their_kind(bundle: Path) -> None:
    rewrite(bundle, lambda m: m.update(sampling={"top_k": 100, "top_p": 0.5}))
    sampling = Bundle.open(bundle).manifest.sampling
    assert sampling == {"top_k": 100, "top_p": 0.5} and isinstance(sampling["top_k"], int)


def test_large_files_are_hashed_by_check_alone(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = bundle / "vq_encoder.onnx"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    monkeypatch.setattr(bundle_module, "HASH_AT_LOAD_BYTES", len(content) - 1)
    opened = Bundle.open(bundle)
    with pytest.raises(BundleError, match="its SHA-256 differs"):
        opened.check()


def test_the_fingerprint_changes_with_anything_in_the_manifest(bundle: Path) -> None:
    before = Bundle.open(bundle).fingerprint
    assert before == Bundle.open(bundle).fingerprint
    rewrite(bundle, lambda m: m["made_by"].update(tool="another"))
    assert Bundle.open(bundle).fingerprint != before


def test_folders_that_are_no_bundle_are_refused(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="is not a folder"):
        Bundle.open(tmp_path / "none")
    with pytest.raises(BundleError, match=r"contains no bundle\.json"):
        Bundle.open(tmp_path)


def test_publishing_renames_on_success_and_leaves_nothing_on_failure(tmp_path: Path) -> None:
    final = tmp_path / "new"
    with pytest.raises(ZeroDivisionError), publishing(final) as folder:
        (folder / "half").write_text("x")
        raise ZeroDivisionError
    assert os.listdir(tmp_path) == []
    with publishing(final) as folder:
        (folder / "bundle.json").write_text("{}")
    assert os.listdir(tmp_path) == ["new"]


def test_publishing_replaces_a_bundle_only_when_forced_and_nothing_else_ever(tmp_path: Path) -> None:
    final = tmp_path / "old"
    with publishing(final) as folder:
        (folder / "bundle.json").write_text("1")
    with (
        pytest.raises(BundleError, match="exists; choose another folder, or replace it with --force"),
        publishing(final),
    ):
        pass
    with publishing(final, force=True) as folder:
        (folder / "bundle.json").write_text("2")
    assert (final / "bundle.json").read_text() == "2" and os.listdir(tmp_path) == ["old"]
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "holiday.jpg").write_text("x")
    with (
        pytest.raises(BundleError, match="is not a bundle, so it is not replaced"),
        publishing(tmp_path / "photos", force=True),
    ):
        pass
    (tmp_path / "file").write_text("x")
    with (
        pytest.raises(BundleError, match="is not a bundle, so it is not replaced"),
        publishing(tmp_path / "file", force=True),
    ):
        pass


def test_the_old_bundle_comes_back_when_the_new_one_cannot_take_its_place(tmp_path: Path) -> None:
    final = tmp_path / "old"
    with publishing(final) as folder:
        (folder / "bundle.json").write_text("1")
    with pytest.raises(BundleError, match="cannot put the bundle in place"), publishing(final, force=True) as folder:
        (folder / "bundle.json").unlink(missing_ok=True)
        folder.rmdir()  # someone cleans up while it is written
    assert os.listdir(tmp_path) == ["old"] and (final / "bundle.json").read_text() == "1"


def test_publishing_to_the_folder_one_stands_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    with publishing(Path("../here/../new")) as folder:
        (folder / "bundle.json").write_text("{}")
    assert sorted(os.listdir(tmp_path)) == ["here", "new"]


def test_publishing_where_nothing_can_be_written_says_so(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(BundleError, match="cannot write to"), publishing(tmp_path / "file" / "bundle"):
        pass


def put_failing(bundle: Path, part: str) -> None:
    """Give a part a graph that fails when it runs."""
    described = Bundle.open(bundle).manifest.parts[part]
    onnx.save(crafted.failing(described), bundle / described.file)
    digest = dataclasses.asdict(file_digest(bundle / described.file))
    rewrite(bundle, lambda m: m["files"].update({described.file: digest}))


def test_a_graph_that_fails_while_it_runs_is_one_sentence(bundle: Path) -> None:
    put_failing(bundle, "vq_encoder")
    editor = editar_rt.load(bundle, "cpu", 1)
    with pytest.raises(BackendError, match="ONNX Runtime failed in the part vq_encoder"):
        editor.encode_pixels(np.zeros((1, 3, 32, 32), np.float32))


@pytest.mark.parametrize(
    ("dialect", "device", "part"), [("", "cpu", "decoder_chunks"), ("_delta", "emulated", "decoder")]
)
def test_a_decoder_that_fails_in_a_step_is_one_sentence(
    request: pytest.FixtureRequest, tmp_path: Path, dialect: str, device: str, part: str
) -> None:
    bundle = Path(shutil.copytree(request.getfixturevalue(f"golden_gpt_bundle{dialect}"), tmp_path / "bundle"))
    put_failing(bundle, part)
    editor = editar_rt.load(bundle, device, 1)
    rows = FilledRows(editor.backend, 1, 16)
    with pytest.raises(BackendError, match="ONNX Runtime failed in the part decoder"):
        rows.forward(np.zeros((1, 1), np.int32))


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ('{"samples": []}', "at least one"),
        ('{"samples": [{"picture": "a.png", "task": "knit", "instruction": "x"}]}', "of tasks among edit"),
        ("[" * 100_000, "not a list of samples"),
        ('{"samples": ' + "[" * 99 + "]" * 99 + "}", "nested more than"),
        ('{"samples": [{"picture": "\\u001b.png"}]}', "control characters"),
    ],
)
def test_a_list_of_samples_that_is_none_is_one_sentence(bundle: Path, content: str, says: str) -> None:
    (bundle / "samples.json").write_text(content)
    rewrite(
        bundle,
        lambda m: (
            m.update(samples="samples.json"),
            m["files"].update({"samples.json": dataclasses.asdict(file_digest(bundle / "samples.json"))}),
        ),
    )
    with pytest.raises(BundleError, match=says):
        read_samples(Bundle.open(bundle))
