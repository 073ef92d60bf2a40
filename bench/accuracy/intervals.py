"""Shares and their 95% intervals, of one method and of two on the same samples."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

Z95 = 1.959964
"""Two-sided 95% point of the normal distribution."""


@dataclass(frozen=True)
class Share:
    """A figure with the ends of its 95% interval, all as shares of one."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        """In percent, with the larger half of the interval: ``97.3 ± 0.8``."""
        reach = max(self.high - self.value, self.value - self.low)
        return f"{100 * self.value:.1f} ± {100 * reach:.1f}"


def binomial(right: int, number: int) -> Share:
    """Share of right answers with Wilson's score interval.

    Raises:
        ValueError: no samples.
    """
    if number < 1:
        raise ValueError("number: expected at least one sample, got 0")
    share = right / number
    scale = 1 + Z95**2 / number
    middle = (share + Z95**2 / (2 * number)) / scale
    variance = share * (1 - share) / number + Z95**2 / (4 * number**2)
    reach = Z95 * math.sqrt(variance) / scale
    return Share(share, min(share, middle - reach), max(share, middle + reach))


def paired_difference(ours: np.ndarray, theirs: np.ndarray) -> Share:
    """Accuracy of ``ours`` minus that of ``theirs``, bool [n] on the same samples.

    Only samples on which the two differ widen the interval, which is that of Bonett and Price
    (Statistical Methods in Medical Research 21, 2012): Wald's, with one sample more on either side.

    Raises:
        ValueError: other lengths, or no samples.
    """
    if ours.shape != theirs.shape or not len(ours):
        raise ValueError(
            f"theirs: expected the samples of ours, got {theirs.shape} and {ours.shape}"
        )
    gained = int((ours & ~theirs).sum())
    lost = int((~ours & theirs).sum())
    number = len(ours) + 2
    up, down = (gained + 1) / number, (lost + 1) / number
    reach = Z95 * math.sqrt((up + down - (up - down) ** 2) / number)
    low, high = max(-1.0, up - down - reach), min(1.0, up - down + reach)
    return Share((gained - lost) / len(ours), low, high)


def retained(pruned: np.ndarray, unpruned: np.ndarray) -> Share:
    """Accuracy of the pruned model over that of the unpruned one, with a paired interval.

    Raises:
        ValueError: as ``paired_difference``, or nothing was right unpruned.
    """
    base = float(unpruned.mean()) if len(unpruned) else 0.0
    if base == 0:
        raise ValueError("unpruned: expected a right answer at least, got none")
    gap = paired_difference(pruned, unpruned)
    return Share(1 + gap.value / base, 1 + gap.low / base, 1 + gap.high / base)
