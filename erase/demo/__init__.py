"""The demo: a small random Qwen2.5-VL of true architecture is timed, a trained one reads."""

from erase.demo.model import build_model
from erase.demo.pictures import Picture, builtin_pictures
from erase.demo.reader import Reader, ReaderError, check_reader, load_reader
from erase.demo.reading import Reading, ReadingPicture, read_all, read_picture, reading_pictures
from erase.demo.run import PRESET, DemoResult, DemoSettings, Side, run_picture

__all__ = [
    "PRESET",
    "DemoResult",
    "DemoSettings",
    "Picture",
    "Reader",
    "ReaderError",
    "Reading",
    "ReadingPicture",
    "Side",
    "build_model",
    "builtin_pictures",
    "check_reader",
    "load_reader",
    "read_all",
    "read_picture",
    "reading_pictures",
    "run_picture",
]
