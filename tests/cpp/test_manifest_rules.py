"""Every rule of the manifest holds in both runtimes.

Each field of real manifests is spoiled in every way, and both give the same verdict for the same reason: a rule that
only one of them has is found by the field that it is about.
"""

from __future__ import annotations

import copy
import ctypes
import json
import random
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from editar_rt.bundle.folder import Bundle
from editar_rt.bundle.manifest import LARGEST, MANIFEST_NAME, MAX_DEPTH, Manifest
from editar_rt.bundle.parts import check_parts
from editar_rt.errors import BundleError
from tests.cpp.inside import BAD_BUNDLE, Failed, Inside

BUNDLES = ("tiny_bundle", "golden_gpt_bundle_cuda", "golden_gpt_bundle_delta_head", "golden_gpt_bundle_native")
# Numbers and texts where a type, a conversion or a range may end, and one of each other type.
VALUES: list[Any] = [
    None, True, False, 0, 1, 2, -1, 2**31 - 1, 2**31, 2**32, 2**63 - 1, 2**63, -(2**63), -(2**63) - 1, 10**30, 0.0, 1.0,
    1.5, 1e-320, 1e300, float("inf"), float("-inf"), float("nan"), "", " ", "0", "x", "a" * 100, "é", "\ud800",
    "\x1b[31m", "\u2028", "\x7f", "../x.onnx", "/x.onnx", "a/../b.onnx", "C:x.onnx", "a\\..\\b.onnx", ".", "x\0", [],
    [None], ["x"], [1], [[]], {}, {"x": None}, {"x": 1}, {"x": "y"},
]  # fmt: skip
# Values of fields that the manifests lack, in the manifest, in its model and in its sampling defaults.
ADDED: dict[str, list[Any]] = {
    "": ["tokenizer", "samples", "sampler_top_k", "self_test", "made_by", "providers", "kv_cache", "precision"],
    "model": [*LARGEST, "parameters", "activations", "step_weight_bytes"],
    "sampling": ["cfg_scale", "cfg_interval", "temperature", "top_k", "top_p", "seed", "greedy", "noise", "unknown"],
}
SETTINGS = [
    "linear:1,5", "cosine:0,1e6", "values:1", "values:1,2,3", "linear:1", "linear:1,2,3", "cosine:1,2e6",
    " linear : 1 , 2 ", "values:", "spline:1,2", "linear:1,-2", "linear:1,x", "3", " 3.5 ", "1_0", "1__0", "_1", "3.",
    ".5", "+.5e+1", "1e", "0x1", "nan", "inf", "-1", "linear:nan,1", "uniform", "gumbel", "GUMBEL", 1e6, 1000001,
    1000000, -0.5, 1.0000001,
]  # fmt: skip
RANDOM = 400  # manifests with several changes, for each bundle
# Where a sentence goes on with a value, or with what only one of the runtimes can say.
QUOTES = ", got |has the dimension|format_version|newer than| is not JSON| control characters| is nested more"
Path_ = tuple[str | int, ...]
DEEP: Path_ = ("self_test", "deep")


class Change(NamedTuple):
    """A change of one place."""

    path: Path_
    kind: str
    value: Any = None

    def apply(self, manifest: Any) -> None:
        """Change a manifest, if another change has left the place."""
        holder = manifest
        try:
            for key in self.path[:-1]:
                holder = holder[key]
            last: Any = self.path[-1]
            if self.kind == "set":
                holder[last] = copy.deepcopy(self.value)
            elif self.kind == "delete":
                del holder[last]
            elif self.kind == "rename":
                holder[f"{last}{self.value}"] = holder.pop(last)
            elif self.kind == "again":
                holder.append(copy.deepcopy(holder[last]))
        except (KeyError, IndexError, TypeError, AttributeError):
            pass


def small(folder: Path) -> dict[str, Any]:
    """A bundle's manifest, with one layer: what holds for its keys and values holds for those of others."""
    manifest: dict[str, Any] = json.loads((folder / MANIFEST_NAME).read_text(encoding="utf-8"))
    for part in manifest["parts"].values():
        for kind in ("inputs", "outputs"):
            part[kind] = [t for t in part[kind] if not re.search("_[1-9][0-9]*$", t["name"])]
            for tensor in part[kind]:
                if tensor["name"] == "new_rows":
                    tensor["shape"][0] = 2
    manifest["model"]["layers"] = 1
    manifest["self_test"] = {"decoder": {"outputs": []}}
    return manifest


def places(value: Any, path: Path_ = ()) -> Iterator[tuple[Path_, Any]]:
    """Every place of a document, with its value."""
    if path:
        yield path, value
    members = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, member in members:
        yield from places(member, (*path, key))


def near(value: Any, path: Path_) -> Iterator[Any]:
    """Values that differ a little."""
    if isinstance(value, bool):
        yield not value
    elif isinstance(value, int):
        yield from (value + 1, value - 1, float(value), str(value), 2 * value)
        if path[-1] in LARGEST:
            yield from (LARGEST[str(path[-1])], LARGEST[str(path[-1])] + 1)
    elif isinstance(value, str):
        yield from (f"{value}x", value[:-1], value.upper(), f"{value}\n", [value])
    elif isinstance(value, list):
        yield from (value[::-1], value[1:], value[:-1], [*value, 1], [*value, "x"], dict(enumerate(map(str, value))))


def changes(manifest: dict[str, Any]) -> list[Change]:
    """All changes: of every place those that its value suggests, of every kind of place all others."""
    made, seen = [], set()
    for path, value in places(manifest):
        made += [Change(path, "set", each) for each in near(value, path)]
        made.append(Change(path, "delete"))
        made.append(Change(path, "rename", "x") if isinstance(path[-1], str) else Change(path, "again"))
        kind = tuple(
            "*" if isinstance(key, int) or (place and path[place - 1] in ("parts", "files", "made_by")) else key
            for place, key in enumerate(path)
        )
        if kind not in seen:
            made += [Change(path, "set", each) for each in VALUES]
        seen.add(kind)
    for holder, names in ADDED.items():
        for name in names:
            values = VALUES + (SETTINGS if holder == "sampling" else [])
            made += [Change((holder, name) if holder else (name,), "set", value) for value in values]
    for depth in range(MAX_DEPTH - 8, MAX_DEPTH + 3):
        nested: Any = "x"
        for _ in range(depth):
            nested = [nested]
        made.append(Change(DEEP, "set", nested))
    return made


def python_refuses(text: str) -> str | None:
    """The sentence with which Python refuses a manifest."""
    try:
        manifest = Manifest.from_json(text)
        check_parts(manifest, MANIFEST_NAME)
        _ = Bundle(Path("bundle"), manifest, "").default_sampling
    except BundleError as error:
        return str(error)
    return None


def cpp_refuses(inside: Inside, text: str) -> str | None:
    """The sentence with which C++ refuses a manifest, by the status of Python's error."""
    data = text.encode()
    try:
        inside.call("manifest", data, ctypes.c_size_t(len(data)))
    except Failed as failed:
        assert failed.status == BAD_BUNDLE and "\n" not in str(failed), str(failed)
        return str(failed)
    return None


def about(sentence: str | None) -> str:
    """A sentence up to the value that it quotes, which Python shows as it reads it and C++ as it stands there."""
    return "" if sentence is None else re.split(QUOTES, sentence)[0]


def disagreements(inside: Inside, manifest: dict[str, Any], wanted: list[list[Change]]) -> list[str]:
    """What each says, where one accepts what the other refuses, or where they refuse it for different reasons."""
    found = []
    for several in wanted:
        spoiled = copy.deepcopy(manifest) if len(several) > 1 else _copied_to(manifest, several[0].path)
        for change in several:
            change.apply(spoiled)
        text = json.dumps(spoiled)
        theirs, mine = python_refuses(text), cpp_refuses(inside, text)
        if about(theirs) != about(mine):
            found.append(f"{several}\n  Python: {theirs}\n  C++: {mine}")
    return found


def _copied_to(manifest: dict[str, Any], path: Path_) -> dict[str, Any]:
    """A copy of what holds a place; the rest is shared."""
    made = copied = copy.copy(manifest)
    for key in path[:-1]:
        if isinstance(copied, dict) and key not in copied:
            copied[key] = {}
        copied[key] = copy.copy(copied[key])
        copied = copied[key]
    return made


@pytest.fixture(params=BUNDLES)
def manifest(request: pytest.FixtureRequest) -> dict[str, Any]:
    """Of a dialect. What does not depend on the dialect is spoiled in the first one alone."""
    return small(request.getfixturevalue(request.param))


def test_a_manifest_that_is_not_spoiled_is_accepted(inside: Inside, manifest: dict[str, Any]) -> None:
    text = json.dumps(manifest)
    assert python_refuses(text) is None and cpp_refuses(inside, text) is None


def test_every_change_gets_the_same_verdict(inside: Inside, manifest: dict[str, Any]) -> None:
    is_first = "vq_encoder" in manifest["parts"]
    wanted = [[change] for change in changes(manifest) if is_first or change.path[0] in ("parts", "spelling")]
    found = disagreements(inside, manifest, wanted)
    assert not found, f"{len(found)} of {len(wanted)}:\n" + "\n".join(found[:20])


def test_several_changes_at_once_get_the_same_verdict(inside: Inside, manifest: dict[str, Any]) -> None:
    # Both refuse what is nested too deeply, but before or after other faults.
    rng, every = random.Random(18), [each for each in changes(manifest) if each.path != DEEP]
    wanted = [rng.sample(every, rng.randint(2, 4)) for _ in range(RANDOM)]
    found = disagreements(inside, manifest, wanted)
    assert not found, f"{len(found)} of {len(wanted)}:\n" + "\n".join(found[:20])


@pytest.mark.parametrize("name", ["format", "format_version", "model", "parts", "files"])
@pytest.mark.parametrize("value", [*VALUES, 2, 3, 4], ids=repr)
def test_of_a_name_that_occurs_twice_the_last_value_counts(
    inside: Inside, tiny_bundle: Path, name: str, value: Any
) -> None:
    text = json.dumps(small(tiny_bundle))
    for doubled in (
        f"{{{json.dumps(name)}: {json.dumps(value)}, {text[1:]}",
        f"{text[:-1]}, {json.dumps(name)}: {json.dumps(value)}}}",
    ):
        assert about(python_refuses(doubled)) == about(cpp_refuses(inside, doubled))
