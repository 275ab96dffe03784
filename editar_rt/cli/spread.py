"""`editar edit FOLDER --ray`: a folder's pictures on the nodes of a cluster, with the results of the command alone.

This process reads the pictures and writes the results, so that the other nodes need the bundle and nothing else.
"""

from __future__ import annotations

import contextlib
import copy
import json
import os
import tempfile
import warnings
from base64 import b64decode, b64encode
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from editar_rt import cluster, errors
from editar_rt.bundle.folder import Bundle
from editar_rt.cli.jobs import Job, edit_picture
from editar_rt.cli.options import start
from editar_rt.cli.streams import given_of
from editar_rt.errors import EditarError, EditarWarning, PictureError
from editar_rt.files import placing
from editar_rt.images.pixels import MAX_BYTES
from editar_rt.server.warned import collecting

NAME = "picture"  # of a worker's results, which get their own names here


def spread_folder(
    bundle: Bundle,
    job: Job,
    todo: dict[Path, Path],
    device: str,
    threads: int,
    on_progress: Callable[[int, int], None],
) -> list[dict[str, Any]]:
    """`jobs.edit_folder` on a cluster.

    Args:
        threads: CPU threads of a worker, which it also reserves in the cluster.

    Raises:
        BackendError, BundleError: the cluster cannot do the work.
        PictureError: at the end, if any picture failed.
    """
    if not todo:
        return []
    job, made, failed = _portable(job), {}, 0
    with cluster.joined():
        need = cluster.Need.of(device, threads)
        workers = min(cluster.check_nodes(bundle, need), len(todo))
        arguments = (job, str(bundle.folder), bundle.fingerprint, device, threads)
        paths = [os.fsencode(path) for path in todo]
        rows = cluster.spread(paths, Reader, Worker, arguments, need, workers)
        for done, row in enumerate(rows, 1):
            image = Path(os.fsdecode(row["path"]))
            answer = json.loads(row["answer"])
            for message in answer["warned"]:
                warnings.warn(message, EditarWarning, stacklevel=2)
            if answer["failed"] is None:
                made[image] = _placed(answer, todo[image])
            elif answer["failed"] == PictureError.__name__:
                failed += 1
                click.echo(f"{image}: {answer['message']}", err=True)
            else:
                raise getattr(errors, answer["failed"])(f"{image}: {answer['message']}")
            on_progress(done, len(todo))
    if failed:
        raise PictureError(f"{failed} of {len(todo)} pictures failed; the others are done")
    return [document for image in todo for document in made[image]]


def _portable(job: Job) -> Job:
    """A job that does not read files of this machine."""
    mask, job = job.mask, copy.copy(job)
    if isinstance(mask, Path):
        job.settings("", 0)  # remembers which file the mask comes from
        try:
            job.mask = mask.read_bytes()
        except OSError as e:
            raise PictureError(f"{mask} cannot be read: {e.strerror or e}") from None
    return job


def _placed(answer: dict[str, Any], output: Path) -> list[dict[str, Any]]:
    """Write a picture's results under their names; the one that shows that all are there comes last."""
    names = {name: output.with_name(output.stem + name.removeprefix(NAME)) for name in answer["files"]}
    for name in sorted(names, key=lambda each: names[each] == output):
        with placing(names[name], PictureError) as partial:
            partial.write_bytes(b64decode(answer["files"][name]))
    return [document | {"output": str(names[document["output"]])} for document in answer["made"]]


class Reader:
    """Adds the content of a picture's file to its row. Runs on the machine of the command."""

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        try:
            with open(row["path"], "rb") as file:
                return {**row, "content": file.read(MAX_BYTES + 1), "lost": ""}
        except OSError as e:
            return {**row, "content": b"", "lost": f"{os.fsdecode(row['path'])} cannot be read: {e.strerror or e}"}


class Worker:
    """Does a job on pictures, in a process of its own on any node."""

    def __init__(self, job: Job, folder: str, fingerprint: str, device: str, threads: int) -> None:
        from editar_rt.server.run import listening_to_warnings

        bundle = Bundle.open(folder)
        cluster.check_fingerprint(folder, bundle.fingerprint, fingerprint, os.uname().nodename)
        self._job, self._editor = job, start(bundle, device, threads)
        self._warnings = contextlib.ExitStack()
        self._warnings.enter_context(listening_to_warnings())

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        answer: dict[str, Any] = {"made": [], "files": {}, "failed": None, "message": "", "warned": []}
        try:
            if row["lost"]:
                raise PictureError(row["lost"])
            with collecting(answer["warned"]), tempfile.TemporaryDirectory(prefix="editar-") as folder:
                given = given_of(row["content"], os.fsdecode(row["path"]))
                answer["made"] = edit_picture(self._editor, self._job, given, Path(folder) / f"{NAME}.png", _silent)
                for document in answer["made"]:
                    document["output"] = Path(document["output"]).name
                files = {path.name: path.read_bytes() for path in Path(folder).iterdir()}
                answer["files"] = {name: b64encode(content).decode() for name, content in files.items()}
        except EditarError as error:
            answer |= {"failed": type(error).__name__, "message": str(error)}
        return {"path": row["path"], "answer": json.dumps(answer)}


def _silent(done: int, total: int) -> None:
    pass
