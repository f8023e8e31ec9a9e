"""Reports in a real browser: both themes and widths, no console message, keyboard, sorting, export and filters."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from test_batch_page import BUDGETS, DEVICES, network
from test_reports import MORE, MORE_JOURNAL, RESULT, reports

from amc.reports.batch_page import html_batch

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium on this machine")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with sync_api.sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield chromium
        chromium.close()


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A report with all figures, and the page of a batch."""
    folder = tmp_path_factory.mktemp("pages")
    result = copy.deepcopy({**RESULT, **MORE})
    result["sites"] += [{"name": f"features.{i}.very_long_name" * 3, "width": i + 1, "of": 64} for i in range(40)]
    reports(folder, result, MORE_JOURNAL)
    runs = [network(d, b, 0.8 + 0.1 * i, 0.3 - 0.1 * j) for i, d in enumerate(DEVICES) for j, b in enumerate(BUDGETS)]
    (folder / "batch.html").write_text(html_batch("photos", runs), encoding="utf-8")
    return {name: folder / f"{name}.html" for name in ("report", "batch")}


def opened(browser: Any, path: Path, width: int = 1280, scheme: str = "light") -> tuple[Any, list[str]]:
    """The page, and the messages in its console."""
    page = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme).new_page()
    messages: list[str] = []
    page.on("console", lambda message: messages.append(message.text))
    page.on("pageerror", lambda error: messages.append(str(error)))
    page.goto(path.as_uri())
    return page, messages


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [400, 1280])
@pytest.mark.parametrize("name", ["report", "batch"])
def test_no_message_and_no_sideways_scrolling(
    browser: Any, pages: dict[str, Path], name: str, width: int, scheme: str
) -> None:
    page, messages = opened(browser, pages[name], width, scheme)
    assert messages == []
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    dark = page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(18, 21, 27)"
    assert dark == (scheme == "dark")
    page.context.close()


def test_the_final_column_is_seen_on_a_phone(browser: Any, pages: dict[str, Path]) -> None:
    page, _ = opened(browser, pages["report"], 400)
    box = page.locator('table[data-name="result"] tbody tr td:last-child').first.bounding_box()
    assert box["x"] + box["width"] <= 400
    page.context.close()


def test_the_theme_can_be_chosen(browser: Any, pages: dict[str, Path]) -> None:
    page, messages = opened(browser, pages["report"], scheme="dark")
    page.click("#theme")
    assert page.inner_text("#theme") == "Theme: light"
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(247, 248, 250)"
    assert messages == []
    page.context.close()


def test_values_are_read_with_the_keyboard_and_the_mouse(browser: Any, pages: dict[str, Path]) -> None:
    page, _ = opened(browser, pages["report"])
    plot = page.locator("#progress .plot")
    plot.focus()
    page.keyboard.press("ArrowRight")
    assert plot.locator(".tip").inner_text().startswith("evaluation 1: objective 0.5")
    page.keyboard.press("End")
    assert plot.locator(".tip").inner_text().startswith("evaluation 2: ")
    page.keyboard.press("Escape")
    assert not plot.locator(".tip").is_visible()
    plot.locator("svg.mark circle").first.hover()
    assert plot.locator(".tip").inner_text().startswith("evaluation 1: ")
    page.context.close()


def test_tables_are_sorted_by_number_and_saved_as_csv(browser: Any, pages: dict[str, Path]) -> None:
    page, _ = opened(browser, pages["report"])
    page.locator("#sensitivity summary").click()
    head = page.locator('#sensitivity th:has-text("estimated error")')
    head.locator("button").click()
    assert head.get_attribute("aria-sort") == "ascending"
    errors = page.locator("#sensitivity tbody td:nth-child(5)").all_inner_texts()
    assert errors == ["0", "0", "0.01", "0.2", "0.5"]
    with page.expect_download() as found:
        page.locator("#sensitivity button.export").click()
    assert found.value.suggested_filename == "sensitivity.csv"
    lines = Path(found.value.path()).read_text(encoding="utf-8").splitlines()
    assert lines[0] == "number,site,kept,of,estimated error,policy"
    assert lines[-1] == "1,conv1,8,16,0.5,"
    page.context.close()


def test_filters_redraw_the_front(browser: Any, pages: dict[str, Path]) -> None:
    page, messages = opened(browser, pages["batch"])
    front = page.locator("polyline.front").first
    before = front.get_attribute("points")
    page.get_by_label(BUDGETS[1], exact=True).uncheck()
    assert front.get_attribute("points") != before
    page.get_by_label(BUDGETS[1], exact=True).check()
    assert messages == []
    page.context.close()
