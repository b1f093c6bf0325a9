# ruff: noqa: RUF001 -- letters of other scripts that look like Latin ones
"""fonts.py: names in any script are drawn, in pictures and figures, and what cannot be drawn is named once."""

import io
import warnings
from pathlib import Path

import numpy as np
import pytest
from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen
from PIL import Image, ImageDraw

import fonts
import visualize
from evaluation import charts

IMAGE = np.full((120, 400, 3), 90, np.uint8)
BOXES = np.array([[40, 20, 110, 380]])


@pytest.fixture(autouse=True)
def forgets():
    """Each test begins and ends with the usual fonts, and no letter has been warned of."""
    fonts.use_font(None)
    yield
    fonts.use_font(None)


@pytest.fixture(scope="module")
def han(tmp_path_factory) -> Path:
    """A font with 三角形 alone, each of them a black square."""
    pen = TTGlyphPen(None)
    pen.moveTo((50, 0))
    for corner in ((50, 900), (950, 900), (950, 0)):
        pen.lineTo(corner)
    pen.closePath()
    names = [".notdef", "one", "two", "three"]
    builder = FontBuilder(1000, isTTF=True)
    builder.setupGlyphOrder(names)
    builder.setupCharacterMap(dict(zip(map(ord, "三角形"), names[1:], strict=True)))
    builder.setupGlyf(dict.fromkeys(names, pen.glyph()))
    builder.setupHorizontalMetrics(dict.fromkeys(names, (1000, 50)))
    builder.setupHorizontalHeader(ascent=900, descent=-100)
    builder.setupNameTable({"familyName": "Three Squares", "styleName": "Regular"})
    builder.setupOS2(sTypoAscender=900, sTypoDescender=-100)
    builder.setupPost()
    path = tmp_path_factory.mktemp("fonts") / "squares.ttf"
    builder.save(path)
    return path


def drawn(text: str) -> np.ndarray:
    return visualize.draw_instances(IMAGE, BOXES, None, [text], [(0, 0, 0)], show_bbox=False, labels="all")


def letters_apart(text: str) -> list[bytes]:
    """What is drawn for each letter alone."""
    return [drawn(letter).tobytes() for letter in text]


def warnings_in(caplog) -> list[str]:
    return [record.getMessage() for record in caplog.records]


############################################################
#  Text
############################################################


def test_names_are_one_line():
    assert fonts.one_line("a\tb\n c\x1b[2J\x07") == r"a b c\x1b[2J\x07"
    assert fonts.one_line("x" * 60) == "x" * 60
    assert fonts.one_line("x" * 61) == "x" * 57 + "..."
    assert fonts.one_line("\udc80") == r"\udc80", "of a file name that is no Unicode"
    assert fonts.one_line("نام\u200cها") == "نام\u200cها", "a sign that the script needs stays"
    assert fonts.one_line(7) == "7"


def test_texts_keep_their_lines():
    assert fonts.several_lines("a\n\tb\x1b[0m") == "a\n    b\\x1b[0m"
    assert fonts.several_lines("a\r\nb") == "a\nb"
    assert fonts.several_lines("") == ""


############################################################
#  Pictures
############################################################


@pytest.mark.parametrize("name", ["треугольник", "Τρίγωνο", "משולש", "مثلث", "naïve", "ԵՌԱՆԿՅՈՒՆԻ"])
def test_scripts_of_dejavu_are_drawn(name, caplog):
    assert not warnings_in(caplog)
    assert fonts.missing_letters(name) == []
    pictures = letters_apart(dict.fromkeys(name))
    assert len(set(pictures)) == len(pictures), "no two letters look the same, as boxes would"
    assert not warnings_in(caplog)


def test_latin_needs_no_look_into_the_fonts(monkeypatch):
    assert {ord(letter) for letter in fonts._LATIN - {"\n"}} <= fonts.letters(fonts.dejavu())
    monkeypatch.setattr(fonts, "letters", None)
    assert fonts.missing_letters("cat 0.91 \N{MIDDLE DOT} IoU 0.50, Zürich\n") == []


def test_ascii_stays_in_the_font_that_it_had():
    """Whatever else the picture has: numbers of COCO's names look as before."""
    picture = Image.fromarray(IMAGE)
    pen = ImageDraw.Draw(picture)
    text = "cat 0.91 · IoU 0.50 · mask 0.46"
    assert fonts.extent(pen, text, 16) == pen.textbbox((0, 0), text, font=fonts._font(None, 16))
    fonts.draw_text(pen, (5, 9), text, 16, (255, 0, 0))
    expected = Image.fromarray(IMAGE)
    ImageDraw.Draw(expected).text((5, 9), text, fill=(255, 0, 0), font=fonts._font(None, 16))
    assert (np.asarray(picture) == np.asarray(expected)).all()


@pytest.mark.parametrize("text", ["треугольник 0.91 · IoU 0.50", "две\nстроки yg", "ÅÄÖ", "三角形 да", "", "ж\n\nж"])
def test_the_extent_is_that_of_what_is_drawn(text, han):
    fonts.use_font(han)
    picture = Image.new("RGB", (600, 200))
    pen = ImageDraw.Draw(picture)
    left, top, right, bottom = fonts.extent(pen, text, 20)
    fonts.draw_text(pen, (30 - left, 40 - top), text, 20, (255, 255, 255))
    ink = np.argwhere(np.asarray(picture)[..., 0] > 128)
    if not text:
        assert not len(ink)
        return
    low, high = ink.min(axis=0), ink.max(axis=0) + 1
    assert (np.abs(low - [40, 30]) <= 2).all()
    assert (np.abs(high - [40 + bottom - top, 30 + right - left]) <= 2).all()


def test_letters_that_no_font_has_are_named_once(caplog):
    name = "三角形 (треугольник)"
    assert fonts.missing_letters(name) == ["三", "角", "形"]
    assert fonts.drawable(name) == "□□□ (треугольник)"
    boxes = letters_apart("三角")
    assert boxes[0] == boxes[1]
    drawn(f"{name} 形龍")
    drawn(name)
    assert len(warnings_in(caplog)) == 4 - 1, "each letter once"
    assert warnings_in(caplog)[0] == (
        "三 in the texts of pictures: DejaVuSans.ttf has no such letters, so boxes are drawn instead; "
        "fonts.use_font(FILE) draws in another font"
    )
    assert warnings_in(caplog)[2].startswith("形龍 in the texts")


def test_signs_that_are_not_drawn_need_no_font(caplog):
    assert fonts.drawable("ж\U000e0067ж\u3000ж") == "жж ж"
    drawn("ж\U000e0067ж\u3000ж")
    assert not warnings_in(caplog)


def test_the_users_font_comes_first(han, caplog):
    before = drawn("三角形").tobytes()
    caplog.clear()
    fonts.use_font(han, "--font FILE")
    after = drawn("三角形 да 0.91")
    assert after.tobytes() != before
    assert (after == 255).all(axis=2).sum() > 200, "black squares, white on black, are large"
    assert not warnings_in(caplog), "of this font"
    drawn("圆")
    assert warnings_in(caplog)[0].endswith("squares.ttf and DejaVuSans.ttf has no such letters, so boxes are drawn "
                                           "instead; --font FILE draws in another font")  # fmt: skip


def test_a_file_that_is_no_font(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none\.ttf: there is no such file"):
        fonts.use_font(tmp_path / "none.ttf")
    (tmp_path / "text.ttf").write_text("no font")
    for path in (tmp_path / "text.ttf", tmp_path):
        with pytest.raises(ValueError, match=r"not a font that can be read .* give a \.ttf"):
            fonts.use_font(path)
    assert fonts.chain() == [fonts.dejavu()], "what was chosen before stays"


def test_names_of_classes_stay_in_one_line():
    names = ["BG", "a\nb\x1b[31m", "x" * 500, "$a$ $b_1$"]
    result = {"class_ids": np.array([1, 2, 3]), "scores": np.ones(3)}
    captions = visualize.captions_of(result, names)
    assert captions == [r"a b\x1b[31m 1.00", "x" * 57 + "... 1.00", "$a$ $b_1$ 1.00"]


############################################################
#  Figures
############################################################


def png(figure) -> bytes:
    """The figure's file. A warning of matplotlib, as it has for each letter without a font, is an error."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return visualize.figure_to_png(figure)


def figures(name: str, kinds: tuple = ()) -> dict:
    """Figures with a text in each place where names stand. kinds: of them; all by default."""
    masks = [(40, 20, np.ones((70, 360), bool))]
    names, ids, one = ["BG", name], np.array([1]), np.array([0.5])
    result = {"rois": BOXES, "masks": masks, "class_ids": ids, "scores": np.array([0.9])}
    scored = {**result, "mask_ious": one, "mask_scores": one}
    curve = (np.arange(3.0), np.arange(3.0))
    makers = {
        "instances": lambda: visualize.display_instances(IMAGE, BOXES, masks, ids, names, title=f"title {name}"),
        "result": lambda: visualize.display_result(IMAGE, result, names),
        "images": lambda: visualize.display_images([IMAGE], [name]),
        "masks": lambda: visualize.display_top_masks(IMAGE, masks, ids, names),
        "boxes": lambda: visualize.display_boxes(IMAGE, {name: BOXES}),
        "refinement": lambda: visualize.draw_boxes(IMAGE, BOXES, captions=[name], labels="all"),
        "scoring": lambda: visualize.display_mask_scoring(IMAGE, scored, names),
        "overlaps": lambda: visualize.plot_overlaps(ids, ids, one, np.array([[0.7]]), names),
        "histograms": lambda: visualize.plot_histograms({name: np.arange(9)}),
        "training": lambda: visualize.plot_training({"loss": curve, name: curve}, {}, ap={name: curve}, title=name),
    }
    return {kind: makers[kind]() for kind in kinds or makers}


ODD = "$a_1$ $ треугольник a\tb\x1b[0m\x00 三\u200d \udc80"


@pytest.mark.parametrize(("name", "kinds"), [(ODD, ()), ("$\\frac{$ $a_1$", ("result", "overlaps"))])
def test_figures_take_any_name(name, kinds):
    """Also what matplotlib would take for a formula, wrong or right: a dollar is a letter wherever it stands."""
    for kind, figure in figures(name, kinds).items():
        assert png(figure), kind
        texts = figure.findobj(lambda artist: hasattr(artist, "get_parse_math"))
        named = [text for text in texts if "$a_1$" in text.get_text()]
        assert named, kind
        assert not any(text.get_parse_math() for text in named), kind
    figure.savefig(io.BytesIO(), format="svg")
    figure.savefig(io.BytesIO(), format="pdf")


def test_a_logarithmic_axis_keeps_its_labels():
    figure = visualize.new_figure(4, 3)
    ax = figure.subplots()
    ax.loglog([1, 1000], [1, 1000])
    first = png(figure)
    assert png(figure) == first, "and a second drawing changes nothing"
    assert any("mathdefault" in label.get_text() and label.get_parse_math() for label in ax.get_xticklabels())


def test_figures_warn_once_and_keep_their_text(caplog):
    figure = visualize.display_images([IMAGE], ["三角形"])
    png(figure)
    png(figure)
    assert len(warnings_in(caplog)) == 1
    assert "三角形 in the texts of pictures" in warnings_in(caplog)[0]
    assert figure.axes[0].get_title() == "三角形"


def test_figures_take_the_users_font(han, caplog):
    before = png(visualize.display_images([IMAGE], ["三角形 да"]))
    caplog.clear()
    fonts.use_font(han)
    assert png(visualize.display_images([IMAGE], ["三角形 да"])) != before
    for figure in figures("三角形 да", ("overlaps", "training", "result")).values():
        png(figure)
    assert not warnings_in(caplog)


def test_axes_of_others_keep_their_formulas():
    from matplotlib.figure import Figure

    figure = Figure()
    figure.suptitle("$x^2$")
    visualize.display_instances(IMAGE, BOXES, None, [1], ["BG", "$a$ $b$"], title="$", ax=figure.subplots())
    figure.savefig(io.BytesIO())
    assert figure._suptitle.get_parse_math()
    assert not any(text.get_parse_math() for text in figure.axes[0].texts)


def test_the_confusion_matrix_of_a_report_takes_any_name(caplog):
    counts = np.eye(4, dtype=int)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        plain = charts.confusion_matrix(counts, ["BG", "$a$", "треугольник", "b\n\x1b[2J"])
        assert not warnings_in(caplog)
        boxes = charts.confusion_matrix(counts, ["BG", "三", "角", "形"])
    assert plain != boxes
    assert len(warnings_in(caplog)) == 1


def test_tables_are_printed_in_lines(capsys):
    visualize.display_table([["name"], ["a\n\x1b[2Jb"]], show=True)
    assert capsys.readouterr().out == "name\na\\n\\x1b[2Jb\n"
