"""Triton kernels with one fault each, which the report must find; and one without."""

from __future__ import annotations

import os
from typing import NoReturn

import triton
import triton.language as tl

from erase_kernels.triton_kernels._launch import Compilation


@triton.jit
def fusing_kernel(p_x, p_out, BLOCK: tl.constexpr):
    i_element = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(p_x + i_element)
    tl.store(p_out + i_element, x * 0.299 + x)


@triton.jit
def starved_kernel(p_x, p_out, BLOCK: tl.constexpr):
    """Every element is alive from the first reduction to the last."""
    i_element = tl.arange(0, BLOCK)
    x = tl.load(p_x + i_element)
    x = tl.exp(x - tl.max(x))
    x = x / tl.sum(x)
    tl.store(p_out + i_element, x - tl.sum(x * x))


@triton.jit
def oversize_kernel(p_x, p_y, p_out, steps, BLOCK: tl.constexpr, DEPTH: tl.constexpr):
    """The pipeline's buffers grow with num_stages."""
    i_row = tl.arange(0, BLOCK)[:, None]
    i_depth = tl.arange(0, DEPTH)
    total = tl.zeros((BLOCK, BLOCK), dtype=tl.float32)
    for step in range(steps):
        b_x = tl.load(p_x + (i_row * steps + step) * DEPTH + i_depth[None, :])
        b_y = tl.load(p_y + (i_row * steps + step) * DEPTH + i_depth[None, :])
        total += tl.dot(b_x, tl.trans(b_y))
    tl.store(p_out + i_row * BLOCK + tl.arange(0, BLOCK)[None, :], total)


class Crashing:
    """Stands for a kernel on which a compiler pass takes the whole process down."""

    __name__ = "crashing_kernel"

    @property
    def arg_names(self) -> NoReturn:
        os._exit(134)


def _elementwise(name: str, kernel, block: int, options: dict[str, object], luma: bool = False):
    signature = {"p_x": "*fp32", "p_out": "*fp32", "BLOCK": "constexpr"}
    return Compilation(name, kernel, signature, {"BLOCK": block}, options, luma=luma)


def compilations(architecture: int) -> list[Compilation]:
    product = {"p_x": "*fp16", "p_y": "*fp16", "p_out": "*fp32", "steps": "i32:16"}
    product |= {"BLOCK": "constexpr", "DEPTH": "constexpr"}
    sizes = {"BLOCK": 128, "DEPTH": 64}
    unfused = {"num_warps": 4, "enable_fp_fusion": False}
    del architecture
    return [
        _elementwise("harmless", fusing_kernel, 1024, unfused, luma=True),
        Compilation("crashing", Crashing(), {}, {}, {}),
        Compilation("misdeclared", fusing_kernel, {"p_x": "*fp32"}, {}, {}),
        _elementwise("fused", fusing_kernel, 1024, {"num_warps": 4}, luma=True),
        _elementwise("starved", starved_kernel, 8192, {"num_warps": 1, "maxnreg": 40}),
        Compilation("oversize", oversize_kernel, product, sizes, {"num_stages": 9}),
    ]
