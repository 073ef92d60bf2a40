"""What each operator is measured against, in stock torch.

``published_*`` writes the published code's formula down with stock operators, for any device;
``plain_*`` is the fastest plain torch we could write for the same result on the CPU (what lost is
named). `bench.device_peers` has those for a GPU.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch
from torch import Tensor

LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601
BINS = 256
EPSILON = 1e-10  # the published code adds it to every bin


# --- entropy ---------------------------------------------------------------------------------


@functools.cache
def _luma_weights(device: torch.device) -> Tensor:
    return torch.tensor(LUMA, device=device)


def published_patch_entropy(image: Tensor, patch_size: int) -> Tensor:
    """float32 gray image, int64 levels, unfold, a scatter-add of ones, logarithms of all bins."""
    gray = published_gray(image, 0)
    blocks = gray.unfold(0, patch_size, patch_size).unfold(1, patch_size, patch_size)
    return published_entropy(blocks.reshape(-1, patch_size * patch_size))


def published_gray(levels: Tensor, dim: int) -> Tensor:
    """int64 gray levels; the channels lie along ``dim``, two dimensions follow."""
    weights = _luma_weights(levels.device).view(3, 1, 1)
    return (levels.float() * weights).sum(dim).clamp(0, 255).long()


def published_entropy(levels: Tensor) -> Tensor:
    histogram = torch.zeros(levels.shape[0], BINS, device=levels.device)
    histogram.scatter_add_(1, levels, torch.ones_like(levels, dtype=torch.float32))
    share = histogram / levels.shape[1] + EPSILON
    return -(share * share.log()).sum(1)


def plain_patch_entropy(image: Tensor, patch_size: int) -> Tensor:
    """One strip of patches at a time, so that temporaries stay in the cache; bincount.

    Slower: the whole image at once; int64 indices; one matrix product for the gray levels.
    """
    channels, height, width = image.shape
    across = width // patch_size
    cell = torch.arange(width, dtype=torch.int32).div_(patch_size, rounding_mode="floor") * BINS
    counts = torch.empty(height // patch_size, across * BINS, dtype=torch.int64)
    gray = torch.empty(patch_size, width)
    part = torch.empty(patch_size, width)
    for strip in range(height // patch_size):
        rows = image[:, strip * patch_size : (strip + 1) * patch_size]
        gray.copy_(rows[0]).mul_(LUMA[0])
        for channel in range(1, channels):
            gray.add_(part.copy_(rows[channel]).mul_(LUMA[channel]))
        index = gray.to(torch.int32).add_(cell)
        counts[strip] = torch.bincount(index.view(-1), minlength=across * BINS)
    share = counts.view(-1, BINS).float().div_(patch_size * patch_size)
    return torch.special.entr(share).sum(1)


def recover_levels(pixel_values: Tensor, mean: Tensor, std: Tensor, patch: int) -> Tensor:
    """Gray levels of Qwen2-VL processor rows: ``[rows, 3*2*p*p]`` -> float32 ``[rows, 3, p*p]``."""
    values = pixel_values.view(pixel_values.shape[0], 3, 2, patch * patch)[:, :, 0]
    return ((values * std[:, None] + mean[:, None]) * 255.0 + 0.5).floor_()


def published_pixel_entropy(pixel_values: Tensor, mean: Tensor, std: Tensor, patch: int) -> Tensor:
    """The published formula on recovered levels; four rows make a cell of ``2p x 2p`` pixels."""
    levels = recover_levels(pixel_values, mean, std, patch)
    gray = (levels * _luma_weights(levels.device)[:, None]).sum(1).clamp(0, 255).long()
    return published_entropy(gray.view(-1, 4 * patch * patch))


def plain_pixel_entropy(pixel_values: Tensor, mean: Tensor, std: Tensor, patch: int) -> Tensor:
    """Blocks of cells that fit in the cache, one channel at a time; bincount."""
    plane, block = patch * patch, 256  # rows of pixel_values at a time: 1.2 MB
    cells = pixel_values.shape[0] // 4
    counts = torch.empty(cells, BINS, dtype=torch.int64)
    split = pixel_values.view(-1, 3, 2, plane)[:, :, 0]
    scale, shift = std.tolist(), mean.tolist()
    for start in range(0, split.shape[0], block):
        rows = split[start : start + block]
        gray = torch.zeros(rows.shape[0], plane)
        for channel, weight in enumerate(LUMA):
            level = rows[:, channel] * scale[channel]
            gray.add_(level.add_(shift[channel]).mul_(255.0).add_(0.5).floor_().mul_(weight))
        size = rows.shape[0] // 4
        cell = torch.arange(size, dtype=torch.int32).mul_(BINS)[:, None]
        index = gray.to(torch.int32).view(size, -1).add_(cell)
        part = torch.bincount(index.view(-1), minlength=size * BINS)
        counts[start // 4 : start // 4 + size] = part.view(size, BINS)
    return torch.special.entr(counts.float().div_(4 * plane)).sum(1)


# --- plan and top-k ----------------------------------------------------------------------------


def published_selection(
    entropy: Tensor, sizes: Sequence[int], thresholds: Tensor, ratios: Sequence[float]
) -> list[Tensor]:
    """Image by image: a median, comparisons read on the host, a top-k, a sort. Ties fall anyhow."""
    kept = []
    for values in entropy.split(list(sizes)):
        median = values.median()
        level = next((i for i, t in enumerate(thresholds) if median > t), len(thresholds))
        count = int(values.shape[0] * ratios[level])
        kept.append(values.topk(count).indices.sort().values)
    return kept


def plain_selection(
    entropy: Tensor, sizes: Sequence[int], thresholds: Tensor, ratios: Sequence[float]
) -> list[Tensor]:
    """The same with ties going to the lowest index, which takes a stable sort."""
    kept = []
    for values in entropy.split(list(sizes)):
        level = int((values.median() <= thresholds).sum())
        count = int(values.shape[0] * ratios[level])
        order = values.sort(descending=True, stable=True).indices
        kept.append(order[:count].sort().values)
    return kept


# --- scores ------------------------------------------------------------------------------------


def published_scores(query: Tensor, key: Tensor, columns: slice) -> Tensor:
    """Repeated keys, all logits, a causal mask, softmax, mean over heads, sum over rows.

    As published: logits and weights in the operands' precision, the softmax itself in float32.
    """
    heads, rows, keys = query.shape[1], query.shape[2], key.shape[2]
    repeated = key.repeat_interleave(heads // key.shape[1], dim=1)
    logits = query @ repeated.transpose(2, 3) * query.shape[3] ** -0.5
    later = torch.ones(rows, keys, dtype=torch.bool, device=key.device).triu(keys - rows + 1)
    weights = logits.masked_fill(later, float("-inf")).softmax(-1, dtype=torch.float32)
    return weights.to(query.dtype)[..., columns].mean(1).sum(1).flatten()


def plain_scores(query: Tensor, key: Tensor, columns: slice) -> Tensor:
    """Grouped matrix products without repeated keys, everything else in place.

    Only the last keys are masked. Slower: softmax(out=...) with a sum.
    """
    heads, rows, depth = query.shape[1:]
    key_heads, keys = key.shape[1:3]
    grouped = (query[0] * depth**-0.5).reshape(key_heads, -1, depth)
    logits = torch.bmm(grouped, key[0].transpose(1, 2))  # [key heads, group * rows, keys]
    later = torch.ones(rows, rows, dtype=torch.bool).triu(1)
    logits.view(heads, rows, keys)[:, :, keys - rows :].masked_fill_(later, float("-inf"))
    weights = logits.sub_(logits.amax(-1, keepdim=True)).exp_()
    total = weights.sum(-1, keepdim=True)
    return torch.bmm(total.reciprocal_().transpose(1, 2), weights)[:, 0, columns].sum(0) / heads


# --- compaction --------------------------------------------------------------------------------


def published_compact_kv(tensors: Sequence[Tensor], index: Tensor) -> list[Tensor]:
    """A new tensor for keys and for values of every layer."""
    return [tensor.index_select(2, index) for tensor in tensors]


def plain_compact_kv(tensors: Sequence[Tensor], index: Tensor, scratch: Tensor) -> list[Tensor]:
    """In place: gather into one reused buffer, copy back to the front of the same storage."""
    count = index.shape[0]
    for tensor in tensors:
        torch.index_select(tensor, 2, index, out=scratch)
        tensor[:, :, :count].copy_(scratch)
    return [tensor[:, :, :count] for tensor in tensors]


def published_compact_rows(tensors: Sequence[Tensor], index: Tensor) -> list[Tensor]:
    """Advanced indexing, tensor by tensor."""
    return [tensor[..., index, :] for tensor in tensors]


def plain_compact_rows(tensors: Sequence[Tensor], index: Tensor) -> list[Tensor]:
    """index_select, tensor by tensor."""
    return [tensor.index_select(-2, index) for tensor in tensors]
