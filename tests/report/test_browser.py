"""The page as a browser shows it, at a desk and on a telephone, by mouse and by keyboard.

Needs Chromium on the path and Playwright; without them these tests are skipped.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from curves import curve

from rdquant.report import Inputs, Matched, write_report
from rdquant.report.matched import Version

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


#: class, left, top, right, bottom of what is laid out
BOXES = """() => [...document.querySelectorAll(
    "h1, h2, p, figcaption, .controls label, .stage, .slide, .plot, .wide")]
    .filter(e => e.checkVisibility()).map(e => { const r = e.getBoundingClientRect();
    return [e.className || e.tagName, r.left, r.top + scrollY, r.right, r.bottom + scrollY]; })"""


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory, photo: np.ndarray) -> str:
    pytest.importorskip("plotly")
    rgb = np.ascontiguousarray(photo[:120, :160])
    worse = (rgb // 16 * 16).astype(np.uint8)
    versions = [
        Version("original", rgb),
        Version("rdquant, 1,234 bytes (0.51 bpp), 31.20 dB", worse),
        Version("jpeg, 1,230 bytes (0.51 bpp), 27.11 dB", worse[::-1].copy()),
    ]
    inputs = Inputs(
        [curve(f"codec number {i}", 1 + 0.1 * i) for i in range(5)], plans={"p": {"g_a.0": 8, "g_s.0": 4}}
    )
    page = write_report(
        inputs, tmp_path_factory.mktemp("report"), "A report", "", [Matched("photo", versions)]
    )
    return page.as_uri()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api")
    if CHROMIUM is None:
        pytest.skip("no Chromium here")
    with playwright.sync_playwright() as p:
        opened = p.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield opened
        opened.close()


def open_page(browser: Any, address: str, width: int = 1280, **options: Any) -> Any:
    context = browser.new_context(viewport={"width": width, "height": 900}, offline=True, **options)
    page = context.new_page()
    page.problems = []
    page.on("pageerror", lambda e: page.problems.append(str(e)))
    page.on("console", lambda m: page.problems.append(m.text) if m.type == "error" else None)
    page.on("request", lambda r: page.problems.append(r.url) if r.url.startswith("http") else None)
    page.goto(address)
    page.wait_for_selector(".plot .main-svg")
    page.wait_for_selector(".compare[data-ready]")
    return page


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 400])
def test_nothing_is_cut_off_or_overlaps(
    browser: Any, address: str, width: int, scheme: str, tmp_path: Path
) -> None:
    page = open_page(browser, address, width, color_scheme=scheme)
    page.screenshot(path=tmp_path / "page.png", full_page=True)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    boxes = page.evaluate(BOXES)
    assert len(boxes) > 15
    for name, left, _, right, _ in boxes:
        assert left >= 0 and right <= width, name
    for i, (a, al, at, ar, ab) in enumerate(boxes):
        for b, bl, bt, br, bb in boxes[i + 1 :]:
            assert min(ar, br) - max(al, bl) < 1 or min(ab, bb) - max(at, bt) < 1, (a, b)
    ground, text = page.evaluate("(s => [s.backgroundColor, s.color])(getComputedStyle(document.body))")
    dark = sum(map(int, ground.removeprefix("rgb(").rstrip(")").split(","))) < 3 * 128
    assert dark == (scheme == "dark") and ground != text
    assert page.problems == []


def divider(page: Any) -> float:
    return float(page.evaluate("document.querySelector('.compare .position').value"))


def test_the_divider_moves_by_mouse_and_by_keyboard(browser: Any, address: str) -> None:
    page = open_page(browser, address)
    box = page.locator(".versions").bounding_box()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + 20)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] / 4, box["y"] + 20, steps=4)
    page.mouse.up()
    assert divider(page) == pytest.approx(25, abs=1)
    page.locator(".position").focus()
    for _ in range(5):
        page.keyboard.press("ArrowRight")
    assert divider(page) == pytest.approx(30, abs=1)
    page.keyboard.press("End")
    assert divider(page) == 100
    assert (
        page.evaluate("getComputedStyle(document.querySelector('.over')).clipPath")
        == "inset(0px 0px 0px 100%)"
    )


def test_zoom_versions_and_errors(browser: Any, address: str) -> None:
    page = open_page(browser, address)
    before = page.locator(".under").get_attribute("src")
    page.locator(".left").select_option("0")
    page.wait_for_selector(".compare[data-ready='0 0 2 false']")
    assert page.locator(".under").get_attribute("src") != before
    assert "original" in page.locator(".said").inner_text()
    narrow = page.locator(".versions").bounding_box()["width"]
    page.locator(".zoom").select_option("4")
    assert page.locator(".versions").bounding_box()["width"] == pytest.approx(4 * narrow, rel=0.02)
    page.locator(".error").check()
    page.wait_for_selector(".compare[data-ready='0 0 2 true']")
    grey = page.evaluate(
        """async () => { const i = document.querySelector(".under"); await i.decode();
        const c = new OffscreenCanvas(i.naturalWidth, i.naturalHeight).getContext("2d"); c.drawImage(i, 0, 0);
        return [...c.getImageData(0, 0, 4, 1).data]; }"""
    )
    assert grey == [128, 128, 128, 255] * 4  # the original has no errors
    assert page.problems == []


def test_tables_sort_by_keyboard_and_filter(browser: Any, address: str) -> None:
    page = open_page(browser, address)
    page.locator("summary").press("Enter")
    table = page.locator("details table")
    button = table.locator("th button", has_text="bpp")
    button.focus()
    for order in ("ascending", "descending"):
        page.keyboard.press("Enter")
        values = table.locator("tbody tr td:nth-child(6)").all_inner_texts()
        assert table.locator("th[aria-sort]").get_attribute("aria-sort") == order
        assert list(map(float, values)) == sorted(map(float, values), reverse=order == "descending")
    page.locator(".filter input").fill("P1.png q0.2")
    assert page.locator("details tbody tr:visible").count() == 5


def test_the_theme_can_be_chosen(browser: Any, address: str) -> None:
    page = open_page(browser, address, color_scheme="light")
    ground = "getComputedStyle(document.body).backgroundColor"
    light = page.evaluate(ground)
    page.locator("#theme").press("Enter")
    assert page.evaluate(ground) != light
    colour = page.evaluate("getComputedStyle(document.querySelector('.plot .xtick text')).fill")
    assert colour == page.evaluate("getComputedStyle(document.body).color")


def test_print_leaves_controls_out(browser: Any, address: str) -> None:
    page = open_page(browser, address, color_scheme="dark")
    page.emulate_media(media="print")
    assert not page.locator(".controls").is_visible() and not page.locator("#theme").is_visible()
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") in (
        "rgb(255, 255, 255)",
        "rgba(0, 0, 0, 0)",
    )
    assert page.pdf().startswith(b"%PDF")
