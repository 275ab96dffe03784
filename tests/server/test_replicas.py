"""What a cluster's replicas are told, and what they refuse. Needs no cluster, and no Ray."""

from __future__ import annotations

import asyncio
import importlib.util
import re
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from editar_rt import cluster
from editar_rt.__main__ import main
from editar_rt.bundle.folder import Bundle
from editar_rt.editor import Editor
from editar_rt.errors import BackendError, BundleError, EditarError, OptionError
from editar_rt.server import ray
from editar_rt.server.app import Options, application
from editar_rt.server.engine import Engine
from editar_rt.server.guard import Access
from editar_rt.server.limits import Limits
from editar_rt.server.metrics import Metrics, Together
from tests.commands import in_process
from tests.runtime.demo import BUNDLE, SAMPLES, WORDS

ABSOLUTE = str(BUNDLE.resolve())
VERSION = cluster.__version__


@pytest.mark.parametrize(
    "arguments",
    [("serve", BUNDLE, "--ray"), ("edit", BUNDLE, SAMPLES, WORDS, "-o", "out", "--ray")],
    ids=["serve", "edit"],
)
def test_without_ray_the_extra_is_named(
    arguments: tuple[object, ...], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "ray" else find(name))
    done = in_process(main, monkeypatch, capsys)(*arguments)
    assert done.code == 1
    assert done.stderr == (
        f"editar: editar {arguments[0]} --ray needs the extra ray (ray is not installed); run in the clone: "
        'pip install ".[cpu,ray]"\n'
    )


@pytest.mark.parametrize(
    "arguments, sentence",
    [
        (("serve", BUNDLE, "--replicas", "2"), "--replicas needs --ray"),
        (("edit", BUNDLE, SAMPLES / "add-1.png", WORDS, "-o", "out.png", "--ray"), "--ray edits a folder"),
    ],
    ids=["replicas without Ray", "one picture"],
)
def test_options_that_say_nothing_are_refused(
    arguments: tuple[object, ...],
    sentence: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    done = in_process(main, monkeypatch, capsys)(*arguments)
    assert done.code == 2 and sentence in done.stderr


def test_a_replica_does_not_start_with_another_bundle_than_its_peers() -> None:
    with pytest.raises(BundleError, match=r"differs from its peers' \(fingerprint \w{12}, theirs 0{12}\)"):
        ray._warm_engine(ray.Deployment(ABSOLUTE, "0" * 64))


SEEN = {
    "another version": (cluster.Seen(None, "", "0.1.0"), BackendError, r"the node b has editar_rt 0\.1\.0"),
    "no bundle": (
        cluster.Seen(None, "it is gone", VERSION),
        BundleError,
        "the node b lacks the bundle",
    ),
    "another bundle": (cluster.Seen("0" * 64, "", VERSION), BundleError, "differs from its peers'"),
}


@pytest.mark.parametrize("name", SEEN)
def test_nodes_that_differ_are_refused(name: str) -> None:
    seen, kind, sentence = SEEN[name]
    bundle = Bundle.open(BUNDLE)
    with pytest.raises(kind, match=sentence):
        cluster.check_seen(bundle, seen, "b")
    cluster.check_seen(bundle, cluster.look(ABSOLUTE), "b")


def test_what_this_package_said_is_found_in_errors_that_ray_wraps() -> None:
    wrapped = (
        "ray::Replica.__init__() (pid=1)\n  File x\neditar_rt.errors.BundleError: no such bundle.\n\nThe actor died"
    )
    assert cluster.sentence(wrapped) == "no such bundle"
    assert cluster.sentence(BundleError("no such bundle")) == "no such bundle"
    assert cluster.sentence("a\nthe cluster has gone.\n") == "the cluster has gone"


# The arguments of Ray's own commands.


def test_arguments_are_read_as_ray_gives_them() -> None:
    texts = {"bundle": ABSOLUTE, "replicas": "1-4", "threads": "2", "pictures": "4", "queue_timeout": "9.5"}
    from_command = ray.read_deployment(
        {**texts, "allow_host": "a.example, b.example", "page": "false", "check": "false"}, "key"
    )
    numbers = {"bundle": ABSOLUTE, "replicas": "1-4", "threads": 2, "pictures": 4, "queue_timeout": 9.5}
    from_file = ray.read_deployment(
        {**numbers, "allow_host": "a.example,b.example", "page": False, "check": False}, "key"
    )
    assert from_command == from_file
    assert from_file.replicas == (1, 4) and from_file.threads == 2
    assert from_file.limits == Limits(pictures=4, queue_timeout=9.5)
    assert from_file.options == Options(Access.of(["a.example", "b.example"], [], "key"), page=False, check=False)
    assert from_file.fingerprint == Bundle.open(BUNDLE).fingerprint


def test_the_arguments_of_the_example_are_known() -> None:
    text = (Path(__file__).parents[2] / "docs/serving/kubernetes/ray.yaml").read_text(encoding="utf-8")
    block = re.search(r"import_path: editar_rt\.server\.ray:app\n +args:\n((?: {10}\w+: .+\n)+)", text)
    assert block
    given = dict(line.strip().split(": ") for line in block[1].splitlines())
    deployment = ray.read_deployment({**given, "bundle": ABSOLUTE}, "key")
    assert deployment.replicas == (1, 8) and deployment.device == "cuda"


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "an unknown name": ({"replica": 2}, "there is no argument 'replica'"),
    "a relative bundle": ({"bundle": "engines/demo"}, "bundle must be the absolute path"),
    "no bundle": ({"bundle": ""}, "bundle must be the absolute path"),
    "replicas that are none": ({"replicas": "0"}, "replicas must be a number"),
    "a range that falls": ({"replicas": "4-1"}, "replicas must be a number"),
    "threads that are none": ({"threads": 0}, "threads must be a number of at least 1"),
    "a limit that is no number": ({"queue": "many"}, "queue must be a number of at least 0, got 'many'"),
    "a limit that is not finite": ({"timeout": "inf"}, "timeout must be a number"),
    "another device": ({"device": "tpu"}, "device must be one of"),
    "a flag that is none": ({"page": "maybe"}, "page must be true or false"),
    "others' hosts without a key": ({"allow_host": "a.example"}, "set EDITAR_API_KEY, or say insecure=true"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_arguments_are_refused(name: str) -> None:
    given, sentence = WRONG[name]
    with pytest.raises(OptionError, match=sentence):
        ray.read_deployment({"bundle": ABSOLUTE, **given}, None)


def test_a_bundle_that_is_not_here_needs_its_fingerprint(tmp_path: Path) -> None:
    with pytest.raises(EditarError, match="is not a bundle|cannot be read|no bundle"):
        ray.read_deployment({"bundle": str(tmp_path)}, None)
    assert ray.read_deployment({"bundle": str(tmp_path), "fingerprint": "f"}, None).fingerprint == "f"


# What is passed on to all replicas.


class Others:
    """Peers of which one has the edit `elsewhere`."""

    async def cancel(self, name: str) -> bool:
        await asyncio.sleep(0)
        return name == "elsewhere"

    async def metrics(self) -> bytes:
        return b"of all"


def test_the_app_asks_its_peers_for_edits_that_it_does_not_have_and_for_metrics(demo_editor: Editor) -> None:
    with TestClient(application(Engine(demo_editor, Limits()), peers=Others()), base_url="http://localhost") as client:
        assert client.post("/v1/editar/cancel/elsewhere").json()["cancelled"]
        assert client.post("/v1/editar/cancel/nowhere").status_code == 404
        assert client.get("/metrics").text == "of all"


def test_metrics_of_several_servers_have_a_label_for_each() -> None:
    servers = {"a": Metrics(), "b": Metrics()}
    servers["a"].loads(waiting=2, running=0, rows=0, limit=16)
    servers["b"].answered("/ready", 200)
    page = Together({name: each.families() for name, each in servers.items()}).page().decode()
    assert 'editar_pictures_waiting{replica="a"} 2.0' in page and 'editar_pictures_waiting{replica="b"} 0.0' in page
    assert 'editar_requests_total{code="200",endpoint="/ready",replica="b"} 1.0' in page
    assert page.count("# TYPE editar_pictures_waiting gauge") == 1
