"""Problems of the operators on images: entropies, and the plan and choice made from them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

import erase_kernels as ek
from bench import device_peers, peers
from bench.problem import Problem, Run
from bench.rows import PLAIN, PUBLISHED, RATIOS, THRESHOLDS, nbytes
from erase_kernels.testing import assert_matches, make_image, make_pixel_values
from erase_kernels.testing_selection import make_entropies

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # InternVL
TILE, CELL = 448, 28  # pixels; InternVL
# One pixel in a thousand has a gray level exactly on an integer; a fused multiply-add may move it
# to the level below, and each such pixel changes its cell's entropy by about ln(N)/N.
PEER_MEAN_NATS, PEER_MOST_NATS = 0.005, 0.2


def _check_entropies(found: Tensor, expected: Tensor, strict: bool) -> None:
    if strict:
        assert_matches(found, expected)
        return
    difference = (found - expected).abs()
    mean, most = float(difference.mean()), float(difference.max())
    if not (mean <= PEER_MEAN_NATS and most <= PEER_MOST_NATS):
        raise AssertionError(f"entropies differ by {mean:.2e} nats on average, {most:.2e} at most")


def entropy(sizes: dict[str, Any], device: torch.device, hwc: bool = False) -> Problem:
    patch, images = sizes["patch_size"], sizes.get("images", 1)
    seeds = range(images)
    first = [make_image(sizes["height"], sizes["width"], hwc=hwc, seed=i).to(device) for i in seeds]
    expected = ek.patch_entropy(first, patch, backend="reference")

    def published(operands: list[Tensor]) -> Tensor:
        return torch.cat([peers.published_patch_entropy(image, patch) for image in operands])

    def plain(operands: Sequence[Tensor]) -> Tensor:
        return device_peers.plain_patch_entropy(operands, patch)

    moved = nbytes(*first) + nbytes(expected)
    return Problem(
        make=lambda _: [image.clone() for image in first],
        ours=lambda backend, operands: ek.patch_entropy(operands, patch, backend=backend),
        peers={PUBLISHED: published, PLAIN: plain},
        verify=lambda run, strict: _check_entropies(run(first), expected, strict),
        compiled=plain,
        bytes_moved=moved,
        touched=moved,
    )


def _pixel_layout(sizes: dict[str, Any]) -> ek.PixelLayout:
    if sizes["layout"] == "qwen":
        return ek.PixelLayout.qwen()
    tile, cell = sizes.get("tile", TILE), sizes.get("cell", CELL)
    return ek.PixelLayout.tiles(cell, tile, tile, IMAGENET_MEAN, IMAGENET_STD)


def pixels(sizes: dict[str, Any], device: torch.device, dtype: torch.dtype) -> Problem:
    layout = _pixel_layout(sizes)
    image = make_image(sizes["height"], sizes["width"])
    first = make_pixel_values(image, layout).contiguous().to(device, dtype)
    expected = ek.patch_entropy_from_pixels(first, layout, backend="reference")

    def plain(operands: Tensor) -> Tensor:
        return device_peers.plain_pixel_entropy(operands, layout)

    # Of the temporal slots of a patch only the first is needed.
    moved = 3 * sizes["height"] * sizes["width"] * first.element_size() + nbytes(expected)
    return Problem(
        make=lambda _: first.clone(),
        ours=lambda backend, operands: ek.patch_entropy_from_pixels(
            operands, layout, backend=backend
        ),
        peers={
            PUBLISHED: lambda operands: device_peers.published_pixel_entropy(operands, layout),
            PLAIN: plain,
        },
        verify=lambda run, strict: _check_entropies(run(first), expected, strict),
        compiled=plain,
        bytes_moved=moved,
        touched=moved,
    )


def selection(sizes: dict[str, Any], device: torch.device) -> Problem:
    images, cells = sizes["images"], sizes["cells"]
    ratios = [max(ratio, sizes["ratio"]) for ratio in RATIOS]
    first = torch.cat([make_entropies(cells, seed=seed) for seed in range(images)]).to(device)
    offsets = torch.arange(images + 1, dtype=torch.int32, device=device) * cells
    counts = [int(cells * ratio) for ratio in ratios]
    table = torch.tensor([counts] * images, dtype=torch.int32, device=device)
    thresholds = THRESHOLDS.to(device)
    capacity = images * max(counts)

    def ours(backend: str, entropy: Tensor) -> Tensor:
        plan = ek.complexity_plan(entropy, offsets, thresholds, table, backend=backend)
        chosen = ek.segmented_topk(entropy, offsets, plan.count, capacity, backend=backend)
        return chosen.indices

    def plain(entropy: Tensor) -> Tensor:
        return device_peers.plain_selection(entropy, thresholds, table, capacity)

    expected = ours("reference", first)

    def published(entropy: Tensor) -> list[Tensor]:
        return peers.published_selection(entropy, [cells] * images, thresholds, ratios)

    def verify(run: Run, strict: bool) -> None:
        found = run(first)
        if isinstance(found, Tensor):
            return assert_matches(found, expected)
        # The published ties fall anyhow: compare the scores of what is kept.
        ends = [0]
        for part in found:
            ends.append(ends[-1] + part.shape[0])
        for i, part in enumerate(found):
            scores = first[i * cells : (i + 1) * cells]
            mine = scores[expected[ends[i] : ends[i + 1]].long()]
            assert_matches(scores[part].sort().values, mine.sort().values)
        return None

    return Problem(
        make=lambda _: first.clone(),
        ours=ours,
        peers={PUBLISHED: published, PLAIN: plain},
        verify=verify,
        compiled=plain,
        bytes_moved=nbytes(first, expected),
        touched=nbytes(first),
    )
