"""Entropy of the gray levels of each patch of an image."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from erase_kernels import _backends, _numerics, _schemas, reference
from erase_kernels._checks import check_int
from erase_kernels.ops._images import check_images


def patch_entropy(
    image: Tensor | Sequence[Tensor],
    patch_size: int,
    *,
    backend: str | None = None,
) -> Tensor:
    """Shannon entropy of the gray-level histogram of every ``patch_size`` x ``patch_size`` patch.

    ``H = -sum_b (c_b / N) ln(c_b / N)`` with ``c_b`` the pixels of gray level ``b`` (256 bins) and
    ``N = patch_size**2``. The gray level is ``floor((0.299 R + 0.587 G) + 0.114 B)`` in float32,
    every product and sum rounded separately; a single channel is used as it is. The sum runs over
    64-bit integers in units of ``2**-40`` nats, so every backend returns the same bits; the error
    is below 3e-7 nats, and a patch of one gray level is exactly 0.

    Args:
        image: uint8 ``[3, H, W]`` (RGB), ``[1, H, W]`` or ``[H, W]``, any strides (a permuted
            ``[H, W, 3]`` image is not copied), or a sequence of such images of any sizes on one
            device. H and W are multiples of ``patch_size``.
        patch_size: side of a patch in pixels.
        backend: a name that `backend_info` lists, or None for the device's default.

    Returns:
        float32 ``[n]`` in nats: the patches of each image in row-major order, image after image.

    Raises:
        TypeError: not tensors, not uint8, or ``patch_size`` not an int.
        ValueError: wrong rank, channels or size, no image, several devices, unknown backend.
        RuntimeError: the backend is not available here.

    Source:
        ERASE, section 3.3 (histogram entropy of image patches); gray levels as in its code.
    """
    check_int(patch_size, "patch_size", 1)
    images = check_images(image, patch_size)
    device = images[0].device
    chosen = _backends.choose("patch_entropy", device, backend)
    table = _numerics.entropy_table(patch_size * patch_size, device)
    if chosen == "reference":
        return reference.patch_entropy(images, patch_size, table)
    run = _schemas.implementation_of("patch_entropy", chosen)
    return run(images, patch_size, table)  # type: ignore[no-any-return]
