"""Pictures of every kind come in as upright 8-bit RGB; what is no picture is named."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from shots import ShotsError, fit_image, read_image


@pytest.fixture
def corner() -> np.ndarray:
    """(20, 30, 3): red, with a blue top left quarter."""
    img = np.zeros((20, 30, 3), np.uint8)
    img[..., 0] = 200
    img[:10, :15] = (0, 0, 200)
    return img


def test_a_rotated_photo_comes_upright(tmp_path: Path, corner: np.ndarray) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # to be shown turned a quarter clockwise
    Image.fromarray(corner).save(tmp_path / "r.png", exif=exif)
    assert np.array_equal(read_image(tmp_path / "r.png"), np.rot90(corner, k=-1))


def test_cmyk_keeps_its_colours(tmp_path: Path, corner: np.ndarray) -> None:
    Image.fromarray(corner).convert("CMYK").save(tmp_path / "c.jpg", quality=95)
    back = read_image(tmp_path / "c.jpg")
    assert back.shape == corner.shape
    assert np.abs(back.astype(int) - corner)[3:7, 3:10].max() < 12


def test_sixteen_bits_are_scaled_not_clipped(tmp_path: Path) -> None:
    ramp = np.linspace(0, 65535, 64, dtype=np.uint16).reshape(8, 8)
    Image.fromarray(ramp).save(tmp_path / "w.png")
    back = read_image(tmp_path / "w.png")
    assert np.abs(back[..., 0].astype(float) - ramp / 257.0).max() <= 0.5
    assert np.array_equal(back[..., 0], back[..., 2])


def test_transparency_lies_over_white(tmp_path: Path, corner: np.ndarray) -> None:
    alpha = np.full((20, 30, 1), 255, np.uint8)
    alpha[:10], alpha[10:] = 0, 255
    Image.fromarray(np.concatenate([corner, alpha], axis=2)).save(tmp_path / "a.png")
    back = read_image(tmp_path / "a.png")
    assert (back[:10] == 255).all()
    assert np.array_equal(back[10:], corner[10:])
    palette = Image.fromarray(corner).quantize(4)
    palette.save(tmp_path / "p.png", transparency=palette.getpixel((0, 0)))
    assert (read_image(tmp_path / "p.png")[:10, :15] == 255).all()


@pytest.mark.parametrize("mode", ["L", "1", "P", "LA", "YCbCr"])
def test_every_mode_becomes_rgb(tmp_path: Path, corner: np.ndarray, mode: str) -> None:
    path = tmp_path / ("m.jpg" if mode == "YCbCr" else "m.png")
    Image.fromarray(corner).convert(mode).save(path)
    back = read_image(path)
    assert back.shape == (20, 30, 3)
    assert back.dtype == np.uint8


def test_what_is_no_picture_is_named(tmp_path: Path, corner: np.ndarray) -> None:
    (tmp_path / "text.png").write_text("not a picture")
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)).save(tmp_path / "whole.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "whole.png").read_bytes()[:3000])
    (tmp_path / "none.jpg").write_bytes(b"")
    for name, says in (
        ("text.png", "is not a picture"),
        ("none.jpg", "is not a picture"),
        ("cut.png", "cannot be read"),
        ("gone.png", "does not exist"),
        ("", "cannot be read"),
    ):
        with pytest.raises(ShotsError, match=says):
            read_image(tmp_path / name)


def test_fitting_covers_and_crops_the_centre() -> None:
    img = np.zeros((40, 120, 3), np.uint8)
    img[:, 40:80] = 255
    fitted = fit_image(img, 20, 20)
    assert fitted.shape == (20, 20, 3)
    assert fitted.mean() > 240
    assert fit_image(img, 40, 120) is img
