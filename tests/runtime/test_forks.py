"""An editor carried through a fork: what the parent opened stays the parent's, and the child ends by itself."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import editar_rt

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="there are no forks here")
PICTURE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8))
TEXT = "make the ball red"
PARENT = """
import json, os, signal, sys, time
import editar_rt
from tests.runtime.test_forks import PICTURE, TEXT

editor = editar_rt.load(sys.argv[1], device="cpu", threads=2)
session = editor.session(PICTURE)
session.variants(TEXT, n=2)  # rows that share memory
told, tell = os.pipe()
child = os.fork()
if child == 0:
    try:
        session.variants(TEXT, n=2)
        said = ""
    except editar_rt.EditarError as e:
        said = str(e)
    tokens = editor.session(PICTURE).edit(TEXT).tokens.tolist()
    os.write(tell, json.dumps({"session": said, "tokens": tokens}).encode())
    sys.exit(3)  # as programs end, with everything taken down
os.close(tell)
report = json.load(os.fdopen(told))  # ends with the child's last word
deadline = time.monotonic() + 30
while not (ended := os.waitpid(child, os.WNOHANG))[0] and time.monotonic() < deadline:
    time.sleep(0.02)
report["exit"] = os.waitstatus_to_exitcode(ended[1]) if ended[0] else os.kill(child, signal.SIGKILL)
report["own"] = session.edit(TEXT).tokens.tolist()
print(json.dumps(report))
"""


@pytest.fixture(scope="module")
def report(tiny_bundle: Path) -> dict[str, Any]:
    """What a forked process met, and the tokens that its parent's session has afterwards."""
    command = [sys.executable, "-c", PARENT, str(tiny_bundle)]
    done = subprocess.run(command, capture_output=True, text=True, encoding="utf-8", timeout=120)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_a_session_of_the_parent_is_refused_in_a_fork(report: dict[str, Any]) -> None:
    assert "was opened in process" in report["session"] and "before the fork" in report["session"]


def test_an_editor_of_the_parent_edits_in_a_fork_and_leaves_the_parents_memory_alone(
    report: dict[str, Any], tiny_bundle: Path
) -> None:
    expected = editar_rt.load(tiny_bundle, device="cpu", threads=1).edit(PICTURE, TEXT).tokens.tolist()
    assert report["tokens"] == expected
    assert report["own"] == expected


def test_a_forked_process_ends_in_the_ordinary_way(report: dict[str, Any]) -> None:
    assert report["exit"] == 3  # None where it had to be killed
