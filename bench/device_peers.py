"""What the operators are measured against on a GPU, where the CPU's peers would be silly.

``plain_*`` is the fastest plain torch we could write there: whole arrays at once, no waiting for
the device, everything that a compiler can fuse written as elementwise operations. The published
formulas of `bench.peers` run on a GPU as they are.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch
from torch import Tensor

from bench import peers
from bench.peers import BINS, LUMA
from erase_kernels import PixelLayout

# --- entropy ---------------------------------------------------------------------------------


def plain_patch_entropy(images: Sequence[Tensor], patch_size: int) -> Tensor:
    """One scatter-add of int32 ones per image, straight from the image's order.

    bincount would make the host wait for the largest value; unfolding first costs a copy.
    """
    return torch.cat([_patch_entropy(image, patch_size) for image in images])


def _patch_entropy(image: Tensor, patch_size: int) -> Tensor:
    height, width = image.shape[1:]
    across = width // patch_size
    down = torch.arange(height, device=image.device) // patch_size
    right = torch.arange(width, device=image.device) // patch_size
    cell = down[:, None] * across + right
    return _entropy(_luma(*image), cell, height // patch_size * across, patch_size**2)


def _luma(red: Tensor, green: Tensor, blue: Tensor) -> Tensor:
    return (red * LUMA[0] + green * LUMA[1] + blue * LUMA[2]).to(torch.int64)


def _entropy(gray: Tensor, cell: Tensor, cells: int, pixels: int) -> Tensor:
    counts = torch.zeros(cells * BINS, dtype=torch.int32, device=gray.device)
    index = (cell * BINS + gray).flatten()
    one = torch.ones(1, dtype=torch.int32, device=gray.device)
    counts.scatter_add_(0, index, one.expand(index.shape[0]))
    return torch.special.entr(counts.view(cells, BINS) / pixels).sum(1)


def plain_pixel_entropy(pixel_values: Tensor, layout: PixelLayout) -> Tensor:
    """Recovery and gray levels in one chain of elementwise operations, then as above."""
    planes, cell, cells = _split(pixel_values, layout)
    levels = [
        ((planes[:, c].float() * std + mean) * layout.scale + 0.5).floor().clamp(0, 255)
        for c, (mean, std) in enumerate(zip(layout.mean, layout.std, strict=True))
    ]
    return _entropy(_luma(*levels), cell, cells, layout.cell_pixels)


def _split(pixel_values: Tensor, layout: PixelLayout) -> tuple[Tensor, Tensor, int]:
    """Channels along dimension 1, the cell of each pixel (broadcast), the number of cells."""
    count, device = pixel_values.shape[0], pixel_values.device
    outer = torch.arange(count, device=device)
    if len(layout.shape) == 1:  # rows of patches: the first temporal slot
        merged, plane = layout.pixel_sizes[0], layout.pixel_sizes[1] * layout.pixel_sizes[2]
        planes = pixel_values.view(count, layout.channels, -1, plane)[:, :, 0]
        return planes, (outer // merged)[:, None], count // merged
    down, across = layout.cell_sizes
    side = layout.pixel_sizes[1]
    row = torch.arange(layout.shape[1], device=device) // side
    column = torch.arange(layout.shape[2], device=device) // side
    cell = (outer[:, None, None] * down + row[:, None]) * across + column
    return pixel_values, cell, count * down * across


def published_pixel_entropy(pixel_values: Tensor, layout: PixelLayout) -> Tensor:
    """The published formula on recovered levels."""
    mean, std = (_constants(values, pixel_values.device) for values in (layout.mean, layout.std))
    side = layout.pixel_sizes[1]
    if len(layout.shape) == 1:
        return peers.published_pixel_entropy(pixel_values, mean, std, side)
    mean, std = mean[:, None, None], std[:, None, None]
    levels = ((pixel_values * std + mean) * 255.0 + 0.5).floor()
    gray = peers.published_gray(levels, 1)
    blocks = gray.unfold(1, side, side).unfold(2, side, side)
    return peers.published_entropy(blocks.reshape(-1, side * side))


@functools.cache
def _constants(values: tuple[float, ...], device: torch.device) -> Tensor:
    return torch.tensor(values, device=device)


# --- plan and top-k ----------------------------------------------------------------------------


def plain_selection(
    entropy: Tensor,  # [I * n]
    thresholds: Tensor,
    table: Tensor,  # int32 [I, m + 1]
    capacity: int,
) -> Tensor:
    """One stable sort of all segments (of one length), which gives median, rank and ties."""
    values = entropy.view(table.shape[0], -1)
    cells = values.shape[1]
    ranked, order = values.sort(dim=1, descending=True, stable=True)
    median = ranked[:, cells - 1 - (cells - 1) // 2]
    level = (median[:, None] <= thresholds).sum(1, keepdim=True)
    count = table.gather(1, level).long()  # [I, 1]
    place = torch.arange(cells, device=entropy.device)
    kept = torch.zeros_like(order, dtype=torch.bool).scatter(1, order, place < count)
    target = kept.cumsum(1) - 1 + (count.cumsum(0) - count)
    target = torch.where(kept, target, capacity).flatten()  # the rest falls behind the end
    result = torch.full((capacity + 1,), -1, dtype=torch.int32, device=entropy.device)
    local = place.to(torch.int32).expand(table.shape[0], cells).flatten()
    return result.scatter(0, target, local)[:capacity]


# --- scores ------------------------------------------------------------------------------------


def plain_scores(query: Tensor, key: Tensor, columns: slice) -> Tensor:
    """Grouped matrix products without repeated keys; the softmax in float32 of the last dimension.

    A mask of all keys costs nothing once compiled; eager torch masks the last keys alone.
    """
    batch, heads, rows, depth = query.shape
    key_heads, keys = key.shape[1:3]
    grouped = (query * depth**-0.5).reshape(batch, key_heads, -1, depth)
    logits = (grouped @ key.transpose(2, 3)).view(batch, heads, rows, keys)
    if torch.compiler.is_compiling():
        position = torch.arange(keys, device=key.device)
        seen = position <= torch.arange(keys - rows, keys, device=key.device)[:, None]
        logits = torch.where(seen, logits, float("-inf"))
    else:
        later = torch.ones(rows, rows, dtype=torch.bool, device=key.device).triu(1)
        logits[..., keys - rows :].masked_fill_(later, float("-inf"))
    weights = logits.softmax(-1, dtype=torch.float32)
    return weights[..., columns].sum((1, 2)).flatten() / heads


def eager_attention_scores(
    query: Tensor,  # [B, H, S, d] of ALL positions
    key: Tensor,  # [B, Hk, S, d]
    rows: int,
    columns: slice,
) -> Tensor:
    """What a method gets that asks eager attention for its weights: all ``[H, S, S]`` of them.

    As transformers' eager attention computes them (repeated keys, an additive mask, softmax in
    float32), then the last ``rows`` rows, mean over heads, sum over rows. The product with the
    values is left out.
    """
    length = query.shape[2]
    repeated = key.repeat_interleave(query.shape[1] // key.shape[1], dim=1)
    logits = torch.matmul(query, repeated.transpose(2, 3)) * query.shape[3] ** -0.5
    mask = torch.full((length, length), float("-inf"), dtype=query.dtype, device=query.device)
    weights = (logits + mask.triu(1)).softmax(-1, dtype=torch.float32).to(query.dtype)
    return weights[:, :, length - rows :, columns].float().mean(1).sum(1).flatten()


# --- compaction --------------------------------------------------------------------------------


def published_compact_kv(tensors: Sequence[Tensor], index: Tensor) -> list[Tensor]:
    """A new tensor for keys and for values of every layer; gather where rows of a batch differ."""
    if index.shape[0] == 1:
        return [tensor.index_select(2, index[0]) for tensor in tensors]
    places = index[:, None, :, None]
    return [tensor.take_along_dim(places, 2) for tensor in tensors]


def plain_compact_kv(tensors: Sequence[Tensor], index: Tensor) -> list[Tensor]:
    """In place: gather a tensor, copy it back to the front of the same storage."""
    moved = []
    for tensor in tensors:
        (fresh,) = published_compact_kv([tensor], index)
        moved.append(tensor[:, :, : index.shape[1]].copy_(fresh))
    return moved
