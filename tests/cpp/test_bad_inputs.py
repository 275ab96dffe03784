"""Bad inputs through the C ABI: Python's class of error as a status, and its sentence or one as clear."""

from __future__ import annotations

import ctypes
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import editar_rt
from editar_rt.bundle.folder import Bundle
from editar_rt.errors import BackendError, BundleError
from tests.cpp import library as c
from tests.cpp.library import Library, Refused
from tests.runtime import test_bundle, test_graph_file
from tests.runtime.test_bundle import rewrite


@pytest.fixture(scope="module")
def library() -> Library:
    return c.open_library()


@pytest.fixture
def bundle(tiny_bundle: Path, tmp_path: Path) -> Path:
    """A copy to spoil."""
    return Path(shutil.copytree(tiny_bundle, tmp_path / "bundle"))


def refused_alike(library: Library, bundle: Path, says: str) -> None:
    """By Python, by a description and by opening: BundleError and its status."""
    with pytest.raises(BundleError, match=says):
        Bundle.open(bundle)
    for call in (lambda: library.text("describe_bundle", str(bundle).encode(), 0), lambda: library.open(bundle)):
        with pytest.raises(Refused, match=says) as refused:
            call()
        assert refused.value.status == c.BAD_BUNDLE
        assert "\n" not in refused.value.message


@pytest.mark.parametrize(("content", "says"), test_bundle.DAMAGED_MANIFESTS)
def test_a_damaged_manifest(library: Library, tmp_path: Path, content: str, says: str) -> None:
    (tmp_path / "bundle.json").write_text(content)
    refused_alike(library, tmp_path, says)


@pytest.mark.parametrize(("change", "says"), test_bundle.WRONG_MANIFESTS)
def test_a_wrong_manifest(library: Library, bundle: Path, change: Callable[[dict[str, Any]], None], says: str) -> None:
    rewrite(bundle, change)
    refused_alike(library, bundle, says)


@pytest.mark.parametrize("path", test_bundle.FORBIDDEN_PATHS)
def test_a_path_that_leaves_the_bundle(library: Library, bundle: Path, path: str) -> None:
    rewrite(bundle, lambda m: m["parts"]["decoder"].update(file=path))
    refused_alike(library, bundle, "not a path inside the bundle")


def test_a_folder_that_is_none(library: Library, tmp_path: Path) -> None:
    refused_alike(library, tmp_path / "none", "is not a folder")
    refused_alike(library, tmp_path, r"contains no bundle\.json")


@pytest.mark.parametrize("location", test_graph_file.FORBIDDEN_LOCATIONS)
def test_a_graph_that_names_a_file_outside(library: Library, tmp_path: Path, location: str) -> None:
    from tests.runtime import crafted

    bundle = crafted.write_bundle(tmp_path / "bundle", test_graph_file.plain(location))
    with pytest.raises(Refused, match="which is not a file inside the bundle; do not trust it") as refused:
        library.text("describe_bundle", str(bundle).encode(), 0)
    assert refused.value.status == c.BAD_BUNDLE


@pytest.mark.parametrize(
    ("file", "says"),
    [(b"", "is not a PNG or JPEG"), (b"GIF89a", "is not a PNG or JPEG"), (b"\xff\xd8\xff", "is it truncated"),
     (b"\x89PNG\r\n\x1a\n", "is it truncated")],
)  # fmt: skip
def test_a_file_that_is_no_picture(library: Library, file: bytes, says: str) -> None:
    picture = c.CPicture()
    with pytest.raises(Refused, match=says) as refused:
        library.call("read_picture", file or None, ctypes.c_size_t(len(file)), ctypes.byref(picture))
    assert refused.value.status == c.BAD_PICTURE


def test_a_graph_that_the_engine_refuses(library: Library, tmp_path: Path) -> None:
    """What ONNX Runtime says has several lines."""
    from tests.runtime import crafted

    graph = crafted.model()
    graph.graph.node[1].op_type = "Nonsense"
    bundle = crafted.write_bundle(tmp_path / "bundle", graph)
    with pytest.raises(BackendError, match=r"cannot load .*Nonsense"):
        editar_rt.load(bundle, "cpu").decode_tokens(np.zeros((1, 4), np.int32))
    model = library.open(bundle)
    with pytest.raises(Refused, match=r"cannot load .*Nonsense") as refused:
        model.decode_tokens(np.zeros((1, 4), np.int32))
    assert refused.value.status == c.BACKEND and "\n" not in refused.value.message
    model.close()
