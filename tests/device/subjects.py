"""One call of every public operator with operands that change in place, for graphs and streams.

Sizes and shapes stay, so that a captured graph meets other values only.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

import erase_kernels as ek
from erase_kernels.testing import make_image, make_pixel_values
from tests import score_problems
from tests.selection import offsets_of

VARIANTS = 3  # sets of values of every subject
QWEN = ek.PixelLayout.qwen()
TILES = ek.PixelLayout.tiles(28, 56, 84, mean=(0.5,) * 3, std=(0.25,) * 3)
SIZES = ((3, 4), (5, 2), (1, 7))  # cells of the images
SEGMENTS = (700, 1, 2100)  # entries
CAPACITY = 1000
BATCH, SLOTS, KEPT = 3, 130, 61
BLOCK = 16  # slots of a paged cache's block


@dataclasses.dataclass
class Subject:
    """One call of a public operator.

    Attributes:
        ran: the private operator, without suffix, that it runs.
        inputs: on the device; `fill` overwrites them.
        values: one list per variant, on the device.
        call: runs the operator on the inputs, with a backend.
        outcome: what the call promises, from its result; may wait for the device.
    """

    ran: str
    inputs: list[Tensor]
    values: list[list[Tensor]]
    call: Callable[[str], Any]
    outcome: Callable[[Any], list[Tensor]]

    def fill(self, variant: int) -> None:
        for target, value in zip(self.inputs, self.values[variant], strict=True):
            target.copy_(value)


Build = Callable[[int], list[Tensor]]  # seed -> operands on the CPU
Run = Callable[[list[Tensor], str], Any]  # operands on the device, backend -> result


def make(ran: str, build: Build, run: Run, device: torch.device, outcome: Any = None) -> Subject:
    values = [[value.to(device) for value in build(seed)] for seed in range(VARIANTS)]
    inputs = [value.clone() for value in values[0]]

    def call(backend: str) -> Any:
        return run(inputs, backend)

    def flat(result: Any) -> list[Tensor]:
        tensors = [result] if isinstance(result, Tensor) else list(result)
        return [tensor.cpu() for tensor in tensors]

    return Subject(ran, inputs, values, call, (lambda r: outcome(inputs, r)) if outcome else flat)


def entropy(device: torch.device) -> Subject:
    def build(seed: int) -> list[Tensor]:
        return [
            make_image(28 * rows, 28 * columns, hwc=index == 1, seed=10 * seed + index)
            for index, (rows, columns) in enumerate(SIZES)
        ]

    return make(
        "patch_entropy", build, lambda x, backend: ek.patch_entropy(x, 28, backend=backend), device
    )


def pixels(layout: ek.PixelLayout, dtype: torch.dtype, device: torch.device) -> Subject:
    def build(seed: int) -> list[Tensor]:
        return [make_pixel_values(make_image(112, 84, seed=seed), layout).to(dtype)]

    def run(x: list[Tensor], backend: str) -> Tensor:
        return ek.patch_entropy_from_pixels(x[0], layout, backend=backend)

    return make("patch_entropy_from_pixels", build, run, device)


def plan(device: torch.device) -> Subject:
    def build(seed: int) -> list[Tensor]:
        generator = torch.Generator().manual_seed(seed)
        table = [[max(1, n * (9 + seed) // (10 * level)) for level in (1, 2, 4)] for n in SEGMENTS]
        return [
            torch.rand(sum(SEGMENTS), generator=generator) * 5,
            offsets_of(SEGMENTS),
            torch.tensor([3.0, 2.0 + seed / 10]),
            torch.tensor(table, dtype=torch.int32),
        ]

    def run(x: list[Tensor], backend: str) -> Any:
        return ek.complexity_plan(*x, backend=backend)

    return make("complexity_plan", build, run, device)


def topk(device: torch.device) -> Subject:
    def build(seed: int) -> list[Tensor]:
        generator = torch.Generator().manual_seed(seed)
        score = torch.rand(sum(SEGMENTS), generator=generator)
        score = torch.where(score > 0.5, score, (score * 8).round() / 8)  # ties
        counts = torch.tensor([100 + seed, seed % 2, 800 - 9 * seed], dtype=torch.int32)
        return [score, offsets_of(SEGMENTS), counts]

    def run(x: list[Tensor], backend: str) -> Any:
        return ek.segmented_topk(*x, CAPACITY, backend=backend)

    return make("segmented_topk", build, run, device)


def scores(dtype: torch.dtype, device: torch.device) -> Subject:
    def build(seed: int) -> list[Tensor]:
        problem = score_problems.make(2, 8, 2, 90, 333, 64, dtype=dtype, seed=seed)
        return [*problem.operands(), score_problems.mask_of(2, 333, seed)]

    def run(x: list[Tensor], backend: str) -> Tensor:
        return ek.text_to_vision_scores(*x[:6], key_mask=x[6], backend=backend)

    return make("text_to_vision_scores", build, run, device)


def _keep(seed: int, slots: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    picks = [torch.randperm(slots, generator=generator)[:KEPT].sort().values for _ in range(BATCH)]
    counts = torch.tensor([KEPT, 0, KEPT - 7 - seed], dtype=torch.int32).roll(seed)
    return torch.stack(picks).to(torch.int32), counts


def caches(dtype: torch.dtype, device: torch.device) -> Subject:
    def build(seed: int) -> list[Tensor]:
        generator = torch.Generator().manual_seed(seed)
        shapes = [(BATCH, 2, SLOTS, 64)] * 4 + [(BATCH, 1, SLOTS, 40)]
        tensors = [torch.randn(shape, generator=generator).to(dtype) for shape in shapes]
        return [*tensors, *_keep(seed, SLOTS)]

    def run(x: list[Tensor], backend: str) -> None:
        ek.compact_kv_(x[:-2], *x[-2:], backend=backend)

    def outcome(x: list[Tensor], _: None) -> list[Tensor]:
        counts = x[-1].tolist()
        return [tensor[b, :, :count].cpu() for tensor in x[:-2] for b, count in enumerate(counts)]

    return make("compact_kv", build, run, device, outcome)


def paged(device: torch.device) -> Subject:
    blocks = -(-SLOTS // BLOCK)

    def build(seed: int) -> list[Tensor]:
        generator = torch.Generator().manual_seed(seed)
        shape = (BATCH * blocks + 2, BLOCK, 2, 64)
        tensors = [torch.randn(shape, generator=generator).to(torch.bfloat16) for _ in range(4)]
        table = torch.randperm(BATCH * blocks + 2, generator=generator)[: BATCH * blocks]
        return [*tensors, *_keep(seed, SLOTS), table.view(BATCH, blocks).to(torch.int32)]

    def run(x: list[Tensor], backend: str) -> Any:
        return ek.compact_kv_(x[:-3], *x[-3:-1], block_table=x[-1], backend=backend)

    def outcome(x: list[Tensor], freed: Tensor) -> list[Tensor]:
        table, counts = x[-1].long(), x[-2].tolist()
        moved = [
            tensor[table[b]].flatten(0, 1)[:count].cpu()
            for tensor in x[:-3]
            for b, count in enumerate(counts)
        ]
        return [freed.cpu(), *moved]

    return make("compact_kv_paged", build, run, device, outcome)


def rows(dtype: torch.dtype, device: torch.device) -> Subject:
    def build(seed: int) -> list[Tensor]:
        generator = torch.Generator().manual_seed(seed)
        shapes = [(BATCH, SLOTS, 192), (3, 1, SLOTS, 64), (BATCH, SLOTS, 5)]
        tensors = [torch.randn(shape, generator=generator).to(dtype) for shape in shapes]
        positions = torch.randint(0, 9, (3, BATCH, SLOTS, 1), generator=generator)
        return [*tensors, positions, *_keep(seed, SLOTS)]

    def run(x: list[Tensor], backend: str) -> list[Tensor]:
        return ek.compact_rows(x[:-2], *x[-2:], backend=backend)

    return make("compact_rows", build, run, device)


FLOATS = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
SUBJECTS: dict[str, Callable[[torch.device], Subject]] = {
    "patch_entropy": entropy,
    "complexity_plan": plan,
    "segmented_topk": topk,
    "compact_kv_ paged": paged,
}
for _name, _dtype in FLOATS.items():
    SUBJECTS |= {
        f"patch_entropy_from_pixels {_name}": lambda d, t=_dtype: pixels(QWEN, t, d),
        f"text_to_vision_scores {_name}": lambda d, t=_dtype: scores(t, d),
        f"compact_kv_ {_name}": lambda d, t=_dtype: caches(t, d),
        f"compact_rows {_name}": lambda d, t=_dtype: rows(t, d),
    }
SUBJECTS["patch_entropy_from_pixels tiles"] = lambda d: pixels(TILES, torch.float32, d)
