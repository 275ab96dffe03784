"""Bundles: what the Python runtime refuses is refused, with the same class of error and a sentence as clear."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest
from onnx import TensorProto

from editar_rt.bundle.folder import Bundle
from editar_rt.bundle.manifest import FORMAT_VERSION, Manifest
from editar_rt.errors import BundleError
from tests.cpp.inside import BAD_BUNDLE, MISSING_PART, Failed, Inside
from tests.runtime import crafted, test_bundle, test_graph_file
from tests.runtime.test_bundle import in_hugging_face_cache, rewrite


@pytest.fixture
def bundle(tiny_bundle: Path, tmp_path: Path) -> Path:
    """A copy to spoil."""
    return Path(shutil.copytree(tiny_bundle, tmp_path / "bundle"))


def opened(inside: Inside, folder: Path, hash_all: bool = False, check: bool = False) -> str:
    """The fingerprint of the bundle."""
    return inside.call("bundle", os.fsencode(folder), int(hash_all), int(check)).decode()


def refused(says: str, call: Callable[[], object], python: Callable[[], object] | None = None) -> None:
    """Both refuse, with BundleError and its status, and the sentence says so."""
    if python is not None:
        with pytest.raises(BundleError, match=says):
            python()
    with pytest.raises(Failed, match=says) as failed:
        call()
    assert failed.value.status == BAD_BUNDLE
    assert "\n" not in str(failed.value)


def refused_alike(inside: Inside, folder: Path, says: str) -> None:
    refused(says, lambda: opened(inside, folder), lambda: Bundle.open(folder))


def graphs_refused_alike(inside: Inside, folder: Path, says: str) -> None:
    refused(
        says,
        lambda: inside.call("part_files", os.fsencode(folder), b"vq_decoder"),
        lambda: Bundle.open(folder).part_files("vq_decoder"),
    )


@pytest.mark.parametrize("name", ["tiny_bundle", "golden_gpt_bundle_delta", "golden_gpt_bundle_cuda"])
def test_a_good_bundle_opens_by_the_same_fingerprint(inside: Inside, name: str, request: pytest.FixtureRequest) -> None:
    folder = request.getfixturevalue(name)
    assert opened(inside, folder, hash_all=True, check=True) == Bundle.open(folder).fingerprint


def test_the_demo_opens_and_every_part_has_the_same_files(inside: Inside) -> None:
    bundle = Bundle.open("engines/demo")
    for part in bundle.manifest.parts:
        files = inside.call("part_files", b"engines/demo", part.encode())
        assert json.loads(files) == bundle.part_files(part)


def test_a_part_that_is_not_there_is_named(inside: Inside) -> None:
    with pytest.raises(Failed, match="lacks the part sampler") as failed:
        inside.call("part_files", b"engines/demo", b"sampler")
    assert failed.value.status == MISSING_PART


@pytest.mark.parametrize(("content", "says"), test_bundle.DAMAGED_MANIFESTS)
def test_a_damaged_manifest_is_one_sentence(inside: Inside, tmp_path: Path, content: str, says: str) -> None:
    (tmp_path / "bundle.json").write_text(content)
    refused_alike(inside, tmp_path, says)


@pytest.mark.parametrize(("change", "says"), test_bundle.WRONG_MANIFESTS)
def test_what_is_wrong_in_a_manifest_is_named(
    inside: Inside, bundle: Path, change: Callable[[dict[str, Any]], None], says: str
) -> None:
    rewrite(bundle, change)
    refused_alike(inside, bundle, says)


@pytest.mark.parametrize("path", test_bundle.FORBIDDEN_PATHS)
def test_paths_that_leave_the_bundle_are_refused(inside: Inside, bundle: Path, path: str) -> None:
    rewrite(bundle, lambda m: m["parts"]["decoder"].update(file=path))
    refused_alike(inside, bundle, "not a path inside the bundle")


def test_a_newer_format_says_so(inside: Inside, bundle: Path) -> None:
    rewrite(bundle, lambda m: m.update(format_version=FORMAT_VERSION + 1))
    refused_alike(inside, bundle, "newer than the newest this runtime knows")


def test_an_old_sampling_head_is_left_out(inside: Inside, golden_gpt_bundle_delta_head: Path, tmp_path: Path) -> None:
    bundle = Path(shutil.copytree(golden_gpt_bundle_delta_head, tmp_path / "bundle"))
    assert json.loads(inside.call("part_files", os.fsencode(bundle), b"sampler"))
    rewrite(bundle, lambda m: m.update(format_version=1))
    with pytest.raises(Failed, match="lacks the part sampler"):
        inside.call("part_files", os.fsencode(bundle), b"sampler")


def test_fields_of_a_later_writer_are_left_alone(inside: Inside, bundle: Path) -> None:
    rewrite(bundle, lambda m: m.update(a_field_of_the_future={"x": 1}))
    opened(inside, bundle)


def missing(bundle: Path) -> None:
    (bundle / "decoder.onnx").unlink()


def truncated(bundle: Path) -> None:
    path = bundle / "vq_decoder.onnx"
    path.write_bytes(path.read_bytes()[:-10])


def altered(bundle: Path) -> None:
    path = bundle / "vq_encoder.onnx"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def in_a_circle(bundle: Path) -> None:
    (bundle / "decoder.onnx").unlink()
    (bundle / "decoder.onnx").symlink_to(bundle / "decoder.onnx")


def leading_away(bundle: Path) -> None:
    (bundle / "decoder.onnx").rename(bundle.parent / "outside.onnx")
    (bundle / "decoder.onnx").symlink_to(bundle.parent / "outside.onnx")


def leading_nowhere(bundle: Path) -> None:
    (bundle / "decoder.onnx").unlink()
    (bundle / "decoder.onnx").symlink_to(bundle.parent / "nothing")


def a_folder(bundle: Path) -> None:
    (bundle / "decoder.onnx").unlink()
    (bundle / "decoder.onnx").mkdir()


def not_listed(bundle: Path) -> None:
    rewrite(bundle, lambda m: m["files"].pop("decoder.onnx"))


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (missing, r"lacks decoder\.onnx"),
        (truncated, r"vq_decoder\.onnx has \d+ bytes, but the manifest says \d+"),
        (altered, r"vq_encoder\.onnx is not the file the manifest describes"),
        (in_a_circle, r"leaves the bundle|lacks decoder\.onnx"),
        (leading_away, "a link that leaves the bundle.*cp -rL"),
        (leading_nowhere, "a link that leaves the bundle.*cp -rL"),
        (a_folder, r"lacks decoder\.onnx"),
        (not_listed, "has no size and hash"),
    ],
)
def test_files_that_are_not_as_they_were_written_are_named(
    inside: Inside, bundle: Path, spoil: Callable[[Path], None], says: str
) -> None:
    spoil(bundle)
    refused_alike(inside, bundle, says)


def test_folders_that_are_no_bundle_are_refused(inside: Inside, tmp_path: Path) -> None:
    refused_alike(inside, tmp_path / "none", "is not a folder")
    refused_alike(inside, tmp_path, r"contains no bundle\.json")


@pytest.mark.parametrize("large", [True, False])
def test_a_bundle_in_a_hugging_face_cache_opens(inside: Inside, tmp_path: Path, large: bool) -> None:
    snapshot = in_hugging_face_cache(tmp_path, large)
    assert opened(inside, snapshot, check=True) == Bundle.open(snapshot).fingerprint


@pytest.mark.parametrize("name", [crafted.DATA, "bundle.json"])
@pytest.mark.parametrize("place", ["models--c--d/blobs", "models--a--b/refs", "elsewhere"])
def test_links_of_a_cache_that_lead_elsewhere_are_refused(
    inside: Inside, tmp_path: Path, name: str, place: str
) -> None:
    snapshot = in_hugging_face_cache(tmp_path)
    (tmp_path / place).mkdir(parents=True)
    moved = tmp_path / place / "blob"
    (snapshot / name).resolve().rename(moved)
    (snapshot / name).unlink()
    (snapshot / name).symlink_to(moved)
    refused_alike(inside, snapshot, r"is a link that leaves the bundle; .*cp -rL")


def large_file(folder: Path, size: int) -> Path:
    """A bundle with a listed file of some size."""
    folder.mkdir()
    with open(folder / "large.bin", "wb") as file:
        file.truncate(size)
    return crafted.write_bundle(folder)


def flip(path: Path) -> None:
    with open(path, "r+b") as file:
        file.write(b"\1")


def test_files_above_64_mib_are_hashed_on_demand_alone(inside: Inside, tmp_path: Path) -> None:
    bundle = large_file(tmp_path / "bundle", (64 << 20) + 1)
    flip(bundle / "large.bin")
    opened(inside, bundle)
    refused("its SHA-256 differs", lambda: opened(inside, bundle, hash_all=True), Bundle.open(bundle).check)


def test_files_of_64_mib_are_hashed_each_time(inside: Inside, tmp_path: Path) -> None:
    bundle = large_file(tmp_path / "bundle", 64 << 20)
    flip(bundle / "large.bin")
    refused_alike(inside, bundle, "its SHA-256 differs")


def test_a_path_in_utf8_opens(inside: Inside, tmp_path: Path) -> None:
    opened(inside, crafted.write_bundle(tmp_path / "bündel-束"), check=True)


# Graphs.


@pytest.mark.parametrize("place", test_graph_file.PLACES, ids=lambda place: place.__name__)
def test_a_location_is_found_wherever_a_tensor_stands(
    inside: Inside, tmp_path: Path, place: Callable[[onnx.ModelProto, TensorProto], None]
) -> None:
    (tmp_path / "evil.data").write_bytes(crafted.WEIGHTS.tobytes())
    graph = crafted.model()
    place(graph, crafted.external("evil", test_graph_file.OUTSIDE))
    bundle = crafted.write_bundle(tmp_path / "bundle", graph)
    graphs_refused_alike(inside, bundle, r"takes weights from '\.\./evil\.data', which is not a file inside the bundle")


@pytest.mark.parametrize("location", test_graph_file.FORBIDDEN_LOCATIONS)
def test_a_location_that_leaves_the_bundle_is_refused(inside: Inside, tmp_path: Path, location: str) -> None:
    bundle = crafted.write_bundle(tmp_path / "bundle", test_graph_file.plain(location))
    graphs_refused_alike(inside, bundle, "which is not a file inside the bundle; do not trust it")


def test_a_second_graph_of_the_file_is_looked_at_too(inside: Inside, tmp_path: Path) -> None:
    more = onnx.ModelProto()
    more.graph.initializer.append(crafted.external("evil", test_graph_file.OUTSIDE))
    path = tmp_path / "x.onnx"
    path.write_bytes(crafted.model().SerializeToString() + more.SerializeToString())
    assert json.loads(inside.call("graph", os.fsencode(path))) == [test_graph_file.OUTSIDE]


def with_weights(folder: Path, tensor: TensorProto, listed: bool = True) -> Path:
    folder.mkdir()
    (folder / crafted.DATA).write_bytes(crafted.WEIGHTS.tobytes())

    def change(manifest: Manifest) -> Manifest:
        return manifest if listed else crafted.without(manifest, crafted.DATA)

    return crafted.write_bundle(folder, crafted.model(weights=tensor), change)


def test_weights_that_no_manifest_lists_are_refused(inside: Inside, tmp_path: Path) -> None:
    bundle = with_weights(tmp_path / "bundle", crafted.external("weights", crafted.DATA), listed=False)
    graphs_refused_alike(inside, bundle, r"'vq_decoder\.onnx\.data', for which bundle\.json has no size and hash")


@pytest.mark.parametrize("tensor", test_graph_file.BEYOND_THE_END.values(), ids=list(test_graph_file.BEYOND_THE_END))
def test_weights_behind_the_end_of_their_file_are_refused(inside: Inside, tmp_path: Path, tensor: TensorProto) -> None:
    bundle = with_weights(tmp_path / "bundle", tensor)
    graphs_refused_alike(inside, bundle, r"up to byte \d+, but it has 768 bytes")


@pytest.mark.parametrize(("field", "tensor", "says"), test_graph_file.OTHER_TENSORS)
def test_a_graph_that_is_not_as_described_is_refused(
    inside: Inside, tmp_path: Path, field: str, tensor: Any, says: str
) -> None:
    bundle = crafted.write_bundle(tmp_path / "bundle")

    def change(manifest: dict[str, Any]) -> None:
        tensors = manifest["parts"]["vq_decoder"][field]
        tensors[:] = [t for t in tensors if t["name"] != tensor.name]
        tensors.append({"name": tensor.name, "dtype": tensor.dtype, "shape": tensor.shape})

    rewrite(bundle, change)
    graphs_refused_alike(inside, bundle, says)


@pytest.mark.parametrize("output", test_graph_file.OTHER_SHAPES)
def test_a_graph_of_another_shape_is_refused(inside: Inside, tmp_path: Path, output: list[int | None]) -> None:
    graph = crafted.model()
    info = onnx.helper.make_tensor_value_info("pixels", TensorProto.FLOAT, output)
    graph.graph.output[0].CopyFrom(info)
    bundle = crafted.write_bundle(tmp_path / "bundle", graph)
    graphs_refused_alike(inside, bundle, r"the output 'pixels' is float32 \[.*\] in the graph and float32")


@pytest.mark.parametrize(("content", "says"), test_graph_file.NO_GRAPHS)
def test_a_file_that_is_no_graph_is_one_sentence(inside: Inside, tmp_path: Path, content: bytes, says: str) -> None:
    path = tmp_path / "x.onnx"
    path.write_bytes(content)
    refused(
        f"is not an ONNX graph that can be trusted .*{says}",
        lambda: inside.call("graph", os.fsencode(path)),
        lambda: test_graph_file.read_graph(path),
    )


def test_a_graph_by_another_suffix_is_refused(inside: Inside, tmp_path: Path) -> None:
    bundle = crafted.write_bundle(tmp_path / "bundle")
    manifest = bundle / "bundle.json"
    (bundle / "vq_decoder.onnx").rename(bundle / "vq_decoder.ort")
    manifest.write_text(manifest.read_text().replace("vq_decoder.onnx", "vq_decoder.ort"))
    refused_alike(inside, bundle, r"vq_decoder: file must end with \.onnx, got 'vq_decoder\.ort'")
