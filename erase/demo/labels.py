"""Labels on a picture: a letter and two digits, in fonts that ship with matplotlib."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from erase.extras import require

PAPER = (255, 255, 255)
"""Colour of a cleared field."""


@dataclass(frozen=True)
class Label:
    """One label. ``text``: a letter, which is asked for, and two digits, which are the answer.

    ``corner``: left and top of its ink in pixels; ``colour``: RGB; ``font``: a file of matplotlib's
    without its ending; ``size``: of that font, in pixels.
    """

    text: str
    corner: tuple[int, int]
    colour: tuple[int, int, int]
    font: str = "DejaVuSans"
    size: int = 24

    @property
    def key(self) -> str:
        """The letter."""
        return self.text[0]

    @property
    def value(self) -> str:
        """The digits."""
        return self.text[1:]


def load_font(name: str, size: int) -> ImageFont.FreeTypeFont:
    """A font of matplotlib's, laid out by Pillow itself: the same pixels on every machine.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    require("plots", "Printing labels")
    import matplotlib

    path = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / f"{name}.ttf"
    return ImageFont.truetype(str(path), size, layout_engine=ImageFont.Layout.BASIC)


def label_box(label: Label, margin: int = 0) -> tuple[int, int, int, int]:
    """Left, top, right, bottom of a label's ink and ``margin`` pixels around it, end exclusive."""
    ink = load_font(label.font, label.size).getbbox(label.text)
    left, top = label.corner
    width, height = round(ink[2] - ink[0]), round(ink[3] - ink[1])
    return left - margin, top - margin, left + width + margin, top + height + margin


def print_labels(
    picture: Image.Image, labels: Sequence[Label], margin: int | None = None
) -> Image.Image:
    """A copy of an RGB picture with labels printed on it.

    Args:
        margin: pixels around each label that are cleared to white below it, as for a stamp on a
            page; None: the labels are printed directly on the picture.

    Raises:
        ValueError: two labels with the same letter, or on top of each other, or one that does not
            fit into the picture.
    """
    keys = [label.key for label in labels]
    if len(set(keys)) != len(keys):
        raise ValueError(f"labels: expected different letters, got {''.join(keys)}")
    boxes = [label_box(label, margin or 0) for label in labels]
    for index, box in enumerate(boxes):
        name = labels[index].text
        if min(box) < 0 or box[2] > picture.width or box[3] > picture.height:
            size = f"{picture.width} x {picture.height}"
            raise ValueError(f"labels: {name} at {box} lies outside the {size} pixels")
        for other in range(index):
            if _overlap(box, boxes[other]):
                raise ValueError(f"labels: {name} lies on {labels[other].text}")
    printed = picture.copy()
    canvas = ImageDraw.Draw(printed)
    for label, (left, top, right, bottom) in zip(labels, boxes, strict=True):
        if margin is not None:
            canvas.rectangle((left, top, right - 1, bottom - 1), fill=PAPER)
        face = load_font(label.font, label.size)
        ink = face.getbbox(label.text)
        origin = (label.corner[0] - ink[0], label.corner[1] - ink[1])
        canvas.text(origin, label.text, font=face, fill=label.colour)
    return printed


def _overlap(a: tuple[int, int, int, int], b: tuple[int, int, int, int]) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]
