"""Pages of reports, opened in headless Chromium without a network."""

import io
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from zarrpipe.reporting import page as page_module
from zarrpipe.reporting.measure import report
from zarrpipe.reporting.page import write_page

from . import examples

pytest.importorskip("jinja2")
pytest.importorskip("chemiscope")
imread = pytest.importorskip("matplotlib.image").imread
playwright = pytest.importorskip("playwright.sync_api")
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
if CHROMIUM is None:
    pytest.skip("there is no chromium", allow_module_level=True)

WIDE, PHONE = {"width": 1280, "height": 800}, {"width": 390, "height": 844}
SECONDS = 60_000  # milliseconds; WebGL without a graphics card is slow


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    options = ["--no-sandbox", "--use-angle=swiftshader", "--enable-unsafe-swiftshader"]
    with playwright.sync_playwright() as started:
        opened = started.chromium.launch(executable_path=CHROMIUM, args=options)
        yield opened
        opened.close()


@pytest.fixture
def visit(browser: Any, tmp_path: Path) -> Iterator[Callable[..., Any]]:
    """Write the page of a report and open it; nothing may fail, and nothing be asked for."""
    wrong, contexts = [], []

    def open_page(
        report: Any,
        viewport: Any = WIDE,
        webgl: bool = False,
        refused: bool = False,
        **options: Any,
    ) -> Any:
        path = write_page(report, tmp_path / "report.html")
        context = browser.new_context(
            viewport=viewport, offline=True, reduced_motion="reduce", **options
        )
        if not webgl:  # which starts the viewer, in seconds without a graphics card
            context.add_init_script("HTMLCanvasElement.prototype.getContext = () => null")
        contexts.append(context)
        opened = context.new_page()
        opened.on("pageerror", lambda error: wrong.append(str(error)))
        opened.on("console", lambda line: wrong.append(line.text) if line.type == "error" else None)
        opened.on("dialog", lambda dialog: (wrong.append("a dialog"), dialog.dismiss()))
        opened.on("request", lambda asked: wrong.append(asked.url) if _far(asked.url) else None)
        opened.goto(path.as_uri())
        if refused:
            assert [line for line in wrong if "Content Security Policy" in line] == wrong != []
            wrong.clear()
        return opened

    def _far(url: str) -> bool:
        return not url.startswith(("file:", "data:", "blob:"))

    yield open_page
    for context in contexts:
        context.close()
    assert wrong == []


def pixels(locator: Any) -> np.ndarray:
    """Picture of an element, [height, width, 3] from 0 to 1."""
    return imread(io.BytesIO(locator.screenshot()), format="png")[..., :3]


def start_viewer(opened: Any) -> Any:
    """Scroll to the structures and wait until one is drawn."""
    opened.locator("#structures").scroll_into_view_if_needed()
    ready = "document.documentElement.dataset.viewer === 'ready'"
    opened.wait_for_function(ready, timeout=SECONDS)
    return opened.locator("#viewer-structure")


def drawn(opened: Any, before: np.ndarray | None = None) -> np.ndarray:
    """Wait for a picture of a structure that is not blank, nor the one before."""
    for _ in range(100):
        picture = pixels(opened.locator("#viewer-structure"))
        middle = picture[60:-20, 20:-20]
        if (middle.min(axis=2) < 0.8).mean() > 0.002 and (
            before is None or (np.abs(picture - before).max(axis=2) > 0.3).mean() > 0.002
        ):
            return picture
        opened.wait_for_timeout(200)
    pytest.fail("no structure is drawn, or it is the one before")


def shown_samples(opened: Any) -> list[str]:
    return opened.locator("#list tbody tr td:first-child").all_inner_texts()


def current(opened: Any) -> str:
    return opened.locator("#list tr[aria-current] td:first-child").inner_text()


def test_size_and_first_screen(visit, tmp_path):
    opened = visit(examples.example())
    assert (tmp_path / "report.html").stat().st_size < 3e6
    assert opened.title() == "water.zarr: report"
    facts = opened.locator(".facts > div").all_inner_texts()
    assert facts[:3] == ["samples\n5,000", "atoms\n15,000", "elements\nH, O"]
    found = opened.locator(".finding")
    assert found.count() == 6
    for place, (severity, title, _, count) in enumerate(examples.FAULTS):
        box = found.nth(place).bounding_box()
        assert box["y"] + box["height"] <= 800
        text = " ".join(found.nth(place).text_content().split())
        assert f"{severity.value} {title}" in text.replace(":", "")
        assert (found.nth(place).locator("details").get_attribute("open") is not None) == (
            place < 3
        )
        assert f"{count} sample" in text
        assert "zarrpipe delete" in text
    assert "2,000 of 5,000 samples" in opened.locator("header").inner_text()


@pytest.mark.parametrize("viewport", [{"width": 1440, "height": 900}, PHONE])
def test_ten_findings_are_on_the_first_screen(visit, viewport):
    made = examples.example()
    facts = {**dict.fromkeys("abcdef", 5_000), "elements": ["H", "O"]}
    opened = visit(
        replace(made, findings=(*made.findings, *made.findings[:4]), facts=facts), viewport
    )
    found = opened.locator(".finding")
    assert found.count() == 10
    assert found.first.bounding_box()["y"] < 400
    if viewport is not PHONE:
        box = found.last.bounding_box()
        assert box["y"] + box["height"] <= 900
    text = found.last.locator(".text")
    assert not text.is_visible()
    found.last.locator("summary").click()
    assert text.is_visible()


def test_samples_of_tables_are_shown(visit, faulty):
    opened = visit(report(faulty.store))
    opened.locator("#section-outliers .tables button.sample", has_text="41").first.click()
    assert current(opened) == "41"
    hint = opened.get_by_role("button", name="energy off").get_attribute("title")
    assert "reference energies" in hint


def test_findings_lead_to_their_section(visit):
    opened = visit(examples.example())
    opened.locator(".finding a.to").first.click()
    assert opened.locator("#section-forces").bounding_box()["y"] < 100
    links = opened.locator("nav a").evaluate_all("all => all.map(one => one.getAttribute('href'))")
    assert links == ["#findings", "#structures", "#section-forces", "#section-all-else"]
    assert all(opened.locator(link).count() == 1 for link in links)


def test_structures_turn_and_rows_choose_them(visit):
    opened = visit(examples.example(), webgl=True)
    start_viewer(opened)
    assert shown_samples(opened) == ["70", "60", "50", "40", "30", "20", "10", "0"]
    assert current(opened) == "70"
    first = drawn(opened)
    opened.locator("#list tbody tr").nth(1).click()
    second = drawn(opened, before=first)
    assert current(opened) == "60"
    assert "Sample 60" in opened.locator("#viewer-caption").inner_text()
    box = opened.locator("#viewer-structure").bounding_box()
    middle = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    opened.mouse.move(*middle)
    opened.mouse.down()
    for step in range(1, 9):
        opened.mouse.move(middle[0] + 10 * step, middle[1] + 15 * step)
        opened.wait_for_timeout(50)
    opened.mouse.up()
    drawn(opened, before=second)


def test_sample_of_a_finding_is_shown(visit):
    opened = visit(examples.example(), webgl=True)
    assert opened.locator(".finding button.sample").count() == 8
    assert opened.locator(".finding span.sample").text_content() == "999"
    absent = opened.locator(".finding .absent").text_content()
    assert absent == "1 of these is not among the structures shown"
    opened.locator(".finding").nth(2).locator("button.sample").click()
    assert current(opened) == "40"
    start_viewer(opened)
    drawn(opened)
    assert current(opened) == "40"
    assert opened.locator("#viewer").is_visible()


def test_a_point_of_the_map_chooses_a_structure(visit):
    opened = visit(examples.example(), webgl=True)
    start_viewer(opened)
    drawn(opened)
    opened.wait_for_timeout(500)
    plot = opened.locator("#viewer-map")
    picture = pixels(plot)
    area = picture[50:-60, 70 : int(0.72 * picture.shape[1])]
    colour = (np.ptp(area, axis=2) > 0.25) & (area[..., 0] < 0.8)  # not the red of the marker
    rows, columns = np.nonzero(colour)
    assert len(rows)
    near = (np.abs(rows - rows[0]) < 12) & (np.abs(columns - columns[0]) < 12)
    place = {"x": 70 + columns[near].mean(), "y": 50 + rows[near].mean()}
    plot.hover(position=place)
    opened.wait_for_timeout(300)
    plot.click(position=place)
    opened.wait_for_function(
        "document.querySelector('#list tr[aria-current]').dataset.sample !== '0:70'", timeout=10_000
    )


def test_orders_and_columns_sort_the_list(visit):
    opened = visit(examples.example())
    opened.get_by_role("button", name="unusual energy").click()
    assert shown_samples(opened) == ["0", "10", "20", "30", "40", "50", "60", "70"]
    pressed = opened.locator(".orders [aria-pressed=true]").all_inner_texts()
    assert pressed == ["unusual energy"]
    opened.get_by_role("button", name="energy off").click()
    assert shown_samples(opened) == ["70", "60", "50", "40", "30", "20", "10", "0"]  # NaN is last
    opened.get_by_role("button", name="energy off").click()
    assert shown_samples(opened) == ["10", "20", "30", "40", "50", "60", "70", "0"]
    opened.get_by_role("button", name="source").click()
    assert shown_samples(opened)[:2] in (["0", "20"], ["60", "40"])
    assert opened.locator("th[aria-sort]").count() == 1


def test_keyboard(visit):
    opened = visit(examples.example())
    opened.locator("#list tbody button").first.focus()
    opened.keyboard.press("ArrowDown")
    opened.keyboard.press("ArrowDown")
    assert current(opened) == "50"
    opened.keyboard.press("ArrowUp")
    assert current(opened) == "60"
    opened.keyboard.press("Enter")
    assert current(opened) == "60"


HOSTILE = "<script>alert(1)</script><img src=x onerror=alert(2)>&\"'$`{{ 7 * 7 }}"


def test_strings_of_a_store_are_text(visit):
    opened = visit(examples.hostile(HOSTILE), webgl=True)
    start_viewer(opened)
    drawn(opened)
    opened.locator("#list tbody tr").nth(2).click()
    assert opened.locator("h1").inner_text() == HOSTILE[HOSTILE.rindex("/") + 1 :]
    assert opened.locator("header code").inner_text() == HOSTILE
    assert opened.locator("#list tbody td").nth(1).inner_text() == HOSTILE
    assert opened.locator("img[src=x]").count() == 0
    assert opened.locator("svg text", has_text="alert(2)").count() >= 1


def test_policy_refuses_scripts_that_are_not_ours(visit, monkeypatch):
    """Were a string not escaped, it would still not run."""
    ours = page_module.page
    unescaped = "<script>document.title = 'run'</script></h1>"
    monkeypatch.setattr(page_module, "page", lambda one: ours(one).replace("</h1>", unescaped))
    assert visit(examples.empty(), bypass_csp=True).title() == "run"
    opened = visit(examples.empty(), refused=True)
    assert opened.title() == "empty.zarr: report"


def test_without_webgl(visit):
    opened = visit(examples.example())
    opened.locator("#structures").scroll_into_view_if_needed()
    opened.wait_for_function("document.documentElement.dataset.viewer === 'failed'")
    assert "no WebGL" in opened.locator("#viewer-message").inner_text()
    assert not opened.locator("#viewer").is_visible()
    assert len(shown_samples(opened)) == 8
    assert opened.locator("figure").count() == 5


def test_without_chemiscope(visit, monkeypatch):
    monkeypatch.setattr(page_module, "chemiscope_script", lambda: None)
    opened = visit(examples.example())
    assert "zarrpipe[report]" in opened.locator("#viewer-message").inner_text()
    assert opened.locator("#viewer").count() == 0
    opened.locator("#list tbody tr").nth(2).click()
    assert current(opened) == "50"


def test_without_scripts(visit):
    opened = visit(examples.example(), java_script_enabled=False)
    assert "does not run" in opened.locator("#viewer-message").inner_text()
    assert opened.locator("#list tbody tr").count() == 8
    assert opened.locator(".finding").count() == 6


def test_empty_store(visit):
    opened = visit(examples.empty())
    assert "The store is empty." in opened.locator("header").inner_text()
    assert "no samples to judge" in opened.locator("#findings").inner_text()
    assert opened.locator("#structures").count() == 0


def test_store_of_one_sample(visit):
    opened = visit(examples.of_one(), webgl=True)
    assert "Nothing looks like a fault." in opened.locator("#findings").inner_text()
    start_viewer(opened)
    drawn(opened)
    assert shown_samples(opened) == ["0"]


def test_two_stores(visit):
    opened = visit(examples.of_two())
    assert opened.locator("h1").inner_text() == "old.zarr and new.zarr"
    table = [row.split("\t") for row in opened.locator(".sides tr").all_inner_texts()]
    columns = list(zip(*table, strict=True))
    assert columns[0] == ("", "A: old.zarr", "B: new.zarr")
    assert ("samples", "5,000", "7") in columns
    assert ("with forces", "-", "3") in columns
    assert "1 sample of B" in opened.locator(".finding").inner_text()
    opened.locator(".finding button.sample").click()
    assert opened.locator("#list tr[aria-current]").get_attribute("data-sample") == "1:10"


@pytest.mark.parametrize("viewport", [WIDE, PHONE], ids=["wide", "phone"])
def test_nothing_is_wider_than_the_window(visit, viewport):
    opened = visit(examples.example(), viewport, webgl=True)
    start_viewer(opened)
    width = opened.evaluate("document.documentElement.scrollWidth")
    assert width <= viewport["width"]


def test_dark(visit):
    light, dark = (visit(examples.empty(), color_scheme=one) for one in ("light", "dark"))
    assert pixels(light.locator("header"))[0, 0].min() > 0.95
    assert pixels(dark.locator("header"))[0, 0].max() < 0.2


def test_print(visit):
    opened = visit(examples.example())
    opened.emulate_media(media="print")
    assert not opened.locator("nav").is_visible()
    assert opened.locator("figure").first.is_visible()
    assert opened.locator("#list tbody tr").last.is_visible()


FAULTS_IN_ORDER = {
    "likely bar": ("7", "stress"),
    "likely kcal/mol": ("12", "energies"),
    "blown up": ("41", "outliers"),
    "another energy": ("18", "repeated"),
    "without forces": ("5", "presence"),
    "element in very few": ("49", "elements"),
}


def test_six_faults_are_on_the_first_screen(visit, faulty):
    """Of a real store, each with a sample to look at and a section that shows more."""
    opened = visit(report(faulty.store), webgl=True)
    found = opened.locator(".finding")
    assert found.count() == 6
    for place, (words, (sample, section)) in enumerate(FAULTS_IN_ORDER.items()):
        one = found.nth(place)
        box = one.bounding_box()
        assert box["y"] + box["height"] <= 800, words
        assert words in one.locator("h3").inner_text()
        assert one.locator("button.sample").first.text_content() == sample
        assert one.locator("a.to").get_attribute("href") == f"#section-{section}"
        assert opened.locator(f"#section-{section}").count() == 1
    found.nth(2).locator("button.sample").click()
    start_viewer(opened)
    assert current(opened) == "41"
    drawn(opened)
