"""Who may import whom: no circles, and nothing in the runtime imports a higher room, for typing neither."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGES = ("editar_rt", "export", "training")
# The runtime's rooms from the ground up: a module imports from its own room and from lower ones. The seam that
# backends implement, and what a request says of sampling, lie below both the loop and the backends.
ROOMS = (
    ("version", "names", "errors", "files", "arguments", "npz", "machine", "telemetry", "command_line"),
    ("generation.exact", "generation.guidance", "generation.noise", "generation.sampling"),
    ("images", "text", "bundle"),
    ("backends.base", "backends.sampler"),
    ("generation",),
    ("backends",),
    ("model", "measure.selftest", "measure.gate"),  # the editor's loader compares new engines
    ("results", "request", "deprecated"),
    ("observe",),
    ("edit", "batch", "session", "editor"),
    ("editar_rt",),  # what the package itself exports
    ("measure", "server", "cluster"),
    ("cli", "__main__"),
)


def modules() -> dict[str, Path]:
    found = {}
    for package in PACKAGES:
        for path in (ROOT / package).rglob("*.py"):
            parts = path.relative_to(ROOT).with_suffix("").parts
            found[".".join(parts).removesuffix(".__init__")] = path
    return found


def imported(path: Path) -> Iterator[str]:
    """Every module that a file imports, anywhere in it; a package where it takes names of the package's own."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.module is not None and not node.level, f"{path} imports relatively"
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                yield full if full in MODULES else node.module


MODULES = modules()
IMPORTS = {name: {other for other in imported(path) if other in MODULES} for name, path in MODULES.items()}


def first_circle(imports: dict[str, set[str]]) -> list[str]:
    """The modules of a circle, each imported by the next; empty where there is none."""
    try:
        TopologicalSorter(imports).prepare()
    except CycleError as circle:
        return list(circle.args[1])
    return []


def room(name: str) -> int:
    """The place of a module's room; the most exact entry counts."""
    own = name.removeprefix("editar_rt.")
    fitting = [(len(entry), i) for i, room in enumerate(ROOMS) for entry in room if f"{own}.".startswith(f"{entry}.")]
    assert fitting, f"{name} is in no room"
    return max(fitting)[1]


def upward(name: str, others: set[str]) -> list[str]:
    """What a module of the runtime imports from higher rooms."""
    outside = [other for other in others if other.split(".")[0] != "editar_rt"]
    return outside + sorted(other for other in others - {*outside} if room(other) > room(name))


def test_no_circle_of_imports() -> None:
    assert first_circle(IMPORTS) == []


def test_no_module_of_the_runtime_imports_a_higher_room() -> None:
    runtime = (name for name in MODULES if name.startswith("editar_rt."))
    assert {name: found for name in runtime if (found := upward(name, IMPORTS[name]))} == {}


def test_the_loop_and_the_engines_know_the_seam_alone() -> None:
    loop, engines = room("editar_rt.generation.scheduler"), room("editar_rt.backends.ort.decoder")
    for name, others in IMPORTS.items():
        if name.startswith("editar_rt.") and room(name) in (loop, engines):
            assert {room(other) for other in others} & {loop, engines} <= {room(name)}, name


def test_circles_and_upward_imports_are_found() -> None:
    """The checks themselves, on imports that are wrong."""
    names, editor = "editar_rt.names", "editar_rt.editor"
    assert set(first_circle({names: {editor}, editor: {names}})) == {names, editor}
    assert upward(names, {editor, "export.cli", "editar_rt"}) == ["export.cli", "editar_rt", editor]
    assert upward(editor, {names}) == []
