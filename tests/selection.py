"""Helpers shared by the tests of the selection, scoring and compaction operators."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor

BACKENDS = ("reference", "native")
SENTINEL = 77  # what guard bands hold


def i32(*values: int) -> Tensor:
    return torch.tensor(values, dtype=torch.int32)


def offsets_of(sizes: Sequence[int]) -> Tensor:
    """Offsets of segments of these sizes."""
    return torch.tensor([0, *sizes]).cumsum(0).to(torch.int32)


def bits(value: Tensor) -> Tensor:
    """Raw bytes, so that NaN equals itself and -0 differs from +0."""
    return value.detach().contiguous().reshape(-1).view(torch.uint8)


def same_bits(actual: Tensor, expected: Tensor) -> bool:
    same_kind = actual.dtype == expected.dtype and actual.shape == expected.shape
    return same_kind and torch.equal(bits(actual), bits(expected))


class Banded:
    """A copy of a tensor inside a larger one, so that every dimension has a guard band.

    ``view`` is strided, with unit stride on the last dimension; ``intact()`` tells whether
    everything around it still holds the sentinel.
    """

    def __init__(self, content: Tensor) -> None:
        self.base = torch.full([size + 2 for size in content.shape], SENTINEL, dtype=content.dtype)
        self._inside = tuple(slice(1, size + 1) for size in content.shape)
        self.view = self.base[self._inside]
        self.view.copy_(content)

    def intact(self) -> bool:
        outside = torch.ones(self.base.shape, dtype=torch.bool)
        outside[self._inside] = False
        return bool((self.base[outside] == SENTINEL).all())


def check_compiled(function: Callable[..., object], *arguments: object) -> object:
    """Runs ``function`` compiled as one graph, with static and with dynamic shapes."""
    for dynamic, backend in ((False, "aot_eager"), (True, "inductor")):
        torch.compiler.reset()
        compiled = torch.compile(function, fullgraph=True, dynamic=dynamic, backend=backend)
        result = compiled(*arguments)
    return result


def check_opcheck(operator: str, *arguments: object) -> None:
    """Every opcheck utility passes for the private operator."""
    overload = getattr(torch.ops.erase_kernels, operator).default
    results = torch.library.opcheck(overload, arguments)
    assert set(results.values()) == {"SUCCESS"}, results
    assert len(results) == 4


@pytest.fixture
def supported_clones() -> set[str]:
    """Variants of the CPU kernels that this processor can run."""
    flags = set(Path("/proc/cpuinfo").read_text().split())
    needed = {"baseline": set(), "avx2": {"avx2", "fma"}, "avx512": {"avx512bw", "avx512vl"}}
    return {clone for clone, features in needed.items() if features <= flags}


@pytest.fixture
def poisoned() -> object:
    """Fresh tensors hold NaN or the largest integer, so that an unwritten element shows."""
    torch.use_deterministic_algorithms(True)
    assert torch.utils.deterministic.fill_uninitialized_memory
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture
def threads() -> object:
    """Calls a function with one, two and three threads and returns the results."""
    before = torch.get_num_threads()

    def run(function: Callable[[], object]) -> list[object]:
        results = []
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            results.append(function())
        return results

    yield run
    torch.set_num_threads(before)
