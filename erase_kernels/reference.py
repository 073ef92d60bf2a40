"""One plain torch implementation per operator: this file defines "correct"."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from erase_kernels._checks import refuse
from erase_kernels._numerics import (
    ENTROPY_UNIT,
    GRAY_LEVELS,
    LUMA_BLUE,
    LUMA_GREEN,
    LUMA_RED,
    order_keys,
)

# --- entropy ---------------------------------------------------------------------------------


def luma(levels: Tensor, channel_dim: int) -> Tensor:
    """Gray level of each pixel, ``floor((0.299 R + 0.587 G) + 0.114 B)``.

    Float32, every product and sum rounded before the next. One channel is used as it is.

    Args:
        levels: uint8 with 1 or 3 channels along ``channel_dim``.
        channel_dim: the dimension that goes.

    Returns:
        uint8.
    """
    if levels.shape[channel_dim] == 1:
        return levels.squeeze(channel_dim)
    red, green, blue = levels.to(torch.float32).unbind(channel_dim)
    gray = (red * LUMA_RED + green * LUMA_GREEN) + blue * LUMA_BLUE
    return torch.floor(gray).to(torch.uint8)


def histograms(gray: Tensor) -> Tensor:
    """Counts of the 256 gray levels: uint8 ``[n, N]`` -> int64 ``[n, 256]``."""
    counts = torch.zeros(gray.shape[0], GRAY_LEVELS, dtype=torch.int64, device=gray.device)
    index = gray.to(torch.int64)
    return counts.scatter_add_(1, index, torch.ones_like(index))


def entropy_of_counts(
    counts: Tensor,  # int64 [n, 256]
    table: Tensor,  # int64 [N + 1]
) -> Tensor:  # f32 [n]
    """Shannon entropy in nats, summed in integers of ``2**-40`` nats and rounded once."""
    total = table[counts].sum(dim=1)
    return (table[-1] - total).to(torch.float32) * ENTROPY_UNIT


def patch_entropy(images: Sequence[Tensor], patch_size: int, table: Tensor) -> Tensor:
    """See `erase_kernels.patch_entropy`."""
    grays = []
    for image in images:
        planes = image if image.dim() == 3 else image.unsqueeze(0)
        blocks = F.pixel_unshuffle(luma(planes, 0).unsqueeze(0), patch_size)  # [N, H/p, W/p]
        grays.append(blocks.flatten(1).t())
    gray = torch.cat(grays)
    return entropy_of_counts(histograms(gray), table.to(gray.device))


def patch_entropy_of_levels(
    levels: Tensor,  # uint8 [n, C, N], as PixelLayout.recover returns
    table: Tensor,  # int64 [N + 1]
) -> Tensor:  # f32 [n]
    """See `erase_kernels.patch_entropy_from_pixels`."""
    return entropy_of_counts(histograms(luma(levels, 1)), table.to(levels.device))


# --- edges -------------------------------------------------------------------------------------


def edges_of_pictures(gray: Tensor) -> Tensor:
    """``sum d^2 / sum |d|`` over neighbours: uint8 ``[n, pictures, h, w]`` -> f32 ``[n]``."""
    level = gray.to(torch.int64)
    differences = torch.cat([level.diff(dim=-1).flatten(1), level.diff(dim=-2).flatten(1)], dim=1)
    squares = differences.square().sum(1).to(torch.float64)
    total = differences.abs().sum(1).to(torch.float64)
    return torch.where(total > 0, squares / total, 0.0).to(torch.float32)


def patch_edges(images: Sequence[Tensor], patch_size: int) -> Tensor:
    """See `erase_kernels.patch_edges`."""
    grays = []
    for image in images:
        gray = luma(image if image.dim() == 3 else image.unsqueeze(0), 0)
        height, width = (size // patch_size for size in gray.shape)
        blocks = gray.reshape(height, patch_size, width, patch_size).transpose(1, 2)
        grays.append(blocks.flatten(0, 1))  # [cells, p, p]
    return edges_of_pictures(torch.cat(grays).unsqueeze(1))


def patch_edges_of_levels(
    levels: Tensor,  # uint8 [n, C, N], as PixelLayout.recover returns
    pixel_sizes: Sequence[int],
    segment_columns: int,
    frames: int,
) -> Tensor:  # f32 [n]
    """See `erase_kernels.patch_edges_from_pixels`."""
    segments, rows, columns = pixel_sizes
    grid = (segments // segment_columns, segment_columns)
    gray = luma(levels, 1).view(-1, *grid, frames, rows // frames, columns)
    pictures = gray.permute(0, 3, 1, 4, 2, 5)  # [n, frames, grid row, row, grid column, column]
    return edges_of_pictures(pictures.flatten(4, 5).flatten(2, 3))


# --- selection, scoring and compaction ---------------------------------------------------------


def _check_offsets(offsets: Tensor, total: int, argument: str) -> list[int]:
    ends: list[int] = offsets.tolist()
    if ends[0] != 0 or ends[-1] != total or any(a > b for a, b in itertools.pairwise(ends)):
        refuse(argument, f"0, never falling, up to {total}", ends)
    return ends


def _check_indices(indices: Tensor, limit: int, argument: str) -> None:
    bad = indices[(indices < 0) | (indices >= limit)]
    if bad.numel() > 0:
        refuse(argument, f"indices in [0, {limit})", bad[0].item())


def complexity_plan(
    entropy: Tensor,  # f32 [n]
    offsets: Tensor,  # i32 [I + 1]
    thresholds: Tensor,  # f32 [m]
    count_table: Tensor,  # i32 [I, m + 1]
) -> tuple[Tensor, Tensor, Tensor]:
    """See `erase_kernels.complexity_plan`."""
    ends = _check_offsets(offsets, entropy.shape[0], "offsets")
    if not bool((thresholds[:-1] > thresholds[1:]).all()):
        refuse("thresholds", "strictly descending values", thresholds.tolist())
    medians = entropy.new_zeros(len(ends) - 1)
    levels = torch.full_like(medians, thresholds.shape[0], dtype=torch.int64)
    for image, (start, end) in enumerate(itertools.pairwise(ends)):
        values = entropy[start:end]
        if start < end:
            place = order_keys(values).sort(stable=True).indices[(end - start - 1) // 2]
            median = float(values[place])
            medians[image] = math.nan if math.isnan(median) else median + 0.0  # -0 becomes +0
        above = medians[image] > thresholds
        if bool(above.any()):
            levels[image] = above.to(torch.int64).argmax()  # the first maximum
    counts = count_table.gather(1, levels[:, None]).squeeze(1)
    return medians, levels.to(torch.int32), counts


def segmented_topk(
    score: Tensor,  # f32 [n]
    offsets: Tensor,  # i32 [I + 1]
    counts: Tensor,  # i32 [I]
    capacity: int,
) -> tuple[Tensor, Tensor]:
    """See `erase_kernels.segmented_topk`."""
    ends = _check_offsets(offsets, score.shape[0], "offsets")
    wanted = counts.tolist()
    for count, (start, end) in zip(wanted, itertools.pairwise(ends), strict=True):
        if not 0 <= count <= end - start:
            refuse("counts", f"between 0 and the segment's length {end - start}", count)
    if sum(wanted) > capacity:
        refuse("capacity", f"at least the sum of counts {sum(wanted)}", capacity)
    indices = torch.full((capacity,), -1, dtype=torch.int32, device=score.device)
    filled = [0]
    for count, (start, end) in zip(wanted, itertools.pairwise(ends), strict=True):
        best = order_keys(score[start:end]).sort(descending=True, stable=True).indices[:count]
        indices[filled[-1] : filled[-1] + count] = best.sort().values.to(torch.int32)
        filled.append(filled[-1] + count)
    return indices, torch.tensor(filled, dtype=torch.int32, device=score.device)


def text_to_vision_scores(
    query: Tensor,  # [B, H, S, d]
    key: Tensor,  # [B, Hk, L, d]
    rows: Tensor,  # i32 [R]
    row_offsets: Tensor,  # i32 [B + 1]
    columns: Tensor,  # i32 [C]
    column_offsets: Tensor,  # i32 [B + 1]
    key_mask: Tensor | None,  # bool [B, L]
    scale: float,
    causal: bool,
    query_offset: int,
    normalize_over_columns: bool,
    per_head: bool,
    dtype: torch.dtype = torch.float32,
) -> Tensor:  # [C] or [H, C]
    """See `erase_kernels.text_to_vision_scores`; all arithmetic in ``dtype``, also the result."""
    batch, heads, length = query.shape[0], query.shape[1], key.shape[2]
    row_ends = _check_offsets(row_offsets, rows.shape[0], "row_offsets")
    column_ends = _check_offsets(column_offsets, columns.shape[0], "column_offsets")
    _check_indices(rows, query.shape[2], "rows")
    _check_indices(columns, length, "columns")
    positions = torch.arange(length, device=key.device)
    parts = []
    for b in range(batch):
        row = rows[row_ends[b] : row_ends[b + 1]].long()
        column = columns[column_ends[b] : column_ends[b + 1]].long()
        keys = key[b].to(dtype).repeat_interleave(heads // key.shape[1], dim=0)  # [H, L, d]
        logits = (query[b, :, row].to(dtype) @ keys.transpose(1, 2)) * scale  # [H, rows, L]
        visible = torch.ones(row.shape[0], length, dtype=torch.bool, device=key.device)
        if key_mask is not None:
            visible &= key_mask[b]
        if causal:
            visible &= positions <= row[:, None] + query_offset
        logits = logits.masked_fill(~visible, float("-inf"))
        if normalize_over_columns:
            logits, visible = logits[..., column], visible[..., column]
        weights = logits.softmax(-1).masked_fill(~visible, 0.0)  # a row that sees nothing: 0
        mass = weights.sum(1) if normalize_over_columns else weights[..., column].sum(1)  # [H, C]
        parts.append(mass if per_head else mass.mean(0))
    result = torch.cat(parts, dim=-1) if parts else query.new_zeros(columns.shape[0], dtype=dtype)
    if bool(result.isnan().any()):
        refuse("query, key", "scores without NaN", f"{int(result.isnan().sum())} NaN")
    return result


def _check_keep(keep: Tensor, counts: Tensor, length: int) -> None:
    for slots, count in zip(keep.tolist(), counts.tolist(), strict=True):
        if not 0 <= count <= keep.shape[1]:
            refuse("counts", f"between 0 and the width of keep {keep.shape[1]}", count)
        if any(not 0 <= slot < length for slot in slots[:count]):
            refuse("keep", f"slots in [0, {length})", slots[:count])
        if any(a >= b for a, b in itertools.pairwise(slots[:count])):
            refuse("keep", "strictly ascending slots", slots[:count])


def _check_memory(tensors: Sequence[Tensor]) -> None:
    starts = [t.data_ptr() for t in tensors if t.numel() > 0]
    if len(set(starts)) < len(starts):
        refuse("tensors", "tensors that share no memory", "the same memory twice")


def compact_kv(tensors: Sequence[Tensor], keep: Tensor, counts: Tensor) -> None:
    """See `erase_kernels.compact_kv_`, contiguous."""
    _check_keep(keep, counts, min(t.shape[2] for t in tensors))
    _check_memory(tensors)
    for tensor in tensors:
        for b, count in enumerate(counts.tolist()):
            tensor[b, :, :count] = tensor[b, :, keep[b, :count].long()]  # the right side is a copy


def compact_kv_paged(
    tensors: Sequence[Tensor], keep: Tensor, counts: Tensor, block_table: Tensor
) -> Tensor:
    """See `erase_kernels.compact_kv_`, paged."""
    size = tensors[0].shape[1]
    _check_keep(keep, counts, block_table.shape[1] * size)
    _check_memory(tensors)
    blocks = min(t.shape[0] for t in tensors)
    held = (counts.long() + size - 1) // size
    used = [
        block_table[b, : int(keep[b, count - 1]) // size + 1] if count else block_table[b, :0]
        for b, count in enumerate(counts.tolist())
    ]
    _check_indices(torch.cat(used), blocks, "block_table")
    if torch.cat(used).unique().numel() < sum(x.numel() for x in used):
        refuse("block_table", "every block in one place only", torch.cat(used).tolist())
    for b, count in enumerate(counts.tolist()):
        source, target = keep[b, :count].long(), torch.arange(count, device=keep.device)
        for tensor in tensors:
            moved = tensor[block_table[b, source // size].long(), source % size]
            tensor[block_table[b, target // size].long(), target % size] = moved
    places = torch.arange(block_table.shape[1], device=keep.device)
    return torch.where(places >= held[:, None], block_table, -1)


def compact_rows(tensors: Sequence[Tensor], keep: Tensor, counts: Tensor) -> list[Tensor]:
    """See `erase_kernels.compact_rows`."""
    batch, width = keep.shape
    for tensor in tensors:
        _check_keep(keep, counts, tensor.shape[-2])
    valid = (torch.arange(width, device=keep.device) < counts[:, None])[..., None]  # [B, K, 1]
    index = torch.where(valid, keep[..., None], 0).long()
    results = []
    for tensor in tensors:
        shape = (*tensor.shape[:-3], batch, width, tensor.shape[-1])
        zeros = tensor.new_zeros(shape)
        if tensor.shape[-2] > 0:
            full = tensor.expand(*tensor.shape[:-3], batch, *tensor.shape[-2:])
            zeros = torch.where(valid, full.gather(-2, index.expand(shape)), zeros)
        results.append(zeros)
    return results
