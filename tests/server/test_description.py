"""openapi.json: the fields of the code, and requests made from it at random, which must be answered as it says.

A few requests of each route by default; `EDITAR_TEST_REQUESTS=10000 python -m pytest tests/server/test_description.py`
for many.
"""

from __future__ import annotations

import io
import json
import os
import random
from typing import Any

import httpx2 as httpx
import pytest
from PIL import Image

from editar_rt.server.app import DESCRIPTION
from editar_rt.server.forms import OURS, PLAIN
from tests.runtime.demo import PICTURE
from tests.server.running import Server, form
from tests.tools import require_module

require_module("schemathesis", "pip install schemathesis")

import hypothesis  # noqa: E402
import schemathesis  # noqa: E402
from hypothesis import strategies as st  # noqa: E402

REQUESTS = int(os.environ.get("EDITAR_TEST_REQUESTS", "150"))
EDITS = "/v1/images/edits"
DOCUMENT = json.loads(DESCRIPTION.read_text(encoding="utf-8"))
FIELDS = DOCUMENT["paths"][EDITS]["post"]["requestBody"]["content"]["multipart/form-data"]["schema"]["properties"]
NOT_DESCRIBED = {"input_fidelity"}  # refused unless it says nothing


def settings(examples: int) -> hypothesis.settings:
    return hypothesis.settings(
        deadline=None,
        database=None,
        derandomize=True,
        suppress_health_check=list(hypothesis.HealthCheck),
        max_examples=max(examples, 5),
    )


schema = schemathesis.openapi.from_dict(DOCUMENT)


def test_every_field_of_the_code_is_described() -> None:
    assert set(FIELDS) == {*OURS, *PLAIN, "image", "mask"} - NOT_DESCRIBED


def check(answer: Any) -> None:
    """No answer says that the server is at fault."""
    assert answer.status_code < 500, answer.text
    if answer.status_code >= 400:
        error = answer.json()["error"]
        assert error["message"] and "Traceback" not in error["message"]


@pytest.fixture(scope="module", autouse=True)
def _no_traceback(server: Server) -> Any:
    yield
    assert "Traceback" not in server.logged()


@schema.parametrize()
@settings(REQUESTS // 10)
def test_a_request_made_from_the_description_is_answered_as_it_says(case: Any, server: Server) -> None:
    if case.operation.path == EDITS and isinstance(case.body, dict):
        case.body["image"] = PICTURE.read_bytes()
    answer = case.call(base_url=server.url, headers={"host": "localhost"})
    check(answer)
    case.validate_response(answer, checks=[schemathesis.checks.not_a_server_error, *SHAPES])


def _shapes() -> list[Any]:
    from schemathesis.specs.openapi import checks

    return [checks.status_code_conformance, checks.content_type_conformance, checks.response_schema_conformance]


SHAPES = _shapes()


# Forms that no description would make.

values = st.one_of(
    st.text(max_size=40),
    st.integers().map(str),
    st.floats().map(str),
    st.sampled_from(
        ["true", "false", "", "1,2", "1e999", "-0", "٣", "values:1", "linear:1,5", "AAAA", "png", "128x128"]
    ),
)
names = st.one_of(
    st.sampled_from(sorted([*OURS, *PLAIN])),
    st.sampled_from(sorted(OURS)).map(lambda name: f"editar[{name}]"),
    st.text(max_size=20),
    st.sampled_from(
        ["cfg_interval[]", "editar[]", "editar[seed", "prompt[]", "image", "mask[]", "editar[cfg_interval][]"]
    ),
)


@settings(REQUESTS // 3)
@hypothesis.given(st.lists(st.tuples(names, values), max_size=6), st.booleans())
def test_any_fields_are_answered(server: Server, fields: list[tuple[str, str]], prompted: bool) -> None:
    given: dict[str, Any] = {"prompt": "make it red", "seed": "1"} if prompted else {}
    with server.client() as client:
        check(client.post(EDITS, data={**given, **dict(fields)}, files=form()["files"]))


@settings(REQUESTS // 10)
@hypothesis.given(st.binary(max_size=300), st.sampled_from(["x", "", "a b", "x" * 80]))
def test_any_bytes_are_answered(server: Server, content: bytes, boundary: str) -> None:
    kind = f"multipart/form-data; boundary={boundary}"
    with server.client() as client:
        check(client.post(EDITS, content=b"--x\r\n" + content, headers={"content-type": kind}))


def pictures() -> dict[str, bytes]:
    """Small pictures of each format that is read, to damage."""
    found = {}
    for kind in ("PNG", "JPEG", "WEBP"):
        for mode in ("RGB", "L", "RGBA", "P", "1", "I;16", "CMYK"):
            file = io.BytesIO()
            try:
                Image.effect_noise((40, 24), 90).convert(mode).save(file, kind)
            except (OSError, ValueError):  # the format has no such pictures
                continue
            found[f"{kind} {mode}"] = file.getvalue()
    return found


PICTURES = pictures()


@pytest.mark.parametrize("field", ["image", "mask"])
def test_any_damaged_picture_is_answered(server: Server, field: str) -> None:
    rng = random.Random(0)
    with server.client() as client:
        for _ in range(REQUESTS // 6):
            content = bytearray(rng.choice(list(PICTURES.values())))
            for _ in range(rng.randrange(4)):
                content[rng.randrange(len(content))] = rng.randrange(256)
            if rng.random() < 0.3:
                del content[rng.randrange(len(content)) :]
            asked = form()
            asked["files"] = [each for each in asked["files"] if each[0] != field]
            asked["files"].append((field, ("a.png", bytes(content))))
            check(client.post(EDITS, **asked))


@pytest.mark.parametrize(
    "raw",
    [
        b"\0" * 1000,
        b"GET / HTTP/9.9\r\n\r\n",
        b"POST /v1/images/edits HTTP/1.1\r\nhost: localhost\r\ncontent-length: -1\r\n\r\n",
        b"POST /v1/images/edits HTTP/1.1\r\nhost: localhost\r\ncontent-length: 99999999999999999999\r\n\r\n",
        b"POST /v1/images/edits HTTP/1.1\r\nhost: localhost\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n",
        b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\n\r\n",
        b"GET /v1/models/%ff%00 HTTP/1.1\r\nhost: localhost\r\n\r\n",
        b"GET /health HTTP/1.1\r\nhost: a\r\nhost: b\r\n\r\n",
    ],
)
def test_bytes_that_are_not_http_end_a_connection_and_nothing_else(server: Server, raw: bytes) -> None:
    import socket

    with socket.create_connection(("127.0.0.1", int(server.url.rpartition(":")[2])), timeout=20) as connection:
        connection.sendall(raw)
        answer = connection.recv(65536)
        assert not answer or b" 5" not in answer[:12]
    assert httpx.get(f"{server.url}/health").status_code == 200
