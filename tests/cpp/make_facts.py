"""Writes `editar_rt/cpp/src/facts.h`: names, limits, defaults, prompts and the manifest's schema, from Python's tables.

Run `python -m tests.cpp.make_facts` after one of them has changed; a test fails while the file is stale.
"""

from __future__ import annotations

import dataclasses
import json
import sys
import types
import typing
from collections.abc import Container, Iterable, Iterator
from pathlib import Path
from typing import Any

from editar_rt import names, version
from editar_rt.backends import kept_folder
from editar_rt.backends.engines import device as engine_device
from editar_rt.backends.engines import folder as engine_folder
from editar_rt.backends.engines import kept_kernels, plan, tensorrt_compat, trial
from editar_rt.backends.ort import backend as ort_backend
from editar_rt.backends.ort import decoder as ort_decoder
from editar_rt.backends.ort import prepacked, threads
from editar_rt.bundle import folder, graph_file, links, manifest, parts, protobuf, samples, words
from editar_rt.generation import guidance, sampling
from editar_rt.images import fit, masks, orientation, pixels, writing
from editar_rt.measure import selftest
from editar_rt.request import MAX_VARIANTS, Request
from editar_rt.text.prompts import TASK_PREFIXES
from editar_rt.text.states import MAX_BYTES as MAX_STATES_BYTES

FACTS = Path(__file__).parents[2] / "editar_rt/cpp/src/facts.h"
# Of the sampling head: some have the names of settings.
SAMPLER_TENSORS = ("NULL_ROWS", "NUMBERS", "CFG_SCALE", "TEMPERATURE", "TOP_K", "TOP_P", "NOISE", "DRAWN")
PLAIN = {int: "integer", float: "number", str: "text", bool: "boolean", Any: "any"}
HEAD = """\
// Names, limits, defaults, prompts and the manifest's schema, from Python's tables.
// Written by `python -m tests.cpp.make_facts`; do not edit.
// clang-format off
#pragma once

#include <cstdint>

namespace editar::facts {
"""
TYPES = """\
// What a value of the manifest must be: `decode_json` of editar_rt/bundle/manifest.py.
enum class Kind { integer, number, text, boolean, any, list, map, object, either };
struct Field;
struct Type {
    Kind kind;
    bool optional;        // null too
    const Type* of;       // values of a list or map; the first choice of either
    const Type* other;    // the second choice
    const Field* fields;  // of an object
    int count;
};
struct Field {
    const char* name;
    const Type* type;
    bool required;
};
constexpr Type as_optional(Type t) { return {t.kind, true, t.of, t.other, t.fields, t.count}; }
"""
SHAPES = """\
// Tensors that a part must have: `TENSORS` of editar_rt/bundle/parts.py.
struct Dimension {
    int64_t size;             // 0 for a symbol or a size of the model
    const char* of_model;  // a field of `model`, or ""
};
struct TensorShape {
    const char* name;
    const Dimension* dimensions;
    int rank;
};
struct PartShapes {
    const char* part;
    const TensorShape *inputs, *outputs;
    int input_count, output_count;
};
"""


def text() -> str:
    """The whole file. Names are Python's; a namespace holds those that are not clear alone, or that occur twice."""
    sections = [
        *_section("", _names()),
        *_section("sampler", _constants(names, str, only=SAMPLER_TENSORS)),
        *_section("", _words()),
        *_section("", _sampling()),
        *_section("", _tasks()),
        *_section("", _onnxruntime()),
        *_section("kept_folder", _constants(kept_folder, str, int)),
        *_section("", _manifest()),
        *_section("schema", _schema()),
        *_section("parts", _parts()),
        *_section("graph_file", _graph_file()),
        *_section("pictures", _pictures()),
        *_section("self_test", _self_test()),
        *_section("engines", _engines()),
    ]
    return HEAD + "\n".join(sections) + "\n\n}  // namespace editar::facts\n"


def main() -> None:
    FACTS.write_text(text(), encoding="utf-8")
    print(f"wrote {FACTS}", file=sys.stderr)


# Sections.


def _names() -> Iterator[str]:
    yield from _named("VERSION", version.__version__)
    yield from _constants(names, str, int, but=SAMPLER_TENSORS)
    for function in (names.past_key, names.past_value, names.present_key, names.present_value):
        yield from _named(function.__name__.upper(), function(0).removesuffix("0"), "and the layer's number")
    yield from _texts("PAST_BEGINNINGS", names.PAST_BEGINNINGS)


def _words() -> Iterator[str]:
    yield "struct Precision {"
    yield "    const char *name, *stored;"
    yield "    bool is_quantized;"
    yield "    double bound;"
    yield "    int bits, block, head_bits, head_block;  // 0 where not quantized"
    yield "};"
    yield from _table("Precision", "PRECISIONS", map(_precision, words.PRECISIONS.items()))
    yield f"inline constexpr Precision WEIGHT_ONLY = {_value(_precision(('', words.WEIGHT_ONLY['int4'])))};"
    yield from _named("INT8_CACHE_BOUND", words.INT8_CACHE_BOUND)
    yield from _named("SAME", words.SAME)
    yield from _named("INT8", words.INT8)
    yield from _texts("KV_CACHES", words.KV_CACHES)
    flags = ("has_fixed_shapes", "returns_new_rows", "reads_whole_cache", "reads_int8_cache", "has_sampler")
    yield "struct Dialect {"
    yield "    const char* name;"
    yield f"    bool {', '.join(flags)};"
    yield "    bool stores_weight_only;  // quantized weights as WEIGHT_ONLY, not as the precision says"
    yield "};"
    rows = [
        [name, *(getattr(dialect, flag) for flag in flags), bool(dialect.quantized)]
        for name, dialect in words.DIALECTS.items()
    ]
    yield from _table("Dialect", "DIALECTS", rows)


def _precision(item: tuple[str, words.Precision]) -> list[Any]:
    name, precision = item
    stored = [blocks or words.Blocks(0, 0) for blocks in (precision.blocks, precision.head)]
    sizes = [size for blocks in stored for size in (blocks.bits, blocks.block)]
    return [name, precision.stored, precision.is_quantized, precision.bound, *sizes]


def _manifest() -> Iterator[str]:
    yield from _constants(manifest, str, int, but=("KEY", "SAME", "SAMPLER", "DEFAULT_DIALECT", "MAX_DEPTH"))
    yield from _named("MAX_JSON_DEPTH", manifest.MAX_DEPTH)
    yield from _named("HASH_AT_LOAD_BYTES", folder.HASH_AT_LOAD_BYTES)
    yield from _texts("DTYPES", manifest.DTYPES)
    yield "struct Range {"
    yield "    uint32_t first, last;"
    yield "};"
    yield from _table("Range", "UNPRINTABLE", _unprintable())
    yield from _constants(links, str)
    yield from _named("SAMPLES_LIST", samples.LIST)
    yield from _named("SAMPLES_FOLDER", samples.FOLDER)
    for field in dataclasses.fields(manifest.Manifest):
        if isinstance(field.default, str) and field.name != "format":
            yield from _named(f"DEFAULT_{field.name.upper()}", field.default)
    yield from _texts("DEFAULT_PROVIDERS", manifest.Manifest(manifest.ModelInfo(), {}, {}).providers)
    yield "// Sizes of the model, with the largest that is allowed."
    yield "#define EDITAR_MODEL_SIZES(X) \\"
    rows = [f"    X({name}, {largest})" for name, largest in manifest.LARGEST.items()]
    yield " \\\n".join(rows)


def _unprintable() -> Iterator[list[int]]:
    """Ranges of the code points that no string may have."""
    bad = [c for c in range(sys.maxunicode + 1) if manifest.UNPRINTABLE.search(chr(c))]
    starts = [c for c in bad if c - 1 not in set(bad)]
    ends = [c for c in bad if c + 1 not in set(bad)]
    return ([*pair] for pair in zip(starts, ends, strict=True))


def _schema() -> Iterator[str]:
    """The types of all fields of the manifest, each after those that it refers to."""
    done: set[str] = set()

    def types_of(kind: Any) -> Iterator[str]:
        name = _type_name(kind)
        if name in done:
            return
        done.add(name)
        origin, arguments = typing.get_origin(kind), typing.get_args(kind)
        if dataclasses.is_dataclass(kind) and isinstance(kind, type):
            hints, fields = typing.get_type_hints(kind), dataclasses.fields(kind)
            for field in fields:
                yield from types_of(hints[field.name])
            rows = [
                f'{{"{field.metadata.get(manifest.KEY, field.name)}", &{_type_name(hints[field.name])}, '
                f"{_value(_is_required(field))}}}"
                for field in fields
            ]
            yield f"inline constexpr Field {name}_fields[] = {{"
            yield from (f"    {row}," for row in rows)
            yield "};"
            yield _type(name, "object", fields=f"{name}_fields", count=len(rows))
        elif origin in (dict, list):
            yield from types_of(arguments[-1])
            yield _type(name, "map" if origin is dict else "list", of=_type_name(arguments[-1]))
        elif origin in (types.UnionType, typing.Union):
            first, *others = [a for a in arguments if a is not type(None)]
            yield from types_of(first)
            optional = len(others) + 1 < len(arguments)
            if others:
                rest = typing.Union[tuple(others)]  # noqa: UP007 - of as many as there are
                yield from types_of(rest)
                yield _type(name, "either", _type_name(first), _type_name(rest), optional=optional)
            else:
                yield f"inline constexpr Type {name} = as_optional({_type_name(first)});"
        else:
            yield _type(name, PLAIN[kind])

    yield from TYPES.splitlines()
    yield from types_of(manifest.Manifest)
    yield "// And of `build.json`, beside engines."
    yield from types_of(engine_folder.BuildInfo)


def _type(
    name: str, kind: str, of: str = "", other: str = "", fields: str = "nullptr", count: int = 0, optional: bool = False
) -> str:
    refers = ", ".join(f"&{each}" if each else "nullptr" for each in (of, other))
    return f"inline constexpr Type {name} = {{Kind::{kind}, {_value(optional)}, {refers}, {fields}, {count}}};"


def _type_name(kind: Any) -> str:
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (dict, list):
        return f"{'map' if origin is dict else 'list'}_of_{_type_name(arguments[-1])}"
    if origin in (types.UnionType, typing.Union):
        options = [_type_name(a) for a in arguments if a is not type(None)]
        return ("optional_" if len(options) < len(arguments) else "") + "_or_".join(options)
    return PLAIN[kind] if kind in PLAIN else _snake(kind.__name__)


def _is_required(field: dataclasses.Field[Any]) -> bool:
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


def _parts() -> Iterator[str]:
    yield from _texts("CALLED", parts.CALLED)
    yield from SHAPES.splitlines()
    rows = []
    for part, both in parts.TENSORS.items():
        for kind, tensors in zip(("inputs", "outputs"), both, strict=True):
            for tensor, shape in tensors.items():
                yield from _table("Dimension", f"{part}_{tensor}_{kind}", map(_dimension, shape))
            items = [f'{{"{t}", {part}_{t}_{kind}, {len(s)}}}' for t, s in tensors.items()]
            yield f"inline constexpr TensorShape {part}_{kind}[] = {{{', '.join(items)}}};"
        counts = ", ".join(str(len(tensors)) for tensors in both)
        rows.append(f'    {{"{part}", {part}_inputs, {part}_outputs, {counts}}},')
    yield "inline constexpr PartShapes TENSORS[] = {"
    yield from rows
    yield "};"


def _dimension(dimension: int | str | None) -> list[Any]:
    return [dimension, ""] if isinstance(dimension, int) else [0, dimension or ""]


def _graph_file() -> Iterator[str]:
    imported = {name for name in vars(manifest) if name.isupper()} - {"MAX_DEPTH"}
    yield from _constants(graph_file, str, int, but=imported)
    yield from _constants(protobuf, int)
    yield "struct Held {"
    yield "    int message, field, holds;"
    yield "};"
    held = [[kind, field, holds] for kind, fields in graph_file.HOLDS.items() for field, holds in fields.items()]
    yield from _table("Held", "HOLDS", held)
    yield "struct Dtype {"
    yield "    int number;"
    yield "    const char* name;"
    yield "};"
    yield from _table("Dtype", "DTYPES", map(list, graph_file.DTYPES.items()))
    yield "struct Bits {"
    yield "    int number, bits;"
    yield "};"
    yield from _table("Bits", "BITS", map(list, graph_file.BITS.items()))


def _sampling() -> Iterator[str]:
    for name, value in sampling.EDITARS.items():
        yield from _named(name.upper(), value)
    yield from _texts("SAMPLING_FIELDS", [field.name for field in dataclasses.fields(sampling.Sampling)])
    yield from _texts("SCHEDULES", guidance.SHAPES)
    yield from _named("MAX_SCALE", guidance.MAX_SCALE)
    yield from _named("ALLOWED_SCALES", guidance.ALLOWED)
    yield from _named("MAX_VARIANTS", MAX_VARIANTS)
    yield from _named("MAX_STATES_BYTES", MAX_STATES_BYTES)
    usual = Request()
    for name in ("mask_margin", "composite", "preview_share"):
        yield from _named(name.upper(), getattr(usual, name))


def _tasks() -> Iterator[str]:
    yield "struct TaskPrefix {"
    yield "    const char *task, *prefix;  // of the prompt"
    yield "};"
    yield from _table("TaskPrefix", "TASK_PREFIXES", map(list, TASK_PREFIXES.items()))


def _pictures() -> Iterator[str]:
    yield from _constants(pixels, int)
    yield from _constants(fit, int, only=("LONG", "LANCZOS_SUPPORT"))
    yield from _constants(masks, int, only=("THRESHOLD",))
    yield from _constants(orientation, int)
    yield from _named("TEXT_PREFIX", writing.PREFIX)


def _self_test() -> Iterator[str]:
    yield from _constants(selftest, str, int, float)
    yield "struct Sampling {"
    yield "    double cfg_scale, temperature, top_p;"
    yield "    int top_k;"
    yield "    bool greedy, gumbel;"
    yield "};"
    rows = [
        [each.cfg_scale, each.temperature, each.top_p, each.top_k, each.greedy, each.noise == "gumbel"]
        for each in selftest.SAMPLINGS
    ]
    yield from _table("Sampling", "SAMPLINGS", rows)


def _engines() -> Iterator[str]:
    yield from _constants(plan, float)
    yield from _named("ALIGNMENT", engine_device.ALIGNMENT)
    yield from _constants(engine_folder, str, int, only=("BUILD_NAME", "FORMAT", "FORMAT_VERSION", "MAX_BYTES"))
    yield from _constants(tensorrt_compat, str, only=("TENSORRT", "RTX", "TOO_OLD"))
    for name, library in tensorrt_compat.LIBRARIES.items():
        yield from _named(f"{name.upper()}_TITLE", library.title)
    for name in ("FORMAT", "MAX_BYTES"):
        yield from _named(f"TRIAL_{name}", getattr(trial, name))
    yield from _named("KERNELS_FILE", kept_kernels.FILE)
    yield from _named("KERNELS_MAX_BYTES", kept_kernels.MAX_BYTES)


def _onnxruntime() -> Iterator[str]:
    key, value = ort_backend.WEIGHT_ONLY
    yield from _named("ACCURACY_LEVEL_KEY", key)
    yield from _named("ACCURACY_LEVEL", value)
    versions = {
        "READS_INT8": ort_backend.READS_INT8,
        "TAKES_CHUNK_LENGTHS": ort_backend.CHUNK_LENGTHS,
        "TAKES_DURATION": threads.TAKES_DURATION,
    }
    for name, (major, minor) in versions.items():
        yield from _named(f"{name}_MAJOR", major)
        yield from _named(f"{name}_MINOR", minor)
    yield from _constants(threads, int)
    yield from _constants(ort_decoder, int, only=("GROWTH", "CHUNK", "LONG"))
    yield from _constants(prepacked, int)
    yield from _named("CACHE_GRAPH", prepacked.GRAPH)


# C++ from values.


def _section(name: str, lines: Iterator[str]) -> Iterator[str]:
    yield f"\nnamespace {name} {{" if name else ""
    yield from lines
    if name:
        yield f"}}  // namespace {name}"


def _constants(
    module: types.ModuleType, *kinds: type, but: Container[str] = (), only: Container[str] | None = None
) -> Iterator[str]:
    """A module's constants: names in upper case with values of some types."""
    for name, value in vars(module).items():
        chosen = name not in but if only is None else name in only
        if chosen and name.isupper() and not name.startswith("_") and type(value) in kinds:
            yield from _named(name, value)


def _named(name: str, value: Any, comment: str = "") -> Iterator[str]:
    if isinstance(value, bool):
        kind = "bool"
    elif isinstance(value, int):
        kind = "int" if abs(value) < 1 << 31 else "int64_t"
    else:
        kind = "double" if isinstance(value, float) else "const char*"
    yield f"inline constexpr {kind} {name} = {_value(value)};{comment and f'  // {comment}'}"


def _texts(name: str, values: Iterable[str]) -> Iterator[str]:
    yield f"inline constexpr const char* {name}[] = {_value(list(values))};"


def _table(kind: str, name: str, rows: Iterable[list[Any]]) -> Iterator[str]:
    yield f"inline constexpr {kind} {name}[] = {{"
    yield from (f"    {_value(row)}," for row in rows)
    yield "};"


def _value(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, list):
        return f"{{{', '.join(map(_value, value))}}}"
    if isinstance(value, str):
        # Bytes of UTF-8 in octal: compilers differ about the source's encoding.
        written = json.dumps(value, ensure_ascii=False).encode()
        return "".join(chr(byte) if byte < 0x80 else f"\\{byte:03o}" for byte in written)
    assert isinstance(value, int | float), value
    return repr(value)


def _snake(name: str) -> str:
    return "".join(f"_{c.lower()}" if c.isupper() and i else c.lower() for i, c in enumerate(name))


if __name__ == "__main__":
    main()
