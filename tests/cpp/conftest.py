"""Fixtures of the C++ runtime's tests."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pytest

from tests.cpp.gpu import CASES, GPUS, RECIPES, Built, Gpu, build_kind, build_with
from tests.cpp.inside import Inside
from tests.cpp.installed import installed, sanitized
from tests.cpp.lasting import two_models_in_two_threads
from tests.cpp.tidy import checked, sources_to_check
from tests.runtime.demo import BUNDLE


@pytest.fixture(scope="session", autouse=True)
def ahead(request: pytest.FixtureRequest) -> Iterator[None]:
    """Begins what takes long and will be needed; its errors are raised by the tests that need it."""
    wanted = {item.name for item in request.session.items}
    pool = ThreadPoolExecutor(1, "ahead")

    def check_all() -> None:
        for source in sources_to_check():
            pool.submit(checked, source)

    if "test_clang_tidy_finds_nothing" in wanted and "test_200_lives_leave_nothing_behind" in wanted:
        for begun in (installed, partial(sanitized, "address,undefined"), two_models_in_two_threads, check_all):
            pool.submit(begun)
    yield
    pool.shutdown(cancel_futures=True)


@pytest.fixture(scope="session")
def inside(tmp_path_factory: pytest.TempPathFactory) -> Inside:
    """The library's functions below its C ABI."""
    return Inside.built(tmp_path_factory.mktemp("inside"))


@pytest.fixture(scope="session")
def gpu_kinds(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Built]:
    folder = tmp_path_factory.mktemp("kinds")
    return {kind: build_kind(kind, folder) for kind in GPUS}


@pytest.fixture(scope="session")
def gpu_bundles(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The demo with engines: delta in fp16 for TensorRT, and native with a sampling head for TensorRT for RTX."""
    from export.__main__ import main

    folder, made = tmp_path_factory.mktemp("bundles"), {}
    for name, kind in CASES.items():
        made[name] = folder / name
        options = ["--dialect", name, *(["--sampling-head"] if kind == "rtx" else ["--precision", "fp16"])]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("sys.argv", ["export", "convert", str(BUNDLE), *options, "-o", str(made[name])])
            with pytest.raises(SystemExit) as done:
                main()
            assert done.value.code in (0, None)
        build_with(kind, made[name], RECIPES[kind])
    return made


@pytest.fixture
def make_gpu(gpu_kinds: dict[str, Built], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Gpu]:
    return lambda kind: Gpu(kind, gpu_kinds[kind], tmp_path, monkeypatch)


@pytest.fixture
def gpu(make_gpu: Callable[..., Gpu]) -> Gpu:
    return make_gpu("tensorrt")


@pytest.fixture
def tried(gpu_bundles: dict[str, Path], tmp_path: Path) -> Path:
    """A bundle of the dialect delta with engines of TensorRT."""
    return Path(shutil.copytree(gpu_bundles["delta"], tmp_path / "bundle"))


@pytest.fixture
def untried(gpu_bundles: dict[str, Path], tmp_path: Path) -> Path:
    """A bundle with engines of TensorRT for RTX, which were built without a GPU."""
    return Path(shutil.copytree(gpu_bundles["native"], tmp_path / "untried", ignore=shutil.ignore_patterns("tried-*")))
