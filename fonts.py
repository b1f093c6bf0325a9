"""The fonts of pictures and figures: text in any script, and a warning that names the letters that no font has.

Text in ASCII is drawn in Pillow's own font. Other text is drawn in DejaVu Sans, which comes with matplotlib and has the
Latin, Greek, Cyrillic, Armenian, Hebrew, Arabic and some more scripts. use_font adds a font of the user's, which then
comes first in all pictures and figures of this process. Each letter is drawn in the first font that has it.

matplotlib is imported when a figure or a text beyond ASCII is drawn, and not before.
"""

import contextlib
import functools
import importlib.util
import logging
import os
import unicodedata
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from PIL import ImageFont

import utils

logger = logging.getLogger(__name__)

# ASCII and Latin-1, of control characters only the new line. DejaVu Sans has all, so nobody looks into the fonts.
_LATIN = frozenset("\n").union(map(chr, [*range(0x20, 0x7F), *range(0xA0, 0x100)]))
_MISSING = "\N{WHITE SQUARE}"  # drawn in figures for a letter that no font has
_CHOICE = "fonts.use_font(FILE)"

############################################################
#  Text
############################################################


def one_line(name: Any, limit: int = 60) -> str:
    """A name as one line of a picture: white space becomes single spaces, control characters escape codes.

    limit: a longer name is cut, and ends in "...".
    """
    text = " ".join(str(name).split())
    text = text if len(text) <= limit else text[: limit - 3].rstrip() + "..."
    return "".join(map(_visible, text))


def several_lines(text: Any) -> str:
    """A text as a picture shows it: tabs become spaces, control characters but new lines escape codes."""
    text = str(text)
    if all(c.isprintable() or c == "\n" for c in text):
        return text
    return "\n".join("".join(map(_visible, line)) for line in text.expandtabs(4).splitlines())


def _visible(character: str) -> str:
    """The character, or its escape code. Signs that join or order letters stay, as some scripts need them."""
    return utils.printable(character) if unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp") else character


############################################################
#  Fonts
############################################################

# The user's font and how it was chosen: the same for all threads, as the settings of matplotlib are.
_chosen: Path | None = None
_choice = _CHOICE
_warned: set[str] = set()


def use_font(path: str | os.PathLike | None, choice: str = _CHOICE) -> None:
    """Draw the text of all pictures and figures of this process in a font, and what it lacks in DejaVu Sans.

    path: a .ttf, .otf or .ttc file. None: no font but those that are always there.
    choice: how a user can choose a font here, such as "--font FILE", for the warning about letters that no font has.

    Raises: ValueError if the file is no font; FileNotFoundError without the file.
    """
    global _chosen, _choice
    if path is not None:
        path = Path(path)
        if not path.exists():
            raise FileNotFoundError(f"font {path}: there is no such file")
        try:
            ImageFont.truetype(os.fspath(path), 10)
            letters(path)
        except (OSError, RuntimeError, ValueError) as error:
            raise ValueError(
                f"font {path}: not a font that can be read ({utils.printable(error)}); give a .ttf, .otf or .ttc file"
            ) from error
    _chosen, _choice = path, choice
    _warned.clear()


@functools.cache
def dejavu() -> Path:
    """The file of DejaVu Sans that comes with matplotlib. Does not import matplotlib, which takes a while."""
    package = importlib.util.find_spec("matplotlib")
    return Path(package.origin).parent / "mpl-data" / "fonts" / "ttf" / "DejaVuSans.ttf"


@functools.cache
def letters(path: Path) -> frozenset[int]:
    """The characters that the font of a file has."""
    from matplotlib.ft2font import FT2Font

    return frozenset(FT2Font(os.fspath(path)).get_charmap())


def chain() -> list[Path]:
    """The fonts of text beyond ASCII, the preferred one first."""
    return [path for path in (_chosen, dejavu()) if path is not None]


def missing_letters(text: str) -> list[str]:
    """The characters of a text that no font has, each once, in order."""
    if text.isascii() or _LATIN.issuperset(text):  # all fonts together have these
        return []
    fonts = [letters(path) for path in chain()]
    return [c for c in dict.fromkeys(text) if c != "\n" and not any(ord(c) in font for font in fonts)]


def drawable(text: str) -> str:
    """A text with a box in place of each letter that no font has.

    Spaces become common ones, and signs that are not drawn themselves, such as joiners, are left out.
    """
    stand_ins = {"Zs": " ", "Cf": "", "Mn": "", "Me": ""}
    missing = {ord(c): stand_ins.get(unicodedata.category(c), _MISSING) for c in missing_letters(text)}
    return text.translate(missing) if missing else text


def warn_of_missing(texts: Iterable[str]) -> None:
    """Log one warning that names the characters of some texts that drawable replaces. Each is named once."""
    missing = [c for c in missing_letters("".join(texts)) if c not in _warned and drawable(c) == _MISSING]
    if missing:
        _warned.update(missing)
        names = " and ".join(path.name for path in chain())
        logger.warning(
            "%s in the texts of pictures: %s has no such letters, so boxes are drawn instead; %s draws in another font",
            utils.printable("".join(missing[:50])) + "..." * (len(missing) > 50),
            utils.printable(names),
            _choice,
        )


############################################################
#  Pictures, with Pillow
############################################################


@functools.lru_cache(maxsize=32)
def _font(path: Path | None, size: int) -> Any:
    return ImageFont.load_default(size=size) if path is None else ImageFont.truetype(os.fspath(path), size)


def _is_plain(text: str) -> bool:
    """Whether a text is drawn in Pillow's own font, which has ASCII and the dot between the parts of a caption."""
    return _chosen is None and text.replace("\N{MIDDLE DOT}", "").isascii()


def extent(pen: Any, text: str, size: int) -> tuple[float, float, float, float]:
    """(left, top, right, bottom) of what draw_text draws at (0, 0). pen: an ImageDraw."""
    if _is_plain(text):
        return pen.textbbox((0, 0), text, font=_font(None, size))
    boxes = [pen.textbbox((x, y), run, font=font, anchor="ls") for x, y, run, font in _runs(text, size)]
    if not boxes:
        return 0, 0, 0, 0
    lefts, tops, rights, bottoms = zip(*boxes, strict=True)
    return min(lefts), min(tops), max(rights), max(bottoms)


def draw_text(pen: Any, place: tuple[float, float], text: str, size: int, fill: Any) -> None:
    """Draw a text, of one line or several, with its upper left corner at (x, y). pen: an ImageDraw."""
    if _is_plain(text):
        pen.text(place, text, fill=fill, font=_font(None, size))
        return
    for x, y, run, font in _runs(text, size):
        pen.text((place[0] + x, place[1] + y), run, fill=fill, font=font, anchor="ls")


def _runs(text: str, size: int) -> list[tuple[float, float, str, Any]]:
    """The parts of a text that are in one font each: x and y of their base lines, the part, its font."""
    paths = chain()
    fonts = [_font(path, size) for path in paths]
    metrics = [font.getmetrics() for font in fonts]
    ascent, height = max(up for up, _ in metrics), max(up + down for up, down in metrics)
    runs = []
    for row, line in enumerate(drawable(text).split("\n")):
        x, start = 0.0, 0
        owners = [next((i for i, path in enumerate(paths) if ord(c) in letters(path)), 0) for c in line]
        for end in range(1, len(line) + 1):
            if end == len(line) or owners[end] != owners[start]:
                run, font = line[start:end], fonts[owners[start]]
                runs.append((x, row * height + ascent, run, font))
                x, start = x + font.getlength(run), end
    return runs


############################################################
#  Figures, with matplotlib
############################################################


def text_style() -> dict[str, Any]:
    """Options of matplotlib's texts: "$" is a letter and starts no formula, and the user's font comes first."""
    return {"parse_math": False, **({"fontfamily": _families()} if _chosen is not None else {})}


def _families() -> list[str]:
    return [*([_family(_chosen)] if _chosen is not None else []), "DejaVu Sans"]


@functools.cache
def _family(path: Path) -> str:
    """The name of a font, which matplotlib knows from then on."""
    from matplotlib.font_manager import FontProperties, fontManager

    fontManager.addfont(os.fspath(path))
    return FontProperties(fname=os.fspath(path)).get_name()


def name_ticks(axis: Any, names: Iterable[str], places: Iterable[int] | None = None, **style: Any) -> None:
    """Write names at the ticks of an axis of matplotlib. places: of the ticks; 0, 1, 2 ... by default.

    style: further options of the texts, such as rotation=90.
    """
    names = list(names)
    warn_of_missing(names)
    places = range(len(names)) if places is None else places
    axis.set_ticks(places, labels=[drawable(name) for name in names], **style, **text_style())


@functools.cache
def figure_class() -> type:
    """A class of figures whose text is drawn as it stands: see text_style and warn_of_missing."""
    from matplotlib.figure import Figure

    class PlainFigure(Figure):
        def draw(self, renderer: Any) -> None:
            with _plain_texts(self):
                super().draw(renderer)

    return PlainFigure


@contextlib.contextmanager
def _plain_texts(figure: Any) -> Iterator[None]:
    """A context in which a figure's texts have text_style, and boxes in place of letters that no font has.

    matplotlib itself would warn of each of these letters, each time.
    """
    from matplotlib.text import Text

    texts = [text for text in figure.findobj(Text) if text.get_text()]
    for text in texts:
        if "\\mathdefault" not in text.get_text():  # matplotlib's own labels of a logarithmic axis
            text.set_parse_math(False)
            if _chosen is not None and text.get_fontweight() in ("normal", 400):  # the user's font may have no bold
                text.set_fontfamily(_families())
    lines = {text: several_lines(text.get_text()) for text in texts}
    warn_of_missing(lines.values())
    originals = {text: text.get_text() for text in texts if drawable(lines[text]) != text.get_text()}
    for text in originals:
        text.set_text(drawable(lines[text]))
    try:
        yield
    finally:
        for text, original in originals.items():
            text.set_text(original)
