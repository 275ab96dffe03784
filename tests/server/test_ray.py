"""A cluster of two nodes: a folder's pictures, and the server's replicas. The tests share it, and wear it down."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from editar_rt.__main__ import main
from editar_rt.editor import Editor
from tests.commands import in_process
from tests.runtime.demo import BUNDLE, PICTURE, SAMPLES, WORDS
from tests.server.stock_clients import picture_hash
from tests.server.two_nodes import EMPTY, Cluster, end, require_cluster, two_nodes

require_cluster()

URL = "http://127.0.0.1:8765"
REQUESTS, AT_ONCE = 16, 6


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`demo` is on both nodes; `hidden` is not on the second one."""
    folder = tmp_path_factory.mktemp("ray")
    for name in ("demo", "hidden"):
        shutil.copytree(BUNDLE, folder / name)
    return folder


@pytest.fixture(scope="module")
def cluster(folder: Path) -> Iterator[Cluster]:
    with two_nodes({folder / "hidden": EMPTY}) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def served(cluster: Cluster, folder: Path) -> Iterator[Cluster]:
    """Two replicas of one CPU each: one on each node."""
    command = [sys.executable, "-m", "editar_rt", "serve", str(folder / "demo"), "--ray", "--replicas", "2"]
    with open(cluster.folder / "serve.err", "w+b") as log:
        process = cluster.start(*command, stdout=subprocess.PIPE, stderr=log)
        try:
            assert process.stdout is not None
            line = process.stdout.readline().decode()
            log.seek(0)
            assert line == f"serving demo on {URL}\n", log.read().decode()
            yield cluster
        finally:
            end(process)
            assert process.stdout is not None
            process.stdout.close()


def fetched(cluster: Cluster, *arguments: str) -> str:
    return subprocess.run(cluster.command("curl", "-s", *arguments), capture_output=True, check=True).stdout.decode()


# Folders; before the replicas take the CPUs.


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    for i, name in enumerate(["add-1.png", "recolour-0.png", "recolour-1.png", "depth-0.png"]):
        shutil.copy(SAMPLES / name, folder / f"a b #{i} %20.png")  # no name that a URL would leave as it is
    return folder


def arguments(bundle: Path, pictures: Path, out: Path, seed: int) -> list[str]:
    turns = [WORDS, "--then", "remove the cube", "--box", "20,20,60,60"]
    return ["edit", str(bundle), str(pictures), *turns, "-o", str(out), "--seed", str(seed), "--threads", "1", "--json"]


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_folder_has_the_files_that_the_command_alone_writes_and_is_resumed(
    cluster: Cluster,
    folder: Path,
    pictures: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    alone = in_process(main, monkeypatch, capsys)
    assert alone(*arguments(folder / "demo", pictures, tmp_path / "alone", seed=3)).code == 0
    assert alone(*arguments(folder / "demo", pictures, tmp_path / "ray", seed=4)).code == 0
    (tmp_path / "ray" / "a b #1 %20.png").unlink()
    shutil.copy(tmp_path / "alone" / "a b #2 %20.png", tmp_path / "ray" / "a b #2 %20.png")
    shutil.copy(tmp_path / "alone" / "a b #2 %20-1.png", tmp_path / "ray" / "a b #2 %20-1.png")

    done = cluster.python("-m", "editar_rt", *arguments(folder / "demo", pictures, tmp_path / "ray", seed=3), "--ray")

    assert done.returncode == 0, done.stderr.decode()
    document = json.loads(done.stdout.splitlines()[-1])
    assert content(tmp_path / "ray") == content(tmp_path / "alone")
    assert document["skipped"] == [str(tmp_path / "ray" / "a b #2 %20.png")]
    assert len(document["made_again"]) == 2  # of another seed; one was lost
    assert [Path(made["output"]).name for made in document["pictures"]] == [
        f"a b #{i} %20{turn}.png" for i in (0, 1, 3) for turn in ("-1", "")
    ]


def test_a_cluster_with_a_node_that_lacks_the_bundle_is_refused(cluster: Cluster, folder: Path) -> None:
    done = cluster.python("-m", "editar_rt", "serve", str(folder / "hidden"), "--ray")
    (said,) = [line for line in done.stderr.decode().splitlines() if "hidden" in line]
    assert done.returncode == 1 and "Traceback" not in done.stderr.decode()
    assert re.fullmatch(r"editar: the node \S+ \(127\.0\.0\.1:\d+\) lacks the bundle: .+; copy it to .+", said)


# Serving.


def load(cluster: Cluster) -> subprocess.Popen[bytes]:
    program = ("-m", "tests.server.stock_clients", URL, str(REQUESTS), str(AT_ONCE))
    return cluster.start(sys.executable, *program, stdout=subprocess.PIPE)


def wait_for_answers(process: subprocess.Popen[bytes], count: int) -> list[tuple[int, str]]:
    assert process.stdout is not None
    return [tuple(json.loads(process.stdout.readline())) for _ in range(count)]


@pytest.fixture(scope="module")
def expected(demo_editor: Editor) -> dict[int, str]:
    """What each seed gives alone."""
    return {seed: picture_hash(demo_editor.edit(PICTURE, WORDS, seed=seed).image) for seed in range(REQUESTS)}


def test_metrics_are_those_of_all_replicas_and_answers_have_one_id(served: Cluster) -> None:
    head = fetched(served, "--dump-header", "-", "--header", "x-request-id: mine", f"{URL}/v1/models")
    assert re.findall(r"(?im)^x-request-id: (\S+)", head) == ["mine"]
    assert len(set(re.findall(r'^editar_build_info{.*replica="(\w+)"', fetched(served, f"{URL}/metrics"), re.M))) == 2


def test_an_edit_is_cancelled_by_its_id_whichever_replica_has_it(served: Cluster) -> None:
    for number in range(3):  # the proxy gives each cancel to the replica that has less to do: the other one
        fields = ["-F", f"image=@{PICTURE}", "-F", f"prompt={WORDS}", "-F", "n=8", "-F", "stream=true"]
        fields += ["-F", "partial_images=1"]
        curl = ["curl", "-sN", "-H", f"x-request-id: edit-{number}", *fields, f"{URL}/v1/images/edits"]
        asked = served.start(*curl, stdout=subprocess.PIPE)
        assert asked.stdout is not None and asked.stdout.readline()  # it runs
        assert '"cancelled":true' in fetched(served, "-X", "POST", f"{URL}/v1/editar/cancel/edit-{number}")
        rest = asked.communicate()[0]
        assert b'"code":"cancelled"' in rest
    assert '"not_found"' in fetched(served, "-X", "POST", f"{URL}/v1/editar/cancel/edit-0")


def test_requests_are_shared_among_the_replicas(served: Cluster, expected: dict[int, str]) -> None:
    clients = load(served)
    answers = dict(wait_for_answers(clients, REQUESTS))
    clients.communicate()
    assert answers == expected
    line = r'^editar_requests_total{code="200",endpoint="/v1/images/edits",replica="\w+"} (\d+)'
    answered = [int(number) for number in re.findall(line, fetched(served, f"{URL}/metrics"), re.M)]
    assert len(answered) == 2 and min(answered) >= REQUESTS // 4


def test_a_replica_is_killed_and_every_client_gets_its_picture(served: Cluster, expected: dict[int, str]) -> None:
    clients = load(served)
    first = wait_for_answers(clients, 3)
    before = served.replicas()
    os.kill(before[0], signal.SIGKILL)
    answers = dict(first + wait_for_answers(clients, REQUESTS - 3))
    clients.communicate()
    assert len(before) == 2
    assert answers == expected


def test_a_node_is_removed_and_every_client_gets_its_picture(served: Cluster, expected: dict[int, str]) -> None:
    clients = load(served)
    first = wait_for_answers(clients, 3)
    served.remove_last_node()
    answers = dict(first + wait_for_answers(clients, REQUESTS - 3))
    clients.communicate()
    assert answers == expected
