"""Numbers every implementation shares, so that all of them agree bit for bit."""

from __future__ import annotations

import functools
from decimal import ROUND_HALF_EVEN, Decimal, localcontext

import torch
from torch import Tensor

LUMA_RED = 0.299  # ITU-R BT.601 weights, applied in float32, each product rounded before the sum
LUMA_GREEN = 0.587
LUMA_BLUE = 0.114

GRAY_LEVELS = 256  # histogram bins of a uint8 gray level

ENTROPY_FRACTION_BITS = 40  # entropies are summed as integers in units of 2**-40 nats
ENTROPY_UNIT = 2.0**-ENTROPY_FRACTION_BITS

_DECIMAL_DIGITS = 50  # enough that rounding to 2**-40 is never in doubt


CPU = torch.device("cpu")


def entropy_table(cell_pixels: int, device: torch.device = CPU) -> Tensor:
    """Table of ``c * ln(c) / N`` for every bin count ``c`` a cell of ``N`` pixels can have.

    ``T[c] = round_half_even(2**40 * c * ln(c) / N)`` for ``c = 0..N`` with ``T[0] = 0``. The
    entropy of a histogram is ``(T[N] - sum_b T[count_b]) * 2**-40`` nats. Math libraries disagree
    in the last place of ``ln``, so the table is made once with 50-digit decimals and passed to
    every implementation.

    Args:
        cell_pixels: ``N``, the number of pixels of a cell.
        device: where the table is needed; it is copied there once.

    Returns:
        int64 ``[N + 1]``, in units of ``2**-40`` nats. Shared: do not write to it.
    """
    if torch.compiler.is_compiling():
        # A tracer cannot follow decimal arithmetic; the operator hides it.
        return torch.ops.erase_kernels.entropy_table(cell_pixels, device)  # type: ignore[no-any-return]
    return cached_entropy_table(cell_pixels, device)


@functools.lru_cache(maxsize=64)
def cached_entropy_table(cell_pixels: int, device: torch.device = CPU) -> Tensor:
    """`entropy_table` outside of tracing; the same tensor for the same arguments."""
    if device != CPU:
        return cached_entropy_table(cell_pixels).to(device)
    with localcontext() as context:
        context.prec = _DECIMAL_DIGITS
        unit = Decimal(2) ** ENTROPY_FRACTION_BITS / cell_pixels
        entries = [
            int((unit * count * log).to_integral_value(rounding=ROUND_HALF_EVEN))
            for count, log in enumerate(_logarithms(cell_pixels))
        ]
    return torch.tensor(entries, dtype=torch.int64)


def _logarithms(largest: int) -> list[Decimal]:
    """``ln(c)`` for ``c = 0..largest`` (0 for ``c = 0``): primes directly, products by addition."""
    factor = list(range(largest + 1))  # smallest prime factor
    for prime in range(2, int(largest**0.5) + 1):
        if factor[prime] == prime:
            for multiple in range(prime * prime, largest + 1, prime):
                factor[multiple] = min(factor[multiple], prime)
    logs = [Decimal(0)] * (largest + 1)
    for value in range(2, largest + 1):
        prime = factor[value]
        logs[value] = Decimal(value).ln() if prime == value else logs[prime] + logs[value // prime]
    return logs


def order_keys(values: Tensor) -> Tensor:
    """Integers in the order of float32 ``values``: -0 equals +0, every NaN below -inf.

    Returns:
        int64, same shape; comparing two of them compares the values.
    """
    bits = torch.where(values == 0, 0.0, values).contiguous().view(torch.int32)
    # Negative floats grow with falling bits: flip all but their sign.
    keys = torch.where(bits < 0, bits ^ 0x7FFFFFFF, bits).to(torch.int64)
    return torch.where(values.isnan(), -(2**31), keys)
