"""What tests and benchmarks share: named shapes, inputs, comparisons, a record of what ran."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from erase_kernels._schemas import NAMESPACE
from erase_kernels.pixel_layout import PixelLayout
from erase_kernels.testing_cases import CASES as CASES
from erase_kernels.testing_cases import Case as Case
from erase_kernels.testing_cases import cases as cases

# --- entropy ---------------------------------------------------------------------------------


def make_image(
    height: int, width: int, *, kind: str = "scene", hwc: bool = False, seed: int = 0
) -> Tensor:
    """A uint8 ``[3, height, width]`` image.

    Args:
        height: pixels.
        width: pixels.
        kind: "scene" (smooth regions, edges, grain and flat areas, so that entropies span their
            range), "noise" (uniform levels) or "flat" (one colour).
        hwc: pixels interleaved in memory; the result is a permuted view.
        seed: of the generator.
    """
    generator = torch.Generator().manual_seed(seed)
    if kind == "noise":
        image = torch.randint(0, 256, (3, height, width), generator=generator, dtype=torch.uint8)
    elif kind == "flat":
        color = torch.randint(0, 256, (3, 1, 1), generator=generator, dtype=torch.uint8)
        image = color.expand(3, height, width).contiguous()
    elif kind == "scene":
        image = _scene(height, width, generator)
    else:
        raise ValueError(f"kind: expected scene, noise or flat, got {kind!r}")
    return image.permute(1, 2, 0).contiguous().permute(2, 0, 1) if hwc else image


def _scene(height: int, width: int, generator: torch.Generator) -> Tensor:
    coarse = torch.rand(1, 3, 6, 6, generator=generator) * 255
    smooth = torch.nn.functional.interpolate(coarse, (height, width), mode="bilinear")[0]
    grain = torch.randn(3, height, width, generator=generator)
    strength = torch.linspace(0, 1, width) ** 2 * 24  # left third nearly smooth, right third grainy
    image = (smooth + grain * strength).clamp(0, 255).to(torch.uint8)
    image[:, : height // 3, : width // 3] = 255  # blank paper
    return image


def normalize_levels(levels: Tensor, layout: PixelLayout) -> Tensor:
    """What a processor makes of gray levels: uint8 ``[..., C, N]`` -> float32, same shape."""
    mean = torch.tensor(layout.mean)[:, None]
    std = torch.tensor(layout.std)[:, None]
    return (levels.to(torch.float32) / layout.scale - mean) / std


def make_pixel_values(image: Tensor, layout: PixelLayout) -> Tensor:
    """Processor tensor (float32) of an image ``[C, H, W]``, in the order `layout` describes.

    The inverse of `PixelLayout.recover`: cells of ``sqrt(N)`` x ``sqrt(N)`` pixels. Works for
    `PixelLayout.qwen` (temporal slots hold the same image) and `PixelLayout.tiles` (the image is
    cut into tiles row by row).
    """
    channels, height, width = image.shape
    flat = normalize_levels(image.reshape(channels, -1), layout).reshape(image.shape)
    if len(layout.shape) == 3:
        tile_height, tile_width = layout.shape[1:]
        down, across = height // tile_height, width // tile_width
        tiles = flat.view(channels, down, tile_height, across, tile_width).permute(1, 3, 0, 2, 4)
        return tiles.reshape(down * across, channels, tile_height, tile_width)
    patch = layout.pixel_sizes[1]
    merge = math.isqrt(layout.pixel_sizes[0])
    temporal = layout.channel_stride // (patch * patch)
    down, across = height // (patch * merge), width // (patch * merge)
    split = flat.view(channels, down, merge, patch, across, merge, patch)
    rows = split.permute(1, 4, 2, 5, 0, 3, 6).unsqueeze(5)  # [.., C, 1, p, p]
    return rows.expand(-1, -1, -1, -1, -1, temporal, -1, -1).reshape(-1, layout.shape[0])


# --- comparisons -----------------------------------------------------------------------------


def assert_matches(actual: Any, expected: Any, *, budget: Tensor | float | None = None) -> None:
    """Raises AssertionError unless two results agree.

    Args:
        actual: tensor, or a sequence of tensors.
        expected: the same structure.
        budget: None for the same bits (NaN equals NaN of the same bits, +0 differs from -0), else
            the largest allowed absolute difference, one number or one per element.
    """
    if not isinstance(expected, Tensor):
        if len(actual) != len(expected):
            raise AssertionError(f"{len(actual)} results, expected {len(expected)}")
        for one, other in zip(actual, expected, strict=True):
            assert_matches(one, other, budget=budget)
        return
    for name in ("shape", "dtype", "device"):
        if getattr(actual, name) != getattr(expected, name):
            got, wanted = getattr(actual, name), getattr(expected, name)
            raise AssertionError(f"{name} is {got}, expected {wanted}")
    if budget is None:
        differs = (_bits(actual) != _bits(expected)).reshape(-1)
    else:
        difference = (actual.to(torch.float64) - expected.to(torch.float64)).abs()
        differs = ~(difference <= torch.as_tensor(budget, dtype=torch.float64)).reshape(-1)
    if differs.any():
        first = int(differs.nonzero()[0])
        got, wanted = actual.reshape(-1)[first], expected.reshape(-1)[first]
        raise AssertionError(
            f"{int(differs.sum())} of {differs.numel()} elements differ; the first, number "
            f"{first}, is {got.item()!r}, expected {wanted.item()!r}"
        )


def _bits(tensor: Tensor) -> Tensor:
    if not tensor.is_floating_point():
        return tensor
    integer = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    return tensor.contiguous().view(integer[tensor.element_size()])


class _Recorder(TorchDispatchMode):
    def __init__(self, names: list[str]) -> None:
        super().__init__()
        self.names = names

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        if func.namespace == NAMESPACE:
            self.names.append(func._schema.name)
        return func(*args, **(kwargs or {}))


@contextlib.contextmanager
def record_ops() -> Iterator[list[str]]:
    """Collects the private operators that run inside, in order.

    Yields:
        A list that grows: names such as ``"erase_kernels::patch_entropy_native"``. It stays empty
        while only references run, which are plain torch.
    """
    names: list[str] = []
    with _Recorder(names):
        yield names
