"""What labels are printed on: six kinds of background, from a flat page to a busy photograph."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

BACKGROUNDS = ("flat", "gradient", "noise", "page", "photo", "sign")
"""flat: one colour. gradient: two colours. noise: one colour with grain. page: lines of small
print. photo: a pale photograph, text directly on it. sign: a photograph at full contrast, each
label on a flat plate of its own."""

TRAINING_PHOTOS = ("astronaut", "brick", "chelsea", "coffee", "grass", "gravel", "ihc", "rocket")
VALIDATION_PHOTOS = ("motorcycle_left",)
CALIBRATION_PHOTOS = ("camera", "clock_motion", "coins")
TEST_PHOTOS = ("china", "flower")
"""Photographs of the four splits: none is in two of them. The last two ship with scikit-learn,
the others with scikit-image."""

GRAIN = (1.0, 12.0)
"""Standard deviation of the noise, gray levels."""
PALE_CONTRAST = 0.35
"""Share of a photograph's contrast that is left under text printed directly on it."""
PALE_MEAN = (70.0, 190.0)
"""Brightness of such a photograph."""
CROP = (0.45, 1.0)
"""Share of a photograph's shorter side that a crop takes."""
PRINT_SIZES = (7, 10)
"""Pixels: small print of a page, well below the labels."""
PRINT_GRAY = (60, 150)
PAPER = (225, 256)
MARGIN = (10, 30)
"""Pixels between the print of a page and its edge."""
LEADING = 1.5
"""Distance of two lines of print over the print's size."""
WORD = (2, 9)
"""Letters of a word of small print."""
SKIPPED_LINES = 0.25
"""Share of lines of a page that stay empty, as between paragraphs."""

_LETTERS = np.array(list("abcdefghijklmnopqrstuvwxyz"))


@cache
def font(name: str, size: int) -> ImageFont.FreeTypeFont:
    """A font that ships with matplotlib, laid out by Pillow itself: the same on every machine."""
    import matplotlib

    path = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / f"{name}.ttf"
    return ImageFont.truetype(str(path), size, layout_engine=ImageFont.Layout.BASIC)


@cache
def photograph(name: str) -> Image.Image:
    """One of the photographs above, 8-bit RGB."""
    if name in TEST_PHOTOS:
        from sklearn.datasets import load_sample_image

        return Image.fromarray(np.asarray(load_sample_image(f"{name}.jpg"), dtype=np.uint8))
    from skimage import data

    folder = Path(data.__file__).parent
    (path,) = [*folder.glob(f"{name}.png"), *folder.glob(f"{name}.jpg")]
    with Image.open(path) as opened:
        photo: Image.Image = opened.convert("RGB")
    return photo


def draw_background(
    rng: np.random.Generator, kind: str, size: tuple[int, int], photos: tuple[str, ...]
) -> Image.Image:
    """An image of ``size`` (width, height), 8-bit RGB.

    Args:
        kind: one of ``BACKGROUNDS``.
        photos: names of the photographs that crops are taken of.

    Raises:
        ValueError: no such kind.
    """
    if kind not in _DRAW:
        raise ValueError(f"kind: expected one of {BACKGROUNDS}, got {kind!r}")
    return _DRAW[kind](rng, size, photos)


def _flat(rng: np.random.Generator, size: tuple[int, int], _: tuple[str, ...]) -> Image.Image:
    return Image.new("RGB", size, tuple(rng.integers(0, 256, 3).tolist()))


def _gradient(rng: np.random.Generator, size: tuple[int, int], _: tuple[str, ...]) -> Image.Image:
    width, height = size
    angle = rng.uniform(0, 2 * np.pi)
    x = np.linspace(-1, 1, width)[None, :] * np.cos(angle)
    y = np.linspace(-1, 1, height)[:, None] * np.sin(angle)
    share = ((x + y) / 2**1.5 + 0.5)[..., None]
    first, second = rng.uniform(0, 255, (2, 3))
    return Image.fromarray((first * share + second * (1 - share)).astype(np.uint8))


def _noise(rng: np.random.Generator, size: tuple[int, int], _: tuple[str, ...]) -> Image.Image:
    width, height = size
    colour = rng.uniform(20, 235, 3)
    grain = rng.standard_normal((height, width, 1), dtype=np.float32) * rng.uniform(*GRAIN)
    return Image.fromarray(np.clip(colour + grain, 0, 255).astype(np.uint8))


def _page(rng: np.random.Generator, size: tuple[int, int], _: tuple[str, ...]) -> Image.Image:
    width, height = size
    image = Image.new("RGB", size, (int(rng.integers(*PAPER)),) * 3)
    draw = ImageDraw.Draw(image)
    print_size = int(rng.integers(PRINT_SIZES[0], PRINT_SIZES[1] + 1))
    face, gray = font("DejaVuSerif", print_size), (int(rng.integers(*PRINT_GRAY)),) * 3
    left, top = rng.integers(*MARGIN, 2).tolist()
    per_line = int((width - 2 * left) / (0.55 * print_size))  # mean advance of a letter in ems
    for y in range(top, height - top - print_size, int(LEADING * print_size)):
        if rng.random() < SKIPPED_LINES:
            continue
        letters = rng.choice(_LETTERS, per_line)
        spaces = np.cumsum(rng.integers(*WORD, per_line))
        letters[spaces[spaces < per_line]] = " "
        end = per_line if rng.random() < 0.7 else int(rng.integers(1, per_line))
        draw.text((left, y), "".join(letters[:end]), font=face, fill=gray)
    return image


def _crop(rng: np.random.Generator, size: tuple[int, int], photos: tuple[str, ...]) -> Image.Image:
    photo = photograph(photos[int(rng.integers(len(photos)))])
    width, height = size
    reach = rng.uniform(*CROP) * min(photo.width / width, photo.height / height)
    w, h = max(1.0, reach * width), max(1.0, reach * height)
    x, y = rng.uniform(0, photo.width - w), rng.uniform(0, photo.height - h)
    crop = photo.resize(size, Image.Resampling.BILINEAR, box=(x, y, x + w, y + h))
    return crop.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if rng.random() < 0.5 else crop


def _photo(rng: np.random.Generator, size: tuple[int, int], photos: tuple[str, ...]) -> Image.Image:
    pixels = np.asarray(_crop(rng, size, photos), dtype=np.float32)
    pale = (pixels - pixels.mean()) * PALE_CONTRAST + rng.uniform(*PALE_MEAN)
    return Image.fromarray(np.clip(pale, 0, 255).astype(np.uint8))


_DRAW: dict[str, Callable[..., Image.Image]] = {
    "flat": _flat,
    "gradient": _gradient,
    "noise": _noise,
    "page": _page,
    "photo": _photo,
    "sign": _crop,
}
