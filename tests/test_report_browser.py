"""The report in a real browser, wide and narrow: it loads nothing, nothing breaks, and it can be read."""

import re

import chromium
import pytest
from helpers import nasty_evaluation
from toy_evaluation import empty_evaluation, load_toy_image, toy_evaluation

from evaluation.report import write_report

PROGRAM = chromium.find()
pytestmark = pytest.mark.skipif(PROGRAM is None, reason=f"none of {', '.join(chromium.NAMES)} is on the PATH")

EVALUATIONS = {
    "80 classes": toy_evaluation,
    "1 class": lambda: toy_evaluation(1, 50),
    "8 classes without a head": lambda: toy_evaluation(8, 200, head=False),
    "no objects": lambda: empty_evaluation(80, detections=5),
    "empty": empty_evaluation,
    "nasty names": nasty_evaluation,
}
WIDTHS = [1280, 400]


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    opened = chromium.Chromium(PROGRAM, tmp_path_factory.mktemp("profile"))
    yield opened
    opened.close()


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """Where each report is, unwritten until somebody asks."""
    folder, written = tmp_path_factory.mktemp("reports"), {}

    def path_of(name):
        if name not in written:
            written[name] = write_report(EVALUATIONS[name](), folder / name, load_toy_image)
        return written[name]

    return path_of


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("name", EVALUATIONS)
def test_no_error_and_no_request(name, width, browser, pages):
    page = pages(name)
    browser.open(page, width)
    complaints = {
        "Log.entryAdded",
        "Runtime.exceptionThrown",
        "Runtime.consoleAPICalled",
        "Page.javascriptDialogOpening",
    }
    assert [event for event in browser.events if event["method"] in complaints] == []
    requests = [event["params"] for event in browser.events if event["method"] == "Network.requestWillBeSent"]
    urls = [request["request"]["url"] for request in requests]
    assert [url for url in urls if not url.startswith("data:image/")] == [page.as_uri()]
    assert browser.evaluate("[...document.scripts].length") == 1
    assert browser.evaluate("document.documentElement.lang + document.compatMode") == "enCSS1Compat"


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("name", EVALUATIONS)
def test_images_are_there_at_their_own_size(name, width, browser, pages):
    """Plots have text of 12 pixels, at half their pixels, so that they must not be shown smaller than that."""
    browser.open(pages(name), width)
    images = browser.evaluate(
        "Promise.all([...document.images].map(image => image.decode().then(() => [image.naturalWidth, "
        "image.clientWidth, image.clientHeight, image.naturalHeight, !!image.closest('.plot')])))"
    )
    assert len(images) == pages(name).read_text("utf-8").count("<img ")
    for natural, shown, height, natural_height, is_plot in images:
        assert natural > 0
        if is_plot:
            assert (shown, height) == (natural / 2, natural_height / 2)
        else:  # in a square, without being stretched
            assert 150 <= shown == height <= 320


TEXTS = """(() => {
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT), found = [];
  while (walker.nextNode()) {
    const parent = walker.currentNode.parentElement, text = walker.currentNode.textContent.trim();
    if (!text || parent.tagName === "SCRIPT" || !parent.checkVisibility()) continue;
    const range = document.createRange();
    range.selectNodeContents(walker.currentNode);
    const box = range.getBoundingClientRect(), cell = parent.closest("td, th, figure, div, p") || document.body;
    const around = cell.getBoundingClientRect();
    found.push({ text, size: parseFloat(getComputedStyle(parent).fontSize), left: box.left, right: box.right,
      out: Math.max(around.left - box.left, box.right - around.right), inFrame: !!parent.closest(".frame") });
  }
  return found;
})()"""


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("name", EVALUATIONS)
def test_text_is_readable_and_inside_the_page(name, width, browser, pages):
    browser.open(pages(name), width)
    assert browser.evaluate("innerWidth") == width
    assert browser.evaluate("document.documentElement.scrollWidth") <= width, "the page scrolls sideways"
    browser.evaluate("document.querySelectorAll('details').forEach(each => { each.open = true; })")
    assert browser.evaluate("document.documentElement.scrollWidth") <= width, "the page with all details does"
    texts = browser.evaluate(TEXTS)
    assert len(texts) > 100
    for text in texts:
        assert text["size"] >= 12, text
        assert text["out"] <= 1, f"sticks out of its cell or box: {text}"
        assert text["inFrame"] or (text["left"] >= 0 and text["right"] <= width), f"cut off: {text}"
    frames = "[...document.querySelectorAll('.frame')].map(f => [f.getBoundingClientRect().right, "
    frames += "f.scrollWidth - f.clientWidth, getComputedStyle(f).overflowX])"
    for right, beyond, overflow in browser.evaluate(frames):
        assert right <= width
        assert beyond <= 0 or overflow == "auto", "a wide table scrolls in its frame"


@pytest.mark.parametrize("width", WIDTHS)
def test_the_table_is_seen_without_scrolling(width, browser, pages):
    browser.open(pages("80 classes"), width)
    table = "document.querySelector('#numbers .frame')"
    assert browser.evaluate(f"{table}.scrollWidth - {table}.clientWidth") == 0
    head = browser.evaluate(
        f"[...{table}.querySelectorAll('thead th')].map(cell => cell.getBoundingClientRect().right)"
    )
    cells = browser.evaluate(
        f"[...{table}.querySelectorAll('tr:nth-child(3) > *')].map(c => c.getBoundingClientRect().right)"
    )
    assert head == cells, "numbers stand below their names"


@pytest.mark.parametrize("width", WIDTHS)
def test_long_class_names_break_between_words_only(width, browser, tmp_path):
    evaluation = toy_evaluation(3, 5)
    for row, name in zip(evaluation.classes, ("refrigerator", "sandwich", "wine glass"), strict=True):
        row["name"] = name
    browser.open(write_report(evaluation, tmp_path, load_toy_image), width)
    lines = """[...document.querySelectorAll("table.sortable tbody th")].map(cell => {
      const range = document.createRange();
      range.selectNodeContents(cell);
      return [cell.textContent, range.getClientRects().length];
    })"""
    heights = dict(browser.evaluate(lines))
    assert heights["refrigerator"] == heights["sandwich"] == 1


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("name", ["80 classes", "8 classes without a head"])
def test_contrast_in_light_and_dark(name, dark, browser, pages):
    """At least WCAG's 4.5 to 1."""
    browser.open(pages(name), 1280, dark=dark)
    grounds = set()
    for contrast, ground, what in browser.contrasts("h1, h2, p, dt, dd, th, td, a, summary, figcaption span, footer"):
        assert contrast >= 4.5, what
        grounds.add(ground > 0.5)
    assert grounds == {not dark}


def column(browser, number: int) -> list[str]:
    rows = "[...document.querySelectorAll('table.sortable tbody tr')]"
    return browser.evaluate(f"{rows}.map(row => row.cells[{number}].firstChild.textContent)")


def test_classes_are_sorted_by_a_click(browser, pages):
    browser.open(pages("80 classes"), 1280)
    before = column(browser, 0)
    heads = "document.querySelectorAll('table.sortable thead th')"
    for number, title in enumerate(browser.evaluate(f"[...{heads}].map(head => head.textContent)")):
        values = column(browser, number)
        key = str if number == 0 else lambda text: float(text.replace(",", ""))
        for turn in range(2):
            browser.evaluate(f"{heads}[{number}].querySelector('button').click()")
            descending = (turn == 0) != (number == 0)
            shown = [key(text) for text in column(browser, number)]
            if number:
                assert shown == sorted(map(key, values), reverse=descending), title
            direction = "descending" if descending else "ascending"
            sorts = browser.evaluate(f"[...{heads}].map(head => head.getAttribute('aria-sort'))")
            assert sorts == [direction if i == number else None for i in range(len(sorts))]
        if number == 0:
            assert column(browser, 0) == browser.evaluate(
                "[...document.querySelectorAll('table.sortable tbody th')].map(c => c.textContent)"
                ".sort((a, b) => b.localeCompare(a))"
            )
    assert sorted(column(browser, 0)) == sorted(before), "the same rows as before"


def test_classes_without_a_number_stay_last(browser, tmp_path):
    evaluation = toy_evaluation(4, 5)
    absent = evaluation.classes[1]
    absent |= {name: -1.0 for name in absent if "AP" in name} | {"re-scoring gain": 0.0}
    browser.open(write_report(evaluation, tmp_path, load_toy_image), 1280)
    buttons = "document.querySelectorAll('table.sortable th button')"
    for clicks in (1, 2):  # descending, ascending
        browser.evaluate(f"{buttons}[0].click()")  # it is among the others now
        assert column(browser, 0)[-1] != absent["name"]
        for _ in range(clicks):
            browser.evaluate(f"{buttons}[4].click()")
        assert column(browser, 4)[-1] == "-"
        assert column(browser, 0)[-1] == absent["name"]


def test_names_from_outside_run_nothing(browser, pages):
    """Even if something were not escaped, the page's policy lets its own script run and no other."""
    page = pages("nasty names")
    altered = page.with_name("altered.html")
    text = page.read_text("utf-8")
    altered.write_text(re.sub("<footer>", "<script>document.title = 'run'</script><img src=x><footer>", text), "utf-8")
    browser.open(page, 1280)
    title = browser.evaluate("document.title")
    assert title == "Evaluation of <script>alert(1)</script> on </title><b>"
    browser.open(altered, 1280)
    assert browser.evaluate("document.title") == title
    refused = [event for event in browser.events if event["method"] == "Log.entryAdded"]
    texts = sorted(each["params"]["entry"]["text"] for each in refused)
    assert [re.search("(inline script|Loading the image).*Content Security Policy", text)[1] for text in texts] == [
        "inline script",
        "Loading the image",
    ]
    assert browser.evaluate("document.querySelectorAll('th button').length") == 9, "its own script did run"


@pytest.mark.parametrize("scripts", [True, False])
def test_complete_without_scripts(scripts, browser, pages):
    browser.call("Emulation.setScriptExecutionDisabled", value=not scripts)
    try:
        browser.open(pages("80 classes"), 1280)
    finally:
        browser.call("Emulation.setScriptExecutionDisabled", value=False)
    assert len(column(browser, 0)) == 80
    assert browser.evaluate("document.querySelector('#classes').innerText").count("Click on a heading") == scripts


def test_print_shows_all_rows(browser, pages):
    browser.open(pages("80 classes"), 1280, media="print")
    frames = "[...document.querySelectorAll('.frame')].map(frame => frame.scrollHeight - frame.clientHeight)"
    assert max(browser.evaluate(frames)) == 0
    assert browser.evaluate("getComputedStyle(document.querySelector('nav')).display") == "none"
    browser.open(pages("80 classes"), 1280)
    assert max(browser.evaluate(frames)) > 0, "80 classes scroll in their frame on a screen"
