"""The demo's pictures: a photograph and a scanned page, both out of installed packages."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageFilter

from erase.extras import require

QUESTION = "Describe the image."
PAGE_QUESTION = "Read the text on the page."

PAPER_WINDOW = 15
"""Pixels, odd: wider than a pen stroke of the scan, so its maximum is the paper's brightness."""
WHITE_POINT = 0.85
"""Share of the paper's brightness that becomes white; the rest is the scan's noise."""
BLACK_POINT = 0.25
"""Share of the paper's brightness that becomes black."""


@dataclass(frozen=True)
class Picture:
    """What the demo shows the model: 8-bit RGB, and what it asks about it."""

    name: str
    image: Image.Image
    question: str = QUESTION


def builtin_pictures() -> list[Picture]:
    """The photograph of scikit-learn and the scanned page of scikit-image; no network is used.

    Raises:
        MissingExtraError: one of the two packages is not installed.
    """
    return [
        Picture("photograph", photograph("china")),
        Picture("scanned page", scanned_page(), PAGE_QUESTION),
    ]


def photograph(name: str) -> Image.Image:
    """A photograph of scikit-learn, "china" or "flower": 640 x 427 pixels, 8-bit RGB.

    Raises:
        MissingExtraError: scikit-learn or scikit-image is not installed.
    """
    require("demo", "The demo's photograph and page")
    from sklearn.datasets import load_sample_image

    return Image.fromarray(np.asarray(load_sample_image(f"{name}.jpg"), dtype=np.uint8))


def scanned_page() -> Image.Image:
    """The scanned page of scikit-image with its paper whitened: 384 x 191 pixels, 8-bit RGB.

    Raises:
        MissingExtraError: scikit-learn or scikit-image is not installed.
    """
    require("demo", "The demo's photograph and page")
    from skimage.data import page

    return whiten_paper(Image.fromarray(page()))


def whiten_paper(scan: Image.Image) -> Image.Image:
    """Evens out the light on a scanned page and makes its paper white, as scanner software does.

    The paper's brightness around each pixel is the blurred local maximum; gray levels are
    divided by it and stretched between the black and the white point.
    """
    gray = scan.convert("L")
    paper = gray.filter(ImageFilter.MaxFilter(PAPER_WINDOW))
    paper = paper.filter(ImageFilter.GaussianBlur(PAPER_WINDOW))
    share = np.asarray(gray, dtype=np.float32) / np.maximum(np.asarray(paper), 1)
    level = np.clip((share - BLACK_POINT) / (WHITE_POINT - BLACK_POINT), 0.0, 1.0)
    return Image.fromarray(np.rint(255 * level).astype(np.uint8)).convert("RGB")
