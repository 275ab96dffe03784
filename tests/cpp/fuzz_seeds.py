"""Writes seeds for the fuzzer: small good inputs of every target, which it then spoils, and the inputs that were kept.

usage: python -m tests.cpp.fuzz_seeds FOLDER
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

from tests.cpp import fuzz_corpus

UNIGRAM = {
    "added_tokens": [{"id": 0, "content": "</s>", "special": True}],
    "normalizer": {"type": "Precompiled", "precompiled_charsmap": "BAAAAAAAAABhAA=="},
    "pre_tokenizer": {
        "type": "Sequence",
        "pretokenizers": [{"type": "WhitespaceSplit"}, {"type": "Metaspace", "replacement": "▁"}],
    },
    "post_processor": {
        "type": "TemplateProcessing",
        "single": [{"Sequence": {"id": "A"}}, {"SpecialToken": {"id": "</s>"}}],
        "special_tokens": {"</s>": {"ids": [0]}},
    },
    "model": {
        "type": "Unigram",
        "unk_id": 1,
        "vocab": [["</s>", 0], ["?", -1.5], ["▁", -2.25e0], ["re", -3], ["red", -4]],
    },
}
BPE = UNIGRAM | {
    "normalizer": {"type": "Sequence", "normalizers": [{"type": "NFKC"}, {"type": "Lowercase"}, {"type": "Strip"}]},
    "pre_tokenizer": {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": True},
    "model": {
        "type": "BPE", "unk_token": "?", "fuse_unk": True, "merges": [["r", "e"], "re d"],
        "vocab": {"</s>": 0, "?": 1, "▁": 2, "r": 3, "e": 4, "d": 5, "re": 6, "red": 7},
    },
}  # fmt: skip


def seeds() -> Iterator[tuple[str, str, bytes]]:
    """Targets, names and contents."""
    from tests.cpp import test_json, test_pictures
    from tests.runtime import crafted

    for n, text in enumerate(test_json.VALUES):
        yield "json", f"{n}.json", text.encode()[:500]
    manifest = json.loads(Path("engines/demo/bundle.json").read_text(encoding="utf-8"))
    manifest["self_test"] = {"decoder": {}}
    decoder = manifest["parts"]["decoder"]
    for kind in ("inputs", "outputs"):
        decoder[kind] = [t for t in decoder[kind] if not t["name"][-1].isdigit() or t["name"].endswith("_0")]
    manifest["model"]["layers"] = 1
    yield "manifest", "demo.json", json.dumps(manifest).encode()
    yield "graph", "crafted.onnx", crafted.model().SerializeToString()
    external = crafted.external("weights", "w.data", offset=64, length=768)
    yield "graph", "external.onnx", crafted.model(weights=external).SerializeToString()
    for name, file in {"unigram": UNIGRAM, "bpe": BPE}.items():
        yield "tokenizer", name, json.dumps(file, ensure_ascii=False).encode() + b"\0the Red</s> b\xc3\xa1ll \xff re"
    for target, pictures in (("png", test_pictures.PNGS), ("jpeg", test_pictures.JPEGS)):
        for name, file in pictures.items():
            if len(file) < 3000:
                yield target, name, file


def main(folder: Path) -> None:
    fuzz_corpus.unpack(folder)
    for target, name, content in seeds():
        (folder / target).mkdir(parents=True, exist_ok=True)
        (folder / target / name.replace(":", "-")).write_bytes(content)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
