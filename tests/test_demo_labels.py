"""Labels of the demo's reading pictures, and the pictures: what the reader was trained to read."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image, ImageDraw

from bench.accuracy import backgrounds, samples
from erase.demo import reading
from erase.demo.labels import Label, label_box, load_font, print_labels
from erase.demo.reading import ReadingPicture, reading_pictures

BLUE = (10, 20, 200)
GREEN = (40, 160, 60)


def plain(width: int = 150, height: int = 90) -> Image.Image:
    return Image.new("RGB", (width, height), GREEN)


def glyphs(label: Label) -> np.ndarray:
    """Ink of a label on white, cut out by where ink is."""
    canvas = Image.new("RGB", (200, 100), "white")
    face = load_font(label.font, label.size)
    ImageDraw.Draw(canvas).text((20, 20), label.text, font=face, fill=label.colour)
    pixels = np.asarray(canvas)
    rows, columns = np.nonzero((pixels != 255).any(2))
    return pixels[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]


@pytest.mark.parametrize("font", ["DejaVuSans", "DejaVuSans-Bold", "DejaVuSansMono", "DejaVuSerif"])
def test_a_stamp_is_its_ink_in_a_white_field(font: str) -> None:
    label = Label("K37", (31, 17), BLUE, font, 23)
    left, top, right, bottom = label_box(label)
    printed = np.asarray(print_labels(plain(), [label], 4))
    field = printed[top - 4 : bottom + 4, left - 4 : right + 4]
    rows, columns = np.nonzero((field != 255).any(2))
    ink = field[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
    assert np.array_equal(ink, glyphs(label))
    # The box begins where the letter does, its blank side included.
    assert 4 <= rows.min() <= 5
    assert 4 <= columns.min() <= 7
    outside = np.ones(printed.shape[:2], dtype=bool)
    outside[top - 4 : bottom + 4, left - 4 : right + 4] = False
    assert (printed[outside] == GREEN).all()


def test_without_a_field_only_ink_changes_and_the_original_stays() -> None:
    picture, labels = plain(), [Label("D81", (0, 0), BLUE), Label("M05", (75, 60), BLUE)]
    printed = np.asarray(print_labels(picture, labels))
    assert (np.asarray(picture) == GREEN).all()
    changed = (printed != GREEN).any(2)
    for label in labels:
        left, top, right, bottom = label_box(label)
        inside = changed[top:bottom, left:right]
        assert 0.15 < inside.mean() < 0.7
        changed[top:bottom, left:right] = False
    assert not changed.any()


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        ([Label("K37", (5, 5), BLUE), Label("K12", (5, 60), BLUE)], "different letters, got KK"),
        ([Label("K37", (5, 5), BLUE), Label("M12", (30, 20), BLUE)], "M12 lies on K37"),
        ([Label("K37", (3, 20), BLUE)], "K37 at .* lies outside the 150 x 90 pixels"),
        ([Label("K37", (120, 20), BLUE)], "lies outside"),
        ([Label("K37", (20, 80), BLUE)], "lies outside"),
    ],
)
def test_labels_that_cannot_be_told_apart_or_do_not_fit(labels: list[Label], said: str) -> None:
    with pytest.raises(ValueError, match=f"labels: .*{said}"):
        print_labels(plain(), labels, 4)


# -- the pictures ------------------------------------------------------------------------------


def pictures() -> tuple[ReadingPicture, ReadingPicture]:
    page, photo = reading_pictures()
    return page, photo


def test_pictures_are_the_same_each_time_and_of_256_cells() -> None:
    for once, again in zip(pictures(), pictures(), strict=True):
        assert once.image.size == (448, 448)
        assert once.image.mode == "RGB"
        assert np.array_equal(np.asarray(once.image), np.asarray(again.image))


def test_labels_are_of_the_kind_that_the_reader_is_trained_on() -> None:
    for picture in pictures():
        assert 5 <= len(picture.labels) <= 6
        assert picture.asked in {label.key for label in picture.labels}
        assert picture.prompt.question == f"{picture.asked}?"
        assert f"{picture.asked}{picture.printed}" in {label.text for label in picture.labels}
        for label in picture.labels:
            assert label.key in samples.KEYS
            assert len(label.value) == 2
            assert set(label.value) <= set(samples.DIGITS)
            assert label.font in samples.FONTS
            assert samples.SIZES[0] <= label.size <= samples.SIZES[1]
    assert reading.PALE_CONTRAST == backgrounds.PALE_CONTRAST
    assert backgrounds.PALE_MEAN[0] <= reading.PALE_MEAN <= backgrounds.PALE_MEAN[1]
    assert samples.PAD[0] <= reading.STAMP_MARGIN < samples.PAD[1]
    assert "china" not in {*backgrounds.TRAINING_PHOTOS, *backgrounds.CALIBRATION_PHOTOS}


def test_the_page_is_the_scan_under_its_stamps() -> None:
    page = pictures()[0]
    pixels = np.asarray(page.image, dtype=np.int64)
    bare = pixels.copy()
    for label in page.labels:
        left, top, right, bottom = label_box(label, reading.STAMP_MARGIN)
        field = pixels[top:bottom, left:right]
        border = np.concatenate([field[:3].reshape(-1, 3), field[:, :3].reshape(-1, 3)])
        assert (border == 255).all()
        assert abs(field @ samples.LUMA - 255).max() >= samples.CONTRAST
        bare[top:bottom, left:right] = 255
    assert (bare[..., 0] == bare[..., 2]).all()  # gray print, coloured stamps
    assert 0.5 < (bare == 255).mean() < 0.9
    assert (bare < 100).mean() > 0.02


def test_the_photograph_is_pale_and_its_labels_stand_out() -> None:
    photo = pictures()[1]
    bare = reading._paled(reading.photograph("china"))
    pixels = np.asarray(bare, dtype=np.float64)
    full = np.asarray(reading.photograph("china"), dtype=np.float64)[:, 106:533]
    assert pixels.mean() == pytest.approx(reading.PALE_MEAN, abs=1)
    assert pixels.std() == pytest.approx(0.35 * full.std(), rel=0.05)
    for label in photo.labels:
        behind = np.asarray(bare.crop(label_box(label)), dtype=np.float64).mean((0, 1))
        contrast = abs((np.array(label.colour) - behind) @ samples.LUMA)
        assert contrast >= samples.CONTRAST, label.text
