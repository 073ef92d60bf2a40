"""The rows of the table: one operator on one real shape, ours beside its two peers.

A row says how to make its operands and returns three functions of no argument that compute the same
thing; `Prepared.verify` is run before any of them is timed.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

import erase_kernels as ek
from bench import peers
from erase_kernels.testing import Case, cases, make_image, make_pixel_values
from erase_kernels.testing_selection import (
    assert_scores_match,
    make_caches,
    make_entropies,
    make_keep,
    make_scores,
)

OURS, PUBLISHED, PLAIN = "ours", "published", "plain torch"
IMPLEMENTATIONS = (OURS, PUBLISHED, PLAIN)

ENTROPY_TOLERANCE = 2e-6  # nats; the published formula adds 1e-10 to each of 256 bins, in float32
THRESHOLDS = torch.tensor([1.69049, 1.34717, 1.17186])  # nats, Qwen2.5-VL-7B, ERASE table 13
CPU_CASES = ("photo_4096", "page_16384", "eight_1280")
"""Shapes timed on the CPU; a GPU times all of them (`bench.device_rows`)."""
RATIOS = (0.82675, 0.75141, 0.49467, 0.40339)  # kept at each level, ERASE table 13


@dataclasses.dataclass(frozen=True)
class Prepared:
    """Operands of a row, bound into functions.

    Attributes:
        run: implementation -> function of no argument.
        verify: raises AssertionError unless all implementations agree.
        bytes_moved: least memory traffic of the task, read plus written.
        increments: histogram increments the task needs.
    """

    run: dict[str, Callable[[], Any]]
    verify: Callable[[], None]
    bytes_moved: int
    increments: int = 0


@dataclasses.dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
        name: operator, shape and variant.
        prepare: makes the operands.
        targets: peer -> least ratio of times, peer over ours; missing: 1, ours must not lose.
        memory_target: greatest share of the plain peer's (entropy: published peer's) extra memory.
        memory_peer: whose extra memory that is.
    """

    name: str
    prepare: Callable[[], Prepared]
    targets: dict[str, float] = dataclasses.field(default_factory=dict)
    memory_target: float | None = None
    memory_peer: str = PLAIN


def nbytes(*tensors: Tensor) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def assert_close(ours: Tensor, peer: Tensor, tolerance: float) -> None:
    difference = float((ours.double() - peer.double()).abs().max())
    if not difference <= tolerance:
        raise AssertionError(f"results differ by {difference:.3e}, more than {tolerance:.1e}")


def _entropy(sizes: dict[str, Any], hwc: bool) -> Prepared:
    image = make_image(sizes["height"], sizes["width"], hwc=hwc)
    patch = sizes["patch_size"]
    run: dict[str, Callable[[], Tensor]] = {
        OURS: lambda: ek.patch_entropy(image, patch),
        PUBLISHED: lambda: peers.published_patch_entropy(image, patch),
        PLAIN: lambda: peers.plain_patch_entropy(image, patch),
    }

    def verify() -> None:
        for peer in (PUBLISHED, PLAIN):
            assert_close(run[OURS](), run[peer](), ENTROPY_TOLERANCE)

    return Prepared(run, verify, nbytes(image), increments=image[0].numel())


def _pixel_entropy(sizes: dict[str, Any]) -> Prepared:
    layout = ek.PixelLayout.qwen()
    pixels = make_pixel_values(make_image(sizes["height"], sizes["width"]), layout)
    mean, std, patch = torch.tensor(layout.mean), torch.tensor(layout.std), layout.pixel_sizes[1]
    run: dict[str, Callable[[], Tensor]] = {
        OURS: lambda: ek.patch_entropy_from_pixels(pixels, layout),
        PUBLISHED: lambda: peers.published_pixel_entropy(pixels, mean, std, patch),
        PLAIN: lambda: peers.plain_pixel_entropy(pixels, mean, std, patch),
    }

    def verify() -> None:
        for peer in (PUBLISHED, PLAIN):
            assert_close(run[OURS](), run[peer](), ENTROPY_TOLERANCE)

    # Of the two temporal slots of a patch only the first is read.
    return Prepared(run, verify, nbytes(pixels) // 2, increments=sizes["height"] * sizes["width"])


def _selection(sizes: dict[str, Any]) -> Prepared:
    images, cells, keep_ratio = sizes["images"], sizes["cells"], sizes["ratio"]
    entropy = torch.cat([make_entropies(cells, seed=seed) for seed in range(images)])
    offsets = torch.arange(images + 1, dtype=torch.int32) * cells
    ratios = [max(ratio, keep_ratio) for ratio in RATIOS]
    counts = [int(cells * ratio) for ratio in ratios]
    table = torch.tensor([counts] * images, dtype=torch.int32)

    def ours() -> Tensor:
        plan = ek.complexity_plan(entropy, offsets, THRESHOLDS, table)
        return ek.segmented_topk(entropy, offsets, plan.count, images * counts[0]).indices

    lengths = [cells] * images
    run: dict[str, Callable[[], Any]] = {
        OURS: ours,
        PUBLISHED: lambda: peers.published_selection(entropy, lengths, THRESHOLDS, ratios),
        PLAIN: lambda: peers.plain_selection(entropy, lengths, THRESHOLDS, ratios),
    }

    def verify() -> None:
        plain, published = run[PLAIN](), run[PUBLISHED]()
        joined = torch.cat(plain)
        if not torch.equal(ours()[: joined.numel()].long(), joined):
            raise AssertionError("the kept indices differ")
        # The published ties fall anyhow: compare the scores of what is kept.
        for part, mine, other in zip(entropy.split(cells), plain, published, strict=True):
            assert_close(part[mine].sort().values, part[other].sort().values, 0.0)

    return Prepared(run, verify, nbytes(entropy))


def _scores(sizes: dict[str, Any], dtype: torch.dtype) -> Prepared:
    inputs = make_scores(**sizes, dtype=dtype)
    columns = slice(int(inputs.columns[0]), int(inputs.columns[-1]) + 1)
    query, key = inputs.query, inputs.key
    run: dict[str, Callable[[], Tensor]] = {
        OURS: lambda: ek.text_to_vision_scores(*inputs.operands()),
        PUBLISHED: lambda: peers.published_scores(query, key, columns),
        PLAIN: lambda: peers.plain_scores(query, key, columns),
    }

    def verify() -> None:
        operands = inputs.operands()
        for function in run.values():
            assert_scores_match(lambda *_, f=function: f(), *operands)

    return Prepared(run, verify, nbytes(query, key))


def _compact_kv(sizes: dict[str, Any], dtype: torch.dtype) -> Prepared:
    shape = {name: sizes[name] for name in ("layers", "key_heads", "keys", "depth")}
    ours, theirs = make_caches(**shape, dtype=dtype), make_caches(**shape, dtype=dtype)
    keep, counts = make_keep(1, sizes["keys"], sizes["ratio"])
    index = keep[0].long()
    scratch = ours[0].new_empty(1, sizes["key_heads"], index.numel(), sizes["depth"])
    run: dict[str, Callable[[], Any]] = {
        OURS: lambda: ek.compact_kv_(ours, keep, counts),
        PUBLISHED: lambda: peers.published_compact_kv(theirs, index),
        PLAIN: lambda: peers.plain_compact_kv(theirs, index, scratch),
    }

    def verify() -> None:
        mine, other = make_caches(**shape, dtype=dtype), make_caches(**shape, dtype=dtype)
        expected = peers.published_compact_kv(other, index)
        ek.compact_kv_(mine, keep, counts)
        peers.plain_compact_kv(other, index, scratch)
        for before, *moved in zip(expected, mine, other, strict=True):
            for tensor in moved:
                if not torch.equal(tensor[:, :, : index.numel()], before):
                    raise AssertionError("the kept slots differ")

    moved = 2 * nbytes(ours[0][:, :, : index.numel()]) * len(ours)
    return Prepared(run, verify, moved)


def _compact_rows(sizes: dict[str, Any], dtype: torch.dtype) -> Prepared:
    keys = sizes["keys"]
    hidden = torch.randn(1, keys, sizes["hidden"], dtype=dtype)
    tables = [torch.randn(3, 1, keys, sizes["depth"], dtype=dtype) for _ in range(2)]
    tensors = [hidden, *tables]
    keep, counts = make_keep(1, keys, sizes["ratio"])
    index = keep[0].long()
    run: dict[str, Callable[[], Any]] = {
        OURS: lambda: ek.compact_rows(tensors, keep, counts),
        PUBLISHED: lambda: peers.published_compact_rows(tensors, index),
        PLAIN: lambda: peers.plain_compact_rows(tensors, index),
    }

    def verify() -> None:
        for peer in (PUBLISHED, PLAIN):
            for mine, other in zip(run[OURS](), run[peer](), strict=True):
                if not torch.equal(mine, other):
                    raise AssertionError("the kept rows differ")

    moved = 2 * sum(nbytes(tensor) for tensor in peers.plain_compact_rows(tensors, index))
    return Prepared(run, verify, moved)


def _entropy_rows() -> list[Row]:
    rows = []
    for case in _cpu_cases("patch_entropy"):
        for hwc in (False, True):
            name = f"patch_entropy {_size(case)} {'HWC' if hwc else 'CHW'}"
            rows.append(
                Row(
                    name,
                    lambda case=case, hwc=hwc: _entropy(case.sizes, hwc),
                    {PUBLISHED: 20.0, PLAIN: 6.0},
                    memory_target=0.05,
                    memory_peer=PUBLISHED,
                )
            )
    for case in _cpu_cases("patch_entropy_from_pixels"):
        name = f"patch_entropy_from_pixels {_size(case)} fp32"
        prepare = lambda case=case: _pixel_entropy(case.sizes)  # noqa: E731
        rows.append(Row(name, prepare, {PUBLISHED: 10.0}))
    return rows


def _cpu_cases(operator: str) -> list[Case]:
    return [case for case in cases(operator) if case.name in CPU_CASES]


def _size(case: Case) -> str:
    return f"{case.sizes['height']}x{case.sizes['width']}"


def all_rows() -> list[Row]:
    """Every row, in the order of the table."""
    rows = _entropy_rows()
    for case in _cpu_cases("complexity_plan"):
        name = f"complexity_plan + segmented_topk {case.name}"
        rows.append(Row(name, lambda case=case: _selection(case.sizes)))
    for case in _cpu_cases("text_to_vision_scores"):
        name = f"text_to_vision_scores {case.name} fp32"
        targets = {PUBLISHED: 3.0, PLAIN: 1.0}
        prepare = lambda case=case: _scores(case.sizes, torch.float32)  # noqa: E731
        rows.append(Row(name, prepare, targets, memory_target=0.10))
    for case in _cpu_cases("compact_kv_"):
        for dtype in (torch.float32, torch.bfloat16):
            name = f"compact_kv_ {case.sizes['layers']} layers {case.name} {str(dtype)[6:]}"
            rows.append(Row(name, lambda case=case, dtype=dtype: _compact_kv(case.sizes, dtype)))
    for case in _cpu_cases("compact_rows"):
        name = f"compact_rows {case.name} fp32"
        rows.append(Row(name, lambda case=case: _compact_rows(case.sizes, torch.float32)))
    return rows
