"""The C ABI's promises: sized structs, one call at a time, errors in one sentence, nothing left behind."""

from __future__ import annotations

import ctypes
import dataclasses
import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import editar_rt
from editar_rt.__main__ import main
from tests.commands import in_process
from tests.cpp import library as c
from tests.cpp.installed import engine_library, run
from tests.cpp.library import CRequest, CSampling, Library, Model, ModelOptions, Refused, Session, as_sampling
from tests.runtime.demo import BUNDLE, COUNT, PICTURE, SIDE, WORDS


@pytest.fixture(scope="module")
def library() -> Library:
    return c.open_library()


@pytest.fixture(scope="module")
def model(library: Library) -> Iterator[Model]:
    model = library.open(BUNDLE, threads=1)
    yield model
    model.close()


@pytest.fixture
def session(model: Model) -> Iterator[Session]:
    session = model.session(np.zeros((SIDE, SIDE, 3), np.uint8))
    yield session
    session.close()


def test_the_version_is_pythons(library: Library) -> None:
    assert library.dll.editar_version().decode() == editar_rt.__version__


def test_a_model_tells_its_sizes(model: Model) -> None:
    info = model.info
    assert (info.image_size, info.picture_tokens, info.grid, info.text_tokens) == (SIDE, COUNT, 8, 40)
    assert info.parts == 7 and info.precision == b"fp32" and info.backend.startswith(b"ONNX Runtime ")
    assert info.fingerprint.decode() == editar_rt.load(BUNDLE).bundle.fingerprint


BAD_REQUESTS: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    ("task must be one of edit, depth, canny, segmentation, got 'paint'", {"task": b"paint"}, {}),
    ("variants must be 1 to 64, got 65", {"variants": 65}, {}),
    ("cfg_scale must be 0 to 1e+06, got -1.0", {}, {"cfg_scale": -1.0}),
    ("cfg_scale must be 0 to 1e+06, got nan", {}, {"cfg_scale": float("nan")}),
    ("temperature must be a finite number above 0, got inf", {}, {"temperature": float("inf")}),
    ("top_p must be in (0, 1], got 1.5", {}, {"top_p": 1.5}),
    ("top_k must be", {}, {"top_k": -2}),
    ("0 <= cfg_start < cfg_stop", {}, {"cfg_interval": (5, 5)}),
    ("keep must be 0 to 64, got 65", {"keep": 65}, {}),
    ("kept must not be NULL", {"keep": 3}, {}),
    ("mask_margin must be", {"mask_margin": -2}, {}),
    ("preview_share must be", {"preview_share": 1.5}, {}),
    ("speculate must be", {"speculate": -2}, {}),
    ("set cfg_shape to EDITAR_CFG_LINEAR or EDITAR_CFG_COSINE with it", {}, {"cfg_last": 5.0}),
    ("an even number from 2 to 62", {"speculate": 3}, {}),
]


@pytest.mark.parametrize(("message", "fields", "settings"), BAD_REQUESTS)
def test_a_bad_value_is_refused_with_what_is_allowed(
    session: Session, message: str, fields: dict[str, Any], settings: dict[str, Any]
) -> None:
    variants = fields.pop("variants", 1)
    request = CRequest(instruction=b"x", variants=variants, **fields)
    sampling = as_sampling(settings)
    request.sampling = ctypes.pointer(sampling)
    with pytest.raises(Refused) as refused:
        session.model.library.call("edit", session.handle, ctypes.byref(request), ctypes.byref(c.COutput()))
    assert refused.value.status == c.BAD_ARGUMENT and message in refused.value.message


@pytest.mark.parametrize(
    "kept", [np.full(3, -1, np.int32), np.full(3, 2048, np.int32)], ids=["negative", "beyond the vocabulary"]
)
def test_kept_tokens_are_checked(session: Session, kept: np.ndarray) -> None:
    with pytest.raises(Refused, match="kept must be 0 to 2047"):
        session.edit(kept=kept)


def test_text_from_outside_is_checked(session: Session, model: Model) -> None:
    states = np.zeros((1, 40, 128), np.float32)
    states[0, 7, 3] = np.nan
    tokens, ids = np.zeros(COUNT, np.int32), np.array([5, -1, 1], np.int32)
    calls = {
        "text_states must be finite, got nan in position 7": [
            lambda: session.edit(text_states=states),
            lambda: model.score(states, None, tokens),
            lambda: model.generate(states, None, CSampling()),
        ],
        "ids must be 0 or more, got -1": [  # the engine would take the last of the vocabulary
            lambda: session.edit(token_ids=ids),
            lambda: model.library.call("encode_text", model.handle, c.pointer(ids), 3, c.pointer(states)),
        ],
        "logits must not be NaN": [
            lambda: model.library.call("sample", c.pointer(states[0, 7]), 128, None, 0, c.pointer(tokens)),
        ],
    }
    for says, each in calls.items():
        for call in each:
            with pytest.raises(Refused, match=says) as refused:
                call()
            assert refused.value.status == c.BAD_ARGUMENT


def test_bytes_that_are_not_utf8_come_back_as_utf8(library: Library, session: Session, tmp_path: Path) -> None:
    session.edit(os.fsdecode(b"caf\xe9"), pictures=False)
    assert session.texts()["instruction"] == "caf\ufffd"
    with pytest.raises(Refused, match="nowhere-\ufffd is not a folder"):
        library.call("open_model", b"/nowhere-\xe9", None, ctypes.byref(ctypes.c_void_p()))
    picture, texts = c.as_picture(np.zeros((4, 4, 3), np.uint8)), (ctypes.c_char_p * 3)(b"name", b"caf\xe9", None)
    library.call("write_png", os.fsencode(tmp_path / "out.png"), ctypes.byref(picture), texts)
    assert Image.open(tmp_path / "out.png").info == {"editar:name": "caf\ufffd"}


def test_a_mask_belongs_to_task_edit(session: Session) -> None:
    with pytest.raises(Refused, match="which task depth cannot do"):
        session.edit(task=b"depth", mask=np.zeros((SIDE, SIDE), np.uint8))


def test_null_is_refused_everywhere(library: Library, model: Model) -> None:
    handle = ctypes.c_void_p()
    for name, arguments in {
        "open_model": [None, None, ctypes.byref(handle)], "open_session": [model.handle, None, ctypes.byref(handle)],
        "edit": [None, None, None], "get_model_info": [None, None], "read_picture": [None, ctypes.c_size_t(1), None],
        "write_png": [None, None, None], "get_source": [None, None, None], "tokenize": [None] * 6,
        "encode_text": [None, None, 1, None], "encode_square": [None, None, None],
        "decode_tokens": [None, None, 1, None], "score": [None] * 6, "generate": [None] * 6,
        "sample": [None, 1, None, 0, None], "verify": [None] * 3, "bench": [None] * 4,
        "describe_bundle": [None, 0, None], "sha256": [None, ctypes.c_size_t(1), None],
        "get_texts": [None, 0, None],
    }.items():  # fmt: skip
        with pytest.raises(Refused, match="must not be NULL") as refused:
            library.call(name, *arguments)
        assert refused.value.status == c.BAD_ARGUMENT
    library.dll.editar_close_model(None)
    library.dll.editar_close_session(None)


class OldSampling(c.Struct):
    """The struct of a program that was compiled with an older header."""

    _fields_ = CSampling._fields_[:4]  # size, seed, cfg_scale, cfg_last


class NewSampling(c.Struct):
    """The struct of a program that was compiled with a newer header."""

    _fields_ = (*CSampling._fields_, ("invented", ctypes.c_int64))


def test_shorter_and_longer_structs_are_understood(session: Session, model: Model) -> None:
    logits, token = np.linspace(0, 5, 50).astype(np.float32), ctypes.c_int32()

    def sampled(struct: Any) -> int:
        model.library.call("sample", c.pointer(logits), 50, ctypes.byref(struct), 3, ctypes.byref(token))
        return token.value

    usual = sampled(CSampling(seed=5))
    assert sampled(OldSampling(seed=5)) == sampled(NewSampling(seed=5)) == usual
    with pytest.raises(Refused, match="has a field that this version"):
        sampled(NewSampling(seed=5, invented=1))
    with pytest.raises(Refused, match="position must be 0 or more, got -1"):
        model.library.call("sample", c.pointer(logits), 50, None, -1, ctypes.byref(token))
    broken = CSampling(seed=5)
    broken.size = 3
    with pytest.raises(Refused, match="size of editar_sampling must be"):
        sampled(broken)


def test_what_is_not_a_bundle_is_a_bad_bundle(library: Library, tmp_path: Path) -> None:
    with pytest.raises(Refused, match="bundle.json") as refused:
        library.open(tmp_path)
    assert refused.value.status == c.BAD_BUNDLE
    copied = shutil.copytree(BUNDLE, tmp_path / "copied")
    (copied / "vq_decoder.onnx").write_bytes(b"broken")
    with pytest.raises(Refused, match=r"vq_decoder\.onnx has 6 bytes") as refused:
        library.open(copied)
    assert refused.value.status == c.BAD_BUNDLE


def test_a_part_that_lacks_is_named(library: Library, golden_gpt_bundle: Path) -> None:
    model = library.open(golden_gpt_bundle)
    for name, arguments in {
        "tokenize": [None, b"x", None, 0, ctypes.byref(ctypes.c_int32())],
        "encode_square": [bytes(3), c.pointer(np.zeros(16, np.int32))],
    }.items():
        with pytest.raises(Refused) as refused:
            library.call(name, model.handle, *arguments)
        assert refused.value.status == c.MISSING_PART
    model.close()


def test_another_library_is_not_taken_for_onnx_runtime(library: Library, tmp_path: Path) -> None:
    """In a process of its own: a process has one ONNX Runtime."""
    program = f"""
import sys
sys.path.insert(0, {str(Path(__file__).parents[2])!r})
from pathlib import Path
from tests.cpp.library import Library, Refused
library = Library(Path({library.dll._name!r}))
for path in sys.argv[1:]:
    try:
        library.open(Path({str(BUNDLE)!r}), onnxruntime_path=path.encode())
    except Refused as refused:
        print(refused)
"""
    done = editar_rt_process(program, "/nowhere/libonnxruntime.so", library.dll._name)
    nowhere, other = done.splitlines()
    assert nowhere.startswith("-5: ONNX Runtime's library cannot be opened (/nowhere/libonnxruntime.so")
    assert "EDITAR_ONNXRUNTIME" in nowhere
    assert other.startswith("-5: the library given as ONNX Runtime is another one")


def editar_rt_process(program: str, *arguments: str) -> str:
    environment = {name: value for name, value in os.environ.items() if name != "EDITAR_ONNXRUNTIME"}
    return run([sys.executable, "-c", program, *arguments], env=environment)


def test_a_second_call_is_told_that_the_model_is_busy(session: Session, model: Model) -> None:
    seen: list[Refused] = []
    results: list[Any] = []

    def on_progress(done: int, total: int, tokens: np.ndarray) -> int:
        if done == 10:

            def other() -> None:
                for call in (lambda: session.edit(WORDS), lambda: model.session(np.zeros((SIDE, SIDE, 3), np.uint8))):
                    with pytest.raises(Refused) as refused:
                        call()
                    seen.append(refused.value)

            thread = threading.Thread(target=other)
            thread.start()
            thread.join()
        return 0

    results.append(session.edit(WORDS, on_progress=on_progress))
    assert [each.status for each in seen] == [c.BUSY, c.BUSY]
    assert results[0].output.done == COUNT
    assert session.edit(WORDS).tokens.tolist() == results[0].tokens.tolist()  # disturbed by nothing


def test_models_in_several_threads_are_independent(library: Library) -> None:
    expected = editar_rt.load(BUNDLE).edit(PICTURE, WORDS, seed=1).tokens.tolist()
    found: list[list[int]] = []

    def work() -> None:
        model = library.open(BUNDLE, threads=1)
        session = model.session(np.asarray(Image.open(PICTURE).convert("RGB")))
        found.extend(session.edit(WORDS, sampling=as_sampling({"seed": 1})).tokens[0].tolist() for _ in range(3))
        session.close()
        model.close()

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [expected] * 9


def test_a_model_may_be_closed_before_its_sessions(library: Library) -> None:
    model = library.open(BUNDLE, threads=1)
    session = model.session(np.zeros((SIDE, SIDE, 3), np.uint8))
    model.close()
    assert session.edit(WORDS, pictures=False).output.done == COUNT
    session.close()


def test_texts_of_all_variants_live_until_the_next_edit(session: Session) -> None:
    session.edit(WORDS, variants=3, sampling=as_sampling({"seed": 7}))
    told = [ctypes.POINTER(ctypes.c_char_p)() for _ in range(3)]
    for variant, each in enumerate(told):
        session.model.library.call("get_texts", session.handle, variant, ctypes.byref(each))
    for variant, each in enumerate(told):
        words = [each[n] for n in range(40) if all(each[m] is not None for m in range(n + 1))]
        assert words[words.index(b"seed") + 1] == str(7 + variant).encode()
    with pytest.raises(Refused, match="variant must be 0 to 2, got 3"):
        session.texts(3)
    with pytest.raises(Refused, match="keep must be"):
        session.model.library.call("edit", session.handle, ctypes.byref(CRequest(keep=-1)), ctypes.byref(c.COutput()))
    assert session.texts(2)["seed"] == "9"  # of the last successful one
    assert told[0][0] == b"instruction"


def test_a_new_session_has_no_texts(model: Model) -> None:
    fresh = model.session(np.zeros((SIDE, SIDE, 3), np.uint8))
    assert fresh.texts() == {}
    fresh.close()


def test_a_failed_call_of_a_callback_leaves_no_error_behind(session: Session, model: Model) -> None:
    """`Library.call` asserts that a successful call leaves no sentence."""
    failed: list[int] = []

    def on_progress(done: int, total: int, tokens: np.ndarray) -> int:
        if done == 3:
            failed.append(model.library.dll.editar_sample(None, 1, None, 0, None))
        return 0

    assert session.edit(WORDS, on_progress=on_progress).output.done == COUNT
    assert failed == [c.BAD_ARGUMENT]


def test_no_preview_comes_after_a_progress_that_stopped(session: Session) -> None:
    previews: list[int] = []

    def on_preview(picture: np.ndarray, done: int, total: int) -> int:
        previews.append(done)
        return 0

    edited = session.edit(
        WORDS, on_progress=lambda done, total, tokens: done == 8, on_preview=on_preview, preview_share=1.0
    )
    assert edited.stopped and edited.output.done == 8 and previews == []


def test_errors_are_the_threads_own(session: Session, model: Model) -> None:
    with pytest.raises(Refused):
        session.edit(task=b"paint")
    said: list[str] = []
    thread = threading.Thread(target=lambda: said.append(model.library.last_error))
    thread.start()
    thread.join()
    assert said == [""] and "paint" in model.library.last_error


def test_a_long_name_does_not_break_a_message(library: Library) -> None:
    with pytest.raises(Refused) as refused:
        library.open(Path("/" + "é" * 4000))
    assert len(refused.value.message.encode()) < 4096  # and whole characters: it was decoded


def test_steps_of_an_edit_give_what_pythons_give(library: Library, model: Model) -> None:
    editor = editar_rt.load(BUNDLE)
    ids, count = np.full(64, -1, np.int32), ctypes.c_int32()
    library.call("tokenize", model.handle, b"depth", b"a red ball", c.pointer(ids), 64, ctypes.byref(count))
    states = np.zeros((1, 40, 128), np.float32)
    library.call("encode_text", model.handle, c.pointer(ids), count, c.pointer(states))
    assert np.array_equal(states, editor.encode_text(["a red ball"], "depth"))
    picture = np.random.default_rng(0).integers(0, 256, (SIDE, SIDE, 3), np.uint8)
    tokens = np.zeros(COUNT, np.int32)
    library.call("encode_square", model.handle, c.pointer(picture), c.pointer(tokens))
    assert tokens.tolist() == editor.session(picture).condition_tokens[0].tolist()
    forced = np.random.default_rng(1).integers(0, 2048, COUNT).astype(np.int32)
    cond, uncond = (np.zeros((1, COUNT, 2048), np.float32) for _ in range(2))
    library.call("score", model.handle, *map(c.pointer, (states, tokens, forced, cond, uncond)))
    for mine, theirs in zip((cond, uncond), editor.score(states, tokens[None], forced[None]), strict=True):
        assert np.array_equal(mine, theirs)
    library.call("score", model.handle, c.pointer(states), None, c.pointer(forced), c.pointer(cond), None)
    assert np.array_equal(cond, editor.score(states, None, forced[None])[0])
    known = np.where(np.arange(COUNT) % 3 == 0, forced, -1).astype(np.int32)
    made, sampling = np.zeros(COUNT, np.int32), as_sampling({"seed": 2})
    library.call(
        "generate", model.handle, c.pointer(states), None, ctypes.byref(sampling), c.pointer(known), c.pointer(made)
    )
    usual = editor.default_sampling
    expected = editor.generate(states, None, dataclasses.replace(usual, seed=2), known_tokens=known[None])
    assert made.tolist() == expected[0].tolist()


def test_reports_are_those_of_pythons_commands(
    library: Library, model: Model, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    editar = in_process(main, monkeypatch, capsys)
    described = json.loads(library.text("describe_bundle", str(BUNDLE).encode(), 1))
    assert described == editar("info", BUNDLE, "--check", "--json").document
    fault = ctypes.c_char_p(b"unset")
    verified = json.loads(library.text("verify", model.handle, ctypes.byref(fault)))
    assert fault.value is None and verified == editar("verify", BUNDLE, "--json").document
    plan = c.BenchPlan(repeats=1, warmup=-1, steps=3)
    measured = json.loads(library.text("bench", model.handle, ctypes.byref(plan), None))
    theirs = editar("bench", BUNDLE, "--repeats", 1, "--warmup", 0, "--steps", 3, "--json").document
    assert measured.keys() - theirs.keys() == {"percent_outside_engine"} and measured.keys() >= theirs.keys()
    assert measured["stages"].keys() == theirs["stages"].keys()
    for name in ("bytes_per_step", "steps", "rows", "bundle", "backend", "dialect"):
        assert measured[name] == theirs[name]


def test_options_of_a_model_are_checked(library: Library) -> None:
    with pytest.raises(Refused, match="device must be one of auto, cpu, cuda, tensorrt, got 'gpu'"):
        library.open(BUNDLE, device=b"gpu")
    for threads in (-1, 100_000):  # starting 100,000 threads would take minutes
        with pytest.raises(Refused, match="threads must be 0 .* to .* logical cores"):
            library.open(BUNDLE, threads=threads)
    handle = ctypes.c_void_p()
    options = ModelOptions(onnxruntime_path=b"/another.so")
    with pytest.raises(Refused, match="already opened ONNX Runtime"):
        library.call("open_model", str(BUNDLE).encode(), ctypes.byref(options), ctypes.byref(handle))


def test_the_same_engine_by_another_name_is_the_same(library: Library, model: Model, tmp_path: Path) -> None:
    (tmp_path / "link.so").symlink_to(engine_library())
    library.open(BUNDLE, onnxruntime_path=os.fsencode(tmp_path / "link.so")).close()


def test_a_machine_without_cuda_says_so(library: Library) -> None:
    with pytest.raises(Refused, match="does not run on CUDA here") as refused:
        library.open(BUNDLE, device=b"cuda")
    assert refused.value.status == c.BACKEND


BROKEN_PIPE = """
import ctypes, os, signal, sys, threading
import numpy as np
from tests.cpp import library as c

def read_a_little():
    with open(sys.argv[1], "rb", buffering=0) as pipe:
        pipe.read(10)

signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # as in programs that are not Python's
library = c.open_library()
os.mkfifo(sys.argv[1])
noise = np.random.default_rng(0).integers(0, 256, (300, 300, 3), np.uint8)  # more than a pipe holds
threading.Thread(target=read_a_little).start()
try:
    library.call("write_png", os.fsencode(sys.argv[1]), ctypes.byref(c.as_picture(noise)), None)
except c.Refused as refused:
    print(refused.status)
"""


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no pipes with names here")
def test_a_pipe_whose_reader_leaves_does_not_end_the_program(tmp_path: Path) -> None:
    assert run([sys.executable, "-c", BROKEN_PIPE, str(tmp_path / "pipe.png")]).strip() == str(c.BAD_PICTURE)


FORK = """
import json, os, signal, sys, time
import numpy as np
from pathlib import Path
from tests.cpp.library import Refused, open_library
from tests.runtime.demo import BUNDLE

library, picture = open_library(), np.zeros((128, 128, 3), np.uint8)
model = library.open(BUNDLE, threads=2)
session = model.session(picture)
before = session.edit("make the ball green", variants=2).tokens.tolist()
told, tell = os.pipe()
child = os.fork()
if child == 0:
    said = []
    for call in (lambda: session.edit("another text"), lambda: model.session(picture)):
        try:
            call()
        except Refused as refused:
            said.append(refused.message)
    session.close()
    model.close()
    own = library.open(BUNDLE, threads=1).session(picture).edit("make the ball green", variants=2)
    os.write(tell, json.dumps({"said": said, "own": own.tokens.tolist() == before}).encode())
    os._exit(3)
os.close(tell)
report = json.load(os.fdopen(told))
report["exit"] = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
report["same"] = session.edit("make the ball green", variants=2).tokens.tolist() == before
print(json.dumps(report))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there are no forks here")
def test_a_fork_leaves_its_parents_models_alone() -> None:
    """Their engine's threads are not there, and rows of the cache are memory that both would write to."""
    done = subprocess.run([sys.executable, "-c", FORK], capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert (report["own"], report["exit"], report["same"]) == (True, 3, True)
    assert len(report["said"]) == 2
    assert all("was opened in process" in each and "before the fork" in each for each in report["said"])


UNLOADED = """
import _ctypes, ctypes, sys, threading
from pathlib import Path
from tests.cpp.library import Library
from tests.runtime.demo import BUNDLE

def work():  # in a thread, which ends, as its data holds a library too
    library = Library(Path(sys.argv[1]))
    library.open(BUNDLE, threads=1).close()
    handles.append(library.dll._handle)

handles = []
thread = threading.Thread(target=work)
thread.start()
thread.join()
_ctypes.dlclose(handles[0])
print(sys.argv[1] in Path("/proc/self/maps").read_text())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_the_code_that_the_engine_calls_outlives_dlclose(library: Library) -> None:
    """ONNX Runtime's environment is never closed, and hands its messages to the library."""
    path = str(Path(library.dll._name).resolve())
    assert run([sys.executable, "-c", UNLOADED, path]).strip() == "True"


SHORT_OF_MEMORY = """
import json, resource
import numpy as np
from pathlib import Path
from tests.cpp.library import Refused, open_library
from tests.runtime.demo import BUNDLE

def limited(more, call):
    now = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (now + more, hard))
    try:
        call()
        said.append("done")
    except Refused as refused:
        said.append(str(refused))
    except MemoryError:  # Python's own
        pass
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))

said, same, library, expected = [], [], open_library(), None
for more in (3 * 10**5, 10**6, 3 * 10**6, 8 * 10**6, 20 * 10**6):
    model = library.open(BUNDLE, threads=1)
    limited(more, lambda: model.session(np.zeros((128, 128, 3), np.uint8)))
    session = model.session(np.zeros((128, 128, 3), np.uint8))
    limited(more, lambda: session.edit("make the ball green"))
    tokens = session.edit("make the ball green").tokens.tolist()
    expected = expected or tokens
    same.append(tokens == expected)
    session.close()
    model.close()
print(json.dumps({"said": said, "same": same}))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_without_memory_a_call_says_so_and_the_next_one_works() -> None:
    """Wherever it lacks: in the engine, which says it in several ways, or in the library."""
    report = json.loads(run([sys.executable, "-c", SHORT_OF_MEMORY]).splitlines()[-1])
    refused = [each for each in report["said"] if each != "done"]
    assert len(refused) >= 3 and all("-6: there is not enough memory" in each for each in refused)
    assert all(report["same"])
