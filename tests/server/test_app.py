"""The routes against the real server: what is refused and how, masks, warnings, cancelling, metrics."""

from __future__ import annotations

import base64
import io
import json
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import httpx2 as httpx
import numpy as np
import pytest
from PIL import Image

from tests.runtime.demo import BALL, PICTURE, SIDE, WORDS
from tests.server.running import Server, form, picture, until

EDITS = "/v1/images/edits"


@pytest.fixture(scope="module")
def http(server: Server) -> Iterator[httpx.Client]:
    with server.client() as client:
        yield client


def file_of(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def result(answer: httpx.Response) -> dict[str, Any]:
    assert answer.status_code == 200, answer.text
    (item,) = answer.json()["data"]
    return dict(item)


def pixels(item: dict[str, Any]) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(item["b64_json"]))))


def series(http: httpx.Client, name: str) -> float:
    """The value of one series of /metrics; 0 if there is none."""
    lines = (line.rpartition(" ") for line in http.get("/metrics").text.splitlines())
    return next((float(value) for found, _, value in lines if found == name), 0.0)


# What is refused.

BAD_FIELDS: dict[str, tuple[dict[str, Any], str, str]] = {
    "no prompt": ({"prompt": None}, "prompt", "missing"),
    "an empty prompt": ({"prompt": "  "}, "prompt", "missing"),
    "a prompt that is too long": ({"prompt": "a" * 32_001}, "prompt", "at most 32000"),
    "n of 0": ({"n": "0"}, "n", "1 to 8"),
    "n that is no number": ({"n": "many"}, "n", "an integer"),
    "a seed below 0": ({"seed": "-1"}, "seed", "0 to 2^64 - 1"),
    "a seed that is too large": ({"seed": str(2**64)}, "seed", "0 to 2^64 - 1"),
    "a seed that is no integer": ({"seed": "1.5"}, "seed", "an integer"),
    "a temperature of 0": ({"temperature": "0"}, "temperature", "above 0"),
    "a temperature that is no number": ({"temperature": "nan"}, "temperature", "a number"),
    "top_k below 0": ({"top_k": "-1"}, "top_k", "0 (off) or more"),
    "top_p above 1": ({"top_p": "1.1"}, "top_p", "(0, 1]"),
    "a scale that is no schedule": ({"cfg_scale": "steep:1,2"}, "cfg_scale", "linear"),
    "a schedule of another length": ({"cfg_scale": "values:1,2"}, "cfg_scale", "64 tokens"),
    "an interval of three": ({"cfg_interval": "1,2,3"}, "cfg_interval", "an integer, or two"),
    "greedy that is neither true nor false": ({"greedy": "perhaps"}, "greedy", "true or false"),
    "another noise": ({"noise": "pink"}, "noise", "uniform or gumbel"),
    "an odd number to speculate": ({"speculate": "3"}, "speculate", "even"),
    "more to speculate than there is": ({"speculate": "64"}, "speculate", "from 2 to 62"),
    "more to speculate in a stream": ({"speculate": "64", "stream": "true"}, "speculate", "from 2 to 62"),
    "a word to speculate": ({"speculate": "much"}, "speculate", "auto or an even"),
    "another task": ({"task": "draw"}, "task", "one of edit"),
    "another fit": ({"fit": "squeeze"}, "fit", "crop"),
    "a margin below 0": ({"mask_margin": "-1"}, "mask_margin", "0 or more"),
    "another size": ({"size": "256x256"}, "size", "128x128"),
    "a url as the answer": ({"response_format": "url"}, "response_format", "b64_json"),
    "a transparent background": ({"background": "transparent"}, "background", "opaque"),
    "a quality": ({"quality": "high"}, "quality", "auto"),
    "another format": ({"output_format": "gif"}, "output_format", "png, jpeg, webp"),
    "a compression of a png": ({"output_compression": "50"}, "output_compression", "jpeg"),
    "a compression above 100": ({"output_format": "webp", "output_compression": "101"}, "output_compression", "to 100"),
    "partial pictures without a stream": ({"partial_images": "2"}, "partial_images", "stream"),
    "more partial pictures than rows": ({"stream": "true", "partial_images": "9"}, "partial_images", "0 to 8"),
    "a row without tokens": ({"from_row": "2"}, "known_tokens", "belong together"),
    "tokens without a row": ({"known_tokens": "AAAA"}, "from_row", "belong together"),
    "tokens that are not base64": ({"known_tokens": "%%", "from_row": "2"}, "known_tokens", "base64"),
    "too few tokens": ({"known_tokens": "AAAA", "from_row": "2"}, "known_tokens", "64 tokens"),
    "tokens beyond the codebook": (
        {"known_tokens": base64.b64encode(b"\xff" * 128).decode(), "from_row": "2"},
        "known_tokens",
        "0 to 2047",
    ),
    "a row below the picture": ({"known_tokens": "AAAA", "from_row": "9"}, "from_row", "0 to 8"),
    "a field given flat and nested": ({"top_k": "5", "editar[top_k]": "6"}, "top_k", "twice"),
    "the picture as text": ({"image": "https://example.com/a.png"}, "image", "must be a file"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD_FIELDS)
def test_a_bad_field_is_refused_in_a_sentence(http: httpx.Client, name: str) -> None:
    fields, param, said = BAD_FIELDS[name]
    answer = http.post(EDITS, **form(**fields))
    assert answer.status_code == 400, answer.text
    error = answer.json()["error"]
    assert error["param"] == param and said in error["message"]
    assert error["type"] == "invalid_request_error"


def flat(side: int, height: int | None = None) -> bytes:
    return file_of(Image.new("L", (side, height or side)))


PNG = PICTURE.read_bytes()
BAD_FILES: dict[str, tuple[list[Any], str, str]] = {
    "no picture": ([picture("other")], "image", "missing"),
    "an empty file": ([picture("image", b"")], "image", "PNG, JPEG or WebP"),
    "text": ([picture("image", b"hello")], "image", "PNG, JPEG or WebP"),
    "half a picture": ([picture("image", PNG[: len(PNG) // 2])], "image", "truncated"),
    "a format that is not read": ([picture("image", file_of(Image.new("RGB", (9, 9)), "BMP"))], "image", "PNG, JPEG"),
    "an EPS, which another program would read": ([picture("image", b"%!PS-Adobe-3.0 EPSF-3.0\n")], "image", "PNG"),
    "a picture beyond the limit": ([picture("image", flat(4001))], "image", "16 million"),
    "a picture beyond Pillow's limit": ([picture("image", flat(15_000))], "image", "16 million"),
    "a line of millions of pixels": ([picture("image", flat(16_000_000, 1))], "image", "65535 on a side"),
    "a picture of a million empty segments": (
        [picture("image", b"\xff\xd8" + b"\xff\xe5\0\2" * 1_000_000)],
        "image",
        "too long to read",
    ),
    "two numbered pictures": ([picture("image[0]"), picture("image[1]")], "image", "one image"),
    "two pictures": ([picture("image[]"), picture("image[]")], "image", "one image"),
    "two masks": ([picture(), picture("mask"), picture("mask")], "mask", "one mask"),
    "a mask that is no picture": ([picture(), picture("mask", b"x")], "mask", "PNG, JPEG or WebP"),
    "a mask beyond the limit": ([picture(), picture("mask", flat(4001))], "mask", "16 million"),
    "a mask of another shape": ([picture(), picture("mask", file_of(Image.new("L", (64, 32))))], "mask", "ratio"),
    "a mask with nothing transparent": (
        [picture(), picture("mask", file_of(Image.new("RGBA", (64, 64), "white")))],
        "mask",
        "nothing is transparent",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD_FILES)
def test_a_bad_file_is_refused_in_a_sentence(http: httpx.Client, name: str) -> None:
    files, param, said = BAD_FILES[name]
    answer = http.post(EDITS, data={"prompt": WORDS}, files=files)
    assert answer.status_code == 400, answer.text
    error = answer.json()["error"]
    assert error["param"] == param and said in error["message"]


def test_a_mask_belongs_to_an_edit(http: httpx.Client) -> None:
    files = [picture(), picture("mask", file_of(Image.new("L", (64, 64), 255)))]
    answer = http.post(EDITS, data={"prompt": WORDS, "task": "depth"}, files=files)
    assert answer.status_code == 400 and "task depth" in answer.json()["error"]["message"]


def test_json_with_a_url_is_refused_with_the_reason(http: httpx.Client) -> None:
    answer = http.post(EDITS, json={"images": [{"image_url": "http://127.0.0.1/x.png"}], "prompt": WORDS})
    assert answer.status_code == 400 and "fetches nothing" in answer.json()["error"]["message"]


@pytest.mark.parametrize(
    "content",
    [b"", b"--x", b"--x\r\n\r\n", b"--x\r\nContent-Disposition: form-data\r\n\r\na\r\n--x--", b"\0" * 100],
)
def test_a_broken_form_is_refused(http: httpx.Client, content: bytes) -> None:
    answer = http.post(EDITS, content=content, headers={"content-type": "multipart/form-data; boundary=x"})
    assert answer.status_code == 400 and answer.json()["error"]["message"]


@pytest.mark.parametrize("charset", ["punycode", "undefined", "utf-16", "unicode_escape", "hex", "no-such"])
def test_a_form_in_another_charset_is_refused(http: httpx.Client, charset: str) -> None:
    kind = {"content-type": f"multipart/form-data; boundary=x; charset={charset}"}
    answer = http.post(EDITS, content=b"--x--", headers=kind)
    assert answer.status_code == 400 and "UTF-8" in answer.json()["error"]["message"]


def test_too_many_fields_are_refused(http: httpx.Client) -> None:
    answer = http.post(EDITS, **form(**{f"f{n}": "1" for n in range(50)}))
    assert answer.status_code == 400 and "40" in answer.json()["error"]["message"]


def test_a_field_that_is_too_long_is_refused(http: httpx.Client) -> None:
    answer = http.post(EDITS, **form(user="a" * 70_000))
    assert answer.status_code == 400 and "64KB" in answer.json()["error"]["message"]


@pytest.mark.parametrize("chunked", [False, True])
def test_a_body_that_is_too_large_is_refused_while_it_is_sent(http: httpx.Client, chunked: bool) -> None:
    def chunks() -> Iterator[bytes]:
        yield b'--x\r\nContent-Disposition: form-data; name="image"; filename="a"\r\n\r\n'
        for _ in range(21):
            yield bytes(1 << 20)
        yield b"\r\n--x--\r\n"

    content: Any = chunks() if chunked else b"".join(chunks())
    answer = http.post(EDITS, content=content, headers={"content-type": "multipart/form-data; boundary=x"})
    assert answer.status_code == 413 and answer.json()["error"]["code"] == "body_too_large"


@pytest.mark.parametrize(
    ("method", "path", "status"), [("GET", "/none", 404), ("GET", EDITS, 405), ("DELETE", "/v1/models", 405)]
)
def test_unknown_paths_and_methods(http: httpx.Client, method: str, path: str, status: int) -> None:
    answer = http.request(method, path)
    assert answer.status_code == status and answer.json()["error"]["type"] == "invalid_request_error"


@pytest.mark.parametrize("path", ["/page/../app.py", "/page/%2e%2e/app.py", "/page//etc/passwd", "/../../etc/passwd"])
def test_no_path_leads_out_of_the_page(http: httpx.Client, path: str) -> None:
    assert http.get(path).status_code == 404


def test_names_of_files_mean_nothing(http: httpx.Client) -> None:
    files = [("image", ("../../../etc/passwd\0.png", PNG, "text/html"))]
    assert result(http.post(EDITS, data={"prompt": WORDS, "seed": "1"}, files=files))


# What is said about a request that is taken.


def test_unknown_fields_are_named_in_the_warnings(http: httpx.Client) -> None:
    answer = http.post(EDITS, **form(steps="20", **{"editar[noisy]": "1", "moderation": "low"}))
    warned = " ".join(result(answer)["editar"]["warnings"])
    assert all(name in warned for name in ("steps", "editar[noisy]", "moderation"))


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"mask_margin": "2", "composite": "false"}, ["mask_margin", "composite"]),
        ({"greedy": "true", "temperature": "2", "top_k": "5"}, ["temperature", "top_k"]),
        ({"greedy": "false", "temperature": "2"}, []),
    ],
)
def test_fields_without_an_effect_are_named_in_the_warnings(
    http: httpx.Client, fields: dict[str, str], named: list[str]
) -> None:
    warned = result(http.post(EDITS, **form(**fields)))["editar"]["warnings"]
    assert [each.partition(" has no effect ")[0] for each in warned] == named


def test_parameters_of_the_url_are_named_in_the_warnings(http: httpx.Client) -> None:
    (warned,) = result(http.post(f"{EDITS}?seed=5", **form()))["editar"]["warnings"]
    assert "'seed' of the URL" in warned


def test_a_prompt_that_is_cut_off_is_named_in_the_warnings(http: httpx.Client) -> None:
    answer = http.post(EDITS, **form(prompt="make the ball green " * 50))
    assert any("tokens" in each for each in result(answer)["editar"]["warnings"])


def test_a_mask_without_white_is_named_in_the_warnings(http: httpx.Client) -> None:
    answer = http.post(EDITS, data={"prompt": WORDS}, files=[picture(), picture("mask", flat(64))])
    item = result(answer)
    assert any("mask" in each for each in item["editar"]["warnings"])
    assert np.array_equal(pixels(item), np.asarray(Image.open(PICTURE).convert("RGB")))


def test_a_result_says_how_it_was_made(http: httpx.Client) -> None:
    item = result(http.post(EDITS, **form(top_k="7")))
    own = item["editar"]
    assert own["seed"] == 1 and own["finished"] and own["settings"]["top_k"] == 7
    assert len(own["bundle"]) == 64 and own["timings"]["decode"] > 0
    picture = Image.open(io.BytesIO(base64.b64decode(item["b64_json"])))
    assert isinstance(picture.info, dict) and picture.info["editar:instruction"] == WORDS


# Masks.


def masked(http: httpx.Client, mask: bytes, **fields: Any) -> np.ndarray:
    asked = form(**fields)
    asked["files"].append(picture("mask", mask))
    return pixels(result(http.post(EDITS, **asked)))


def ball_mask(inside: Any, outside: Any, mode: str) -> Image.Image:
    x, y, width, height = BALL
    mask = Image.new(mode, (SIDE, SIDE), outside)
    mask.paste(inside, (x, y, x + width, y + height))
    return mask


def test_white_and_transparent_masks_mean_the_same(http: httpx.Client) -> None:
    clear, opaque = (0, 0, 0, 0), (255, 255, 255, 255)
    white = masked(http, file_of(ball_mask(255, 0, "L")))
    transparent = masked(http, file_of(ball_mask(clear, opaque, "RGBA")))
    palette = ball_mask(1, 0, "P")
    palette.putpalette([0, 0, 0, 255, 255, 255])
    keyed = masked(http, file_of(palette, transparency=1))
    assert np.array_equal(white, transparent) and np.array_equal(white, keyed)
    source = np.asarray(Image.open(PICTURE).convert("RGB"))
    outside = np.asarray(ball_mask(255, 0, "L")) == 0
    assert np.array_equal(white[outside], source[outside])
    assert not np.array_equal(white, source)


def test_a_mask_is_turned_as_its_exif_says(http: httpx.Client) -> None:
    upright = ball_mask((0, 0, 0, 0), (255, 255, 255, 255), "RGBA")
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 270 degrees to see it upright
    turned = file_of(upright.transpose(Image.Transpose.ROTATE_90), exif=exif)
    assert np.array_equal(masked(http, turned), masked(http, file_of(upright)))


# Ids and cancelling.


def test_an_id_that_is_sent_comes_back(http: httpx.Client) -> None:
    assert http.get("/v1/models", headers={"x-request-id": "mine_1"}).headers["x-request-id"] == "mine_1"


@pytest.mark.parametrize("given", ["", "a b", "x" * 65, "é", 'a"><script>'])
def test_an_id_that_is_none_is_replaced(http: httpx.Client, given: str) -> None:
    own = http.get("/v1/models", headers={"x-request-id": given.encode()}).headers["x-request-id"]
    assert own != given and own.isalnum()


def test_nothing_is_cancelled_by_an_id_of_nobody(http: httpx.Client) -> None:
    assert http.post("/v1/editar/cancel/nobody").status_code == 404


def test_a_request_is_cancelled_by_its_id(http: httpx.Client, server: Server) -> None:
    answers: list[httpx.Response] = []

    def ask() -> None:
        with server.client() as client:
            answers.append(client.post(EDITS, **form(n="8"), headers={"x-request-id": "to-cancel"}))

    asking = threading.Thread(target=ask)
    asking.start()
    until(lambda: http.post("/v1/editar/cancel/to-cancel").status_code == 200)
    asking.join(30)
    assert answers[0].status_code == 499 and answers[0].json()["error"]["code"] == "cancelled"


def test_clients_that_leave_at_any_moment_leave_nothing_behind(http: httpx.Client, server: Server) -> None:
    expected, rng = result(http.post(EDITS, **form()))["b64_json"], np.random.default_rng(0)
    for place in range(20):
        stream = "true" if place % 2 else "false"
        request = httpx.Request("POST", server.url + EDITS, **form(n="2", stream=stream, partial_images="0"))
        with socket.create_connection(("127.0.0.1", int(server.url.rpartition(":")[2]))) as raw:
            raw.sendall(raw_bytes(request))
            time.sleep(rng.uniform(0, 0.25))  # while it is read, waits, is prefilled, decoded or sent
    assert result(http.post(EDITS, **form()))["b64_json"] == expected
    until(lambda: series(http, "editar_pictures_running") == series(http, "editar_rows_used") == 0)
    assert series(http, "editar_pictures_waiting") == 0


def raw_bytes(request: httpx.Request) -> bytes:
    """A request as it is sent."""
    body = request.read()
    kind = request.headers["content-type"]
    head = f"POST {EDITS} HTTP/1.1\r\nhost: localhost\r\ncontent-length: {len(body)}\r\ncontent-type: {kind}\r\n\r\n"
    return head.encode() + body


@pytest.mark.parametrize("stream", ["true", "false"])
def test_a_client_that_leaves_is_noticed(http: httpx.Client, server: Server, stream: str) -> None:
    before = series(http, 'editar_cancelled_total{why="client"}')
    body = httpx.Request("POST", server.url + EDITS, **form(n="8", stream=stream, partial_images="0"))
    with socket.create_connection(("127.0.0.1", int(server.url.rpartition(":")[2]))) as raw:
        raw.sendall(raw_bytes(body))
        until(lambda: series(http, "editar_pictures_running") > 0)
    until(lambda: series(http, 'editar_cancelled_total{why="client"}') == before + 1)
    until(lambda: series(http, "editar_pictures_running") == 0)
    assert series(http, "editar_rows_used") == 0


# Streams.


def events(answer: httpx.Response) -> list[dict[str, Any]]:
    found = []
    for block in answer.text.split("\n\n"):
        lines = dict(line.split(": ", 1) for line in block.splitlines() if not line.startswith(":"))
        if lines:
            found.append(json.loads(lines["data"]))
            assert found[-1]["type"] == lines["event"]
    return found


def test_a_stream_is_not_buffered_or_stored(http: httpx.Client) -> None:
    answer = http.post(EDITS, **form(stream="true", partial_images="2"))
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert answer.headers["cache-control"] == "no-store" and answer.headers["x-accel-buffering"] == "no"
    assert events(answer)[-1]["type"] == "image_edit.completed"


def test_a_cancelled_stream_ends_with_an_error_event(http: httpx.Client) -> None:
    with http.stream("POST", EDITS, **form(n="8", stream="true"), headers={"x-request-id": "stream-1"}) as answer:
        assert http.post("/v1/editar/cancel/stream-1").status_code == 200
        answer.read()
    assert events(answer)[-1]["error"]["code"] == "cancelled"


# What the server says of itself.


def test_every_answer_has_the_headers_for_browsers(http: httpx.Client) -> None:
    for answer in (http.get("/v1/models"), http.get("/none"), http.post(EDITS), http.get("/health")):
        assert "default-src 'none'" in answer.headers["content-security-policy"]
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert "access-control-allow-origin" not in answer.headers


def test_metrics_count_what_happened(http: httpx.Client) -> None:
    drawn = series(http, "editar_tokens_drawn_total")
    ok = series(http, 'editar_requests_total{code="200",endpoint="/v1/images/edits"}')
    result(http.post(EDITS, **form()))
    until(lambda: series(http, "editar_tokens_drawn_total") == drawn + 64)
    assert series(http, 'editar_requests_total{code="200",endpoint="/v1/images/edits"}') == ok + 1
    http.get("/some/path/that/nobody/knows")
    text = http.get("/metrics").text
    assert "nobody" not in text and 'endpoint="other"' in text
    for name in ("queue_seconds", "time_to_first_row_seconds", "prefill_seconds", "step_seconds", "batch_pictures"):
        assert f"editar_{name}_count" in text
    assert "editar_build_info" in text and "process_resident_memory_bytes" in text


def test_prompts_are_not_logged(http: httpx.Client, server: Server) -> None:
    http.post(EDITS, **form(prompt="make the xylophone green"))
    http.post(EDITS, **form(prompt="make the xylophone red", n="0"))
    assert "xylophone" not in server.logged() and EDITS in server.logged()


def test_health_and_readiness(http: httpx.Client) -> None:
    assert http.get("/health").json() == {"status": "ok"}
    assert http.get("/ready").json() == {"status": "ready"}
