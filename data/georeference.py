"""Where the pixels of an image lie on a map."""

import math
from typing import Any, NamedTuple

import numpy as np

_SCALE, _TIE_POINTS, _MATRIX = 33550, 33922, 34264  # ModelPixelScale, ModelTiepoint, ModelTransformation
_GEOGRAPHIC, _PROJECTED = "GeographicTypeGeoKey", "ProjectedCSTypeGeoKey"
_POINT = 2  # GTRasterTypeGeoKey: places are those of the centres of pixels
_USER_DEFINED = 32767


class Georeference(NamedTuple):
    """Where the pixels of an image lie on a map.

    crs: the coordinate reference system, as "EPSG:32633" or as WKT; empty if the file does not name one.
    transform: a, b, c, d, e, f: the outer corner of pixel (row y, column x) lies at a x + b y + c to the east, and at
        d x + e y + f to the north.
    """

    crs: str
    transform: tuple[float, float, float, float, float, float]

    def place(self, x: float, y: float) -> tuple[float, float]:
        """The place on the map of a point of the image, in pixels."""
        a, b, c, d, e, f = self.transform
        return a * x + b * y + c, d * x + e * y + f

    def points(self, places: np.ndarray) -> np.ndarray:
        """The points of the image, pixels, of places on the map: the inverse of place, to a millionth of a pixel.

        places: float64 [N, (east, north)].
        """
        a, b, c, d, e, f = self.transform
        return np.linalg.solve([[a, b], [d, e]], (places - [c, f]).T).T.round(6)

    def world_file(self) -> str:
        """The text of a world file: a, d, b, e, and the place of the first pixel's centre, a number a line."""
        a, b, _, d, e, _ = self.transform
        return "".join(f"{number!r}\n" for number in (a, d, b, e, *self.place(0.5, 0.5)))

    @property
    def is_valid(self) -> bool:
        """Whether all numbers are finite, and pixels have an area."""
        a, b, _, d, e, _ = self.transform
        return all(map(math.isfinite, self.transform)) and a * e != b * d


def read_geotiff(page: Any) -> Georeference | None:
    """The georeference of a page of tifffile; None if it has none that is valid.

    Source: OGC GeoTIFF 1.1 (19-008r4), 7.1 and annex B.6.
    """
    scale, ties, matrix = (page.tags.valueof(number) for number in (_SCALE, _TIE_POINTS, _MATRIX))
    if isinstance(matrix, tuple) and len(matrix) == 16:
        transform = (*matrix[0:2], matrix[3], *matrix[4:6], matrix[7])
    elif isinstance(scale, tuple) and isinstance(ties, tuple) and len(scale) >= 2 and len(ties) == 6:
        column, row, _, east, north, _ = ties
        transform = (scale[0], 0.0, east - column * scale[0], 0.0, -scale[1], north + row * scale[1])
    else:
        return None
    keys = page.geotiff_tags or {}
    if keys.get("GTRasterTypeGeoKey") == _POINT:
        a, b, c, d, e, f = transform
        transform = (a, b, c - (a + b) / 2, d, e, f - (d + e) / 2)
    codes = [int(keys[name]) for name in (_PROJECTED, _GEOGRAPHIC) if isinstance(keys.get(name), int)]
    crs = f"EPSG:{codes[0]}" if codes and 1024 <= codes[0] < _USER_DEFINED else ""
    found = Georeference(crs, tuple(map(float, transform)))
    return found if found.is_valid else None
