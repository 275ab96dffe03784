"""Numbers at the edges, over HTTP: each gives the tokens that Python gives, or is refused by its field."""

from __future__ import annotations

import pytest

from editar_rt.editor import Editor
from editar_rt.server.forms import read_tokens
from tests.runtime.demo import BALL, PICTURE, WORDS
from tests.runtime.edges import REFUSED, pairs, rounds
from tests.runtime.test_numbers import numbers
from tests.server.running import Server, form, serving
from tests.server.test_app import ball_mask, file_of

EDITS = "/v1/images/edits"
LIMITS = ("--queue-timeout", "--timeout", "--receive-timeout", "--send-timeout", "--grace")


@pytest.mark.parametrize("texts", rounds())
def test_numbers_are_taken(texts: dict[str, str], server: Server, demo_editor: Editor) -> None:
    fields = form(**texts)
    fields["files"].append(("mask", ("mask.png", file_of(ball_mask(255, 0, "L")))))
    with server.client() as client:
        answer = client.post(EDITS, **fields)
    assert answer.status_code == 200, answer.text
    tokens = read_tokens(answer.json()["data"][0]["editar"]["tokens"], demo_editor)
    assert tokens.tolist() == demo_editor.edit(PICTURE, WORDS, mask=BALL, **numbers(texts)).tokens.ravel().tolist()
    assert "Warning" not in server.logged()


@pytest.mark.parametrize(("name", "text"), pairs(REFUSED))
def test_a_number_is_refused(name: str, text: str, server: Server) -> None:
    with server.client() as client:
        answer = client.post(EDITS, **form(**{name: text}))
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert error["param"] == name and error["message"].startswith(name)


def test_deadlines_may_be_as_long_as_numbers_go() -> None:
    with serving(*(f"{name}=1.7976931348623157e308" for name in LIMITS)) as server, server.client() as client:
        assert client.post(EDITS, **form(stream="true")).status_code == 200
        server.terminate()
        assert server.ended() == 0 and "Traceback" not in server.logged()
