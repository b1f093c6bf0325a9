"""Writes drawn pictures."""

from pathlib import Path

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo

import runtime

LONGEST_JPEG = 65_500  # pixels along a side; longer pictures are PNG
_COMMENT = "comment"


def save_picture(picture: np.ndarray, path: Path, comment: str = "") -> None:
    """Writes an image, uint8 [H, W, 3], atomically, as JPEG for .jpg, else as PNG. comment: kept in the file."""
    if path.suffix.lower() == ".jpg":
        options = {"format": "JPEG", "quality": 92, **({_COMMENT: comment.encode()} if comment else {})}
    else:
        text = PngInfo()
        if comment:
            text.add_text(_COMMENT, comment)
        options = {"format": "PNG", "pnginfo": text}
    runtime.write_atomically(path, lambda file: Image.fromarray(picture).save(file, **options))


def comment_of(path: Path) -> str:
    """The comment of a picture that save_picture wrote; empty if there is no such file, or none in it."""
    try:
        with Image.open(path, formats=["JPEG", "PNG"]) as image:
            comment = image.info.get(_COMMENT, "")
    except (OSError, ValueError, SyntaxError):
        return ""
    return comment.decode(errors="replace") if isinstance(comment, bytes) else str(comment)
