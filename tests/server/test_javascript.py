"""The stock JavaScript client against the real server. It sends chunks, and the picture before the prompt."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import openai
import pytest

from tests.runtime.demo import PICTURE, WORDS
from tests.server.running import Server
from tests.tools import require, require_program

PACKAGE = "openai@6"


@pytest.fixture(scope="module")
def found(server: Server, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What client.mjs printed."""
    node = require_program("node", "apt-get install nodejs npm")
    npm = require_program("npm", "apt-get install nodejs npm")
    folder = tmp_path_factory.mktemp("javascript")
    install = [npm, "install", "--silent", "--no-audit", "--no-fund", "--prefix", str(folder), PACKAGE]
    done = subprocess.run(install, capture_output=True, timeout=300)
    require(done.returncode == 0, f"npm package {PACKAGE}", f"npm install {PACKAGE}")
    script = shutil.copy(Path(__file__).with_name("client.mjs"), folder)
    command = [node, script, server.url, str(PICTURE), WORDS]
    ran = subprocess.run(command, capture_output=True, timeout=120)
    assert ran.returncode == 0, ran.stderr.decode()
    return dict(json.loads(ran.stdout))


def test_an_edit_is_the_one_that_the_python_client_gets(server: Server, found: dict[str, Any]) -> None:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="unused") as client:
        answer = client.images.edit(image=PICTURE.read_bytes(), prompt=WORDS, extra_body={"seed": 1})
    assert answer.data is not None and found["plain"] == answer.data[0].b64_json


def test_own_fields_are_nested(found: dict[str, Any]) -> None:
    assert found["nested"] == 3


def test_it_streams(found: dict[str, Any]) -> None:
    assert found["events"].count("image_edit.completed") == 2
    assert set(found["events"]) <= {"image_edit.partial_image", "image_edit.completed"}


def test_it_has_its_classes_of_errors(found: dict[str, Any]) -> None:
    assert found["error"] == ["BadRequestError", 400, "top_p"]


def test_it_cancels_and_goes_on(found: dict[str, Any]) -> None:
    assert found["aborted"] is True and found["models"] == ["demo"]
