"""Edge strength of each cell, straight from an image processor's output."""

from __future__ import annotations

from torch import Tensor

from erase_kernels import _backends, _schemas, reference
from erase_kernels._checks import refuse
from erase_kernels.ops import _edges as _edges  # the implementation registers itself
from erase_kernels.pixel_layout import INTEGER_TOLERANCE, PixelLayout


def patch_edges_from_pixels(
    pixel_values: Tensor,
    layout: PixelLayout,
    *,
    backend: str | None = None,
) -> Tensor:
    """`patch_edges` of the uint8 image that a processor normalised into ``pixel_values``.

    Each value is taken back to its gray level as in `patch_entropy_from_pixels`, and
    ``sum(d**2) / sum(|d|)`` follows over the neighbouring pixels of the cell, across the segments
    that ``layout`` says lie side by side. Where a cell has several frames, neighbours are those of
    one frame, and both sums run over all frames.

    A composite of torch operators. Besides its result, and a copy of ``pixel_values`` that are not
    contiguous, it takes at most 128 bytes for each of 2**20 pixels, or of one cell if that has
    more.

    Args:
        pixel_values: float32, float16 or bfloat16 of the shape ``layout`` describes. Read as if
            contiguous; other strides are copied first.
        layout: where the pixels of each cell lie, and the processor's statistics.
        backend: "torch", or None for it; "reference".

    Returns:
        float32 ``[cells]`` in gray levels, in the order of the layout's cells. Not differentiable.

    Raises:
        TypeError: ``pixel_values`` not a floating tensor of those dtypes, ``layout`` not a layout.
        ValueError: the shape does not fit the layout; a value lies further than 0.01 (float32) or
            0.1 (float16) from an integer gray level, or is NaN; unknown backend.

    On CUDA devices values that are no gray levels are not raised here, for that would make the host
    wait: the result of their cells is unspecified, and `check_status` raises.

    Source:
        This project, as `patch_edges`.
    """
    if not isinstance(layout, PixelLayout):
        refuse("layout", "a PixelLayout", type(layout).__name__, TypeError)
    layout.cells(pixel_values)
    chosen = _backends.choose("patch_edges_from_pixels", pixel_values.device, backend)
    if chosen == "reference":
        levels = layout.recover(pixel_values)
        geometry = (layout.pixel_sizes, layout.segment_columns, layout.frames)
        return reference.patch_edges_of_levels(levels, *geometry)
    run = _schemas.implementation_of("patch_edges_from_pixels", chosen)
    return run(  # type: ignore[no-any-return]
        pixel_values.detach().contiguous(),
        layout.cell_sizes,
        layout.cell_strides,
        layout.pixel_sizes,
        layout.pixel_strides,
        layout.channel_stride,
        layout.segment_columns,
        layout.frames,
        layout.mean,
        layout.std,
        layout.scale,
        INTEGER_TOLERANCE[pixel_values.dtype],
    )
