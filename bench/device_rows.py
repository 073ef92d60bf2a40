"""The rows of the table for a GPU: which operator on which shape, and what is expected of it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import torch

from bench import problems_images, problems_states
from bench.problem import COMPILED, Problem
from bench.rows import PUBLISHED
from erase_kernels.testing import Case, cases

MIB = 1 << 20
PROBLEMS: dict[str, Callable[..., Problem]] = {
    "patch_entropy_from_pixels": problems_images.pixels,
    "complexity_plan": problems_images.selection,
    "segmented_topk": problems_images.selection,
    "text_to_vision_scores": problems_states.scores,
    "compact_kv_": problems_states.caches,
    "compact_rows": problems_states.rows,
}
DTYPED = ("patch_entropy_from_pixels", "text_to_vision_scores", "compact_kv_", "compact_rows")
"""Operators whose operands exist in several dtypes."""


@dataclasses.dataclass(frozen=True)
class Target:
    """What one row must reach on an H200; None: nothing agreed.

    Attributes:
        microseconds: longest time.
        ratios: peer -> least ratio of times, peer over ours.
        extra_bytes: most extra memory at the peak, the result included.
        copy_share: least share of the copy bandwidth.
        launches: most kernels and copies of one call.
        floor_microseconds: what the task's bytes and operations allow there, worked out beforehand.
    """

    microseconds: float | None = None
    ratios: dict[str, float] = dataclasses.field(default_factory=dict)
    extra_bytes: int | None = None
    copy_share: float | None = None
    launches: int | None = None
    floor_microseconds: float | None = None


@dataclasses.dataclass(frozen=True)
class DeviceRow:
    """One line of the table per backend.

    Attributes:
        operator: public function; "complexity_plan" rows time the top-k with it.
        case: name of the shape.
        dtype: of the operands.
        variant: "", "HWC" (pixels interleaved) or "paged" (caches in blocks).
        target: what is expected.
        headline: whether a quick run shows it; its peers are also compiled.
    """

    operator: str
    case: str
    dtype: torch.dtype
    variant: str = ""
    target: Target = Target()
    headline: bool = False

    @property
    def name(self) -> str:
        """Unique within the table."""
        shown = self.operator
        if self.operator == "complexity_plan":
            shown += " + segmented_topk"
        kind = str(self.dtype).removeprefix("torch.")
        return f"{shown} {self.case} {kind} {self.variant}".rstrip()

    def problem(self, device: torch.device) -> Problem:
        """Operands and functions on ``device``."""
        case = find_case(self.operator, self.case)
        return make_problem(self.operator, case, device, self.dtype, self.variant)


def find_case(operator: str, name: str) -> Case:
    """A `Case` by operator and name; top-k shares those of the plan.

    Raises:
        KeyError: there is none.
    """
    shared = "complexity_plan" if operator == "segmented_topk" else operator
    for case in cases(shared):
        if case.name == name:
            return case
    raise KeyError(f"{operator} has no case {name!r}")


def make_problem(
    operator: str, case: Case, device: torch.device, dtype: torch.dtype, variant: str = ""
) -> Problem:
    """The problem of ``operator`` on a case; the dtype counts where operands exist in several."""
    if operator == "patch_entropy":
        return problems_images.entropy(case.sizes, device, hwc=variant == "HWC")
    if operator == "compact_kv_" and variant == "paged":
        return problems_states.paged_caches(case.sizes, device, dtype)
    options = {"dtype": dtype} if operator in DTYPED else {}
    return PROBLEMS[operator](case.sizes, device, **options)


U8, F32, BF16, F16 = torch.uint8, torch.float32, torch.bfloat16, torch.float16


def all_rows() -> list[DeviceRow]:
    """Every row, in the order of the table; the headline rows of an operator first."""
    selection = Target(microseconds=20)
    rows = [
        DeviceRow(
            "patch_entropy",
            "page_16384",
            U8,
            target=Target(25, {PUBLISHED: 100, COMPILED: 20}, floor_microseconds=9),
            headline=True,
        ),
        DeviceRow("patch_entropy", "page_16384", U8, "HWC"),
    ]
    for case in ("image_1k", "image_2k", "photo_4096", "qwen3_page", "llava_576", "eight_1024"):
        rows.append(DeviceRow("patch_entropy", case, U8))
    pixels = "patch_entropy_from_pixels"
    target = Target(microseconds=60, floor_microseconds=36)
    rows.append(DeviceRow(pixels, "page_16384", F32, target=target, headline=True))
    for case, dtype in (
        ("page_16384", BF16),
        ("photo_4096", F32),
        ("internvl_3328", BF16),
        ("llava_576", F16),
    ):
        rows.append(DeviceRow(pixels, case, dtype))
    for case in ("page_16384", "sixty_four_1024"):
        rows.append(DeviceRow("complexity_plan", case, F32, target=selection, headline=True))
    for case in ("photo_4096", "eight_1280", "internvl_3328", "llava_576"):
        rows.append(DeviceRow("complexity_plan", case, F32))
    scores = "text_to_vision_scores"
    target = Target(50, {PUBLISHED: 20, COMPILED: 1}, extra_bytes=MIB, floor_microseconds=20)
    rows.append(DeviceRow(scores, "page_16384_64", BF16, target=target, headline=True))
    for case in ("image_1k", "image_2k", "photo_4096", "qwen3_8b", "internvl_3328", "eight_1024"):
        rows.append(DeviceRow(scores, case, BF16))
    rows += [DeviceRow(scores, "llava_576", F16), DeviceRow(scores, "photo_4096", F32)]
    target = Target(ratios={PUBLISHED: 4}, copy_share=0.7, launches=1, floor_microseconds=40)
    rows.append(DeviceRow("compact_kv_", "late_16384", BF16, target=target, headline=True))
    for case in ("page_16384", "photo_4096", "qwen3_8b", "internvl_3328", "eight_1024"):
        rows.append(DeviceRow("compact_kv_", case, BF16))
    rows.append(DeviceRow("compact_kv_", "llava_576", F16))
    rows.append(DeviceRow("compact_kv_", "late_16384", BF16, "paged"))
    rows.append(DeviceRow("compact_rows", "late_16384", BF16, headline=True))
    rows.append(DeviceRow("compact_rows", "photo_4096", BF16))
    return rows
