"""The page of serve.py in a real browser, wide and narrow: masks, sliders, numbers and files."""

import csv
import json
import re
import time
from pathlib import Path

import chromium
import numpy as np
import pytest
from helpers import rectangles
from PIL import Image, ImageDraw
from toy_server import NASTY, made_model, png, serving

import utils
import visualize
from data.recognise import open_records

PROGRAM = chromium.find()
pytestmark = pytest.mark.skipif(PROGRAM is None, reason=f"none of {', '.join(chromium.NAMES)} is on the PATH")
WIDTHS = [1280, 400]
HEIGHT, WIDTH = 90, 120


def ring_and_others() -> dict[str, np.ndarray]:
    """Masks that are hard to write: a hole; parts, in a hole and at a corner; a picture's edge; noise; a pixel."""
    rows, columns = np.mgrid[:HEIGHT, :WIDTH]
    distance = np.hypot(rows - 30, columns - 30)
    corners = rectangles((60, 60, 70, 70), (70, 70, 80, 80), (50, 60, 52, 90), shape=(HEIGHT, WIDTH)).any(axis=-1)
    frame = ~rectangles((1, 1, HEIGHT - 1, WIDTH - 1), shape=(HEIGHT, WIDTH))[..., 0]
    noise = np.random.default_rng(3).random((HEIGHT, WIDTH)) > 0.5
    noise[:, :70] = noise[60:] = False
    diamond = abs(abs(rows - 60) + abs(columns - 25) - 9) < 1  # its pixels touch at corners only
    pixel = (rows == HEIGHT - 1) & (columns == 0)
    masks = ((distance < 20) & (distance > 8)) | (distance < 4), corners, frame, noise, diamond, pixel
    return dict(zip((*NASTY, 'noise, "quoted"', "diamond", "=pixel"), masks, strict=True))


BOXES = (5, 5, 40, 40), (10, 60, 50, 100), (60, 20, 85, 80)
PLAIN = dict(zip(NASTY, np.moveaxis(rectangles(*BOXES, shape=(HEIGHT, WIDTH)), -1, 0), strict=True))
TEXT = "h1, h2, p, label, small, output, dt, dd, th, td, button, footer, figcaption, span:not(.dot)"


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    opened = chromium.Chromium(PROGRAM, tmp_path_factory.mktemp("profile"))
    yield opened
    opened.close()


@pytest.fixture(scope="module")
def server():
    with serving(made_model(PLAIN)) as running:
        yield running


@pytest.fixture
def picture(tmp_path) -> Path:
    path = tmp_path / "a <b> picture.png"
    path.write_bytes(png(HEIGHT, WIDTH))
    return path


def wait(browser, expression: str) -> None:
    deadline = time.monotonic() + 30
    while not browser.evaluate(expression):
        assert time.monotonic() < deadline, f"{expression} stays false"
        time.sleep(0.02)


def choose_file(browser, path: Path) -> None:
    """As a user does in the dialogue of the browser; waits for the masks or an error."""
    browser.evaluate("document.getElementById('result').hidden = document.getElementById('error').hidden = true")
    found = browser.call("Runtime.evaluate", expression="document.getElementById('file')")
    browser.call("DOM.setFileInputFiles", files=[str(path)], objectId=found["result"]["objectId"])
    wait(browser, "!document.getElementById('result').hidden || !document.getElementById('error').hidden")


def show(browser, server, path: Path, width: int = 1280, dark: bool = False) -> None:
    """The page with the masks of a picture."""
    browser.open(f"http://127.0.0.1:{server.server_port}/", width, dark=dark)
    choose_file(browser, path)
    assert browser.evaluate("document.getElementById('error').textContent") == ""


def slide(browser, name: str, value: float) -> None:
    code = f"$({name!r}).value = {value}; $({name!r}).dispatchEvent(new Event('input'))"
    browser.evaluate(code)


def shown_numbers(browser) -> list[str]:
    return browser.evaluate("[...document.querySelectorAll('#rows th')].map(cell => cell.textContent)")


def pixel(browser, x: float, y: float) -> list[int]:
    """Of the canvas, at a place of the picture."""
    return browser.evaluate(
        f"[...$('canvas').getContext('2d').getImageData(Math.floor({x} * state.scale), Math.floor({y} * state.scale), "
        "1, 1).data.slice(0, 3)]"
    )


COMPLAINTS = {"Log.entryAdded", "Runtime.exceptionThrown", "Runtime.consoleAPICalled", "Page.javascriptDialogOpening"}


def complaints(browser) -> list:
    return [event for event in browser.events if event["method"] in COMPLAINTS]


############################################################
#  Masks and sliders
############################################################


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", WIDTHS)
def test_no_error_and_no_request_to_others(width, dark, browser, server, picture):
    show(browser, server, picture, width, dark)
    browser.evaluate("document.querySelector('#rows button').click()")
    assert complaints(browser) == []
    requests = [event["params"] for event in browser.events if event["method"] == "Network.requestWillBeSent"]
    urls = {
        request["request"]["url"]
        for request in requests
        if not request["request"]["url"].startswith(("data:", "blob:"))
    }
    root = f"http://127.0.0.1:{server.server_port}/"
    assert urls == {root, *(root + name for name in ("page.js", "page.css", "report.css", "health", "detect"))}


@pytest.mark.parametrize("width", WIDTHS)
def test_masks_are_drawn(width, browser, server, picture):
    show(browser, server, picture, width)
    slide(browser, "score", 0)
    browser.evaluate("$('captions').click()")
    places = [(30, 30), (80, 30), (50, 75)]  # in each mask, (x, y)
    drawn = [pixel(browser, *place) for place in places]
    outside = pixel(browser, 110, 80)
    slide(browser, "score", 1)
    plain = [pixel(browser, *place) for place in places]
    assert pixel(browser, 110, 80) == outside
    for number, (with_mask, without) in enumerate(zip(drawn, plain, strict=True)):
        color = np.multiply(255, visualize.random_colors(3)[number])
        assert np.abs(with_mask - (without + 0.42 * (color - without))).max() <= 2


def test_a_mask_is_drawn_to_its_edge(browser, server, picture):
    """Where the canvas has more pixels than the picture, the edge lies between the right ones."""
    show(browser, server, picture)
    browser.evaluate("$('captions').click()")
    inside, outside = [(5.1, 5.1), (39.9, 39.9)], [(4.9, 20), (20, 4.9), (40.1, 20), (20, 40.1)]
    before = {place: pixel(browser, *place) for place in inside + outside}
    slide(browser, "score", 1)
    assert [before[place] != pixel(browser, *place) for place in inside + outside] == [True] * 2 + [False] * 4


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize(
    ("name", "value", "left"), [("score", 0.9, ["1"]), ("quality", 0.6, ["1", "2"]), ("quality", 1, [])]
)
def test_both_sliders_change_what_is_shown(name, value, left, width, browser, server, picture):
    """Without a further request. Class scores are .95, .80 and .65, predicted IoUs .9, .7 and .5."""
    show(browser, server, picture, width)
    assert shown_numbers(browser) == ["1", "2", "3"]
    before = browser.evaluate("$('canvas').toDataURL()")
    browser.events.clear()
    slide(browser, name, value)
    assert shown_numbers(browser) == left
    assert browser.evaluate("$('count').textContent") == f"{len(left)} of 3 objects"
    assert browser.evaluate(f"$('{name}-value').value") == f"{value:.2f}"
    assert browser.evaluate("$('canvas').toDataURL()") != before
    assert browser.evaluate("[...document.querySelectorAll('#downloads button')].every(each => each.disabled)") == (
        not left
    )
    slide(browser, name, 0)
    assert browser.evaluate("$('canvas').toDataURL()") == before
    assert [event for event in browser.events if event["method"] == "Network.requestWillBeSent"] == []


def test_a_slider_by_the_keyboard(browser, server, picture):
    show(browser, server, picture)
    browser.evaluate("$('score').focus()")
    for kind in ("keyDown", "keyUp"):
        browser.call("Input.dispatchKeyEvent", type=kind, key="End", code="End", windowsVirtualKeyCode=35)
    wait(browser, "$('count').textContent === '0 of 3 objects'")


def test_a_model_without_predicted_iou(browser, picture):
    with serving(made_model(PLAIN, ious=False)) as running:
        show(browser, running, picture)
        assert browser.evaluate("$('quality').disabled")
        assert "does not predict" in browser.evaluate("$('quality-words').textContent")
        assert len(shown_numbers(browser)) == 3


def test_a_picture_without_objects(browser, picture):
    with serving(made_model({})) as running:
        show(browser, running, picture)
        assert browser.evaluate("$('count').textContent") == "0 of 0 objects"
        assert complaints(browser) == []


def test_large_pictures_are_shown_shrunk(browser, tmp_path):
    mask = np.zeros((3000, 200), bool)
    mask[1000:2000, 50:150] = True
    path = tmp_path / "long.png"
    path.write_bytes(png(3000, 200))
    with serving(made_model({"cat": mask}), max_bytes=1 << 24) as running:
        show(browser, running, path, 400)
        assert browser.evaluate("[$('canvas').width, $('canvas').height]") == [107, 1600]
        inside, outside = pixel(browser, 100, 1500), pixel(browser, 100, 2100)
        slide(browser, "score", 1)
        assert pixel(browser, 100, 1500) != inside
        assert pixel(browser, 100, 2100) == outside


def test_a_picture_that_browsers_cannot_read(browser, server, tmp_path):
    path = tmp_path / "deep.tif"
    Image.fromarray(np.random.default_rng(0).integers(0, 65535, (HEIGHT, WIDTH), np.uint16)).save(path)
    show(browser, server, path)
    assert "masks are on gray" in browser.evaluate("$('status').textContent")
    assert pixel(browser, 110, 80) == [128, 128, 128]
    assert pixel(browser, 30, 30) != [128, 128, 128]


def test_the_colours_are_those_of_pictures():
    script = (Path(visualize.__file__).parent / "serving" / "page.js").read_text()
    palette = json.loads(re.search(r"const PALETTE = (\[[^\]]*\]);", script)[1])
    assert tuple(palette) == visualize._PALETTE


def test_colours_repeat_as_those_of_pictures(browser, server):
    browser.open(f"http://127.0.0.1:{server.server_port}/", 1280)
    shown = browser.evaluate("Array.from({ length: 35 }, (_, i) => colorOf(i))")
    assert np.abs(np.array(shown) - np.multiply(255, visualize.random_colors(35))).max() <= 1


############################################################
#  Numbers
############################################################


@pytest.mark.parametrize("width", WIDTHS)
def test_a_click_shows_the_numbers_of_an_object(width, browser, server, picture):
    show(browser, server, picture, width)
    browser.evaluate("$('canvas').scrollIntoView()")
    box = browser.evaluate("(({ left, top, width }) => [left, top, width])($('canvas').getBoundingClientRect())")
    scale = box[2] / WIDTH
    for (x, y), expected in (((80, 30), NASTY[1]), ((30, 30), NASTY[0]), ((110, 80), None)):
        place = {"x": box[0] + x * scale, "y": box[1] + y * scale, "button": "left", "clickCount": 1}
        for kind in ("mousePressed", "mouseReleased"):
            browser.call("Input.dispatchMouseEvent", type=kind, **place)
        values = browser.evaluate("[...document.querySelectorAll('#numbers dd')].map(each => each.textContent)")
        assert values[0] == (expected or "None is chosen.")
    browser.evaluate("choose(state.objects[1])")
    assert browser.evaluate("$('object').innerText").split("\n")[0] == "Object 2"
    rows = browser.evaluate(
        "[...document.querySelectorAll('#numbers div')].map(each => [...each.children].map(c => c.textContent))"
    )
    assert rows == [
        ["class", NASTY[1]], ["class score", "0.800"], ["predicted IoU", "0.700"], ["mask score", "0.560"],
        ["area", "1,600 px"], ["width x height", "40 x 40 px"], ["left, top", "60, 10"],
    ]  # fmt: skip
    assert browser.evaluate("document.querySelector('#rows tr[aria-current] td').textContent") == NASTY[1]


def test_objects_by_the_keyboard(browser, server, picture):
    show(browser, server, picture)
    browser.evaluate("$('canvas').focus()")
    seen = []
    for key in ("ArrowRight", "ArrowDown", "ArrowRight", "ArrowRight", "ArrowLeft", "Escape"):
        browser.call("Input.dispatchKeyEvent", type="keyDown", key=key)
        seen.append(browser.evaluate("state.chosen && state.chosen.number"))
    assert seen == [1, 2, 3, 1, 3, None]


def test_an_object_that_a_slider_hides_is_chosen_no_more(browser, server, picture):
    show(browser, server, picture)
    browser.evaluate("choose(state.objects[2])")
    slide(browser, "score", 0.9)
    assert browser.evaluate("$('numbers').textContent") == "None is chosen."


def test_names_from_outside_are_text(browser, server, picture):
    show(browser, server, picture)
    browser.evaluate("choose(state.objects[0])")
    assert browser.evaluate("document.title") == "Objects in a picture"
    assert browser.evaluate("document.querySelectorAll('img, b').length") == 0
    assert browser.evaluate("document.scripts.length") == 1
    assert NASTY[0] in browser.evaluate("$('model').textContent")
    assert "a <b> picture.png" in browser.evaluate("$('status').textContent")


def test_code_that_would_get_into_the_page_is_not_run(browser, server):
    """The policy refuses it, should a name ever become HTML."""
    browser.open(f"http://127.0.0.1:{server.server_port}/", 1280)
    wait(browser, "$('model').textContent.length > 5")
    browser.evaluate(f"$('model').innerHTML = {json.dumps(NASTY[0])}")
    assert browser.evaluate("document.querySelectorAll('img').length") == 1
    time.sleep(0.2)
    assert browser.evaluate("document.title") == "Objects in a picture"


############################################################
#  Errors
############################################################


def test_what_is_no_picture_is_said_and_the_page_goes_on(browser, server, picture, tmp_path):
    text = tmp_path / "note.txt"
    text.write_text("hello")
    show(browser, server, picture)
    choose_file(browser, text)
    assert browser.evaluate("$('result').hidden")
    assert "not an image of a format that is read" in browser.evaluate("$('error').textContent")
    choose_file(browser, picture)
    assert browser.evaluate("$('error').hidden")
    assert len(shown_numbers(browser)) == 3


def test_a_server_that_is_gone_is_said(browser, picture):
    with serving(made_model(PLAIN)) as running:
        browser.open(f"http://127.0.0.1:{running.server_port}/", 1280)
        wait(browser, "$('model').textContent.length > 5")
    choose_file(browser, picture)
    assert browser.evaluate("$('error').textContent") == "The server does not answer; is it still running?"


############################################################
#  Looks
############################################################


@pytest.mark.parametrize("width", WIDTHS)
def test_text_is_readable_and_inside_the_page(width, browser, server, picture):
    show(browser, server, picture, width)
    browser.evaluate("choose(state.objects[0])")
    assert browser.evaluate("document.documentElement.scrollWidth") <= width, "the page scrolls sideways"
    sizes = browser.evaluate(
        "[...document.querySelectorAll('body *')].filter(each => each.checkVisibility() && each.innerText)"
        ".map(each => parseFloat(getComputedStyle(each).fontSize))"
    )
    assert len(sizes) > 40
    assert min(sizes) >= 12
    assert browser.evaluate("$('canvas').clientWidth") >= min(500, width - 40)


@pytest.mark.parametrize("dark", [False, True])
def test_contrast_in_light_and_dark(dark, browser, server, picture):
    """At least WCAG's 4.5 to 1."""
    show(browser, server, picture, dark=dark)
    browser.evaluate("choose(state.objects[0])")
    for contrast, _, what in browser.contrasts(TEXT):
        assert contrast >= 4.5, what


def test_each_control_has_a_name(browser, server, picture):
    show(browser, server, picture)
    tree = browser.call("Accessibility.getFullAXTree")["nodes"]
    controls = [
        n for n in tree if n.get("role", {}).get("value") in ("slider", "button", "checkbox", "image", "columnheader")
    ]
    assert len(controls) >= 12
    assert all(node["name"]["value"].strip() for node in controls), controls


############################################################
#  Files
############################################################


def downloaded(browser, format_name: str, path: Path) -> Path:
    browser.call("Page.setDownloadBehavior", behavior="allow", downloadPath=str(path.parent))
    browser.evaluate(f"document.querySelector('[data-format={format_name}]').click()")
    deadline = time.monotonic() + 30
    while not (path.exists() and path.stat().st_size):
        assert time.monotonic() < deadline, [each.name for each in path.parent.iterdir()]
        time.sleep(0.02)
    return path


@pytest.fixture(scope="module")
def hard_server():
    with serving(made_model(ring_and_others())) as running:
        yield running


@pytest.mark.parametrize(
    ("name", "file_name"), [("coco", "cells_coco.json"), ("labelme", "cells.json"), ("geojson", "cells.geojson")]
)
def test_files_are_read_back(name, file_name, browser, hard_server, tmp_path):
    """By our own readers, to the bit: classes, masks with holes and parts, and the picture's size."""
    picture = tmp_path / "cells.png"
    picture.write_bytes(png(HEIGHT, WIDTH))
    show(browser, hard_server, picture)
    slide(browser, "score", 0)
    downloaded(browser, name, tmp_path / file_name)
    records = open_records(tmp_path, None if name != "coco" else "coco")
    (read,) = records.pictures
    assert (read.path, read.height, read.width) == (picture, HEIGHT, WIDTH)
    expected = {label: utils.mask_to_rle(mask)["counts"] for label, mask in ring_and_others().items()}
    assert {parsed.name: parsed.mask(HEIGHT, WIDTH)["counts"] for parsed in read.objects} == expected
    assert len(read.objects) == len(expected)
    text = json.loads((tmp_path / file_name).read_text())
    if name == "coco":
        assert [entry["score"] for entry in text["annotations"]][:2] == [0.95, 0.8]
        assert text["annotations"][0]["attributes"] == {"score": 0.95, "mask_iou": 0.9, "mask_score": 0.855}
        assert [category["name"] for category in text["categories"]] == [*expected]
    elif name == "labelme":
        assert {shape["shape_type"] for shape in text["shapes"]} == {"polygon", "mask"}
        assert text["shapes"][0]["attributes"]["mask_iou"] == 0.9
        assert filled(text["shapes"], "diamond").tolist() == ring_and_others()["diamond"].tolist()
    else:
        assert text["features"][0]["properties"]["measurements"]["mask_score"] == 0.855


def filled(shapes: list[dict], label: str) -> np.ndarray:
    """The polygons of a class as labelme fills them: with their outlines."""
    image = Image.new("1", (WIDTH, HEIGHT))
    for shape in shapes:
        if (shape["label"], shape["shape_type"]) == (label, "polygon"):
            ImageDraw.Draw(image).polygon([tuple(point) for point in shape["points"]], fill=1, outline=1)
    return np.array(image)


def test_files_have_what_is_shown(browser, server, tmp_path):
    picture = tmp_path / "cells.png"
    picture.write_bytes(png(HEIGHT, WIDTH))
    show(browser, server, picture)
    slide(browser, "quality", 0.6)
    text = json.loads(downloaded(browser, "coco", tmp_path / "cells_coco.json").read_text())
    assert [entry["id"] for entry in text["annotations"]] == [1, 2]


def test_the_table(browser, hard_server, tmp_path):
    picture = tmp_path / "cells.png"
    picture.write_bytes(png(HEIGHT, WIDTH))
    show(browser, hard_server, picture)
    slide(browser, "score", 0)
    with downloaded(browser, "csv", tmp_path / "cells.csv").open(newline="") as file:
        rows = {row["class"]: row for row in csv.DictReader(file)}
    assert rows.keys() == ring_and_others().keys()
    for label, mask in ring_and_others().items():
        row, (ys, xs) = rows[label], np.nonzero(mask)
        assert int(row["area_px"]) == mask.sum()
        assert float(row["centroid_x_px"]) == pytest.approx(xs.mean() + 0.5, abs=1e-5)
        assert float(row["centroid_y_px"]) == pytest.approx(ys.mean() + 0.5, abs=1e-5)
        box = [int(row[f"box_{side}_px"]) for side in ("x", "y", "width", "height")]
        assert box == [xs.min(), ys.min(), np.ptp(xs) + 1, np.ptp(ys) + 1]
        is_at_edge = ys.min() == 0 or xs.min() == 0 or ys.max() == HEIGHT - 1 or xs.max() == WIDTH - 1
        assert row["touches_edge"] == ("yes" if is_at_edge else "no")
        assert row["file"] == "cells.png"


def test_random_masks_are_read_as_they_are(browser, hard_server):
    """Runs of COCO's code, compressed or not, against pycocotools; and that rings give the mask back."""
    browser.open(f"http://127.0.0.1:{hard_server.server_port}/", 1280)
    rng = np.random.default_rng(11)
    for _ in range(40):
        mask = rng.random(rng.integers(1, 40, 2)) > rng.choice([0.02, 0.5, 0.97])
        code = utils.rle_to_json(utils.mask_to_rle(mask))
        runs = np.diff(np.flatnonzero(np.diff(np.concatenate([[2], mask.T.ravel(), [2]]))), prepend=0).tolist()
        counts = [*([0] if mask[0, 0] else []), *runs[1:]]
        for segmentation in (code, {**code, "counts": counts}):
            spans = f"maskOf({json.dumps(segmentation)})"
            pixels = browser.evaluate(
                f"(mask => {json.dumps(mask.tolist())}.map((row, y) => row.map((_, x) => contains(mask, x + 0.5, "
                f"y + 0.5))))({spans})"
            )
            assert pixels == mask.tolist()
        area = browser.evaluate(f"ringsOf({spans}).map(signedArea).reduce((a, b) => a + b, 0)")
        assert area == mask.sum()
