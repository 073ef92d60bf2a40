"""Tiny models of every supported family; adding one is adding a file and a line here."""

from __future__ import annotations

from tests.families import internvl, llava, llava_next, llava_onevision, qwen2_vl, qwen3_5
from tests.families._base import TinyFamily

ALL: tuple[TinyFamily, ...] = (
    *qwen2_vl.FAMILIES,
    *qwen3_5.FAMILIES,
    *internvl.FAMILIES,
    *llava.FAMILIES,
    *llava_next.FAMILIES,
    *llava_onevision.FAMILIES,
)
