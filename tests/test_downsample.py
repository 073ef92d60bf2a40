"""Images that `erase.Downsample` makes smaller, and those that it refuses."""

from __future__ import annotations

import pytest
from PIL import Image

import erase

EXPECTED = "images: expected a mode with 8 bits per level that Pillow converts to RGB, got mode "
REFUSED = [
    ("RGB", (0, 5), "images: expected at least one pixel, got 0 x 5 pixels"),
    ("RGB", (5, 0), "images: expected at least one pixel, got 5 x 0 pixels"),
    *((m, (57, 83), f"{EXPECTED}{m!r}; scale") for m in ("I", "F", "I;16", "I;16B", "I;16L")),
    ("La", (57, 83), f"{EXPECTED}'La': "),
]


@pytest.mark.parametrize(("mode", "size", "message"), REFUSED)
def test_images_are_refused_before_any_is_resized(
    mode: str, size: tuple[int, int], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    resized: list[Image.Image] = []
    monkeypatch.setattr(Image.Image, "resize", lambda image, *args: resized.append(image))
    images = [Image.new("RGB", (56, 56)), Image.new(mode, size)]
    with pytest.raises(ValueError, match="images: ") as refused:
        erase.Downsample(0.5).prepare(images)
    assert str(refused.value).startswith(message)
    assert not resized


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "PA", "RGBA", "CMYK", "YCbCr", "HSV"])
def test_modes_that_pillow_converts(mode: str) -> None:
    (small,) = erase.Downsample(0.5).prepare([Image.new(mode, (57, 83))])
    assert small.mode == "RGB"
    assert small.size == (28, 56)
