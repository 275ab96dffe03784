"""The command line's ways to edit, in this process, on the demo bundle."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import editar_rt
from tests.commands import Done
from tests.runtime.demo import BALL, BUNDLE, COUNT, PICTURE, SAMPLES, SIDE, WORDS


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as picture:
        return np.asarray(picture)


# One picture.


@pytest.mark.parametrize("kind", ["mask", "box", "outpaint"])
def test_masks_are_those_of_the_api(
    editar: Callable[..., Done], demo_editor: editar_rt.Editor, tmp_path: Path, kind: str
) -> None:
    box, out = BALL, tmp_path / "out.png"
    mask = editar_rt.images.masks.box_mask(box, (SIDE, SIDE))
    Image.fromarray(mask).save(tmp_path / "mask.png")
    value = {"mask": tmp_path / "mask.png", "box": ",".join(map(str, BALL)), "outpaint": "8,8,8,8"}[kind]
    done = editar("edit", BUNDLE, PICTURE, WORDS, "-o", out, f"--{kind}", value, "--threads", 1)
    assert done.code == 0, done.stderr
    picture = PICTURE
    if kind == "outpaint":
        picture, mask = editar_rt.images.masks.outpainted(PICTURE, (8, 8, 8, 8))
        mask = editar_rt.images.masks.read_mask(mask, picture.size, SIDE)
        picture = editar_rt.images.fit.fit_square(picture, SIDE)
    assert np.array_equal(pixels(out), np.asarray(demo_editor.edit(picture, WORDS, mask=mask).image))


def test_a_black_mask_says_so_and_gives_the_source_back(editar: Callable[..., Done], tmp_path: Path) -> None:
    Image.new("L", (10, 10)).save(tmp_path / "black.png")
    done = editar("edit", BUNDLE, PICTURE, WORDS, "-o", tmp_path / "out.png", "--mask", tmp_path / "black.png")
    assert done.code == 0 and done.stderr.startswith("editar: the mask has no white") and done.stderr.count("\n") == 1
    assert np.array_equal(pixels(tmp_path / "out.png"), pixels(PICTURE)[..., :3])


def test_instructions_in_turn_go_on_from_the_last_result(
    editar: Callable[..., Done], demo_editor: editar_rt.Editor, tmp_path: Path
) -> None:
    listed = tmp_path / "list.txt"
    listed.write_text("add a red cube on the left\n\n")
    arguments = ("--then", "remove the cube", "--instructions", listed, "--threads", 1, "--json")
    done = editar("edit", BUNDLE, PICTURE, WORDS, "-o", tmp_path / "out.png", *arguments)
    assert done.code == 0, done.stderr
    written = [Path(each["output"]).name for each in done.document["pictures"]]
    assert written == ["out-1.png", "out-2.png", "out.png"]
    picture: object = PICTURE
    for name, words in zip(written, (WORDS, "add a red cube on the left", "remove the cube")):
        picture = demo_editor.edit(picture, words).image
        assert np.array_equal(pixels(tmp_path / name), np.asarray(picture))


def test_variants_are_written_by_their_seed_with_a_sheet(
    editar: Callable[..., Done], demo_editor: editar_rt.Editor, tmp_path: Path
) -> None:
    arguments = ("-n", 3, "--seed", 5, "--threads", 1, "--json")
    done = editar("edit", BUNDLE, PICTURE, WORDS, "-o", tmp_path / "out.png", *arguments)
    assert done.code == 0, done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out-5.png", "out-6.png", "out-7.png", "out.png"]
    assert len(done.document["pictures"]) == 3
    alone = demo_editor.edit(PICTURE, WORDS, sampling=dataclasses.replace(demo_editor.default_sampling, seed=6))
    assert np.array_equal(pixels(tmp_path / "out-6.png"), np.asarray(alone.image))


def test_previews_animation_and_trace_are_written(editar: Callable[..., Done], tmp_path: Path) -> None:
    arguments = ("--preview", tmp_path / "previews", "--animate", tmp_path / "a.gif", "--trace", tmp_path / "t.jsonl")
    done = editar("edit", BUNDLE, PICTURE, WORDS, "-o", tmp_path / "out.png", *arguments, "--json")
    assert done.code == 0, done.stderr
    assert {path.suffix for path in (tmp_path / "previews").iterdir()} <= {".png"}
    assert done.document["timings"]["preview"] >= 0
    with Image.open(tmp_path / "a.gif") as animation:
        assert animation.is_animated and animation.n_frames >= 3
    replayed = editar("replay", tmp_path / "t.jsonl", "--bundle", BUNDLE, "--json")
    assert replayed.code == 0 and replayed.document["identical"] and replayed.document["compared"] == COUNT
    assert "tokens are equal" in editar("replay", tmp_path / "t.jsonl", "--bundle", BUNDLE).stdout
    assert editar("heatmap", tmp_path / "t.jsonl", "-o", tmp_path / "heat.png").code == 0
    with Image.open(tmp_path / "heat.png") as heat:
        assert heat.width > 700


def test_a_terminal_shows_the_picture_and_how_far_it_is(
    editar: Callable[..., Done], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (("FORCE_COLOR", "1"), ("COLORTERM", "truecolor"), ("COLUMNS", "80"), ("LINES", "40")):
        monkeypatch.setenv(name, value)
    arguments = ("--preview", "terminal", "--preview-share", 1)
    done = editar("edit", BUNDLE, PICTURE, WORDS, "-o", tmp_path / "out.png", *arguments)
    assert done.code == 0, done.stderr
    assert "▀" in done.stderr and "\x1b[38;2;" in done.stderr and "tokens" in done.stderr
    assert "▀" not in done.stdout


def test_a_sweep_is_a_grid_of_scales_and_seeds(editar: Callable[..., Done], tmp_path: Path) -> None:
    scales = ("--scale", 1, "--scale", "linear:1,4")
    done = editar("sweep", BUNDLE, PICTURE, WORDS, "-o", tmp_path / "grid.png", *scales, "-n", 2, "--json")
    assert done.code == 0, done.stderr
    assert done.document["pictures"] == 4 and (tmp_path / "grid.png").stat().st_size > 1000


def test_a_sweep_takes_its_scales_and_seeds_and_nothing_else_for_them(
    editar: Callable[..., Done], tmp_path: Path
) -> None:
    for arguments, says in (
        (("--cfg-scale", 2), "give each with --scale"),
        (("--scale", "steep"), "cfg_scale must be 0 to 1e+06"),
        (("-n", 0), "n must be 1 to 64, got 0"),
    ):
        done = editar("sweep", BUNDLE, PICTURE, WORDS, "-o", tmp_path / "grid.png", *arguments)
        assert done.code == 2 and says in done.stderr, done.stderr


def test_schedules_are_options_and_are_written_down(editar: Callable[..., Done], tmp_path: Path) -> None:
    arguments = ("--cfg-scale", "cosine:1,4", "--cfg-interval", "8,40", "--json")
    done = editar("edit", BUNDLE, PICTURE, WORDS, "-o", tmp_path / "out.png", *arguments)
    assert done.code == 0, done.stderr
    assert done.document["parameters"]["cfg_scale"] == "cosine:1,4"
    assert done.document["parameters"]["cfg_interval"] == [8, 40]


# Folders.


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "in"
    folder.mkdir()
    for name in ("a.png", "b.PNG"):
        shutil.copy(PICTURE, folder / name)
    (folder / "notes.txt").write_text("not a picture")
    return folder


def test_a_folder_is_edited_and_what_is_there_is_skipped(
    editar: Callable[..., Done], folder: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    first = editar("edit", BUNDLE, folder, WORDS, "-o", out, "--json")
    assert first.code == 0 and len(first.document["pictures"]) == 2, first.stderr
    assert "skipped 1 file that is not a picture: notes.txt" in first.stderr
    (out / "b.png").unlink()
    again = editar("edit", BUNDLE, folder, WORDS, "-o", out, "--json")
    assert [Path(p["output"]).name for p in again.document["pictures"]] == ["b.png"]
    assert again.document["skipped"] == [str(out / "a.png")] and again.document["made_again"] == {}
    forced = editar("edit", BUNDLE, folder, WORDS, "-o", out, "--force", "--json")
    assert len(forced.document["pictures"]) == 2 and forced.document["skipped"] == []


def test_a_damaged_picture_is_named_and_the_others_are_done(
    editar: Callable[..., Done], folder: Path, tmp_path: Path
) -> None:
    (folder / "a.png").write_bytes(b"damaged")
    done = editar("edit", BUNDLE, folder, WORDS, "-o", tmp_path / "out")
    assert done.code == 1 and "a.png is not a picture" in done.stderr
    assert "editar: 1 of 2 pictures failed; the others are done" in done.stderr
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["b.png"]


@pytest.mark.parametrize("arguments", [("--then", "remove the cube"), ("-n", 2), ("-n", 2, "--force")])
def test_a_folder_whose_results_would_be_written_over_is_refused_before_anything_is_made(
    editar: Callable[..., Done], folder: Path, tmp_path: Path, arguments: tuple[object, ...]
) -> None:
    name = "a-1.jpg" if "--then" in arguments else "a-6.jpg"
    shutil.copy(PICTURE, folder / name)
    seed = () if "--then" in arguments else ("--seed", 5)
    done = editar("edit", BUNDLE, folder, WORDS, "-o", tmp_path / "out", *arguments, *seed)
    assert done.code == 1 and "a.png" in done.stderr and name in done.stderr and "rename one" in done.stderr
    assert done.stderr.count("\n") == 1 and not (tmp_path / "out").exists()


def test_pictures_that_only_look_like_a_result_on_the_way_are_edited(
    editar: Callable[..., Done], folder: Path, tmp_path: Path
) -> None:
    (folder / "b.PNG").unlink()
    shutil.copy(PICTURE, folder / "a-2.png")
    done = editar("edit", BUNDLE, folder, WORDS, "--then", "remove the cube", "-o", tmp_path / "out", "--json")
    assert done.code == 0, done.stderr
    written = [Path(each["output"]).name for each in done.document["pictures"]]
    assert sorted(written) == ["a-1.png", "a-2-1.png", "a-2.png", "a.png"]


def test_folders_that_cannot_be_edited_are_refused(editar: Callable[..., Done], folder: Path, tmp_path: Path) -> None:
    shutil.copy(PICTURE, folder / "a.jpg")
    done = editar("edit", BUNDLE, folder, WORDS, "-o", tmp_path / "out")
    assert done.code == 1 and "would both become" in done.stderr
    (tmp_path / "empty").mkdir()
    done = editar("edit", BUNDLE, tmp_path / "empty", WORDS, "-o", tmp_path / "out")
    assert done.code == 1 and "contains no pictures" in done.stderr
    (folder / "a.jpg").unlink()
    done = editar("edit", BUNDLE, folder, WORDS, "-o", folder)
    assert done.code == 1 and "give another folder for the results" in done.stderr


# What is refused.


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (("--box", f"{SIDE - 4},{SIDE - 4},9,9"), 2, "must lie in the picture"),
        (("--box", "1,2,3"), 2, "must be 4 integers separated by commas"),
        (("--mask", "none.png"), 1, "there is no picture none.png"),
        (("--box", "1,1,9,9", "--outpaint", "1,1,1,1"), 2, "give one of --mask, --box and --outpaint"),
        (("--outpaint", "0,0,0,0"), 2, "there is nothing to add"),
        (("--mask-margin", "-1"), 2, "mask_margin must be 0 or more"),
        (("--box", "1,1,9,9", "--task", "depth"), 2, "masks are for task edit"),
        (("--preview", "previews", "--preview-share", "2"), 2, "preview_share must be 0 to 1"),
        (("-n", "0"), 2, "n must be 1 to 64, got 0"),
        (("-n", "2", "--then", "x"), 2, "-n makes variants of one instruction"),
        (("--trace", "t.txt"), 2, "a trace must be named .jsonl or .npz"),
        (("--animate", "a.mp4"), 2, "an animation must be named .png or .gif"),
        (("--trace", "t.npz", "--then", "x"), 2, "--trace can be used with one picture and one instruction only"),
        (("--preview", "terminal"), 2, "needs a terminal"),
        (("-o", "out.png", "--animate", "./out.png"), 2, "two of the outputs would be written to"),
        (
            ("-n", "2", "--seed", "5", "-o", "out.png", "--animate", "out-6.png"),
            2,
            "two of the outputs would be written to",
        ),
        (("-o", "n" * 300 + ".png"), 1, "File name too long"),
        (("--trace", "n" * 300 + ".npz"), 1, "File name too long"),
        (("--text-states", "n" * 300), 1, "File name too long"),
        (("--mask", "n" * 300), 1, "File name too long"),
        (("-o", "n" * 250 + ".png", "--then", "x"), 1, "File name too long"),
        (("--instructions", "none.txt"), 2, "none.txt cannot be read"),
        (("--cfg-scale", "steep:1,2"), 2, "cfg_scale must be 0 to 1e+06, linear:FIRST,LAST"),
        (("--cfg-interval", "9,3"), 2, "cfg_interval must be"),
    ],
)
def test_bad_options_are_refused_in_one_sentence(
    editar: Callable[..., Done], tmp_path: Path, arguments: tuple[str, ...], code: int, says: str
) -> None:
    done = editar("edit", BUNDLE, PICTURE, WORDS, "-o", tmp_path / "out.png", *arguments)
    assert done.code == code and says in done.stderr, done.stderr
    assert not list(tmp_path.iterdir())


def test_names_that_no_disk_has_are_refused_in_one_sentence(editar: Callable[..., Done], tmp_path: Path) -> None:
    for bundle, image, says in (("n" * 300, PICTURE, "is not a folder"), (BUNDLE, "n" * 300, "File name too long")):
        done = editar("edit", bundle, image, WORDS, "-o", tmp_path / "out.png")
        assert done.code == 1 and says in done.stderr and done.stderr.count("\n") == 1, done.stderr
    done = editar("edit", BUNDLE, SAMPLES, WORDS, "-o", "n" * 300)
    assert done.code == 1 and "File name too long" in done.stderr and done.stderr.count("\n") == 1


def test_the_longest_name_that_a_disk_takes_is_written(editar: Callable[..., Done], tmp_path: Path) -> None:
    name = "n" * 250 + ".png"
    done = editar("edit", BUNDLE, PICTURE, WORDS, "-o", tmp_path / name)
    assert done.code == 0 and [path.name for path in tmp_path.iterdir()] == [name], done.stderr


def test_an_instruction_is_needed(editar: Callable[..., Done], tmp_path: Path) -> None:
    done = editar("edit", BUNDLE, PICTURE, "-o", tmp_path / "out.png")
    assert done.code == 2 and "no instruction was given" in done.stderr


def test_a_trace_of_another_bundle_is_not_replayed(
    editar: Callable[..., Done], tiny_bundle: Path, tmp_path: Path
) -> None:
    trace = tmp_path / "t.npz"
    assert editar("edit", BUNDLE, PICTURE, WORDS, "-o", tmp_path / "out.png", "--trace", trace).code == 0
    done = editar("replay", trace, "--bundle", tiny_bundle)
    assert done.code == 1 and "the trace was made with another bundle" in done.stderr and done.stderr.count("\n") == 1


def test_speculation_takes_fewer_passes_to_the_same_picture(editar: Callable[..., Done], tmp_path: Path) -> None:
    passes = []
    for n, option in enumerate([(), ("--speculate", 8), ("--speculate", "auto")]):
        done = editar("edit", BUNDLE, PICTURE, WORDS, "-o", tmp_path / f"{n}.png", *option, "--threads", 1, "--json")
        assert done.code == 0, done.stderr
        passes.append(json.loads(done.stdout.splitlines()[-1])["passes"])
        assert np.array_equal(pixels(tmp_path / f"{n}.png"), pixels(tmp_path / "0.png"))
    assert passes[0] == 63 > passes[1]


@pytest.mark.parametrize(
    ("value", "code", "says"),
    [
        ("fast", 2, "must be auto or an even number of positions, got 'fast'"),
        ("3", 2, "speculate must be auto or an even number of positions, 2 or more, got 3"),
        ("64", 2, "speculate must be auto or an even number from 2 to 62 for this bundle, got 64"),
    ],
)
def test_a_wrong_speculate_is_one_sentence(
    editar: Callable[..., Done], tmp_path: Path, value: str, code: int, says: str
) -> None:
    done = editar("edit", BUNDLE, PICTURE, WORDS, "-o", tmp_path / "o.png", "--speculate", value, "--threads", 1)
    assert done.code == code and says in done.stderr and not (tmp_path / "o.png").exists()
