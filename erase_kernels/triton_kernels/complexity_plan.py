"""Lower median, level and kept count of every image, one launch.

One program per image selects the median's key exactly (`_select`), compares it with the
thresholds as integers, and looks its count up. Program 0 also checks what concerns all images.
The host knows only the total number of cells, so the mean size chooses the shape class; every
program copes with any size, but that of a single image, whose size is known to fit, needs no path
for others and does not wait for the offsets. Up to 16 384 cells never leave registers.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from erase_kernels._status import Status, status_word
from erase_kernels.triton_kernels import _launch, _select_launch
from erase_kernels.triton_kernels._select import select
from erase_kernels.triton_kernels._select_block import NAN_KEY, key_value, order_key

KERNEL = "complexity_plan"
OFFSETS = tl.constexpr(int(Status.OFFSETS))
THRESHOLDS = tl.constexpr(int(Status.THRESHOLDS))
LIMITS = tl.constexpr(32)  # thresholds read at a time; the published tables have 3


@triton.jit
def check_thresholds(b_left, p_threshold, n_thresholds, p_status):
    """Sets the status bit unless the thresholds strictly descend; NaN never does.

    The first ones are given, in ``b_left``.
    """
    start = tl.full([], 1, tl.int32)
    i_limit = tl.arange(0, LIMITS)
    while start < n_thresholds:
        m_limit = start + i_limit < n_thresholds
        b_right = tl.load(p_threshold + start + i_limit, mask=m_limit, other=0.0)
        b_right = order_key(b_right)
        m_falls = (order_key(b_left) > b_right) & (b_right != NAN_KEY)
        if tl.sum((m_limit & (m_falls == 0)).to(tl.int32)) > 0:
            tl.atomic_or(p_status, THRESHOLDS)
        start += LIMITS
        m_next = start - 1 + i_limit < n_thresholds
        b_left = tl.load(p_threshold + start - 1 + i_limit, mask=m_next, other=0.0)


@triton.jit
def first_below(b_threshold, i_threshold, n_thresholds, median_key):
    """First of some thresholds below the median, else their number.

    Compared as keys: a mode of the machine may drop subnormals.
    """
    b_limit = order_key(b_threshold)
    m_below = (i_threshold < n_thresholds) & (median_key > b_limit) & (b_limit != NAN_KEY)
    return tl.min(tl.where(m_below, i_threshold, n_thresholds))


@triton.jit(do_not_specialize=["n_cells", "n_images", "n_thresholds"])
def complexity_plan_kernel(
    p_entropy,  # f32 [n_cells]
    p_offset,  # i32 [n_images + 1]
    p_threshold,  # f32 [n_thresholds]
    p_table,  # i32 [n_images, n_thresholds + 1]
    p_scratch,  # f32 [n_cells]
    p_median,  # f32 [n_images]
    p_level,  # i32 [n_images]
    p_count,  # i32 [n_images]
    p_status,  # i32 [1]
    n_cells,
    n_images,
    n_thresholds,
    BLOCK: tl.constexpr,
    ROW: tl.constexpr,
    TILE: tl.constexpr,
    SAMPLE: tl.constexpr,
    ONE: tl.constexpr,
):
    """Median, level and count of one image, from the cells that its two offsets enclose."""
    i_image = tl.program_id(0)
    i_limit = tl.arange(0, LIMITS)
    m_image = i_image < n_images  # false if there are none: one program checks that
    p_row = p_table + i_image.to(tl.int64) * (n_thresholds + 1)
    # Read first and all at once, so that their latency hides behind the selection.
    start = tl.load(p_offset + i_image, mask=m_image, other=0)
    end = tl.load(p_offset + i_image + 1, mask=m_image, other=0)
    origin = tl.load(p_offset)
    last = tl.load(p_offset + n_images)
    b_limit = tl.load(p_threshold + i_limit, mask=i_limit < n_thresholds, other=0.0)
    b_row = tl.load(p_row + i_limit, mask=m_image & (i_limit <= n_thresholds), other=0)
    if ONE:  # its end is known without reading
        valid = (start == 0) & (end == n_cells)
        start = n_images >> 31  # 0
        size = n_cells
    else:
        valid = (start >= 0) & (start <= end) & (end <= n_cells)
        size = tl.where(valid, end - start, 0)
    median_key = tl.full([], 0, tl.int32)
    if size > 0:
        p_mine = p_entropy + start
        rank = (size - 1) // 2
        _b_value, median_key, _high, _below, _upto = select(
            p_mine, p_scratch + start, size, rank, BLOCK, ROW, TILE, SAMPLE, ONE, False
        )
    if i_image == 0:
        if (origin != 0) | (last != n_cells):
            tl.atomic_or(p_status, OFFSETS)
        check_thresholds(b_limit, p_threshold, n_thresholds, p_status)
    if m_image:
        if valid == 0:
            tl.atomic_or(p_status, OFFSETS)
        level = first_below(b_limit, i_limit, n_thresholds, median_key)
        done = tl.full([], LIMITS, tl.int32)
        while (level == n_thresholds) & (done < n_thresholds):
            i_more = done + i_limit
            b_more = tl.load(p_threshold + i_more, mask=i_more < n_thresholds, other=0.0)
            level = first_below(b_more, i_more, n_thresholds, median_key)
            done += LIMITS
        level = tl.where(valid, level, n_thresholds)
        count = tl.sum(tl.where(i_limit == level, b_row, 0))
        if level >= LIMITS:
            count = tl.load(p_row + level)
        tl.store(p_median + i_image, key_value(median_key))
        tl.store(p_level + i_image, level)
        tl.store(p_count + i_image, count)


def complexity_plan(
    entropy: Tensor,  # f32 [n], contiguous, as all of them
    offsets: Tensor,  # i32 [I + 1]
    thresholds: Tensor,  # f32 [m]
    count_table: Tensor,  # i32 [I, m + 1]
) -> tuple[Tensor, Tensor, Tensor]:
    """See `erase_kernels.complexity_plan`; bad data sets bits of the status word."""
    device = entropy.device
    cells, images = entropy.shape[0], offsets.shape[0] - 1
    median = entropy.new_empty(images)
    level, count = offsets.new_empty(images), offsets.new_empty(images)
    config = _select_launch.config(KERNEL, cells, images, device)
    with _launch.on(device):
        complexity_plan_kernel[(max(images, 1),)](
            p_entropy=entropy,
            p_offset=offsets,
            p_threshold=thresholds,
            p_table=count_table,
            p_scratch=_select_launch.scratch(entropy, config),
            p_median=median,
            p_level=level,
            p_count=count,
            p_status=status_word(device),
            n_cells=cells,
            n_images=images,
            n_thresholds=thresholds.shape[0],
            **config.arguments(),
        )
    return median, level, count


POINTERS = {
    "p_entropy": "*fp32",
    "p_offset": "*i32",
    "p_threshold": "*fp32",
    "p_table": "*i32",
    "p_scratch": "*fp32",
    "p_median": "*fp32",
    "p_level": "*i32",
    "p_count": "*i32",
    "p_status": "*i32",
}
SIZES = ("n_cells", "n_images", "n_thresholds")


def compilations(architecture: int) -> list[_launch.Compilation]:
    """Every way in which the kernel is compiled for an architecture."""
    return _select_launch.compilations(
        KERNEL, complexity_plan_kernel, POINTERS, SIZES, architecture
    )
