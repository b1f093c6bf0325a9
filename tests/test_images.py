"""Image files of every kind: which are read, their sizes, and the sentence that each of the others gets."""

import numpy as np
import pytest
from PIL import Image

from data.images import ImageSize, image_size, read_image


def oriented(path, orientation):
    """An image that is stored with 6 rows and 9 columns."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    pixels = np.arange(6 * 9 * 3, dtype=np.uint8).reshape(6, 9, 3)
    Image.fromarray(pixels).save(path, exif=exif)
    return pixels


############################################################
#  Sizes
############################################################


@pytest.mark.parametrize("name", ["turned.png", "turned.tiff", "turned.jpg", "turned.webp"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_size_is_known_from_the_header(tmp_path, monkeypatch, name, orientation):
    stored = oriented(tmp_path / name, orientation)
    shown = read_image(tmp_path / name)
    as_stored = read_image(tmp_path / name, upright=False)
    assert as_stored.shape == stored.shape
    if name.endswith(("png", "tiff")):
        np.testing.assert_array_equal(as_stored, stored)
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", lambda self: pytest.fail("was decoded"))
    size = image_size(tmp_path / name)
    assert size == (shown.shape[:2], (6, 9), orientation)
    assert size.is_ambiguous == (orientation in (2, 3, 4))


def test_a_png_may_say_its_orientation_after_its_pixels(tmp_path):
    stored = oriented(tmp_path / "early.png", 6)
    content = (tmp_path / "early.png").read_bytes()
    start = content.index(b"eXIf") - 4
    end = start + 12 + int.from_bytes(content[start : start + 4])
    late = content[:start] + content[end:-12] + content[start:end] + content[-12:]
    (tmp_path / "late.png").write_bytes(late)
    assert image_size(tmp_path / "late.png") == ((9, 6), (6, 9), 6)
    np.testing.assert_array_equal(read_image(tmp_path / "late.png"), stored.swapaxes(0, 1)[:, ::-1])


def test_a_square_image_that_exif_turns_is_ambiguous():
    assert ImageSize((9, 9), (9, 9), 6).is_ambiguous
    assert not ImageSize((9, 9), (9, 9), 1).is_ambiguous


def test_sizes_are_refused_as_images_are(tmp_path):
    (tmp_path / "broken.png").write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"image .*broken\.png: not an image of a format that is read"):
        image_size(tmp_path / "broken.png")
    with pytest.raises(FileNotFoundError, match=r"missing\.png: there is no such file"):
        image_size(tmp_path / "missing.png")
    Image.new("1", (300, 200)).save(tmp_path / "bomb.png")
    with pytest.raises(ValueError, match=r"bomb\.png: 300 x 200 pixels are more than max_pixels=59999"):
        image_size(tmp_path / "bomb.png", max_pixels=59_999)


############################################################
#  Files that are no images
############################################################


@pytest.mark.parametrize(
    ("content", "cause"),
    [
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "PostScript"),
        (b"\xc5\xd0\xd3\xc6" + bytes(60), "PostScript"),
        (b"\xd7\xcd\xc6\x9a" + bytes(60), "a Windows metafile"),
        (b"%PDF-1.7\n", "a PDF document"),
        (b"\n<!DOCTYPE html><html>", "a web page"),
        (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
        (b"\0\0\0\x20ftypheic" + bytes(20), "HEIC"),
        (b"", "the file is empty"),
    ],
)
def test_a_file_of_another_kind_is_named_and_never_run(tmp_path, monkeypatch, content, cause):
    monkeypatch.setattr("subprocess.Popen", lambda *args, **kwargs: pytest.fail("a program was started"))
    path = tmp_path / "photo.jpg"
    path.write_bytes(content)
    for read in (read_image, image_size):
        with pytest.raises(ValueError, match=rf"image .*photo\.jpg: .*{cause}"):
            read(path)


def test_a_name_cannot_move_the_cursor(tmp_path):
    with pytest.raises(FileNotFoundError) as caught:
        read_image(tmp_path / "a\x1b[2J.png")
    assert str(caught.value).isprintable()
