"""What programs that were compiled with a released header rely on: `frozen.txt`, one line for each fact of the ABI.

Run `python -m tests.cpp.frozen` after something was added to `editar.h`. It adds lines; a line that a release had must
not change or go.
"""

from __future__ import annotations

import re
import sys
import tempfile
from pathlib import Path

from tests.cpp.build import CPP
from tests.cpp.installed import run
from tests.tools import require_program

HEADER = CPP / "include/editar/editar.h"
FROZEN = Path(__file__).with_name("frozen.txt")


def facts() -> list[str]:
    """The lines of the header as it is now, of a 64-bit machine: values of enumerators, places of fields, functions."""
    text = re.sub(r"/\*.*?\*/", " ", HEADER.read_text(encoding="utf-8"), flags=re.DOTALL)
    text = re.sub(r"^#.*|^extern .*", "", text, flags=re.MULTILINE)
    lines = []
    for body in re.findall(r"\benum \{(.*?)\}", text, re.DOTALL):
        lines += [f'printf("{name} = %d\\n", (int){name});' for name in re.findall(r"\bEDITAR_\w+", body)]
    for name, body in re.findall(r"typedef struct (\w+) \{(.*?)\}", text, re.DOTALL):
        for declaration in body.split(";"):
            for field in re.findall(r"(\w+)\s*(?:,|$)", declaration.strip()):
                where = f"(int)sizeof((({name}*)0)->{field}), (int)offsetof({name}, {field})"
                lines.append(f'printf("{name}.{field}: %d bytes at %d\\n", {where});')
    found = _printed(lines)
    declared = re.findall(
        r"(?:EDITAR_API|typedef) ([^;{]*?\(\s*EDITAR_CALL\s*\*[^;]*|[^;{]*? EDITAR_CALL [^;]*);", text
    )
    return sorted(found + [re.sub(r"\s*EDITAR_CALL", "", " ".join(each.split())) for each in declared])


def _printed(lines: list[str]) -> list[str]:
    compiler = require_program("gcc", "apt-get install gcc")
    program = (
        "#include <editar/editar.h>\n#include <stdio.h>\nint main(void) {\n" + "\n".join(lines) + "\nreturn 0;\n}\n"
    )
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "facts.c"
        source.write_text(program, encoding="utf-8")
        run([compiler, f"-I{CPP}/include", str(source), "-o", f"{folder}/facts"])
        return run([f"{folder}/facts"]).splitlines()


def frozen() -> list[str]:
    """The lines that are kept."""
    return FROZEN.read_text(encoding="utf-8").splitlines()


if __name__ == "__main__":
    now = facts()
    if gone := [line for line in (frozen() if FROZEN.exists() else []) if line not in now]:
        sys.exit("the header no longer has: " + "; ".join(gone))
    FROZEN.write_text("\n".join(now) + "\n", encoding="utf-8")
