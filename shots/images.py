"""Reading pictures as upright 8-bit RGB, whatever the file holds.

Notable choices:
- EXIF orientation is applied, 16-bit greys are scaled, CMYK is converted, transparency lies over white.
- Only the first picture of an animation is read.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from shots.errors import ShotsError

_WIDE = {"I;16", "I;16B", "I;16L", "I;16N", "I", "F"}  # one channel of more than eight bits


def read_image(path: str | Path) -> NDArray[np.uint8]:
    """The picture at `path` as uint8 (H, W, 3), RGB, upright.

    Raises ShotsError when there is none, it is not a picture, or it is cut short or far too large.
    """
    path = Path(path)
    try:
        with Image.open(path) as opened:
            picture = ImageOps.exif_transpose(opened)
    except FileNotFoundError:
        raise ShotsError(f"image: {path} does not exist") from None
    except UnidentifiedImageError:
        raise ShotsError(f"image: {path} is not a picture that can be read; use PNG, JPEG or WebP") from None
    except Image.DecompressionBombError as error:
        raise ShotsError(f"image: {path} is too large ({error})") from None
    except (OSError, SyntaxError, ValueError) as error:  # Pillow's answers to damaged files
        raise ShotsError(f"image: {path} cannot be read ({error})") from error
    if picture.mode in _WIDE:
        picture = _eight_bits(picture)
    if picture.has_transparency_data:
        layer = picture.convert("RGBA")
        picture = Image.new("RGBA", layer.size, "white")
        picture.alpha_composite(layer)
    return np.asarray(picture.convert("RGB"))


def _eight_bits(picture: Image.Image) -> Image.Image:
    """A one-channel picture of 16-bit integers, or of floats in 0 to 1, as 8-bit grey."""
    values = np.asarray(picture).astype(np.float64)
    scale = 255.0 if picture.mode == "F" and values.max(initial=0.0) <= 1.0 else 255.0 / 65535.0
    return Image.fromarray(np.clip(np.rint(values * scale), 0, 255).astype(np.uint8))


def fit_image(img: NDArray[np.uint8], height: int, width: int) -> NDArray[np.uint8]:
    """`img` uint8 (H, W, 3) resized to cover `height` x `width` and cropped to it around the centre, antialiased."""
    if img.shape[:2] == (height, width):
        return img
    fitted = ImageOps.fit(Image.fromarray(img), (width, height), method=Image.Resampling.BICUBIC)
    return np.asarray(fitted)
