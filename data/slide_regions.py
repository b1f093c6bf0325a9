"""Reads regions of microscopy slides by OpenSlide: .svs, .ndpi, .mrxs, .scn, .bif and others."""

import math
import threading
from pathlib import Path
from typing import Any

import numpy as np

import utils
from data.images import Refused
from data.measurements import square_side

SUFFIXES = {".svs", ".ndpi", ".mrxs", ".scn", ".bif", ".vms", ".vmu", ".svslide", ".czi", ".avs"}
PACKAGES = "openslide-python openslide-bin"
_MOST_OVERVIEW_PIXELS = 1 << 24
# Glass: all of a region's pixels in the overview are as bright as this, and their channels differ by so much at most.
GLASS = 240
GLASS_COLOUR = 8


def find_vendor(path: Path) -> str | None:
    """OpenSlide's name of a slide's kind; None if it is no slide, or OpenSlide is not installed."""
    try:
        import openslide
    except (ImportError, OSError):  # OSError: the package is there, and the library is not
        return None
    return openslide.OpenSlide.detect_format(str(path))


class SlideRegions:
    """A level of a slide, by regions. Attributes and methods: as TiffRegions.

    Where a slide was not scanned, its pixels have the colour that the file says, or white.
    """

    orientation, bits, georeference, nodata = 1, None, None, None
    dtype = np.dtype(np.uint8)

    def __init__(self, path: Path, micrometres: float | None = None) -> None:
        """micrometres: of a pixel; the level that is nearest to it is read. None: the finest level."""
        import openslide

        self._slide = openslide.OpenSlide(str(path))
        properties = self._slide.properties
        sides = [_number(properties.get(f"openslide.mpp-{axis}")) for axis in "xy"]
        finest = None if None in sides else square_side((sides[0], sides[1]))
        self._level, self.notes = 0, []
        if micrometres is not None and finest is None:
            raise Refused(
                f"it does not say the size of its pixels, so its level of {micrometres:g} micrometres is unknown"
            )
        if micrometres is not None:
            distances = [abs(math.log(finest * factor / micrometres)) for factor in self._slide.level_downsamples]
            self._level = distances.index(min(distances))
        self._factor = self._slide.level_downsamples[self._level]
        self.pixel_size = None if finest is None else finest * self._factor
        width, height = self._slide.level_dimensions[self._level]
        self.shape = (height, width, 3)
        color = properties.get("openslide.background-color", "FFFFFF")
        self._background = np.frombuffer(bytes.fromhex(color), np.uint8)[:3]  # [3]
        self._overview, self._lock = None, threading.Lock()

    def read(self, y1: int, x1: int, y2: int, x2: int) -> np.ndarray:
        """The pixels of a region, uint8 [y2 - y1, x2 - x1, 3]."""
        return self._opaque(self._read(y1, x1, y2, x2))

    def is_empty(self, y1: int, x1: int, y2: int, x2: int) -> bool:
        """Whether a region was not scanned, or is white glass in the overview."""
        with self._lock:
            if self._overview is None:
                self._overview = self._find_glass()
        if not self._overview.size:
            return not self._read(y1, x1, y2, x2)[..., 3].any()
        scales = [side / whole for side, whole in zip(self._overview.shape, self.shape, strict=False)]
        top, left = (max(0, math.floor(start * scale) - 1) for start, scale in zip((y1, x1), scales, strict=True))
        bottom, right = (math.ceil(end * scale) + 1 for end, scale in zip((y2, x2), scales, strict=True))
        return bool(self._overview[top:bottom, left:right].all())

    def close(self) -> None:
        """Close the slide."""
        self._slide.close()

    def _read(self, y1: int, x1: int, y2: int, x2: int) -> np.ndarray:
        """uint8 [y2 - y1, x2 - x1, 4], with alpha."""
        corner = round(x1 * self._factor), round(y1 * self._factor)
        return np.asarray(self._slide.read_region(corner, self._level, (x2 - x1, y2 - y1)))

    def _opaque(self, pixels: np.ndarray) -> np.ndarray:
        if (pixels[..., 3] == 255).all():
            return np.ascontiguousarray(pixels[..., :3])
        alpha = pixels[..., 3:].astype(np.uint32)
        mixed = pixels[..., :3] * alpha + self._background * (255 - alpha)
        return ((mixed + 127) // 255).astype(np.uint8)

    def _find_glass(self) -> np.ndarray:
        """Where the coarsest level has nothing but glass, bool [h, w]; empty if that level is large itself."""
        width, height = self._slide.level_dimensions[-1]
        if width * height > _MOST_OVERVIEW_PIXELS:
            return np.zeros((0, 0), bool)
        pixels = np.asarray(self._slide.read_region((0, 0), self._slide.level_count - 1, (width, height)))
        colours = pixels[..., :3]
        is_bright = colours.min(axis=2) >= GLASS
        return (pixels[..., 3] == 0) | (is_bright & (np.ptp(colours, axis=2) <= GLASS_COLOUR))


def _number(text: Any) -> float | None:
    try:
        return float(text)
    except (TypeError, ValueError):
        return None


def missing_package(path: Path) -> str:
    """A sentence about a slide that OpenSlide would read, if it is not installed; else empty."""
    if path.suffix.lower() not in SUFFIXES:
        return ""
    try:
        import openslide  # noqa: F401
    except (ImportError, OSError):
        return f"slides ({utils.printable(path.suffix.lower())}) are read by OpenSlide; pip install {PACKAGES}"
    return ""
