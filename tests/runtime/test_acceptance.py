"""`editar acceptance`: tokens a pass of a bundle's weights, counted on pictures, and what is refused."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import editar_rt
from editar_rt.measure.acceptance import STEP, Case, Made, measure, printed, report
from tests.commands import Command
from tests.runtime.demo import BUNDLE

SAMPLES = BUNDLE / "samples"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two pictures, and a list of instructions for them."""
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for n in range(2):
        pixels = np.random.default_rng(n).integers(0, 256, (32, 32, 3), np.uint8)
        Image.fromarray(pixels).save(pictures / f"{n}.png")
    (tmp_path / "instructions.txt").write_text("make the ball red\nremove the cube\n")
    return tmp_path


def acceptance(editar: Command, bundle: Path, folder: Path, *more: object) -> dict[str, Any]:
    sizes = () if "--speculate" in more else ("--speculate", 2, "--speculate", 4)
    done = editar("acceptance", bundle, folder / "pictures", folder / "instructions.txt", *sizes, *more, "--json")
    assert done.code == 0, done.stderr
    return done.document


def test_every_noise_and_size_is_counted_on_every_picture(editar: Command, tiny_bundle: Path, folder: Path) -> None:
    found = acceptance(editar, tiny_bundle, folder)["acceptance"]
    assert list(found) == ["uniform", "gumbel"] and all(list(sizes) == ["1", "2", "4"] for sizes in found.values())
    for sizes in found.values():
        assert sizes["1"]["passes"] == 15 and sizes["1"]["tokens_per_pass"] == 1  # a picture has 16 tokens
        for size, each in sizes.items():
            assert each["pictures"] == 2 and each["equal_pictures"] == 2
            assert 15 / int(size) <= each["passes"] <= 15
            assert each["tokens_per_pass"] == pytest.approx(15 / each["passes"])
            assert 1 <= each["least_tokens_per_pass"] <= each["most_tokens_per_pass"] <= int(size)


def test_a_chosen_noise_and_a_number_of_pictures_are_all_that_is_made(
    editar: Command, tiny_bundle: Path, folder: Path
) -> None:
    document = acceptance(editar, tiny_bundle, folder, "--noise", "gumbel", "-n", 1, "--temperature", 0.5)
    assert list(document["acceptance"]) == ["gumbel"] and document["acceptance"]["gumbel"]["2"]["pictures"] == 1
    assert document["sampling"]["temperature"] == 0.5


@pytest.mark.parametrize(("pictures", "lines", "cases"), [(1, 3, 3), (2, 1, 2), (2, 3, 3)])
def test_the_shorter_list_starts_again(
    editar: Command, tiny_bundle: Path, folder: Path, pictures: int, lines: int, cases: int
) -> None:
    if pictures == 1:
        (folder / "pictures" / "1.png").unlink()
    (folder / "instructions.txt").write_text("make the ball red\n" * lines)
    document = acceptance(editar, tiny_bundle, folder, "--noise", "uniform", "--speculate", 2)
    assert document["acceptance"]["uniform"]["2"]["pictures"] == cases


def test_a_list_of_samples_is_reported_by_task_too(editar: Command) -> None:
    more = ("--speculate", 8, "--noise", "gumbel", "--json")
    document = editar("acceptance", BUNDLE, SAMPLES, SAMPLES / "samples.json", *more).document
    listed = json.loads((SAMPLES / "samples.json").read_text())["samples"]
    assert document["acceptance"]["gumbel"]["8"]["pictures"] == len(listed)
    by_task = document["by_group"]
    assert {task: each["gumbel"]["8"]["pictures"] for task, each in by_task.items()} == {
        task: sum(sample["task"] == task for sample in listed) for task in {sample["task"] for sample in listed}
    }
    assert document["acceptance"]["gumbel"]["8"]["tokens_per_pass"] > 3  # 4.0 on held-out scenes


def test_trained_weights_take_more_tokens_a_pass_in_longer_chunks(editar: Command, tmp_path: Path) -> None:
    (tmp_path / "instructions.txt").write_text("make the ball green\n")
    picture = SAMPLES / "recolour-0.png"
    done = editar("acceptance", BUNDLE, picture, tmp_path / "instructions.txt", "--noise", "gumbel", "--json")
    sizes = done.document["acceptance"]["gumbel"]
    rates = [sizes[str(size)]["tokens_per_pass"] for size in (1, 2, 4, 8)]
    assert rates == sorted(rates) and len(set(rates)) == 4


def test_the_table_and_the_plot(editar: Command, tiny_bundle: Path, folder: Path) -> None:
    plot = folder / "plot.png"
    done = editar(
        "acceptance", tiny_bundle, folder / "pictures", folder / "instructions.txt", "--speculate", 4, "--plot", plot
    )
    assert done.code == 0, done.stderr
    lines = done.stdout.splitlines()
    assert [line.split()[:2] for line in lines[1:]] == [[n, s] for n in ("uniform", "gumbel") for s in ("1", "4")]
    with Image.open(plot) as drawn:
        assert drawn.format == "PNG" and len(np.unique(np.asarray(drawn.convert("L")))) > 10
    assert not done.stderr  # no bar in a pipe


@pytest.mark.parametrize(
    ("more", "code", "says"),
    [
        (("--speculate", "3"), 2, "3"),
        (("--speculate", "1"), 2, "1 is not in the range"),
        (("--speculate", "64"), 2, "64"),
        (("--plot", "plot.gif"), 1, "must end with .png or .svg"),
        (("--plot", "instructions.txt"), 1, "must end with .png or .svg"),
        (("--temperature", "0"), 2, "temperature must be"),
        (("-n", "0"), 2, "0 is not in the range"),
    ],
)
def test_bad_options_are_refused_in_a_sentence(
    editar: Command, tiny_bundle: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, more: Any, code: int, says: str
) -> None:
    monkeypatch.chdir(folder)
    done = editar("acceptance", tiny_bundle, "pictures", "instructions.txt", *more)
    assert done.code == code and says in done.stderr and "Traceback" not in done.stderr
    assert not list(folder.glob("plot*"))


@pytest.mark.parametrize(
    ("pictures", "instructions", "code", "says"),
    [
        ("pictures", "none.txt", 2, "none.txt cannot be read"),
        ("nowhere", "instructions.txt", 1, "nowhere"),
        ("empty", "instructions.txt", 2, "there is no picture in empty"),
        ("pictures", "blank.txt", 2, "there is no instruction in blank.txt"),
        ("pictures", "bad.json", 1, "bad.json is not a list of samples"),
        ("pictures", "other.json", 2, "lists pictures/absent.png, which does not exist"),
        ("pictures", "pictures/0.png", 2, "are not UTF-8 text"),
    ],
)
def test_bad_lists_are_refused_in_a_sentence(
    editar: Command,
    tiny_bundle: Path,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    pictures: str,
    instructions: str,
    code: int,
    says: str,
) -> None:
    monkeypatch.chdir(folder)
    (folder / "empty").mkdir()
    (folder / "blank.txt").write_text(" \n\n")
    (folder / "bad.json").write_text("[]")
    sample = {"picture": "samples/absent.png", "task": "edit", "instruction": "remove the cube"}
    (folder / "other.json").write_text(json.dumps({"samples": [sample]}))
    done = editar("acceptance", tiny_bundle, pictures, instructions, "--speculate", 2)
    assert done.code == code and says in done.stderr and "Traceback" not in done.stderr, done.stderr


def test_other_tokens_than_those_of_single_steps_are_counted() -> None:
    made = [
        Made("", "uniform", size, passes, 60, seconds, equal)
        for size, passes, seconds, equal in ((STEP, 60, 6.0, True), (8, 20, 2.0, False))
    ]
    editor = editar_rt.load(BUNDLE, "cpu")
    document = report(editor, made, editor.default_sampling)
    found = document["acceptance"]["uniform"][8]
    assert found["equal_pictures"] == 0 and found["times_as_fast"] == 3 and found["tokens_per_pass"] == 3
    assert "0 of 1" in printed(document)


def test_seeds_count_up_from_the_one_given() -> None:
    editor = editar_rt.load(BUNDLE, "cpu", 1)
    sampling = dataclasses.replace(editor.default_sampling, seed=2**64 - 1, temperature=4.0)
    cases = [Case(SAMPLES / "recolour-0.png", "make the ball green")] * 2
    last, first = (each for each in measure(editor, cases, sampling, (8,), ("gumbel",)) if each.size != STEP)
    (alone,) = (
        each
        for each in measure(editor, cases[:1], dataclasses.replace(sampling, seed=0), (8,), ("gumbel",))
        if each.size != STEP
    )
    assert last.passes != first.passes == alone.passes
