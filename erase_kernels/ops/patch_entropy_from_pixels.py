"""Entropy of the gray levels of each cell, straight from an image processor's output."""

from __future__ import annotations

from torch import Tensor

from erase_kernels import _backends, _numerics, _schemas, reference
from erase_kernels._checks import refuse
from erase_kernels.pixel_layout import INTEGER_TOLERANCE, PixelLayout


def patch_entropy_from_pixels(
    pixel_values: Tensor,
    layout: PixelLayout,
    *,
    backend: str | None = None,
) -> Tensor:
    """`patch_entropy` of the uint8 image that a processor normalised into ``pixel_values``.

    Each value is taken back to its gray level, ``clamp(floor((v*std + mean)*scale + 0.5), 0, 255)``
    in float32 with every operation rounded separately, and the entropy of each cell follows as in
    `patch_entropy`. From float32 and float16 the recovery is exact; from bfloat16 a level can be
    off by one.

    Args:
        pixel_values: float32, float16 or bfloat16 of the shape ``layout`` describes. Read as if
            contiguous; other strides are copied first.
        layout: where the pixels of each cell lie, and the processor's statistics.
        backend: a name that `backend_info` lists, or None for the device's default.

    Returns:
        float32 ``[cells]`` in nats, in the order of the layout's cells. Not differentiable.

    Raises:
        TypeError: ``pixel_values`` not a floating tensor of those dtypes, ``layout`` not a layout.
        ValueError: the shape does not fit the layout; a value lies further than 0.01 (float32) or
            0.1 (float16) from an integer gray level, or is NaN; unknown backend.
        RuntimeError: the backend is not available here.

    On CUDA devices values that are no gray levels are not raised here, for that would make the host
    wait: the entropy of their cells is unspecified, and `check_status` raises.

    Source:
        ERASE, section 3.3, applied to the resized image that the vision encoder sees.
    """
    if not isinstance(layout, PixelLayout):
        refuse("layout", "a PixelLayout", type(layout).__name__, TypeError)
    layout.cells(pixel_values)
    chosen = _backends.choose("patch_entropy_from_pixels", pixel_values.device, backend)
    table = _numerics.entropy_table(layout.cell_pixels, pixel_values.device)
    if chosen == "reference":
        return reference.patch_entropy_of_levels(layout.recover(pixel_values), table)
    run = _schemas.implementation_of("patch_entropy_from_pixels", chosen)
    return run(  # type: ignore[no-any-return]
        pixel_values.detach().contiguous(),
        table,
        layout.cell_sizes,
        layout.cell_strides,
        layout.pixel_sizes,
        layout.pixel_strides,
        layout.channel_stride,
        layout.mean,
        layout.std,
        layout.scale,
        INTEGER_TOLERANCE[pixel_values.dtype],
    )
