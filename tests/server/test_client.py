"""The stock `openai` client against the real server."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator
from typing import Any

import numpy as np
import openai
import pytest
from PIL import Image

import editar_rt
from editar_rt.editor import Editor
from editar_rt.images.masks import box_mask
from tests.runtime.demo import BALL, BUNDLE, COUNT, GRID, PICTURE, SAMPLES, SIDE, WORDS
from tests.server.running import Server


@pytest.fixture(scope="module")
def client(server: Server) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="unused", max_retries=0) as client:
        yield client


@pytest.fixture(scope="module")
def editor() -> Editor:
    return editar_rt.load(BUNDLE, device="cpu", threads=1)


def pixels(item: Any) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(item.b64_json))))


def edit(client: openai.OpenAI, **options: Any) -> Any:
    given = {"image": PICTURE.read_bytes(), "prompt": WORDS, "extra_body": {"seed": 1}}
    return client.images.edit(**{**given, **options})


def alone(editor: Editor, **options: Any) -> np.ndarray:
    return np.asarray(editor.edit(PICTURE, WORDS, **{"seed": 1, **options}).image)


def test_an_edit_has_the_pixels_that_python_gives(client: openai.OpenAI, editor: Editor) -> None:
    answer = edit(client)
    assert np.array_equal(pixels(answer.data[0]), alone(editor))
    assert answer.usage.output_tokens == COUNT
    assert answer._request_id


def test_n_gives_n_variants_with_consecutive_seeds(client: openai.OpenAI, editor: Editor) -> None:
    answer = edit(client, n=3)
    assert [item.editar["seed"] for item in answer.data] == [1, 2, 3]
    for item in answer.data:
        assert np.array_equal(pixels(item), alone(editor, seed=item.editar["seed"]))


@pytest.mark.parametrize("nested", [False, True])
def test_own_fields_come_flat_or_nested(client: openai.OpenAI, editor: Editor, nested: bool) -> None:
    own = {"seed": 4, "cfg_scale": "linear:1,3", "cfg_interval": [0, 40], "top_k": 20, "temperature": 0.9}
    answer = edit(client, extra_body={"editar": own} if nested else own)
    expected = alone(editor, **{**own, "cfg_interval": (0, 40)})
    assert np.array_equal(pixels(answer.data[0]), expected)
    assert answer.data[0].editar["warnings"] == []


def test_speculation_takes_fewer_passes_to_the_same_picture(client: openai.OpenAI, editor: Editor) -> None:
    own = {"seed": 1, "noise": "gumbel"}
    plain, drafted = (edit(client, extra_body={**own, **more}).data[0] for more in ({}, {"speculate": "auto"}))
    assert drafted.b64_json == plain.b64_json
    assert drafted.editar["passes"] < plain.editar["passes"] == COUNT - 1
    assert np.array_equal(pixels(plain), alone(editor, noise="gumbel"))


def test_a_list_of_one_picture_and_an_open_file_are_taken(client: openai.OpenAI) -> None:
    with open(PICTURE, "rb") as file:
        assert edit(client, image=[file]).data


def test_without_a_seed_one_is_drawn_that_gives_the_same_again(client: openai.OpenAI) -> None:
    first = edit(client, extra_body={}).data[0]
    again = edit(client, extra_body={"seed": first.editar["seed"]}).data[0]
    other = edit(client, extra_body={}).data[0]
    assert again.b64_json == first.b64_json
    assert other.editar["seed"] != first.editar["seed"]


def test_a_mask_with_an_alpha_channel_lets_transparent_pixels_change(client: openai.OpenAI, editor: Editor) -> None:
    mask = np.full((SIDE, SIDE, 4), 255, np.uint8)
    x, y, width, height = BALL
    mask[y : y + height, x : x + width, 3] = 0
    file = io.BytesIO()
    Image.fromarray(mask).save(file, "PNG")
    assert np.array_equal(pixels(edit(client, mask=file.getvalue()).data[0]), alone(editor, mask=BALL))


def test_rerolling_from_a_row_keeps_the_tokens_above(client: openai.OpenAI, editor: Editor) -> None:
    first = edit(client).data[0].editar
    own = {"known_tokens": first["tokens"], "from_row": 4, "seed": 9}
    second = edit(client, extra_body=own).data[0].editar
    before, after = (np.frombuffer(base64.b64decode(each["tokens"]), "<u2") for each in (first, second))
    session = editor.session(PICTURE)
    session.edit(WORDS, seed=1)
    assert np.array_equal(after, session.resume(4, seed=9).tokens)
    assert np.array_equal(before[: 4 * GRID], after[: 4 * GRID])


@pytest.mark.parametrize("output_format", ["png", "jpeg", "webp"])
def test_output_formats(client: openai.OpenAI, output_format: Any) -> None:
    compression = None if output_format == "png" else 80
    item = edit(client, output_format=output_format, output_compression=compression).data[0]
    assert Image.open(io.BytesIO(base64.b64decode(item.b64_json))).format == output_format.upper()


BOX = (110, 60, 80, 70)


def encoded(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def test_a_whole_picture_comes_back_at_its_size(client: openai.OpenAI) -> None:
    wide = Image.open(PICTURE).convert("RGB").resize((300, 200))
    file = io.BytesIO()
    wide.save(file, "PNG")
    answer = edit(client, image=file.getvalue(), extra_body={"fit": "pad", "restore": True, "seed": 1})
    assert pixels(answer.data[0]).shape == (200, 300, 3) and answer.size == "300x200"


@pytest.mark.parametrize("options", [{}, {"mask": BOX}, {"mask": BOX, "composite": False}, {"fit": "pad"}])
def test_a_picture_is_restored_as_python_does_it(
    client: openai.OpenAI, editor: Editor, options: dict[str, Any]
) -> None:
    whole = Image.open(PICTURE).convert("RGB").resize((300, 200))
    own = {"restore": True, "seed": 1, **{name: value for name, value in options.items() if name != "mask"}}
    files = {"image": encoded(whole)}
    if "mask" in options:
        files["mask"] = encoded(Image.fromarray(box_mask(BOX, whole.size)))
    answer = edit(client, **files, extra_body=own)
    expected = editor.edit(whole, WORDS, **{**own, **options}).image
    assert np.array_equal(pixels(answer.data[0]), np.asarray(expected))


def test_another_task_makes_a_picture_from_a_condition(client: openai.OpenAI) -> None:
    answer = edit(client, image=(SAMPLES / "depth-0.png").read_bytes(), extra_body={"task": "depth", "seed": 1})
    assert answer.data[0].editar["settings"]["task"] == "depth"


def test_a_stream_has_partial_pictures_and_each_result(client: openai.OpenAI, editor: Editor) -> None:
    events = list(edit(client, n=2, stream=True, partial_images=3))
    kinds = [event.type for event in events]
    done = [event for event in events if event.type == "image_edit.completed"]
    assert kinds.count("image_edit.completed") == 2
    assert {event.editar["seed"] for event in done} == {1, 2}
    for event in done:
        assert np.array_equal(pixels(event), alone(editor, seed=event.editar["seed"]))
    partial = [event for event in events if event.type == "image_edit.partial_image"]
    assert 1 <= len(partial) <= 6
    for event in partial:
        assert pixels(event).shape == (SIDE, SIDE, 3)
        assert event.partial_image_index in range(3) and event.editar["rows"] == GRID


def test_models_are_listed_and_retrieved(client: openai.OpenAI) -> None:
    (model,) = client.models.list().data
    assert model.id == "demo" and model.editar["size"] == SIDE
    assert client.models.retrieve("demo").editar["bundle"] == model.editar["bundle"]
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("gpt-image-1")
    assert edit(client, model="demo").data


ERRORS: dict[str, tuple[type[openai.APIStatusError], dict[str, Any], str | None]] = {
    "no picture": (openai.BadRequestError, {"image": b"nothing"}, "image"),
    "another model": (openai.NotFoundError, {"model": "gpt-image-1"}, "model"),
    "n beyond the limit": (openai.BadRequestError, {"n": 9}, "n"),
    "a number out of range": (openai.BadRequestError, {"extra_body": {"top_p": 2}}, "top_p"),
    "another size": (openai.BadRequestError, {"size": "1024x1024"}, "size"),
    "a transparent background": (openai.BadRequestError, {"background": "transparent"}, "background"),
    "a url": (openai.BadRequestError, {"response_format": "url"}, "response_format"),
}


@pytest.mark.parametrize("name", ERRORS)
def test_errors_have_openais_classes(client: openai.OpenAI, name: str) -> None:
    kind, options, param = ERRORS[name]
    with pytest.raises(kind) as caught:
        edit(client, **options)
    assert caught.value.param == param
    assert caught.value.body["type"] == "invalid_request_error"  # type: ignore[index]


def test_generations_say_what_to_do(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="/v1/images/edits"):
        client.images.generate(prompt="a ball")
