"""The page in Chromium: everything that it offers, by mouse, touch and keyboard, over a real server."""

from __future__ import annotations

import base64
import gzip
import subprocess
import urllib.request
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageFilter

from tests.tools import require, require_module, require_program

for module, package in (("starlette", ".[serve]"), ("playwright", "playwright")):
    require_module(module, f"pip install {package}")
CHROMIUM = require_program("chromium", "apt-get install chromium")

from playwright.sync_api import Browser, FileChooser, Page, Route, expect, sync_playwright  # noqa: E402

from editar_rt.images.masks import read_mask  # noqa: E402
from tests.runtime.demo import CELL, GRID, PICTURE, SAMPLES, SIDE, WORDS  # noqa: E402
from tests.server.browser import HANDS, Keys, Mouse, Server, Touch, pixels, place  # noqa: E402

expect.set_options(timeout=30_000)  # milliseconds; a machine may be busy

PAGE = Path(__file__).parents[2] / "editar_rt" / "server" / "page"
MOST_BYTES = 30_000
REPORT = "addEventListener('securitypolicyviolation', (e) => console.error(`blocked ${e.violatedDirective}`))"
NPM = "apt-get install nodejs npm"
PACKAGES = ("typescript@7", "axe-core@4")
CHECKED = ("--checkJs", "--allowJs", "--strict", "--noUnusedLocals", "--noUnusedParameters", "--noEmit")
LIBRARIES = ("--target", "es2022", "--module", "es2022", "--lib", "es2022,dom,dom.iterable,dom.asynciterable")


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with Server() as started:
        yield started


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield launched
        launched.close()


@pytest.fixture(scope="module")
def tools(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of npm packages: TypeScript's checker and axe-core."""
    npm = require_program("npm", NPM)
    folder = tmp_path_factory.mktemp("npm")
    done = subprocess.run([npm, "install", "--silent", "--no-audit", "--no-fund", "--prefix", folder, *PACKAGES])
    require(done.returncode == 0, "npm packages typescript and axe-core", f"npm install {' '.join(PACKAGES)}")
    return folder / "node_modules"


Opener = Callable[..., Page]


@pytest.fixture
def visit(browser: Browser, server: Server) -> Iterator[Opener]:
    """Opens the page. At the end nothing may have failed in it, and its policy have blocked nothing."""
    contexts, trouble = [], []

    def visit(url: str = server.url, **options: Any) -> Page:
        context = browser.new_context(**{**Mouse.context, **options})
        contexts.append(context)
        context.set_default_timeout(20_000)
        context.add_init_script(REPORT)
        page = context.new_page()
        page.on("pageerror", lambda error: trouble.append(str(error)))
        page.on("console", lambda said: trouble.append(said.text) if said.type == "error" else None)
        page.goto(url)
        expect(page.locator("#model")).to_contain_text("pixels")
        return page

    server.release()
    yield visit
    server.release()
    for context in contexts:
        context.close()
    server.wait_until_idle()
    assert trouble == []


@pytest.fixture(params=list(HANDS))
def hand(request: pytest.FixtureRequest, visit: Opener) -> Any:
    """The page with a picture in it, and what works on it."""
    kind = HANDS[request.param]
    page = visit(**kind.context)
    page.locator("#file").set_input_files(PICTURE)
    expect(page.locator("#status")).to_contain_text("Paint over")
    return kind(page)


def edit(hand: Any, words: str = WORDS, seed: int | str = 1, **settings: str) -> None:
    """Ask for an edit, and wait for its end."""
    begin(hand, words, seed, **settings)
    expect(hand.page.locator("#status")).to_contain_text("Done")


def begin(hand: Any, words: str = WORDS, seed: int | str = 1, **settings: str) -> None:
    page = hand.page
    page.locator("details").evaluate("(all) => all.setAttribute('open', '')")
    page.locator("#prompt").fill(words)
    for name, value in {"seed": str(seed), **settings}.items():
        page.locator(f"[name={name}]").fill(value)
    hand.press("#edit")


def painted(page: Page) -> int:
    """Percent of the picture under the mask."""
    text = page.locator("#masked").inner_text()
    return int(text.split()[1]) if text.startswith("Mask") else 0


def saved(page: Page, button: str = "#download") -> Path:
    with page.expect_download() as waiting:
        page.locator(button).click()
    return Path(waiting.value.path())


def look(page: Page) -> bytes:
    """The stage as it is seen."""
    page.evaluate("new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")
    return page.locator("#stage").screenshot()


# Pictures.


@pytest.mark.parametrize("kind", HANDS.values(), ids=list(HANDS))
def test_a_picture_is_chosen(visit: Opener, kind: type[Mouse]) -> None:
    page = visit(**kind.context)
    with page.expect_file_chooser() as chooser:
        kind(page).press("#choose")
    chooser.value.set_files(PICTURE)
    expect(page.locator("#empty")).to_be_hidden()
    assert np.array_equal(pixels(saved(page)), pixels(PICTURE))


@pytest.mark.parametrize("way", ["drop", "paste"])
def test_a_picture_is_dropped_or_pasted(visit: Opener, way: str) -> None:
    page = visit()
    page.evaluate(
        """([data, way]) => {
            const moved = new DataTransfer();
            const bytes = Uint8Array.from(atob(data), (c) => c.charCodeAt(0));
            moved.items.add(new File([bytes], "picture.png", { type: "image/png" }));
            const stage = document.getElementById("stage");
            const shared = { bubbles: true, cancelable: true };
            stage.dispatchEvent(way === "drop" ? new DragEvent("drop", { ...shared, dataTransfer: moved })
                : new ClipboardEvent("paste", { ...shared, clipboardData: moved }));
        }""",
        [base64.b64encode(PICTURE.read_bytes()).decode(), way],
    )
    expect(page.locator("#empty")).to_be_hidden()
    assert np.array_equal(pixels(saved(page)), pixels(PICTURE))


def test_a_file_that_is_no_picture_is_refused(visit: Opener) -> None:
    page = visit()
    page.locator("#file").set_input_files({"name": "a.png", "mimeType": "image/png", "buffer": b"not a picture"})
    expect(page.locator("#alert")).to_have_text("This browser cannot read a.png as a picture.")


# Photographs that are not square.


def photograph(folder: Path, width: int, height: int) -> Path:
    """A picture of two scenes side by side, in the given size."""
    scenes = [np.asarray(Image.open(SAMPLES / f"recolour-{i}.png").convert("RGB")) for i in (0, 1)]
    wide = Image.fromarray(np.concatenate(scenes, axis=1)[:, :192])
    wide.resize((width, height), Image.Resampling.LANCZOS).save(folder / "photograph.png")
    return folder / "photograph.png"


def opened(kind: type[Mouse], visit: Opener, file: Path) -> Any:
    page = visit(**kind.context)
    page.locator("#file").set_input_files(file)
    expect(page.locator("#status")).to_contain_text("The model sees the bright square")
    return kind(page)


BY_HAND = [("mouse", "crop"), ("mouse", "pad"), ("touch", "pad"), ("keys", "pad")]


@pytest.mark.parametrize(("kind", "fit"), BY_HAND)
def test_a_whole_photograph_comes_back_as_the_runtime_restores_it(
    visit: Opener, server: Server, tmp_path: Path, kind: str, fit: str
) -> None:
    photo = photograph(tmp_path, 192, 128)
    hand = opened(HANDS[kind], visit, photo)
    if fit == "pad":
        hand.choose_whole_picture()
    edit(hand, seed=3)
    result = pixels(saved(hand.page)).astype(int)
    expected = np.asarray(server.editor.edit(str(photo), WORDS, seed=3, fit=fit, restore=True).image).astype(int)
    assert result.shape == (128, 192, 3)
    if fit == "crop":
        assert np.array_equal(result[:, :32], pixels(photo)[:, :32])
        assert np.abs(result - expected).max() <= 2  # the seam's weights are rounded once more
    else:  # a browser enlarges by another filter than Lanczos
        assert np.abs(result - expected).mean() < 2 < np.abs(result - pixels(photo)).mean()


@pytest.mark.parametrize("kind", HANDS.values(), ids=list(HANDS))
def test_the_square_that_the_model_sees_is_moved(
    visit: Opener, server: Server, tmp_path: Path, kind: type[Mouse]
) -> None:
    photo = photograph(tmp_path, 192, 128)
    hand = opened(kind, visit, photo)
    hand.move_frame(1.5)
    edit(hand, seed=3)
    result = pixels(saved(hand.page))
    left = server.editor.edit(pixels(photo)[:, :128], WORDS, seed=3).image
    assert np.array_equal(result[:, :118], np.asarray(left)[:, :118])  # before the seam at the right
    assert np.array_equal(result[:, 128:], pixels(photo)[:, 128:])


@pytest.mark.parametrize("fit", ["crop", "pad"])
def test_outside_of_a_mask_a_photograph_keeps_every_pixel(visit: Opener, tmp_path: Path, fit: str) -> None:
    photo = photograph(tmp_path, 1500, 1000)
    hand = opened(Mouse, visit, photo)
    hand.page.locator(f"[name=fit][value={fit}]").check()
    hand.paint((0.4, 0.5), (0.6, 0.5), 1.5)
    with Image.open(saved(hand.page, "#mask-save")) as small:  # a pixel of it is two of the photograph
        around = small.resize((1500, 1000), Image.Resampling.NEAREST).filter(ImageFilter.MaxFilter(9))
    mask = np.asarray(around) > 0
    edit(hand, "make the cone red", seed=1)
    result, before = pixels(saved(hand.page)), pixels(photo)
    assert result.shape == before.shape
    assert np.array_equal(result[~mask], before[~mask])
    changed = np.abs(result[mask].astype(int) - before[mask]).max(axis=1) > 0
    assert changed.mean() > 0.8  # softer at least


@pytest.mark.parametrize(("kind", "fit"), [("mouse", "crop"), ("touch", "pad"), ("keys", "crop")])
def test_the_pixels_of_a_photograph_above_the_row_line_stay(
    visit: Opener, server: Server, tmp_path: Path, kind: str, fit: str
) -> None:
    hand = opened(HANDS[kind], visit, photograph(tmp_path, 480, 320))
    if fit == "pad":
        hand.choose_whole_picture()
    edit(hand, temperature="3", top_k="500", seed="1")
    before = pixels(saved(hand.page))
    top = hand.page.locator("#row")
    expect(top).to_have_attribute("aria-valuenow", "8" if fit == "crop" else "7")  # the last row lies in the padding
    hand.move_line(5, fit, 1.5)
    expect(top).to_have_attribute("aria-valuenow", "5")
    hand.press("#reroll")
    expect(hand.page.locator("#history li")).to_have_count(2)
    expect(hand.page.locator("#status")).to_contain_text("Done")
    after = pixels(saved(hand.page))
    line = 200 if fit == "crop" else 220  # 5 of 8 rows of 40 pixels, or of 60 that begin 80 above the picture
    assert np.array_equal(after[:line], before[:line])
    assert not np.array_equal(after[line:], before[line:])


def test_a_whole_photograph_tells_how_it_was_made(visit: Opener, tmp_path: Path) -> None:
    hand = opened(Mouse, visit, photograph(tmp_path, 480, 320))
    edit(hand, seed=4)
    with Image.open(saved(hand.page)) as result:
        told = result.text  # type: ignore[attr-defined]
    assert (told["editar:instruction"], told["editar:seed"]) == (WORDS, "4")
    hand.move_line(5, "crop", 1.5)
    hand.press("#reroll")
    expect(hand.page.locator("#history li")).to_have_count(2)
    with Image.open(saved(hand.page)) as result:
        assert result.text["editar:seed"] not in ("", "4")  # type: ignore[attr-defined]


def test_a_mask_that_the_model_does_not_see_is_told(visit: Opener, server: Server, tmp_path: Path) -> None:
    hand = opened(Mouse, visit, photograph(tmp_path, 192, 128))
    hand.paint((0.25, 0.5), (0.25, 0.6), 1.5)
    hand.page.locator("#at").evaluate(
        "(at) => { at.value = 100; at.dispatchEvent(new Event('input', { bubbles: true })) }"
    )
    before = len(server.works)
    begin(hand)
    expect(hand.page.locator("#alert")).to_contain_text("beside the bright square")
    assert len(server.works) == before
    hand.press("#clear")
    edit(hand)
    expect(hand.page.locator("#alert")).to_have_text("")


def test_a_photographs_result_is_used_again_after_the_page_was_closed(visit: Opener, tmp_path: Path) -> None:
    photo = photograph(tmp_path, 192, 128)
    hand = opened(Mouse, visit, photo)
    page = hand.page
    hand.move_frame(1.5)
    hand.paint((0.2, 0.5), (0.3, 0.5), 1.5)
    mask = painted(page)
    edit(hand, seed=4)
    before = pixels(saved(page))
    hand.press("#history [title=Keep]")
    expect(page.locator("#history [title=Keep]")).to_have_attribute("aria-pressed", "true")
    page.reload()
    hand.press("#history .look")
    expect(page.locator("#canvas")).to_have_attribute("aria-label", "Result with seed 4, and mask")
    assert np.array_equal(pixels(saved(page)), before)
    hand.press("#history [title='Use again']")
    expect(page.locator("#at")).to_have_value("0")
    assert painted(page) == mask > 0
    hand.press("#edit")
    expect(page.locator("#status")).to_contain_text("Done")
    assert np.array_equal(pixels(saved(page)), before)


def test_a_result_of_another_picture_is_only_looked_at(visit: Opener, tmp_path: Path) -> None:
    hand = opened(Mouse, visit, photograph(tmp_path, 192, 128))
    edit(hand)
    hand.page.locator("#file").set_input_files(PICTURE)
    expect(hand.page.locator("#status")).to_contain_text("Paint over")
    hand.press("#history .look")
    expect(hand.page.locator("#canvas")).to_have_attribute("aria-label", "Result with seed 1, and mask")
    hand.paint((0.3, 0.6), (0.7, 0.6))
    expect(hand.page.locator("#masked")).to_contain_text("No mask")
    hand.press("#views .tile:first-child")
    hand.paint((0.3, 0.6), (0.7, 0.6))
    assert painted(hand.page) > 0


@pytest.mark.parametrize(
    ("name", "size"),
    [("turned.jpg", (60, 90)), ("clear.png", (90, 60)), ("moving.gif", (90, 60)), ("tall.webp", (30, 300))],
)
def test_pictures_of_many_kinds_are_edited(visit: Opener, tmp_path: Path, name: str, size: tuple[int, int]) -> None:
    file = tmp_path / name
    with Image.open(PICTURE) as image:
        picture = image.convert("RGB").resize((90, 60) if name != "tall.webp" else size)
    if name == "turned.jpg":
        turned = Image.Exif()
        turned[0x112] = 6  # the camera was upright
        picture.save(file, exif=turned)
    elif name == "clear.png":
        picture.putalpha(0)
        picture.save(file)
    else:
        more = [picture.rotate(180)] if name == "moving.gif" else []
        picture.save(file, save_all=bool(more), append_images=more)
    hand = opened(Mouse, visit, file)
    expect(hand.page.locator("#status")).to_contain_text(f"{size[0]} × {size[1]} pixels")
    edit(hand)
    grown = 128 / min(size)  # the result has more pixels than the picture
    assert pixels(saved(hand.page)).shape == (round(size[1] * grown), round(size[0] * grown), 3)
    if name == "clear.png":  # as the server blends it
        assert pixels(saved(hand.page))[:, :15].min() > 250


# The mask.


def test_the_brush_paints_and_the_eraser_erases(hand: Any) -> None:
    hand.paint((0.3, 0.6), (0.7, 0.6))
    full = painted(hand.page)
    assert 3 <= full <= 9
    hand.press("#tool-eraser")
    hand.paint((0.4, 0.6), (0.6, 0.6))
    assert 0 < painted(hand.page) < full


def test_strokes_are_undone_and_redone(hand: Any) -> None:
    hand.paint((0.3, 0.3), (0.3, 0.3))
    one = painted(hand.page)
    hand.paint((0.3, 0.7), (0.6, 0.7))
    two = painted(hand.page)
    while painted(hand.page) > one:  # a key press is a stroke
        hand.press("#undo")
    assert painted(hand.page) == one < two
    while not hand.page.locator("#redo").is_disabled():
        hand.press("#redo")
    assert painted(hand.page) == two


def test_undo_does_not_reach_the_mask_of_another_picture(hand: Any) -> None:
    hand.paint((0.3, 0.3), (0.3, 0.3))
    hand.page.locator("#file").set_input_files(SAMPLES / "recolour-1.png")
    expect(hand.page.locator("#masked")).to_contain_text("No mask")
    expect(hand.page.locator("#undo")).to_be_disabled()


def test_the_mask_is_inverted_and_cleared(hand: Any) -> None:
    hand.paint((0.3, 0.6), (0.7, 0.6))
    before = painted(hand.page)
    hand.press("#invert")
    assert painted(hand.page) + before in (99, 100, 101)
    hand.press("#clear")
    expect(hand.page.locator("#masked")).to_contain_text("No mask")
    hand.press("#undo")
    assert painted(hand.page) + before in (99, 100, 101)


def test_the_mask_is_saved_as_the_command_line_reads_it_and_loaded_again(hand: Any) -> None:
    hand.paint((0.3, 0.6), (0.7, 0.6))
    before, file = painted(hand.page), saved(hand.page, "#mask-save")
    with Image.open(file) as mask:
        assert mask.mode == "L"
    share = read_mask(str(file), (SIDE, SIDE), SIDE).mean()
    assert abs(100 * share - before) < 2  # a pixel of the square counts if any of it is painted
    hand.press("#clear")
    with hand.page.expect_file_chooser() as chooser:
        hand.press("#mask-load")
    chooser.value.set_files({"name": "mask.png", "mimeType": "image/png", "buffer": file.read_bytes()})
    expect(hand.page.locator("#masked")).to_have_text(f"Mask {before} %")


def test_where_a_loaded_mask_is_transparent_the_picture_may_change(visit: Opener, tmp_path: Path) -> None:
    mask = np.full((64, 64, 4), 255, np.uint8)
    mask[:16, :, 3] = 0
    Image.fromarray(mask).save(tmp_path / "mask.png")
    page = visit()
    page.locator("#file").set_input_files(PICTURE)
    page.locator("#mask-file").set_input_files(tmp_path / "mask.png")
    expect(page.locator("#masked")).to_have_text("Mask 25 %")


def test_keys_change_the_brush(visit: Opener) -> None:
    page = visit()
    page.locator("#file").set_input_files(PICTURE)
    expect(page.locator("#tools")).to_be_visible()
    page.locator("#canvas").focus()
    before = int(page.locator("#size").input_value())
    page.keyboard.press("]")
    assert int(page.locator("#size").input_value()) > before
    page.keyboard.press("[")
    page.keyboard.press("[")
    assert int(page.locator("#size").input_value()) < before
    page.keyboard.press("e")
    expect(page.locator("#tool-eraser")).to_have_attribute("aria-pressed", "true")


def test_a_pen_paints_by_its_pressure_and_erases_with_its_other_end(visit: Opener) -> None:
    page = visit()
    page.locator("#file").set_input_files(PICTURE)
    expect(page.locator("#tools")).to_be_visible()

    def stroke(force: float, button: int) -> int:
        """By the events of a pen, which no driver of browsers has."""
        page.evaluate(
            """([pressure, button]) => {
                const canvas = document.getElementById("canvas");
                const { x, y, width, height } = canvas.getBoundingClientRect();
                canvas.setPointerCapture = () => {};
                const shared = { pointerType: "pen", pointerId: 9, pressure, button, bubbles: true };
                const at = { clientX: x + width / 2, clientY: y + height / 2, ...shared };
                canvas.dispatchEvent(new PointerEvent("pointerdown", at));
                canvas.dispatchEvent(new PointerEvent("pointermove", { ...at, clientX: at.clientX + 150 }));
                canvas.dispatchEvent(new PointerEvent("pointerup", at));
            }""",
            [force, button],
        )
        return painted(page)

    light = stroke(0.2, 0)
    page.locator("#clear").click()
    assert stroke(1.0, 0) > light > 0
    assert stroke(1.0, 5) == 0


def test_a_stroke_before_the_first_frame_lands_where_it_was_made(visit: Opener) -> None:
    page = visit()
    page.evaluate(
        """() => new MutationObserver(() => {
            const canvas = document.getElementById("canvas");
            const { x, y, width, height } = canvas.getBoundingClientRect();
            canvas.setPointerCapture = () => {};
            const at = { pointerType: "mouse", clientX: x + width / 2, clientY: y + height / 2 };
            canvas.dispatchEvent(new PointerEvent("pointerdown", at));
            canvas.dispatchEvent(new PointerEvent("pointerup", at));
        }).observe(document.getElementById("status"), { childList: true })"""
    )
    page.locator("#file").set_input_files(PICTURE)
    expect(page.locator("#masked")).to_contain_text("Mask 1 %")  # a dot in the middle


# The view.


def test_the_view_is_zoomed_moved_and_fitted(hand: Any) -> None:
    fitted, zoom = look(hand.page), hand.page.locator("#fit")
    before = zoom.text_content()
    hand.zoom_in()
    nearer = look(hand.page)
    assert int((zoom.text_content() or "").split()[0]) > int((before or "").split()[0])
    hand.pan()
    assert look(hand.page) not in (fitted, nearer)
    hand.page.keyboard.press("0")
    expect(zoom).to_have_text(before or "")
    expect(hand.page.locator("#masked")).to_contain_text("No mask")  # two fingers do not paint


# Edits.


def test_a_result_appears_row_by_row_and_is_the_runtimes_own(hand: Any, server: Server) -> None:
    hand.paint((0.6, 0.3), (0.8, 0.3))
    mask = saved(hand.page, "#mask-save")
    server.hold(3)
    begin(hand, seed=4)
    expect(hand.page.locator("#status")).to_have_text("Row 3 of 8")
    held = look(hand.page)
    server.release()
    expect(hand.page.locator("#status")).to_contain_text("Done")
    assert look(hand.page) != held
    expected = server.editor.edit(str(PICTURE), WORDS, seed=4, mask=str(mask)).image
    assert np.array_equal(pixels(saved(hand.page)), np.asarray(expected))
    assert painted(hand.page) > 0  # it stays for the next try


def test_an_edit_is_stopped(hand: Any, server: Server) -> None:
    server.hold(3)
    begin(hand)
    expect(hand.page.locator("#status")).to_have_text("Row 3 of 8")
    if isinstance(hand, Keys):
        hand.page.keyboard.press("Escape")
    else:
        hand.press("#stop")
    expect(hand.page.locator("#status")).to_have_text("Stopped at row 3 of 8")
    server.release()
    server.wait_until_idle()
    expect(hand.page.locator("#history li")).to_have_count(0)
    edit(hand)


def test_variants_lie_side_by_side_and_one_is_taken_further(hand: Any, server: Server) -> None:
    edit(hand, seed=5, n="3")
    hand.press("#beside")
    expect(hand.page.locator("#sheet .tile")).to_have_count(4)
    hand.press("#sheet .tile:nth-child(4)")
    expect(hand.page.locator("#canvas")).to_have_attribute("aria-label", "Result with seed 7, and mask")
    third = pixels(saved(hand.page))
    assert np.array_equal(third, np.asarray(server.editor.edit(str(PICTURE), WORDS, seed=7).image))
    hand.press("#further")
    edit(hand, "remove the cube", seed=0, n="1")
    expected = server.editor.edit(third, "remove the cube", seed=0).image
    assert np.array_equal(pixels(saved(hand.page)), np.asarray(expected))


def test_the_source_is_seen_while_compare_is_held(hand: Any) -> None:
    hand.press("#tool-hand")  # which shows no brush
    source = look(hand.page)
    edit(hand)
    hand.page.locator("#rowline").evaluate("(line) => line.style.visibility = 'hidden'")
    result = look(hand.page)
    with hand.holding("#compare"):
        assert look(hand.page) == source
    assert look(hand.page) == result != source


def test_the_row_line_draws_the_rows_below_it_again(hand: Any, server: Server) -> None:
    edit(hand, temperature="3", top_k="500", seed="1")
    before = pixels(saved(hand.page))
    expect(hand.page.locator("#row")).to_have_attribute("aria-valuenow", str(GRID))
    hand.move_line(5)
    expect(hand.page.locator("#row")).to_have_attribute("aria-valuenow", "5")
    hand.press("#reroll")
    expect(hand.page.locator("#history li")).to_have_count(2)
    expect(hand.page.locator("#status")).to_contain_text("Done")
    after = pixels(saved(hand.page))
    assert np.array_equal(after[: 5 * CELL], before[: 5 * CELL])
    assert not np.array_equal(after[5 * CELL :], before[5 * CELL :])
    expect(hand.page.locator("#history li").first).to_contain_text("from row 6")
    kept = server.works[-1].kept
    assert kept is not None and len(kept) == 5 * GRID


# The history.


def test_a_result_is_used_again_with_its_picture_mask_and_settings(hand: Any) -> None:
    hand.paint((0.6, 0.3), (0.8, 0.3))
    mask = painted(hand.page)
    edit(hand, seed=11, cfg_scale="2.5")
    before = pixels(saved(hand.page))
    expect(hand.page.locator("#history li")).to_contain_text("seed 11 · guidance 2.5 · masked")
    hand.page.locator("#file").set_input_files(SAMPLES / "recolour-1.png")
    expect(hand.page.locator("#masked")).to_contain_text("No mask")
    hand.page.locator("#prompt").fill("something else")
    hand.press("#history [title='Use again']")
    expect(hand.page.locator("#prompt")).to_have_value(WORDS)
    assert painted(hand.page) == mask
    hand.press("#edit")
    expect(hand.page.locator("#history li")).to_have_count(2)
    expect(hand.page.locator("#status")).to_contain_text("Done")
    assert np.array_equal(pixels(saved(hand.page)), before)


def test_a_mask_that_using_a_result_again_replaces_is_undone(hand: Any) -> None:
    edit(hand)
    hand.paint((0.6, 0.3), (0.8, 0.3))
    before = painted(hand.page)
    hand.press("#history [title='Use again']")
    expect(hand.page.locator("#masked")).to_contain_text("No mask")
    hand.press("#undo")
    assert painted(hand.page) == before > 0


def test_kept_results_outlive_the_page_and_deleted_ones_do_not(hand: Any) -> None:
    page = hand.page
    for seed in (1, 2, 3):
        edit(hand, seed=seed)
        expect(page.locator("#history li")).to_have_count(seed)
    hand.press("#history li:nth-child(2) [title=Keep]")
    expect(page.locator("#history li:nth-child(2) [title=Keep]")).to_have_attribute("aria-pressed", "true")
    hand.press("#history li:nth-child(1) [title=Delete]")
    expect(page.locator("#history li")).to_have_count(2)
    page.reload()
    expect(page.locator("#history li")).to_have_count(1)
    expect(page.locator("#history li")).to_contain_text("seed 2")
    hand.press("#history .look")
    expect(page.locator("#canvas")).to_have_attribute("aria-label", "Result with seed 2, and mask")
    hand.press("#history [title=Delete]")
    expect(page.locator("#history li")).to_have_count(0)
    page.reload()
    expect(page.locator("#model")).to_contain_text("pixels")
    expect(page.locator("#history li")).to_have_count(0)


# What a server may answer.


def test_a_wrong_setting_is_told_in_the_servers_words(browser: Browser, server: Server) -> None:
    page = browser.new_page()
    page.goto(server.url)
    page.locator("#file").set_input_files(PICTURE)
    expect(page.locator("#tools")).to_be_visible()
    begin(Mouse(page), temperature="warm")
    expect(page.locator("#alert")).to_have_text("Temperature must be a number, got 'warm'.")
    expect(page.locator("#status")).to_have_text("Not finished")
    page.close()


def test_a_stream_that_ends_early_is_no_result(visit: Opener) -> None:
    page = visit()
    page.route("**/edits", lambda route: route.fulfill(body=": still here\n\n", content_type="text/event-stream"))
    page.locator("#file").set_input_files(PICTURE)
    expect(page.locator("#tools")).to_be_visible()
    begin(Mouse(page))
    expect(page.locator("#alert")).to_have_text("The connection ended before the result.")
    expect(page.locator("#status")).to_have_text("Not finished")


def test_a_busy_server_is_asked_again(browser: Browser, server: Server) -> None:
    page = browser.new_page()
    answers = iter([True])
    busy = {"status": 429, "headers": {"retry-after": "1"}, "body": '{"error": {"message": "all places are taken"}}'}
    page.route("**/edits", lambda route: route.fulfill(**busy) if next(answers, False) else route.continue_())
    page.goto(server.url)
    page.locator("#file").set_input_files(PICTURE)
    begin(Mouse(page))
    expect(page.locator("#status")).to_have_text("The server is busy; trying again in 1 s")
    expect(page.locator("#status")).to_contain_text("Done")
    page.close()


def test_a_server_with_a_key_is_given_it(browser: Browser) -> None:
    with Server(key="secret") as locked:
        page = browser.new_page()
        page.goto(locked.url)
        for key, title in (("wrong", "This server asks for a key"), ("secret", "That is not the server's key")):
            expect(page.locator("#ask")).to_be_visible()
            expect(page.locator("#ask-title")).to_have_text(title)
            page.locator("#key").fill(key)
            page.locator("#ask .main").click()
        expect(page.locator("#model")).to_contain_text("128 × 128 pixels")
        page.locator("#file").set_input_files(PICTURE)
        edit(Mouse(page))
        page.close()


# What goes wrong, and what is done twice.


@pytest.fixture
def mouse(visit: Opener) -> Mouse:
    """The page with a picture in it, and a mouse."""
    page = visit()
    page.locator("#file").set_input_files(PICTURE)
    expect(page.locator("#status")).to_contain_text("Paint over")
    page.locator("#prompt").fill(WORDS)
    return Mouse(page)


def test_a_double_click_on_edit_does_not_stop_it_and_one_on_stop_does_not_edit_again(
    mouse: Mouse, server: Server
) -> None:
    before = len(server.works)
    server.hold(3)
    mouse.page.locator("#edit").dblclick()
    expect(mouse.page.locator("#status")).to_have_text("Row 3 of 8")
    mouse.page.locator("#stop").dblclick()
    expect(mouse.page.locator("#status")).to_have_text("Stopped at row 3 of 8")
    expect(mouse.page.locator("#edit")).to_be_visible()
    assert len(server.works) == before + 1


def test_enter_that_is_held_on_edit_does_not_go_on_to_stop(mouse: Mouse, server: Server) -> None:
    page = mouse.page
    server.hold(3)
    page.locator("#edit").focus()
    for _ in range(4):
        page.keyboard.down("Enter")  # from the second on they are repetitions
    expect(page.locator("#stop")).to_be_focused()
    expect(page.locator("#status")).to_have_text("Row 3 of 8")
    page.keyboard.up("Enter")
    server.release()
    expect(page.locator("#status")).to_contain_text("Done")
    expect(page.locator("#edit")).to_be_focused()


def test_an_edit_that_is_stopped_before_its_first_row_leaves_the_source(mouse: Mouse, server: Server) -> None:
    server.hold(0)
    mouse.press("#edit")
    expect(mouse.page.locator("#status")).to_have_text("Reading the picture…")
    mouse.press("#stop")
    expect(mouse.page.locator("#status")).to_have_text("Stopped")
    expect(mouse.page.locator("#canvas")).to_have_attribute("aria-label", "Source picture, and mask")


def test_an_edit_is_stopped_while_the_server_says_nothing(mouse: Mouse, server: Server) -> None:
    before = len(server.works)
    mouse.page.route("**/v1/models", lambda route: None)  # which is never answered
    mouse.press("#edit")
    mouse.press("#stop")
    expect(mouse.page.locator("#status")).to_have_text("Stopped")
    mouse.page.unroute("**/v1/models")
    edit(mouse)
    assert len(server.works) == before + 1


def test_a_page_that_is_left_frees_its_rows(mouse: Mouse, server: Server) -> None:
    server.hold(3)
    mouse.press("#edit")
    expect(mouse.page.locator("#status")).to_have_text("Row 3 of 8")
    mouse.page.reload()
    server.release()
    server.wait_until_idle()
    expect(mouse.page.locator("#model")).to_contain_text("pixels")


def test_a_picture_that_is_opened_in_an_edit_does_not_disturb_it(mouse: Mouse, server: Server) -> None:
    page = mouse.page
    server.hold(3)
    begin(mouse, seed=6)
    expect(page.locator("#status")).to_have_text("Row 3 of 8")
    page.locator("#file").set_input_files(SAMPLES / "recolour-1.png")
    expect(page.locator("#status")).to_contain_text("Paint over")
    server.release()
    expect(page.locator("#history li")).to_have_count(1)
    expect(page.locator("#canvas")).to_have_attribute("aria-label", "Source picture, and mask")
    assert np.array_equal(pixels(saved(page)), pixels(SAMPLES / "recolour-1.png"))
    mouse.press("#history .look")
    expect(page.locator("#canvas")).to_have_attribute("aria-label", "Result with seed 6, and mask")
    assert np.array_equal(pixels(saved(page)), np.asarray(server.editor.edit(str(PICTURE), WORDS, seed=6).image))


def test_of_two_pictures_the_one_that_was_opened_last_stays(mouse: Mouse, tmp_path: Path) -> None:
    Image.new("RGB", (6000, 2600), "navy").save(tmp_path / "slow.png")
    mouse.page.locator("#file").set_input_files(tmp_path / "slow.png")
    mouse.page.locator("#file").set_input_files(SAMPLES / "recolour-1.png")
    mouse.page.wait_for_timeout(1500)  # until the slow one has been read too
    assert np.array_equal(pixels(saved(mouse.page)), pixels(SAMPLES / "recolour-1.png"))


def test_a_number_of_variants_that_cannot_be_is_not_asked_for(mouse: Mouse, server: Server) -> None:
    edit(mouse)
    before = len(server.works)
    for number in ("-1", "0", "99"):
        mouse.page.locator("#n").fill(number)
        mouse.press("#edit")
        mouse.page.locator("#row").focus()
        mouse.page.keyboard.press("ArrowUp")
        mouse.press("#reroll")
    expect(mouse.page.locator("#status")).to_contain_text("Done")
    assert len(server.works) == before


@pytest.mark.parametrize(("start", "end", "row"), [(1, -3, 0), (0, 4, GRID)], ids=["above", "below"])
def test_the_row_line_stays_on_the_picture(mouse: Mouse, start: float, end: float, row: int) -> None:
    edit(mouse)
    handle = mouse.page.locator("#row")
    mouse.move_line(round(start * GRID))
    mouse._drag(place(mouse.page, 0.5, start), place(mouse.page, 0.5, end))
    expect(handle).to_have_attribute("aria-valuenow", str(row))


def test_three_fingers_neither_paint_nor_stick(visit: Opener) -> None:
    page = visit(**Touch.context)
    page.locator("#file").set_input_files(PICTURE)
    expect(page.locator("#status")).to_contain_text("Paint over")
    hand = Touch(page)
    spread = [place(page, x, 0.5) for x in (0.3, 0.5, 0.7)]
    hand._fingers(spread, [place(page, x, 0.6) for x in (0.2, 0.5, 0.8)])
    expect(page.locator("#masked")).to_contain_text("No mask")
    page.keyboard.press("0")
    hand.paint((0.3, 0.6), (0.7, 0.6))
    assert painted(page) > 0


def test_a_stroke_beside_the_picture_paints_where_it_crosses_it(mouse: Mouse) -> None:
    mouse.paint((-0.04, 0.5), (1.04, 0.5))
    assert 9 <= painted(mouse.page) <= 13
    mouse.press("#clear")
    mouse.paint((-0.2, 0.1), (-0.15, 0.9))
    expect(mouse.page.locator("#masked")).to_contain_text("No mask")


def trouble(browser: Browser, server: Server, script: str = "") -> Page:
    """A page in which errors may be logged."""
    context = browser.new_context(**Mouse.context)
    context.add_init_script(script)
    page = context.new_page()
    page.goto(server.url)
    page.locator("#file").set_input_files(PICTURE)
    expect(page.locator("#tools")).to_be_visible()
    page.locator("#prompt").fill(WORDS)
    return page


def assert_nothing_is_kept(page: Page) -> None:
    """An edit has a result; to keep it fails in a sentence. Closes the page."""
    edit(Mouse(page))
    page.locator("#history [title=Keep]").click()
    expect(page.locator("#alert")).to_have_text("This browser cannot keep it: its store is full or turned off.")
    expect(page.locator("#history [title=Keep]")).to_have_attribute("aria-pressed", "false")
    page.context.close()


def test_a_browser_that_stores_nothing_still_edits_and_says_so(browser: Browser, server: Server) -> None:
    page = trouble(
        browser,
        server,
        """for (const name of ["indexedDB", "sessionStorage"])
            Object.defineProperty(window, name, { get() { throw new DOMException("denied", "SecurityError") } })""",
    )
    expect(page.locator("#model")).to_contain_text("pixels")
    assert_nothing_is_kept(page)


def test_a_store_that_is_full_keeps_nothing_and_says_so(browser: Browser, server: Server) -> None:
    page = trouble(
        browser,
        server,
        """const put = IDBObjectStore.prototype.put
        IDBObjectStore.prototype.put = function (value) {  // as a browser ends a transaction for which there is no room
            const request = put.call(this, value)
            request.addEventListener("success", () => this.transaction.abort())
            return request
        }""",
    )
    assert_nothing_is_kept(page)


def test_a_lost_connection_is_told_and_the_next_edit_goes_on(browser: Browser, server: Server) -> None:
    page = trouble(browser, server)
    page.context.set_offline(True)
    page.locator("#edit").click()
    expect(page.locator("#alert")).to_have_text("The server cannot be reached; is editar serve still running?")
    expect(page.locator("#status")).to_have_text("Not finished")
    page.context.set_offline(False)
    edit(Mouse(page))
    expect(page.locator("#alert")).to_have_text("")
    page.context.close()


def test_a_page_that_was_opened_too_early_learns_of_the_model_when_it_edits(browser: Browser, server: Server) -> None:
    page = browser.new_page(**Mouse.context)
    page.route("**/v1/models", lambda route: route.abort())
    page.goto(server.url)
    expect(page.locator("#alert")).to_contain_text("cannot be reached")
    page.unroute("**/v1/models")
    page.locator("#file").set_input_files(PICTURE)
    expect(page.locator("#tools")).to_be_visible()
    server.hold(3)
    begin(Mouse(page))
    expect(page.locator("#status")).to_have_text("Row 3 of 8")
    server.release()
    expect(page.locator("#status")).to_contain_text("Done")
    expect(page.locator("#model")).to_contain_text("128 × 128 pixels")
    page.close()


def test_rows_of_another_model_are_not_kept(mouse: Mouse, server: Server) -> None:
    page = mouse.page
    edit(mouse)

    def other(route: Route) -> None:
        described = route.fetch().json()
        described["data"][0]["editar"].update(bundle="another", rows=16, size=256)
        route.fulfill(json=described)

    page.route("**/v1/models", other)
    mouse.move_line(4)
    mouse.press("#reroll")
    expect(page.locator("#alert")).to_have_text("Another model made this result; edit it anew.")
    expect(page.locator("#model")).to_contain_text("256 × 256 pixels")
    page.unroute("**/v1/models")
    edit(mouse)
    expect(page.locator("#model")).to_contain_text("128 × 128 pixels")


def test_two_tabs_keep_results_for_each_other(visit: Opener) -> None:
    first = visit()
    second = first.context.new_page()
    second.goto(first.url)
    for seed, page in enumerate((first, second)):
        page.locator("#file").set_input_files(PICTURE)
        expect(page.locator("#tools")).to_be_visible()
        edit(Mouse(page), seed=seed)
        page.locator("#history [title=Keep]").click()
        expect(page.locator("#history [title=Keep]")).to_have_attribute("aria-pressed", "true")
    first.reload()
    expect(first.locator("#history li")).to_have_count(2)


def test_keys_alone_go_from_a_picture_to_its_saved_result(visit: Opener, server: Server) -> None:
    page = visit()
    choosers: list[FileChooser] = []
    page.on("filechooser", lambda chooser: choosers.append(chooser))
    for _ in range(50):  # the browser drops keys before its first frame
        page.keyboard.press("o")
        page.wait_for_timeout(200)
        if choosers:
            break
    choosers[0].set_files(PICTURE)
    expect(page.locator("#canvas")).to_be_focused()
    page.keyboard.press("Enter")  # a dot in the middle
    for _ in range(40):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.id") == "prompt":
            break
    page.keyboard.type("make the cone red")
    page.keyboard.press("Tab")
    page.keyboard.press("Tab")
    expect(page.locator("#edit")).to_be_focused()
    page.keyboard.press("Enter")
    expect(page.locator("#status")).to_contain_text("Done")
    with page.expect_download() as waiting:
        page.keyboard.press("s")
    assert pixels(Path(waiting.value.path())).shape == (SIDE, SIDE, 3)
    assert server.works[-1].request.mask is not None


def test_every_control_has_a_name_of_its_own_for_those_who_hear_it(mouse: Mouse) -> None:
    edit(mouse, n="2")
    controls = mouse.page.get_by_role("button").all() + mouse.page.get_by_role("slider").all()
    names = [
        each.evaluate("(e) => e.ariaLabel || e.innerText.trim() || e.title || e.labels?.[0]?.innerText")
        for each in controls
        if each.is_visible()
    ]
    assert len(names) > 20 and all(names)
    assert sorted(set(names)) == sorted(names)


# How it is made.


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("kind", [Mouse, Touch], ids=["wide", "narrow"])
def test_axe_finds_nothing_to_mend(visit: Opener, server: Server, tools: Path, scheme: str, kind: type[Mouse]) -> None:
    page = visit(**kind.context, color_scheme=scheme)
    page.evaluate((tools / "axe-core" / "axe.min.js").read_text(encoding="utf-8") + "; 0")

    def check() -> None:
        found = page.evaluate("axe.run()")["violations"]
        assert [(each["id"], each["nodes"][0]["target"], each["help"]) for each in found] == []

    check()
    page.locator("#file").set_input_files(PICTURE)
    expect(page.locator("#tools")).to_be_visible()
    hand = kind(page)
    hand.paint((0.3, 0.6), (0.7, 0.6))
    check()
    server.hold(3)
    begin(hand, n="2")
    expect(page.locator("#status")).to_contain_text("Row 3 of 8")
    check()
    server.release()
    expect(page.locator("#status")).to_contain_text("Done")
    hand.move_line(4)
    check()
    hand.press("#beside")
    check()


def test_its_types_are_sound(tools: Path) -> None:
    modules = sorted(PAGE.glob("*.js"))
    assert modules
    command = [tools / ".bin" / "tsc", *CHECKED, *LIBRARIES, PAGE.with_name("page.d.ts"), *modules]
    ran = subprocess.run(command, capture_output=True, text=True)
    assert (ran.returncode, ran.stdout) == (0, "")


def test_browsers_ask_for_new_versions_of_its_files(server: Server) -> None:
    for path in ("", "page/page.js", "page/page.css"):
        with urllib.request.urlopen(server.url + path) as answer:
            assert answer.headers["cache-control"] == "no-cache"


def test_its_files_are_small_in_the_wheel_and_on_their_way(server: Server) -> None:
    sent = 0
    for path in PAGE.iterdir():
        address = server.url + ("" if path.name == "index.html" else f"page/{path.name}")
        request = urllib.request.Request(address, headers={"accept-encoding": "gzip"})
        with urllib.request.urlopen(request) as answer:
            content = answer.read()
            assert (answer.headers["content-encoding"] == "gzip") == (path.stat().st_size > 500)
        sent += len(content)
        assert (gzip.decompress(content) if content[:2] == b"\x1f\x8b" else content) == path.read_bytes()
    assert sent <= MOST_BYTES
    assert sum(len(zlib.compress(path.read_bytes())) for path in PAGE.iterdir()) <= MOST_BYTES
