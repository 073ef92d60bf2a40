"""The best scores of every segment as ascending indices, one launch.

One program per segment finds the bracket of its last kept score (`_select`), sums the counts of
the segments before it for the place of its output, and writes kept indices from registers: lanes
hold neighbours, whose counts before are scanned four rows at a time, a byte each (547 instructions
per warp for 32 scores per thread, a flat cumulative sum 1 000 more). Longer segments go through
bit words in memory. What is left of the output after the last entry is -1, shared out among the
programs. The mean segment size chooses the shape class; every program copes with any size, but
that of a single segment, whose size is known to fit, needs no path for others.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from erase_kernels._status import Status, status_word
from erase_kernels.triton_kernels import _launch, _select_launch
from erase_kernels.triton_kernels._select import select
from erase_kernels.triton_kernels._select_block import NAN_KEY, PACK, block_index, pivot_value
from erase_kernels.triton_kernels._topk_words import WORD, mark_kept, write_marked

KERNEL = "segmented_topk"
OFFSETS = tl.constexpr(int(Status.OFFSETS))
COUNTS = tl.constexpr(int(Status.COUNTS))
CAPACITY = tl.constexpr(int(Status.CAPACITY))


@triton.jit
def sum_counts(p_offset, p_count, n_scores, n_segments, i_mine, BLOCK: tl.constexpr):
    """Entries of the segments before one, and of all; a bad segment has none."""
    i_block = tl.arange(0, BLOCK)
    b_before = tl.zeros([BLOCK], tl.int32)
    b_total = tl.zeros([BLOCK], tl.int32)
    start = tl.full([], 0, tl.int32)
    while start < n_segments:
        i_segment = start + i_block
        m_segment = i_segment < n_segments
        b_start = tl.load(p_offset + i_segment, mask=m_segment, other=0)
        b_end = tl.load(p_offset + i_segment + 1, mask=m_segment, other=0)
        b_count = tl.load(p_count + i_segment, mask=m_segment, other=0)
        m_good = (b_start >= 0) & (b_end <= n_scores) & (b_count >= 0)
        m_good = m_good & (b_start <= b_end) & (b_count <= b_end - b_start)
        b_good = tl.where(m_good, b_count, 0)
        b_total += b_good
        b_before += tl.where(i_segment < i_mine, b_good, 0)
        start += BLOCK
    return tl.sum(b_before), tl.sum(b_total)


@triton.jit
def set_before(b_flag):
    """How many flags (0 or 1) of a block ``[rows, columns]`` are set before each.

    Lanes hold neighbours. Four rows of a warp are summed at once, a byte each; then the sums of
    all warps and rows.
    """
    LANES: tl.constexpr = 32 if b_flag.shape[1] >= 32 else b_flag.shape[1]
    GROUPS: tl.constexpr = b_flag.shape[0] // PACK
    WARPS: tl.constexpr = b_flag.shape[1] // LANES
    i_shift = 8 * tl.arange(0, PACK)
    b_flag = tl.reshape(b_flag, [GROUPS, PACK, WARPS, LANES])
    b_packed = tl.sum(b_flag << i_shift[None, :, None, None], 1)
    b_lane = tl.cumsum(b_packed, 2) - b_packed
    b_sum = tl.sum(b_packed, 2)
    b_count = (b_sum[:, None, :] >> i_shift[None, :, None]) & 0xFF
    b_flat = tl.reshape(b_count, [GROUPS * PACK * WARPS])
    b_warp = tl.reshape(tl.cumsum(b_flat, 0) - b_flat, [GROUPS, PACK, WARPS])
    b_mine = (b_lane[:, None, :, :] >> i_shift[None, :, None, None]) & 0xFF
    return tl.reshape(b_mine + b_warp[:, :, :, None], [GROUPS * PACK, WARPS * LANES])


@triton.jit
def write_block(
    b_score, p_index, size, low, high, wanted, choose, BLOCK: tl.constexpr, ROW: tl.constexpr
):
    """Writes the kept indices of a segment of at most BLOCK scores.

    Keys above ``high`` are kept, and those in [low, high]; the first ``wanted`` if there is a
    choice.
    """
    i_key = block_index(BLOCK, ROW)
    end = tl.where(low == NAN_KEY, size, 0)  # no value stands for this pivot: all that there are
    b_kept = ((b_score >= pivot_value(low)) | (i_key < end)).to(tl.int32)
    if choose:
        b_above = (b_score >= pivot_value(high + 1)).to(tl.int32)
        b_tie = b_kept - b_above
        b_kept = b_above + (b_tie & (set_before(b_tie) < wanted).to(tl.int32))
    # In one dimension, where no layout but the present one suggests itself.
    b_place = tl.reshape(set_before(b_kept), [BLOCK])
    tl.store(p_index + b_place, tl.arange(0, BLOCK), mask=tl.reshape(b_kept, [BLOCK]) != 0)


@triton.jit
def write_segment(
    p_score,
    p_scratch,
    p_index,
    size,
    count,
    fits,
    BLOCK: tl.constexpr,
    ROW: tl.constexpr,
    TILE: tl.constexpr,
    SAMPLE: tl.constexpr,
    ONE: tl.constexpr,
):
    """Selects ``count >= 1`` of ``size`` scores and writes their indices, ascending.

    With ONE, they are not written unless ``fits``; without, there is room.
    """
    rank = size - count
    b_score, low, high, below, upto = select(
        p_score, p_scratch, size, rank, BLOCK, ROW, TILE, SAMPLE, ONE, True
    )
    choose = rank > below
    if ONE:
        if fits:
            write_block(b_score, p_index, size, low, high, upto - rank, choose, BLOCK, ROW)
    elif size <= BLOCK:
        write_block(b_score, p_index, size, low, high, upto - rank, choose, BLOCK, ROW)
    else:
        tl.debug_barrier()  # the keys set aside have been read
        p_word = p_scratch.to(tl.pointer_type(tl.int32), bitcast=True)
        n_words = (size + WORD - 1) // WORD
        mark_kept(p_score, p_word, n_words, size, low, high, choose, ROW, TILE)
        write_marked(p_word, n_words, p_index, count, upto - rank, choose, ROW)


@triton.jit
def fill(p_index, first, end, i_part, n_parts, ROW: tl.constexpr):
    """-1 at [first, end), or one of ``n_parts`` equal parts of it."""
    if first < end:
        share = (end - first).to(tl.int64) // n_parts + 1
        i_next = first + i_part * share
        i_end = tl.minimum(i_next + share, end)
        i_row = tl.arange(0, ROW)
        while i_next < i_end:
            i_index = i_next + i_row
            tl.store(p_index + i_index, tl.full([ROW], -1, tl.int32), mask=i_index < i_end)
            i_next += ROW


@triton.jit(do_not_specialize=["n_scores", "n_segments", "capacity"])
def segmented_topk_kernel(
    p_score,  # f32 [n_scores]
    p_offset,  # i32 [n_segments + 1]
    p_count,  # i32 [n_segments]
    p_scratch,  # f32 [n_scores]
    p_index,  # i32 [capacity]
    p_first,  # i32 [n_segments + 1], offsets of the result
    p_status,  # i32 [1]
    n_scores,
    n_segments,
    capacity,
    BLOCK: tl.constexpr,
    ROW: tl.constexpr,
    TILE: tl.constexpr,
    SAMPLE: tl.constexpr,
    ONE: tl.constexpr,
):
    """Writes what one segment keeps, and its share of the offsets and of the filling.

    Longer than most: every part needs the segment's place, size and count.
    """
    i_segment = tl.program_id(0)
    m_segment = i_segment < n_segments  # false if there are none: one program checks that
    # Read first and all at once, so that their latency hides behind the sums.
    start = tl.load(p_offset + i_segment, mask=m_segment, other=0)
    end = tl.load(p_offset + i_segment + 1, mask=m_segment, other=0)
    count = tl.load(p_count + i_segment, mask=m_segment, other=0)
    origin = tl.load(p_offset)
    last = tl.load(p_offset + n_segments)
    possible = (count >= 0) & (count <= end - start)
    if ONE:  # its end is known without reading
        valid = (start == 0) & (end == n_scores)
        before = n_segments >> 31  # 0
        total = tl.where(valid & possible, count, 0)
        start = before
        size = n_scores
    else:
        valid = (start >= 0) & (start <= end) & (end <= n_scores)
        size = end - start
        before, total = sum_counts(p_offset, p_count, n_scores, n_segments, i_segment, ROW)
    # Overlapping segments can add up to anything, even to less than nothing.
    before = tl.minimum(tl.maximum(before, 0), capacity)
    fitting = tl.minimum(tl.maximum(total, 0), capacity)
    wanted = valid & possible & (count > 0)
    fits = wanted & (count <= capacity - before)
    working = size > 0 if ONE else fits  # one need not wait for what is read
    if working:
        write_segment(
            p_score + start,
            p_scratch + start,
            p_index + before,
            size,
            tl.where(fits, count, 1),
            fits,
            BLOCK,
            ROW,
            TILE,
            SAMPLE,
            ONE,
        )
    if i_segment == 0:
        if (origin != 0) | (last != n_scores):
            tl.atomic_or(p_status, OFFSETS)
        if total > capacity:
            tl.atomic_or(p_status, CAPACITY)
        tl.store(p_first + n_segments, fitting)
    if valid == 0:
        tl.atomic_or(p_status, OFFSETS)
    if valid & (possible == 0):
        tl.atomic_or(p_status, COUNTS)
    tl.store(p_first + i_segment, before, mask=m_segment)
    if wanted & (fits == 0):
        fill(p_index, before, capacity, 0, 1, ROW)
    fill(p_index, fitting, capacity, i_segment, tl.num_programs(0), ROW)


def segmented_topk(
    score: Tensor,  # f32 [n], contiguous, as all of them
    offsets: Tensor,  # i32 [I + 1]
    counts: Tensor,  # i32 [I]
    capacity: int,
) -> tuple[Tensor, Tensor]:
    """See `erase_kernels.segmented_topk`; bad data sets bits of the status word."""
    device = score.device
    scores, segments = score.shape[0], offsets.shape[0] - 1
    indices, first = offsets.new_empty(capacity), offsets.new_empty(segments + 1)
    config = _select_launch.config(KERNEL, scores, segments, device)
    with _launch.on(device):
        segmented_topk_kernel[(max(segments, 1),)](
            p_score=score,
            p_offset=offsets,
            p_count=counts,
            p_scratch=_select_launch.scratch(score, config),
            p_index=indices,
            p_first=first,
            p_status=status_word(device),
            n_scores=scores,
            n_segments=segments,
            capacity=capacity,
            **config.arguments(),
        )
    return indices, first


POINTERS = {
    "p_score": "*fp32",
    "p_offset": "*i32",
    "p_count": "*i32",
    "p_scratch": "*fp32",
    "p_index": "*i32",
    "p_first": "*i32",
    "p_status": "*i32",
}
SIZES = ("n_scores", "n_segments", "capacity")


def compilations(architecture: int) -> list[_launch.Compilation]:
    """Every way in which the kernel is compiled for an architecture."""
    return _select_launch.compilations(KERNEL, segmented_topk_kernel, POINTERS, SIZES, architecture)
