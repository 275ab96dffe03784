"""Weights that follow from their names, carried as names: gigabytes shrink to a list.

    python -m tests.benchmarks.gpu_host.seeds shrink BUNDLE PREFIX    # replaces each .data file by a .seeds.json
    python seeds.py grow BUNDLE                            # on the host, with NumPy alone: the same bytes again

A seeded checkpoint's tensors are functions of their names (`tests/golden/seeded_checkpoint.py`, carried along). Of
every tensor in a .data file the list says from which name it comes, in which type and whether transposed; what comes
from none, such as rotary tables, is carried as it is. The manifest's SHA-256 decides whether the bytes are the same.
"""

from __future__ import annotations

import base64
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

ENDING = ".seeds.json"


def shrink(bundle: Path, prefix: str) -> None:
    """Replace the weights of a bundle's graphs by a list."""
    import onnx_ir as ir

    for graph in sorted(bundle.glob("*.onnx")):
        data = graph.with_name(f"{graph.name}.data")
        if not data.is_file():
            continue
        pieces = []
        for name, value in ir.load(graph).graph.initializers.items():
            tensor = value.const_value
            if isinstance(tensor, ir.ExternalTensor):
                pieces.append(_piece(name, tensor.numpy(), int(tensor.offset or 0), prefix))
        listed = {"prefix": prefix, "bytes": data.stat().st_size, "pieces": pieces}
        graph.with_name(graph.name + ENDING).write_text(json.dumps(listed))
        data.unlink()


def _piece(name: str, values: np.ndarray, offset: int, prefix: str) -> dict[str, Any]:
    """Where a tensor lies and what it is made of."""
    from tests.golden.seeded_checkpoint import value

    place = {"offset": offset, "dtype": values.dtype.name, "shape": list(values.shape)}
    for transposed in (False, True) if values.ndim == 2 else (False,):
        shape = values.shape[::-1] if transposed else values.shape
        made = value(prefix, name, shape).astype(values.dtype)
        if np.array_equal(made.T if transposed else made, values):
            return place | {"name": name, "transposed": transposed}
    return place | {"bytes": base64.b64encode(np.ascontiguousarray(values).tobytes()).decode()}


def grow(bundle: Path) -> None:
    """Make the weights of a bundle again from its lists."""
    for listed in sorted(bundle.glob(f"*{ENDING}")):
        described = json.loads(listed.read_text())
        data = listed.with_name(listed.name.removesuffix(ENDING) + ".data")
        with open(data, "wb") as f:
            f.truncate(described["bytes"])
            for offset, array in _arrays(described):
                f.seek(offset)
                f.write(array.tobytes())
        listed.unlink()


def _arrays(described: dict[str, Any]) -> Iterator[tuple[int, np.ndarray]]:
    sys.path.insert(0, str(Path(__file__).parents[3]))
    from tests.golden.seeded_checkpoint import value

    for piece in described["pieces"]:
        shape = tuple(piece["shape"])
        if "bytes" in piece:
            array = np.frombuffer(base64.b64decode(piece["bytes"]), piece["dtype"])
        else:
            made = value(described["prefix"], piece["name"], shape[::-1] if piece["transposed"] else shape)
            array = np.ascontiguousarray((made.T if piece["transposed"] else made).astype(piece["dtype"]))
        yield piece["offset"], array


if __name__ == "__main__":
    command, folder, *rest = sys.argv[1:]
    if command == "shrink":
        shrink(Path(folder), *rest)
    elif command == "grow":
        grow(Path(folder))
    else:
        sys.exit("shrink BUNDLE PREFIX, or grow BUNDLE")
