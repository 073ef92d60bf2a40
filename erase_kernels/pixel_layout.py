"""Where the pixels of each cell lie in a processor's tensor, and how to get them back exactly."""

from __future__ import annotations

import dataclasses
import math

import torch
from torch import Tensor

from erase_kernels._checks import check, check_int, check_tensor, refuse

# Largest distance of a recovered value from an integer, in gray levels. A larger one means that
# mean, std or scale are not the processor's, or that the values never were uint8. Rounding to
# bfloat16 alone moves values by up to a level, so there only NaN can be noticed.
INTEGER_TOLERANCE = {torch.float32: 0.01, torch.float16: 0.1, torch.bfloat16: math.inf}

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)  # statistics of the Qwen2-VL image processor
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)

RESCALE = 255.0  # processors divide gray levels by this before they normalise
MAX_LEVEL = 255.0


@dataclasses.dataclass(frozen=True)
class PixelLayout:
    """Strided description of the cells inside a contiguous processor tensor.

    Cell ``(i, j, k)`` (numbered row-major) starts at element ``i*cell_strides[0] +
    j*cell_strides[1] + k*cell_strides[2]``; ``j`` and ``k`` run over ``cell_sizes``, and ``i`` as
    far as the tensor reaches. Pixel ``(s, r, c)`` of a cell lies ``s*pixel_strides[0] +
    r*pixel_strides[1] + c*pixel_strides[2]`` further on (segments, rows, columns; sizes
    ``pixel_sizes``), and its channel ``ch`` another ``ch*channel_stride``. All strides are in
    elements.

    Where neighbouring pixels matter: the segments of a cell lie row-major in a grid of
    ``segment_columns`` columns, and the rows of a segment are those of ``frames`` pictures of it,
    one picture after the other.

    A stored value ``v`` of channel ``ch`` stands for the gray level
    ``clamp(floor((v*std[ch] + mean[ch])*scale + 0.5), 0, 255)``, every operation in float32 and
    rounded separately.

    Attributes:
        shape: expected shape of the tensor after its first dimension.
        cell_sizes: sizes of the two inner cell loops.
        cell_strides: strides of the three cell loops, outermost first.
        pixel_sizes: sizes of the three pixel loops.
        pixel_strides: strides of the three pixel loops.
        channels: 1 (gray) or 3 (red, green, blue).
        channel_stride: distance of a pixel's channels.
        mean: per channel, what the processor subtracted, in units of ``scale`` gray levels.
        std: per channel, what the processor divided by.
        scale: gray levels per unit: 255, or 1 for a processor that did not rescale.
        segment_columns: segments side by side in a cell; divides the number of segments.
        frames: pictures whose rows follow each other; divides the rows of a segment.
    """

    shape: tuple[int, ...]
    cell_sizes: tuple[int, int]
    cell_strides: tuple[int, int, int]
    pixel_sizes: tuple[int, int, int]
    pixel_strides: tuple[int, int, int]
    channels: int
    channel_stride: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    scale: float = RESCALE
    segment_columns: int = 1
    frames: int = 1

    def __post_init__(self) -> None:
        check(self.channels in (1, 3), "channels", "1 or 3", self.channels)
        for name in ("mean", "std"):
            values = getattr(self, name)
            check(len(values) == self.channels, name, f"{self.channels} values", values)
        check(all(s > 0 for s in self.std), "std", "positive values", self.std)
        check(self.scale > 0, "scale", "a positive number", self.scale)
        for name in ("shape", "cell_sizes", "pixel_sizes"):
            sizes = getattr(self, name)
            check(all(s >= 1 for s in sizes), name, "sizes of at least 1", sizes)
        for name in ("cell_strides", "pixel_strides", "channel_stride"):
            strides = getattr(self, name)
            at_least = min(strides) if isinstance(strides, tuple) else strides
            check(at_least >= 0, name, "strides of at least 0", strides)
        for name, whole in (("segment_columns", 0), ("frames", 1)):
            count, size = getattr(self, name), self.pixel_sizes[whole]
            check(count >= 1 and size % count == 0, name, f"a divisor of {size}", count)
        reach = self._cell_reach()
        check(
            reach <= self.cell_strides[0],
            "cell_strides",
            f"an outermost stride of at least {reach}, the extent of its cells",
            self.cell_strides,
        )

    @classmethod
    def qwen(
        cls,
        patch_size: int = 14,
        merge_size: int = 2,
        temporal_patch_size: int = 2,
        mean: tuple[float, ...] = CLIP_MEAN,
        std: tuple[float, ...] = CLIP_STD,
        scale: float = RESCALE,
        *,
        all_frames: bool = False,
    ) -> PixelLayout:
        """Layout of the Qwen2-VL family: ``pixel_values`` is ``[patches, C*T*p*p]``.

        ``merge_size**2`` consecutive rows are one cell, a square of ``patch_size * merge_size``
        pixels. An image is stored once per temporal slot; only the first slot is read. The slots
        of a video hold different frames; ``all_frames`` makes them all pixels of the cell.

        Args:
            patch_size: ``p``, pixels along a side of a patch.
            merge_size: patches along a side of a cell.
            temporal_patch_size: ``T``, temporal slots of a patch.
            mean: statistics of the processor, one per channel.
            std: statistics of the processor, one per channel.
            scale: gray levels per unit.
            all_frames: whether every temporal slot is read.
        """
        for name, value in (
            ("patch_size", patch_size),
            ("merge_size", merge_size),
            ("temporal_patch_size", temporal_patch_size),
        ):
            check_int(value, name, 1)
        plane = patch_size * patch_size
        row = len(mean) * temporal_patch_size * plane
        merged = merge_size * merge_size
        # The rows of a slot follow the last row of the slot before it.
        rows = patch_size * temporal_patch_size if all_frames else patch_size
        return cls(
            shape=(row,),
            cell_sizes=(1, 1),
            cell_strides=(merged * row, 0, 0),
            pixel_sizes=(merged, rows, patch_size),
            pixel_strides=(row, patch_size, 1),
            channels=len(mean),
            channel_stride=temporal_patch_size * plane,
            mean=tuple(mean),
            std=tuple(std),
            scale=scale,
            segment_columns=merge_size,
            frames=temporal_patch_size if all_frames else 1,
        )

    @classmethod
    def tiles(
        cls,
        cell_size: int,
        height: int,
        width: int,
        mean: tuple[float, ...],
        std: tuple[float, ...],
        scale: float = RESCALE,
    ) -> PixelLayout:
        """Layout of ``pixel_values`` ``[tiles, C, height, width]``: cells row-major, tile by tile.

        Args:
            cell_size: pixels along a side of a cell.
            height: pixels, a multiple of ``cell_size``.
            width: pixels, a multiple of ``cell_size``.
            mean: statistics of the processor, one per channel.
            std: statistics of the processor, one per channel.
            scale: gray levels per unit.
        """
        check_int(cell_size, "cell_size", 1)
        for name, value in (("height", height), ("width", width)):
            check_int(value, name, 1)
            check(value % cell_size == 0, name, f"a multiple of {cell_size}", value)
        channels = len(mean)
        return cls(
            shape=(channels, height, width),
            cell_sizes=(height // cell_size, width // cell_size),
            cell_strides=(channels * height * width, cell_size * width, cell_size),
            pixel_sizes=(1, cell_size, cell_size),
            pixel_strides=(0, width, 1),
            channels=channels,
            channel_stride=height * width,
            mean=tuple(mean),
            std=tuple(std),
            scale=scale,
        )

    @property
    def cell_pixels(self) -> int:
        """``N``, the number of pixels of a cell."""
        return math.prod(self.pixel_sizes)

    def cells(self, pixel_values: Tensor) -> int:
        """Number of cells in ``pixel_values``.

        Raises:
            TypeError: not a tensor, or not float32, float16 or bfloat16.
            ValueError: the shape does not fit this layout.
        """
        check_tensor(pixel_values, "pixel_values")
        if pixel_values.dtype not in INTEGER_TOLERANCE:
            expected = "float32, float16 or bfloat16"
            refuse("pixel_values", expected, pixel_values.dtype, TypeError)
        got = tuple(pixel_values.shape)
        dims = ", ".join(str(size) for size in self.shape)
        check(got[1:] == self.shape and len(got) > 0, "pixel_values", f"shape [n, {dims}]", got)
        rows_per_group = self.cell_strides[0] // math.prod(self.shape) or 1
        check(
            pixel_values.numel() % self.cell_strides[0] == 0,
            "pixel_values",
            f"a first dimension that is a multiple of {rows_per_group}",
            got,
        )
        outer = pixel_values.numel() // self.cell_strides[0]
        return outer * math.prod(self.cell_sizes)

    def recover(self, pixel_values: Tensor) -> Tensor:
        """The gray levels the processor started from.

        Args:
            pixel_values: float32, float16 or bfloat16, of the shape this layout describes. float32
                and float16 recover exactly; bfloat16 can be off by one level.

        Returns:
            uint8 ``[cells, C, N]``, pixels in the order of the pixel loops.

        Raises:
            TypeError, ValueError: as `cells`.
            ValueError: a value lies further from an integer than `INTEGER_TOLERANCE` of its dtype.
        """
        cells = self.cells(pixel_values)
        strided = self.strided(pixel_values)
        values = strided.reshape(cells, self.channels, self.cell_pixels).to(torch.float32)
        mean = torch.tensor(self.mean, dtype=torch.float32, device=values.device)[:, None]
        std = torch.tensor(self.std, dtype=torch.float32, device=values.device)[:, None]
        exact = (values * std + mean) * self.scale
        level = torch.clamp(torch.floor(exact + 0.5), 0.0, MAX_LEVEL)
        _require_integers((exact - level).abs(), INTEGER_TOLERANCE[pixel_values.dtype])
        return level.to(torch.uint8)

    def strided(self, pixel_values: Tensor) -> Tensor:
        """A view of ``pixel_values`` (contiguous, or a copy that is) with one dimension per loop.

        Returns:
            ``[i, j, k, C, s, r, c]``: cells, channel, then segments, rows and columns of pixels.
        """
        outer = pixel_values.numel() // self.cell_strides[0]
        return (
            pixel_values.detach()
            .contiguous()
            .as_strided(
                (outer, *self.cell_sizes, self.channels, *self.pixel_sizes),
                (*self.cell_strides, self.channel_stride, *self.pixel_strides),
            )
        )

    def _cell_reach(self) -> int:
        sizes = (*self.cell_sizes, *self.pixel_sizes, self.channels)
        strides = (*self.cell_strides[1:], *self.pixel_strides, self.channel_stride)
        return 1 + sum((n - 1) * stride for n, stride in zip(sizes, strides, strict=True))


def _require_integers(distance: Tensor, tolerance: float) -> None:
    accepted = (distance <= tolerance).all()  # false for NaN too
    if torch.compiler.is_compiling():
        torch._assert_async(accepted, not_integers_message(tolerance))
    elif not accepted:
        raise ValueError(not_integers_message(tolerance))


def not_integers_message(tolerance: float) -> str:
    """What both implementations say when pixel values are not a normalised uint8 image."""
    return (
        "pixel_values: expected normalised uint8 gray levels (within "
        f"{tolerance:g} of an integer after (v*std + mean)*scale), got other values; "
        "check mean, std and scale against the image processor"
    )
