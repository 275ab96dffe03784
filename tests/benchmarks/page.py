"""The page's figures in Chromium over the demo: its bytes, from a click to the first row, from a click to a stop.

    python -m tests.benchmarks.page [--repeats N] [--picture OUT.png] [--photograph OUT.png]

Every row is previewed, so that the first one is seen. For the stop, steps are slowed to 20 ms, so that there is time to
stop one. `--picture` writes the README's screenshot, `--photograph` one of a picture that is not square. The last line
of stdout is one JSON document.
"""

from __future__ import annotations

import argparse
import io
import json
import statistics
import time
import zlib
from pathlib import Path
from typing import Any

from PIL import Image
from playwright.sync_api import Page, expect, sync_playwright

from editar_rt.batch import Batch
from editar_rt.server.app import PAGE
from tests.runtime.demo import PICTURE, WORDS
from tests.server.browser import Mouse, Server

WIDE = Path(__file__).parents[2] / "docs" / "editing" / "wide.png"
STEP_SECONDS = 0.02
COLORS = 256
UNTIL = """async ([button, words]) => {
    const status = document.getElementById("status");
    const begun = performance.now();
    document.getElementById(button).click();
    while (!status.textContent.includes(words)) {
        await new Promise((done) => {
            const seen = new MutationObserver(() => { seen.disconnect(); done(); });
            seen.observe(status, { childList: true, characterData: true, subtree: true });
        });
    }
    return performance.now() - begun;
}"""


expect.set_options(timeout=60_000)  # milliseconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--picture", type=Path)
    parser.add_argument("--photograph", type=Path)
    given = parser.parse_args()
    files = {path.name: path.read_bytes() for path in sorted(PAGE.iterdir())}
    figures: dict[str, Any] = {
        "bytes": sum(map(len, files.values())),
        "deflated_bytes": sum(len(zlib.compress(content)) for content in files.values()),
    }
    with Server() as server, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path="/usr/bin/chromium", args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1200, "height": 760})
        page.goto(server.url)
        page.locator("#file").set_input_files(PICTURE)
        expect(page.locator("#tools")).to_be_visible()
        page.locator("#prompt").fill(WORDS)
        figures["first_row_ms"] = [first_row(page) for _ in range(given.repeats)]
        figures["stop_ms"], figures["row_free_ms"] = zip(*(stop(page, server) for _ in range(given.repeats)))
        for name in ("first_row_ms", "stop_ms", "row_free_ms"):
            print(f"{name}: median {statistics.median(figures[name]):.1f}, most {max(figures[name]):.1f}")
        if given.picture:
            page.reload()
            show(page, given.picture)
        if given.photograph:
            page.reload()
            show_photograph(page, given.photograph)
        browser.close()
    print(json.dumps(figures))


def first_row(page: Page) -> float:
    """Milliseconds from the click on Edit until the first rows are on the stage."""
    page.locator("#status").evaluate("(status) => { status.textContent = '' }")
    passed = page.evaluate(UNTIL, ["edit", "Row "])
    expect(page.locator("#status")).to_contain_text("Done")
    return float(passed)


def stop(page: Page, server: Server) -> tuple[float, float]:
    """Milliseconds from the click on Stop until the page says so, and until the server has the rows back."""
    step = Batch.step

    def slowly(batch: Batch) -> Any:
        time.sleep(STEP_SECONDS)
        return step(batch)

    Batch.step = slowly  # type: ignore[method-assign]
    page.locator("#edit").click()
    expect(page.locator("#status")).to_contain_text("Row ")
    begun = time.perf_counter()
    said = page.evaluate(UNTIL, ["stop", "Stopped"])
    server.wait_until_idle()
    free = 1000 * (time.perf_counter() - begun)
    Batch.step = step  # type: ignore[method-assign]
    return float(said), free


def show(page: Page, file: Path) -> None:
    """A screenshot: a masked edit with three variants, and the row line drawn up."""
    hand = Mouse(page)
    page.locator("#file").set_input_files(PICTURE)
    expect(page.locator("#tools")).to_be_visible()
    page.locator("#n").fill("3")
    page.locator("[name=seed]").evaluate("(field) => { field.value = '1' }")
    for words in ("turn the blue ball green", "make the cone red"):
        page.locator("#prompt").fill(words)
        page.locator("#edit").click()
        expect(page.locator("#status")).to_contain_text("Done")
        page.locator("#views .tile").first.click()
        for y in (0.52, 0.62, 0.72, 0.82):
            hand.paint((0.42, y), (0.68, y))
    page.locator("#prompt").fill("make the cone purple")
    page.locator("#edit").click()
    expect(page.locator("#status")).to_contain_text("Done")
    hand.move_line(6)
    save(page, file)


def show_photograph(page: Page, file: Path) -> None:
    """A screenshot: a wide picture, the square that the model sees, and a mask over a thing in it."""
    hand = Mouse(page)
    page.locator("#file").set_input_files(WIDE)
    expect(page.locator("#tools")).to_be_visible()
    with Image.open(WIDE) as image:
        ratio = image.width / image.height
    page.locator("#at").evaluate("(at) => { at.value = 4; at.dispatchEvent(new Event('input', { bubbles: true })) }")
    for y in (0.18, 0.28, 0.38, 0.48, 0.58):
        hand.paint((0.15, y), (0.35, y), ratio)
    page.locator("#prompt").fill("make the gem red")
    save(page, file)


def save(page: Page, file: Path) -> None:
    page.mouse.move(2, 2)
    seen = Image.open(io.BytesIO(page.screenshot())).convert("RGB")
    small = seen.resize((1000, round(1000 * seen.height / seen.width)), Image.Resampling.LANCZOS)
    small.quantize(palette=small.quantize(COLORS), dither=Image.Dither.FLOYDSTEINBERG).save(file, optimize=True)


if __name__ == "__main__":
    main()
