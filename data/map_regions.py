"""Reads regions of aerial and satellite images by rasterio, which is GDAL: where they lie on a map, and where they have
no data.
"""

import contextlib
import math
import threading
from pathlib import Path
from typing import Any

import numpy as np

from data.georeference import Georeference
from data.images import Refused
from data.tiff import MOST_BYTES, channel_note, channels_read

# What GDAL may read. It also knows formats that name other files or addresses (VRT, WMS), or databases.
DRIVERS = ("GTiff", "JP2OpenJPEG", "HFA", "ENVI", "NITF", "AAIGrid", "EHdr", "PNG", "JPEG")


def is_installed() -> bool:
    """Whether rasterio can be imported."""
    try:
        import rasterio  # noqa: F401
    except ImportError:
        return False
    return True


class MapRegions:
    """An image with a place on a map, by regions. Attributes and methods: as TiffRegions.

    The bands are channels; a band of transparency is not read as one.
    """

    orientation, bits, pixel_size = 1, None, None

    def __init__(self, path: Path, channels: int = 3) -> None:
        """Reads the header. channels: those that a network takes. Raises: Refused, and errors of GDAL."""
        from rasterio.windows import Window

        self._window = Window
        self._image = image = _open(path)
        self._lock = threading.Lock()
        kinds = [kind.name for kind in image.colorinterp]
        colours = sum(kind != "alpha" for kind in kinds)
        dtype = np.dtype(image.dtypes[0]) if image.count else np.dtype("O")
        if not colours or dtype.kind not in "uif" or len(set(image.dtypes)) > 1:
            raise Refused(f"it has bands of type {', '.join(sorted(set(image.dtypes))) or 'none'}, and is no picture")
        if max(math.prod(shape) for shape in image.block_shapes) * image.count * dtype.itemsize > MOST_BYTES:
            raise Refused(f"it is stored in blocks of more than {MOST_BYTES >> 30} GB; save it in tiles")
        self._palette = _palette(image.colormap(1)) if kinds[0] == "palette" and dtype == np.uint8 else None
        self._count = channels_read(colours, channels)
        self.dtype = dtype
        count = 3 if self._palette is not None else self._count
        self.shape = (image.height, image.width) if count == 1 else (image.height, image.width, count)
        note = channel_note("maps", colours, channels)
        self.notes = [note] if note else []
        self.nodata = None if image.nodata is None else float(image.nodata)
        flags = {flag.name for band in image.mask_flag_enums for flag in band}
        self._is_all_valid = flags <= {"all_valid"}
        found = Georeference("" if image.crs is None else image.crs.to_string(), tuple(map(float, image.transform[:6])))
        self.georeference = found if found.is_valid and not image.transform.is_identity else None

    def read(self, y1: int, x1: int, y2: int, x2: int) -> np.ndarray:
        """The values of a region, [y2 - y1, x2 - x1] or [..., C]."""
        window = self._window(x1, y1, x2 - x1, y2 - y1)
        with self._lock:
            values = self._image.read(list(range(1, self._count + 1)), window=window)  # [C, h, w]
        if self._palette is not None:
            return self._palette[values[0]]
        return values[0] if self._count == 1 else np.ascontiguousarray(values.transpose(1, 2, 0))

    def is_empty(self, y1: int, x1: int, y2: int, x2: int) -> bool:
        """Whether a region has no data, by the value for it, a mask, or transparency."""
        if self._is_all_valid:
            return False
        with self._lock:
            return not self._image.dataset_mask(window=self._window(x1, y1, x2 - x1, y2 - y1)).any()

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._image.close()


def _open(path: Path) -> Any:
    """The open data set. Raises: Refused if none of DRIVERS reads it."""
    import rasterio

    for driver in DRIVERS:  # rasterio 1.4 takes one at a time
        with contextlib.suppress(rasterio.errors.RasterioIOError):
            return rasterio.open(path, driver=driver, sharing=False)
    raise Refused("GDAL cannot read it; is it cut off or damaged?")


def _palette(colours: dict[int, Any]) -> np.ndarray:
    """The colours of a palette, uint8 [256, 3]."""
    palette = np.zeros((256, 3), np.uint8)
    for value, colour in colours.items():
        palette[value] = colour[:3]
    return palette


class GeoTiffRegions:
    """A GeoTIFF: its pixels as TiffRegions reads them, and its place and its lack of data as GDAL says."""

    def __init__(self, pixels: Any, map_regions: MapRegions) -> None:
        """pixels: a TiffRegions of the same file."""
        self._pixels, self._map = pixels, map_regions
        for name in ("shape", "dtype", "orientation", "bits", "notes", "pixel_size", "nodata", "read"):
            setattr(self, name, getattr(pixels, name))
        self.georeference = map_regions.georeference or pixels.georeference

    def is_empty(self, y1: int, x1: int, y2: int, x2: int) -> bool:
        """Whether a region has no data, or was never written."""
        return self._pixels.is_empty(y1, x1, y2, x2) or self._map.is_empty(y1, x1, y2, x2)

    def close(self) -> None:
        """Close both files."""
        self._map.close()
        self._pixels.close()
