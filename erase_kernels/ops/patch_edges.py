"""Edge strength of each patch of an image."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from erase_kernels import _backends, _schemas, reference
from erase_kernels._checks import check_int
from erase_kernels.ops import _edges as _edges  # the implementation registers itself
from erase_kernels.ops._images import check_images


def patch_edges(
    image: Tensor | Sequence[Tensor],
    patch_size: int,
    *,
    backend: str | None = None,
) -> Tensor:
    """How strong the edges in every ``patch_size`` x ``patch_size`` patch are.

    ``E = sum(d**2) / sum(|d|)`` over the differences ``d`` of the gray levels of all horizontally
    and vertically neighbouring pixels of the patch: the mean step, each weighted by its own height.
    0 where all pixels are alike, at most 255. Grain and slow changes of brightness give small
    values, the outlines of print large ones, however few they are. Neighbours in another patch do
    not count. The gray level is that of `patch_entropy`. The sums are exact integers and the
    quotient is rounded in float64, then to float32, so the bits are the same on every device and
    with every number of threads.

    A composite of torch operators; there is no kernel of ours. Besides its result it takes at most
    128 bytes for each of 2**20 pixels, or of one patch if that has more.

    Args:
        image: uint8 ``[3, H, W]`` (RGB), ``[1, H, W]`` or ``[H, W]``, any strides (a permuted
            ``[H, W, 3]`` image is not copied), or a sequence of such images of any sizes on one
            device. H and W are multiples of ``patch_size``.
        patch_size: side of a patch in pixels.
        backend: "torch", or None for it; "reference".

    Returns:
        float32 ``[n]`` in gray levels: the patches of each image in row-major order, image after
        image.

    Raises:
        TypeError: not tensors, not uint8, or ``patch_size`` not an int.
        ValueError: wrong rank, channels or size, no image, several devices, unknown backend.

    Source:
        This project: an alternative to the entropy of ERASE, section 3.3, for flat signs in front
        of a busy background, whose entropy is below their surroundings'.
    """
    check_int(patch_size, "patch_size", 1)
    images = check_images(image, patch_size)
    chosen = _backends.choose("patch_edges", images[0].device, backend)
    if chosen == "reference":
        return reference.patch_edges(images, patch_size)
    run = _schemas.implementation_of("patch_edges", chosen)
    return run(images, patch_size)  # type: ignore[no-any-return]
