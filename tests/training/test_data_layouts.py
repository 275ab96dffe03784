"""The published data sets are read as they come, in every storage they come in; what is broken is named."""

from __future__ import annotations

import io
import json
import os
import tarfile
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("datasets")

from editar_rt.images.canny import canny_edges
from tests.training.data_sets import (
    COCO_STUFF_ROWS,
    MAGICBRUSH_ROWS,
    MULTIGEN_ROWS,
    PIPE_ROWS,
    picture,
    png,
    world_samples,
    write_parquet,
    write_saved,
)
from training.data import tables
from training.data.folder import write_folder
from training.data.layouts import open_dataset, removal
from training.data.records import BadRecord, DataError
from training.data.rows import open_rows


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))
    datasets.disable_progress_bars()


def test_our_own_format_gives_back_what_was_written(tmp_path: Path) -> None:
    samples = world_samples(2)
    assert write_folder(tmp_path / "set", samples) == 4
    found = open_dataset(tmp_path / "set")
    assert len(found) == 4
    for written, read in zip(samples, found, strict=True):
        assert np.array_equal(read.condition, written.condition) and np.array_equal(read.target, written.target)
        assert (read.text, read.task, read.source) == (written.text, written.task, "world")


def test_seed_data_edit_is_lines_of_json_beside_pictures(tmp_path: Path) -> None:
    (tmp_path / "annotations").mkdir()
    (tmp_path / "images" / "a").mkdir(parents=True)
    for name, seed in (("source", 1), ("target", 2)):
        (tmp_path / "images" / "a" / f"{name}.png").write_bytes(png(picture(seed)))
    line = {"source_image": "a/source.png", "target_image": "a/target.png", "instruction": "make it rain"}
    (tmp_path / "annotations" / "split_0001.jsonl").write_text(json.dumps(line) + "\n\n" + json.dumps(line) + "\n")
    found = open_dataset(tmp_path)
    assert len(found) == 2 and found[1].task == "edit" and found[1].source == "seed-data-edit"
    assert np.array_equal(found[1].condition, picture(1)) and found[1].text == "make it rain"


def test_pipe_goes_both_ways(tmp_path: Path) -> None:
    found = open_dataset(write_saved(tmp_path / "pipe", PIPE_ROWS[:2], split="train"), "pipe")
    assert len(found) == 4
    there, back = found[2], found[3]
    assert there.text == "Insert the red kite above the sea" and back.text == "Remove the red kite above the sea"
    assert np.array_equal(there.condition, picture(11)) and np.array_equal(there.target, picture(21))
    assert np.array_equal(back.condition, there.target) and np.array_equal(back.target, there.condition)


def test_an_instruction_of_one_word_has_no_reverse() -> None:
    assert removal("Add a metallic spoon", "x") == "Remove a metallic spoon"
    with pytest.raises(BadRecord, match="cannot be turned into a removal"):
        removal("Brighter", "x")


def test_magicbrush_is_read_from_a_saved_data_set(tmp_path: Path) -> None:
    sample = open_dataset(write_saved(tmp_path / "magicbrush", MAGICBRUSH_ROWS), "magicbrush")[0]
    assert np.array_equal(sample.condition, picture(50)) and np.array_equal(sample.target, picture(52))


def test_multigen_depth_is_read_from_parquet_files_by_split(tmp_path: Path) -> None:
    write_parquet(tmp_path, MULTIGEN_ROWS, ("train-00000-of-00002.parquet", "train-00001-of-00002.parquet"))
    write_parquet(tmp_path / "other", MULTIGEN_ROWS[:1], ("validation-00000-of-00001.parquet",))
    (tmp_path / "other/data/validation-00000-of-00001.parquet").rename(
        tmp_path / "data/validation-00000-of-00001.parquet"
    )
    found = open_dataset(tmp_path)
    assert [s.text for s in found] == ["a scene of kind 0", "a scene of kind 2", "a scene of kind 1"]
    assert np.array_equal(found[1].condition, picture(42)) and found[1].task == "depth"
    assert len(open_dataset(tmp_path, split="validation")) == 1
    with pytest.raises(DataError, match="no split 'test'; it has: train, validation"):
        open_dataset(tmp_path, split="test")


@pytest.mark.parametrize(
    ("detailed", "words"),
    [("two brown horses", "two brown horses"), ("", "two horses on grass"), (None, "two horses on grass")],
)
def test_a_segmentation_row_gives_its_detailed_prompt_where_it_has_one(
    tmp_path: Path, detailed: str | None, words: str
) -> None:
    rows = [COCO_STUFF_ROWS[0] | {"detailed_prompt": detailed}]
    sample = open_dataset(write_parquet(tmp_path, rows, ("rows.parquet",)))[0]
    assert sample.task == "segmentation" and sample.text == words


def test_canny_edges_are_computed_from_the_target(tmp_path: Path) -> None:
    sample = open_dataset(write_parquet(tmp_path, MULTIGEN_ROWS, ("rows.parquet",)), "multigen-canny")[1]
    assert sample.task == "canny" and np.array_equal(sample.target, picture(31))
    assert np.array_equal(sample.condition, canny_edges(picture(31))) and sample.condition.any()


def test_pictures_are_fitted_as_the_runtime_does_it_and_edges_found_afterwards(tmp_path: Path) -> None:
    from editar_rt.images.fit import fit_square

    folder = write_parquet(tmp_path, MULTIGEN_ROWS, ("rows.parquet",))
    fitted = np.asarray(fit_square(Image.fromarray(picture(30)), 16))
    sample = open_dataset(folder, "multigen-canny", size=16)[0]
    assert np.array_equal(sample.target, fitted) and np.array_equal(sample.condition, canny_edges(fitted))


def test_segmentation_takes_the_colour_mask(tmp_path: Path) -> None:
    sample = open_dataset(write_saved(tmp_path / "stuff", COCO_STUFF_ROWS))[0]
    assert sample.task == "segmentation" and np.array_equal(sample.condition, picture(61))


def test_webdataset_shards_as_that_library_writes_them(tmp_path: Path) -> None:
    webdataset = pytest.importorskip("webdataset")
    for shard in range(2):
        with webdataset.TarWriter(str(tmp_path / f"shard-{shard:06d}.tar")) as tar:
            for i in range(2):
                seed = 4 * shard + 2 * i
                pictures = {"condition.png": png(picture(seed)), "target.png": png(picture(seed + 1))}
                words = {"text": f"edit {seed}", "task": "edit"}
                tar.write({"__key__": f"{shard}/sample{i}", **pictures, "json": words})
    found = open_dataset(tmp_path)
    assert [s.text for s in found] == ["edit 0", "edit 2", "edit 4", "edit 6"]
    assert np.array_equal(found[3].target, picture(7)) and found[3].source == "folder"


def write_tar(path: Path, members: dict[str, bytes], link: str | None = None) -> Path:
    with tarfile.open(path, "w") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
        if link:
            info = tarfile.TarInfo("0.target.png")
            info.type, info.linkname = tarfile.SYMTYPE, link
            tar.addfile(info)
    return path


WHOLE = {
    "0.condition.png": png(picture(0)),
    "0.target.png": png(picture(1)),
    "0.json": b'{"text": "t", "task": "edit"}',
}


def test_what_macos_packs_beside_every_file_of_a_shard_is_passed_over(tmp_path: Path) -> None:
    members = {f"./{name}": content for name, content in WHOLE.items()}
    clutter = {f"./._{name}": b"\0\5\x16\7 attributes" for name in WHOLE} | {"./.DS_Store": b"\0\0\0\1Bud1"}
    packed = {name: content for pair in zip(clutter.items(), members.items()) for name, content in pair}
    found = open_dataset(write_tar(tmp_path / "a.tar", packed | {"__MACOSX/0.json": b"{}"} | clutter), "folder")
    assert len(found) == 1 and found[0].text == "t"


@pytest.mark.parametrize("ending", ["pyd", "extra.pickle", "weights.pth"])
def test_a_pickle_in_a_shard_is_refused_unread(tmp_path: Path, ending: str) -> None:
    found = open_dataset(write_tar(tmp_path / "a.tar", {**WHOLE, f"0.{ending}": b"cos\nsystem\n"}), "folder")
    with pytest.raises(BadRecord, match="could run code"):
        found[0]


def test_links_and_names_that_climb_out_of_a_shard_reach_nothing(tmp_path: Path) -> None:
    (tmp_path / "secret.png").write_bytes(png(picture(9)))
    without = {k: v for k, v in WHOLE.items() if "target" not in k}
    climbing = {f"../../{k}": v for k, v in WHOLE.items()}
    found = open_dataset(write_tar(tmp_path / "a.tar", {**climbing, **without}, link="secret.png"), "folder")
    before = sorted(os.listdir(tmp_path))
    assert np.array_equal(found[0].target, picture(1))  # held in memory, under a name that means nothing
    with pytest.raises(BadRecord, match="no picture in the column 'target'"):
        found[1]
    assert sorted(os.listdir(tmp_path)) == before


def own_line(**changes: Any) -> dict[str, Any]:
    return {"condition": "c.png", "target": "t.png", "text": "make it red", "task": "edit", **changes}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (own_line(condition="../outside.png"), "no path inside"),
        (own_line(condition="/etc/passwd"), "no path inside"),
        (own_line(condition="link.png"), "leads out of"),
        (own_line(condition="absent.png"), "absent.png is missing"),
        (own_line(target="broken.png"), "broken.png cannot be read"),
        (own_line(target="drawing.eps"), "drawing.eps cannot be read"),
        (own_line(target="wide.png"), "do not lie over each other"),
        (own_line(text=" "), "has no text"),
        (own_line(text=None), "no text in the column 'text'"),
        (own_line(text="w" * 5000), "5000 characters"),
        (own_line(task="sing"), "task 'sing'; allowed: edit, depth"),
        ({"condition": "c.png"}, "no picture in the column 'target'"),
        (own_line(text="red \ud800"), "half of a surrogate pair"),
        (own_line(condition="\udcff.png"), "half of a surrogate pair"),
        (own_line(condition="circle.png"), "circle"),
        (own_line(condition="circle.png/c.png"), "circle"),
        ([1, 2], "not a JSON object"),
        ("{", "is not JSON"),
    ],
    ids=lambda value: value[:20] if isinstance(value, str) else "",
)
def test_a_bad_record_says_what_is_wrong_and_the_next_one_is_read(tmp_path: Path, line: Any, message: str) -> None:
    (tmp_path / "outside.png").write_bytes(png(picture(3)))
    folder = tmp_path / "set"
    folder.mkdir()
    for name in ("c.png", "t.png"):
        (folder / name).write_bytes(png(picture(0)))
    (folder / "broken.png").write_bytes(png(picture(0))[:100])
    (folder / "drawing.eps").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n")
    (folder / "wide.png").write_bytes(png(picture(0)[:16]))
    (folder / "link.png").symlink_to(tmp_path / "outside.png")
    (folder / "circle.png").symlink_to("circle.png")
    text = line if isinstance(line, str) else json.dumps(line)
    (folder / "samples.jsonl").write_text(text + "\n" + json.dumps(own_line()) + "\n")
    found = open_dataset(folder, "folder")
    with pytest.raises(BadRecord, match=message):
        found[0]
    assert found[1].text == "make it red"


def test_a_line_without_end_is_bad_and_those_around_it_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from training.data import rows

    monkeypatch.setattr(rows, "MAX_LINE", 200)
    (tmp_path / "c.png").write_bytes(png(picture(0)))
    (tmp_path / "t.png").write_bytes(png(picture(1)))
    lines = [own_line(text="first"), own_line(text="w" * 900), own_line(text="last")]
    (tmp_path / "samples.jsonl").write_text("\n".join(json.dumps(line) for line in lines))
    found = open_dataset(tmp_path)
    assert len(found) == 3 and (found[0].text, found[2].text) == ("first", "last")
    with pytest.raises(BadRecord, match="line 2 has more than 200 bytes"):
        found[1]


def test_an_enormous_picture_is_refused_before_it_is_decoded(tmp_path: Path) -> None:
    from training.data.records import read_picture

    header = bytearray(png(picture(0)))
    header[16:24] = (9000).to_bytes(4, "big") * 2
    header[29:33] = zlib.crc32(header[12:29]).to_bytes(4, "big")
    with pytest.raises(BadRecord, match=r"huge\.png cannot be read: .* has 9000×9000 pixels"):
        read_picture(bytes(header), "huge.png")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda p: p / "absent", "there is no data set"),
        (lambda p: p, "holds no data set"),
        (lambda p: ((p / "x.tar.gz").write_bytes(b"") and p) or p, "unpack x.tar.gz first"),
        (lambda p: ((p / "x.parquet").write_bytes(b"PAR1") and p) or p, "not a whole data set"),
        (lambda p: ((p / "x.tar").write_bytes(b"no tar" * 200) and p) or p, "not a whole, uncompressed tar"),
        (lambda p: (p / "samples.jsonl").write_text("") or p, "is empty"),
    ],
    ids=["absent", "nothing", "packed", "parquet", "tar", "empty"],
)
def test_a_path_without_a_data_set_is_one_sentence(tmp_path: Path, make: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        open_dataset(make(tmp_path), "folder")


def test_columns_of_no_format_are_listed(tmp_path: Path) -> None:
    (tmp_path / "samples.jsonl").write_text('{"before": "a.png", "after": "b.png"}\n')
    with pytest.raises(DataError, match="columns after, before, of no known format; choose one of folder, seed"):
        open_dataset(tmp_path)


def test_a_saved_data_set_that_names_files_outside_is_refused(tmp_path: Path) -> None:
    folder = write_saved(tmp_path / "set", MAGICBRUSH_ROWS)
    state = json.loads((folder / "state.json").read_text())
    state["_data_files"][0]["filename"] = "../other.arrow"
    (folder / "state.json").write_text(json.dumps(state))
    with pytest.raises(DataError, match="names files outside"):
        open_dataset(folder)


def test_parquet_is_streamed_where_records_are_read_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_parquet(tmp_path, MULTIGEN_ROWS, ("train-00000-of-00002.parquet", "train-00001-of-00002.parquet"))
    mapped = open_dataset(folder)
    monkeypatch.setattr(tables, "ArrowRows", lambda *_: pytest.fail("nothing is rewritten"))
    rows = open_dataset(folder, in_order=True)
    assert len(rows) == len(mapped) == 3
    for index in (0, 2, 1):
        assert rows[index].text == mapped[index].text and np.array_equal(rows[index].target, mapped[index].target)


def test_threads_that_stream_read_every_row_group_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = tables.streamed(write_parquet(tmp_path, MULTIGEN_ROWS, ("a.parquet", "b.parquet")), None)
    assert rows is not None
    read, numbers = rows._read, []
    monkeypatch.setattr(rows, "_read", lambda file, number: (numbers.append(file.name), read(file, number))[1])
    with ThreadPoolExecutor(3) as pool:
        texts = [row["text"] for row in pool.map(rows.__getitem__, range(3))]
    assert sorted(texts) == [row["text"] for row in MULTIGEN_ROWS] and sorted(numbers) == ["a.parquet", "b.parquet"]


def test_a_damaged_parquet_file_is_named_when_it_is_streamed(tmp_path: Path) -> None:
    (tmp_path / "x.parquet").write_bytes(b"PAR1")
    with pytest.raises(DataError, match=r"x\.parquet is not a whole data set"):
        open_rows(tmp_path, in_order=True)
