"""Chunks of several rows in one run on ONNX Runtime: the bits of the rows one by one, and of the plain graph."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

import editar_rt
from editar_rt import names
from editar_rt.backends.base import Backend, Batch
from editar_rt.backends.ort import backend as ort_backend
from editar_rt.backends.ort import decoder as ort_decoder
from editar_rt.backends.ort.rows import RowBuffers
from editar_rt.errors import BundleError
from export.model_info import Sources
from tests.conftest import transformer_bundle
from tests.runtime.demo import BUNDLE
from tests.runtime.filled_rows import FilledRows

CAPACITY, FILLED, ROWS = 60, 20, 5
EVEN = (2, 4, 8, 16, 32)


STORED: dict[str, dict[str, str]] = {
    "fp32": {},
    "fp16": {"precision": "fp16"},
    "int8": {"precision": "int8"},
    "int8, int8 cache": {"precision": "int8", "kv_cache": "int8"},
    "int4": {"precision": "int4"},
}


@pytest.fixture(scope="module", params=[*STORED, "demo"])
def backend(request: pytest.FixtureRequest, tiny_sources: Sources, tmp_path_factory: pytest.TempPathFactory) -> Backend:
    folder = BUNDLE
    if request.param in STORED:
        folder = transformer_bundle(tiny_sources, tmp_path_factory, **STORED[request.param])
    return editar_rt.load(folder, "cpu", 1).backend


def filled(backend: Backend, ends: list[int]) -> FilledRows:
    """A cache whose rows have different contents of these lengths."""
    rows = FilledRows(backend, len(ends), CAPACITY)
    for row, end in enumerate(ends):
        rows.forward(np.random.default_rng(row).integers(0, 256, (1, end), np.int32), first_row=row)
    return rows


def in_one_run(backend: Backend, ends: list[int], tokens: np.ndarray, chosen: list[int], outputs: int) -> np.ndarray:
    cache = filled(backend, ends)
    rows, counts = np.asarray(chosen, np.int32), np.full(len(chosen), tokens.shape[1], np.int32)
    batch = Batch(rows, cache.lengths[rows], counts, tokens, None, outputs)
    return cache.decoder.run(batch).logits().copy()


def row_by_row(backend: Backend, ends: list[int], tokens: np.ndarray, chosen: list[int], outputs: int) -> np.ndarray:
    return np.concatenate(
        [in_one_run(backend, ends, tokens[i : i + 1], [row], outputs) for i, row in enumerate(chosen)]
    )


@pytest.mark.parametrize("size", EVEN)
@pytest.mark.parametrize("chosen", [[0, 1], [1, 2, 3], [0, 1, 2, 3, 4], [0, 2, 3]], ids=str)
def test_a_chunk_has_the_bits_of_its_rows_one_by_one(backend: Backend, size: int, chosen: list[int]) -> None:
    ends = [FILLED, FILLED - 7, FILLED + 5, FILLED, FILLED - 1]
    tokens = np.random.default_rng(9).integers(0, 256, (len(chosen), size), np.int32)
    for outputs in (size, 1):
        together = in_one_run(backend, ends, tokens, chosen, outputs)
        assert np.array_equal(together, row_by_row(backend, ends, tokens, chosen, outputs))


@pytest.mark.parametrize("size", EVEN)
def test_chunks_leave_what_their_rows_leave_one_by_one(backend: Backend, size: int) -> None:
    """Later steps read what a chunk wrote."""
    tokens = np.random.default_rng(9).integers(0, 256, (2, size), np.int32)
    together, apart = filled(backend, [FILLED, FILLED - 3]), filled(backend, [FILLED, FILLED - 3])
    together.forward(tokens)
    for row in range(2):
        apart.forward(tokens[row : row + 1], first_row=row)
    step = np.full((2, 1), 7, np.int32)
    assert np.array_equal(together.forward(step).copy(), apart.forward(step))


def test_states_of_a_chunk_are_those_of_its_rows(backend: Backend) -> None:
    states = np.random.default_rng(3).standard_normal((2, 4, backend._bundle.manifest.model.dim)).astype(np.float32)  # type: ignore[attr-defined]
    tokens = np.asarray([[-1, 5, -1, 9], [3, -1, -1, 2]], np.int32)
    together, apart = filled(backend, [FILLED] * 2), filled(backend, [FILLED] * 2)
    expected = [apart.forward(tokens[[row]], states[[row]], 4, row).copy() for row in range(2)]
    assert np.array_equal(together.forward(tokens, states, 4), np.concatenate(expected))


def test_a_chunk_is_as_many_runs_as_the_decoder_says(backend: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = filled(backend, [4] * ROWS)
    calls: list[None] = []
    session = cache.decoder._session

    class Counted:
        def run_with_iobinding(self, *arguments: Any) -> None:
            calls.append(None)
            session.run_with_iobinding(*arguments)

        def io_binding(self) -> Any:
            return session.io_binding()

    cache.decoder._session = Counted()
    for rows in (1, 2, 4):
        for size in (1, 2, 8, 9, 16):
            calls.clear()
            cache.lengths[:] = 4
            cache.forward(np.ones((rows, size), np.int32), outputs=size)
            assert len(calls) == cache.decoder.runs(rows, size), (rows, size)
    assert cache.decoder.runs(2, 8) == 1 and cache.decoder.runs(2, 200) == 2


def test_rows_that_share_pages_are_parted_before_a_chunk_writes_there() -> None:
    backend = editar_rt.load(BUNDLE, "cpu", 1).backend
    model = backend._bundle.manifest.model  # type: ignore[attr-defined]
    end = 2 * (model.picture_tokens or 0)
    tokens = np.random.default_rng(0).integers(0, 256, (1, end), np.int32)
    cache = FilledRows(backend, 2, end + 32)
    cache.forward(tokens)
    cache.copy_row(0, 1, frozen=True)
    buffers: RowBuffers = cache.decoder._row_buffers
    assert any(buffers._shared), "no pages are shared, so this tests nothing"
    cache.lengths[:] = 8, 40
    together = cache.forward(np.asarray([range(8), range(8, 16)], np.int32), outputs=8).copy()
    for row, past in enumerate((8, 40)):
        alone = FilledRows(backend, 1, end + 32)
        alone.forward(tokens[:, :past])
        assert np.array_equal(
            alone.forward(np.asarray([range(8 * row, 8 * row + 8)], np.int32), None, 8)[0], together[row]
        )


@pytest.mark.parametrize("reason", ["an older bundle", "an older version"])
def test_without_the_second_graph_chunks_run_row_by_row_and_give_the_same_bits(
    tmp_path: Path, golden_gpt_bundle: Path, monkeypatch: pytest.MonkeyPatch, reason: str
) -> None:
    tokens = np.random.default_rng(9).integers(0, 256, (2, 8), np.int32)
    expected = filled(editar_rt.load(golden_gpt_bundle, "cpu", 1).backend, [20, 13]).forward(tokens, outputs=8).copy()
    folder = Path(shutil.copytree(golden_gpt_bundle, tmp_path / "bundle"))
    if reason == "an older bundle":
        manifest = json.loads((folder / "bundle.json").read_text())
        del manifest["parts"][names.DECODER_CHUNKS]
        (folder / "bundle.json").write_text(json.dumps(manifest))
    else:
        monkeypatch.setattr(ort_backend, "CHUNK_LENGTHS", (99, 0))
    cache = filled(editar_rt.load(folder, "cpu", 1).backend, [20, 13])
    assert cache.decoder.runs(2, 8) == 2
    assert np.array_equal(cache.forward(tokens, outputs=8), expected)


def test_one_session_and_one_file_of_weights_serve_prefill_chunks_and_steps(golden_gpt_bundle: Path) -> None:
    backend: Any = editar_rt.load(golden_gpt_bundle, "cpu", 1).backend
    filled(backend, [20, 20]).forward(np.ones((2, 8), np.int32))
    assert list(backend._sessions) == [names.DECODER]
    bundle = backend._bundle
    files = [set(bundle.part_files(part)) for part in (names.DECODER, names.DECODER_CHUNKS)]
    assert files[0] & files[1] == {"decoder.onnx.data"} and len(files[0] | files[1]) == 3
    assert bundle.stored_bytes(names.DECODER, names.DECODER_CHUNKS) < 1.1 * bundle.stored_bytes(names.DECODER)


def test_the_second_graph_is_the_first_with_one_input_more(
    golden_gpt_bundle: Path, golden_gpt_bundle_cuda: Path
) -> None:
    for folder in (golden_gpt_bundle, golden_gpt_bundle_cuda):
        first, second = (
            onnx.load(folder / f"{part}.onnx", load_external_data=False).graph
            for part in (names.DECODER, names.DECODER_CHUNKS)
        )
        assert [value.name for value in second.input] == [*(v.name for v in first.input), names.CHUNK_LENGTHS]
        for one, other in zip(first.node, second.node, strict=True):
            same = list(one.input) == list(other.input)
            assert (one.op_type, list(one.output)) == (other.op_type, list(other.output))
            assert same if one.op_type != "GroupQueryAttention" else list(other.input)[-1] == names.CHUNK_LENGTHS


def test_a_second_graph_with_another_cache_is_refused(golden_gpt_bundle: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(golden_gpt_bundle, tmp_path / "bundle"))
    manifest = json.loads((folder / "bundle.json").read_text())
    part = manifest["parts"][names.DECODER_CHUNKS]
    part["inputs"] = [tensor for tensor in part["inputs"] if tensor["name"] != names.past_key(1)]
    (folder / "bundle.json").write_text(json.dumps(manifest))
    with pytest.raises(BundleError, match="decoder_chunks must have keys and values of 3 layers"):
        editar_rt.load(folder, "cpu")


def test_long_chunks_run_row_by_row(golden_gpt_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Their temporary memory would add up."""
    cache = FilledRows(editar_rt.load(golden_gpt_bundle, "cpu", 1).backend, 2, 140)
    assert cache.decoder.runs(2, ort_decoder.LONG) == 2
    long = np.random.default_rng(0).integers(0, 256, (2, ort_decoder.LONG), np.int32)
    assert cache.forward(long).shape == (2, 1, 256)
