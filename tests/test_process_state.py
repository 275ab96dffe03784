"""What no module may do behind its caller's back: read and write text in the locale's encoding, change what the whole
process shares. Ruff sees a part of it (PLW1514); this looks at every call, whatever it is called on.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCES = sorted(path for folder in ("editar_rt", "export", "training") for path in (ROOT / folder).rglob("*.py"))
SHARED = {
    "warnings": {"catch_warnings", "simplefilter", "filterwarnings", "resetwarnings"},
    "locale": {"setlocale"},
    "signal": {"signal", "sigaction", "alarm", "setitimer"},
    "os": {"chdir", "fchdir", "umask", "putenv", "unsetenv", "nice", "setpriority"},
    "environ": {"setdefault", "update", "pop", "clear"},
    "multiprocessing": {"set_start_method"},
}
# What a program does before its command, or a server around its requests, and undoes after it.
PROGRAMS = {"editar_rt/command_line.py", "editar_rt/server/run.py"}
# Each with its reason where it stands.
ALLOWED = {
    ("editar_rt/telemetry.py", "environ.setdefault"),
    ("editar_rt/cli/options.py", "environ[…] ="),
    ("editar_rt/cluster.py", "environ.setdefault"),
    ("editar_rt/cluster.py", "signal.signal"),
}


def calls(tree: ast.Module) -> Iterator[tuple[ast.Call, str, str]]:
    """Each call with the last two names of what is called: `warnings`, `catch_warnings`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            called = node.func
            if isinstance(called, ast.Attribute):
                owner = called.value
                if isinstance(owner, ast.Subscript):  # of a table its name
                    owner = owner.value
                yield node, getattr(owner, "id", None) or getattr(owner, "attr", ""), called.attr
            elif isinstance(called, ast.Name):
                yield node, "", called.id


def is_text_without_encoding(call: ast.Call, owner: str, name: str) -> bool:
    if any(keyword.arg == "encoding" for keyword in call.keywords):
        return False
    if name in ("read_text", "write_text"):
        return True
    if name == "open" and owner in ("", "io", "path"):
        modes = [a.value for a in call.args[:2] if isinstance(a, ast.Constant)]
        modes += [k.value.value for k in call.keywords if k.arg == "mode" and isinstance(k.value, ast.Constant)]
        return not any(isinstance(mode, str) and "b" in mode for mode in modes)
    return any(
        keyword.arg in ("text", "universal_newlines") and getattr(keyword.value, "value", None) is True
        for keyword in call.keywords
    )


def changes_shared_state(tree: ast.Module) -> Iterator[str]:
    for _, owner, name in calls(tree):
        if name in SHARED.get(owner, ()):
            yield f"{owner}.{name}"
    for node in ast.walk(tree):
        targets = node.targets if isinstance(node, ast.Assign | ast.Delete) else []
        for target in targets:
            if isinstance(target, ast.Subscript) and getattr(target.value, "attr", "") == "environ":
                yield "environ[…] ="


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("path.read_text()", True),
        ("(folder / 'a').write_text(text)", True),
        ("open(path)", True),
        ("open(path, 'a')", True),
        ("(folder / 'a').open()", True),
        ("subprocess.run(x, text=True)", True),
        ("path.read_text(encoding='utf-8')", False),
        ("open(path, 'rb')", False),
        ("Image.open(path)", False),
        ("OPENERS[device].open(bundle)", False),
    ],
)
def test_text_in_the_locales_encoding_is_found(source: str, found: bool) -> None:
    assert any(is_text_without_encoding(*call) for call in calls(ast.parse(source))) == found


def test_every_text_file_is_utf_8_whatever_the_locale() -> None:
    places = [
        f"{path.relative_to(ROOT)}:{call.lineno}"
        for path in SOURCES
        for call, *names in calls(ast.parse(path.read_text(encoding="utf-8")))
        if is_text_without_encoding(call, *names)
    ]
    assert not places


def test_no_library_code_changes_what_the_process_shares() -> None:
    found = {
        (path.relative_to(ROOT).as_posix(), what)
        for path in SOURCES
        for what in changes_shared_state(ast.parse(path.read_text(encoding="utf-8")))
    }
    assert {(path, what) for path, what in found if path not in PROGRAMS} == ALLOWED
