"""The demo: a stock Qwen2.5-VL of true architecture, small and with random weights, pruned."""

from erase.demo.model import build_model
from erase.demo.pictures import Picture, builtin_pictures
from erase.demo.run import PRESET, DemoResult, DemoSettings, Side, run_picture

__all__ = [
    "PRESET",
    "DemoResult",
    "DemoSettings",
    "Picture",
    "Side",
    "build_model",
    "builtin_pictures",
    "run_picture",
]
