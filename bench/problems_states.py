"""Problems of the operators on a language model's states: scores and compaction."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

import erase_kernels as ek
from bench import device_peers, peers
from bench.problem import EAGER, Problem, Run
from bench.rows import PLAIN, PUBLISHED, nbytes
from erase_kernels.testing import assert_matches
from erase_kernels.testing_selection import assert_scores_match, make_keep

PEER_SCORE_ERROR = 0.03  # of the norm; logits of peers are rounded to half precision
BLOCK_SLOTS = 16  # of a paged cache, the usual block size
EAGER_BYTES = 10  # per weight of full attention: logits, masked logits, float32 softmax, a copy
EAGER_SHARE = 0.6  # of the free memory that full attention may take
HOST_BYTES = 1 << 30  # what it may take of a host's


def _free_memory(device: torch.device) -> int:
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else HOST_BYTES


def scores(sizes: dict[str, Any], device: torch.device, dtype: torch.dtype) -> Problem:
    heads, text, keys = sizes["heads"], sizes["rows"], sizes["keys"]
    batch, key_heads, depth = sizes.get("batch", 1), sizes["key_heads"], sizes["depth"]
    system = min(15, keys // 4)  # tokens before the image in the Qwen2-VL chat template
    span = slice(system, keys - text)

    def vector(values: Sequence[int]) -> Tensor:
        return torch.tensor(values, dtype=torch.int32, device=device)

    eager = EAGER_BYTES * batch * heads * keys**2 < EAGER_SHARE * _free_memory(device)
    width = keys - text - system
    where = (
        torch.arange(text, dtype=torch.int32, device=device).repeat(batch),
        vector([text * b for b in range(batch + 1)]),
        torch.arange(system, keys - text, dtype=torch.int32, device=device).repeat(batch),
        vector([width * b for b in range(batch + 1)]),
    )

    def make(seed: int) -> tuple[Tensor, Tensor, Tensor]:
        generator = torch.Generator(device).manual_seed(seed)

        def normal(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator, device=device).to(dtype)

        # The cache is longer than the prompt: keys are a view, as in a static layout.
        queries = normal(batch, heads, keys if eager else text, depth)
        return (
            queries[:, :, -text:],
            normal(batch, key_heads, 2 * keys, depth)[:, :, :keys],
            queries,
        )

    def verify(run: Run, strict: bool) -> None:
        operands = make(0)
        if strict:
            return assert_scores_match(lambda *_: run(operands), *operands[:2], *where)
        expected = ek.text_to_vision_scores(*operands[:2], *where, backend="reference").double()
        error = float((run(operands).double() - expected).norm() / expected.norm())
        if not error <= PEER_SCORE_ERROR:
            raise AssertionError(f"scores are off by {error:.1%} of their norm")
        return None

    def plain(operands: Sequence[Tensor]) -> Tensor:
        return device_peers.plain_scores(operands[0], operands[1], span)

    moved = batch * depth * (heads * text + key_heads * keys) * dtype.itemsize
    others: dict[str, Run] = {
        PUBLISHED: lambda operands: peers.published_scores(operands[0], operands[1], span),
        PLAIN: plain,
    }
    if eager:
        others[EAGER] = lambda x: device_peers.eager_attention_scores(x[2], x[1], text, span)
    return Problem(
        make=make,
        ours=lambda backend, operands: ek.text_to_vision_scores(
            *operands[:2], *where, backend=backend
        ),
        peers=others,
        verify=verify,
        compiled=plain,
        bytes_moved=moved + 4 * where[2].shape[0],
        operations=2 * 2 * batch * heads * text * keys * depth,  # two passes over the keys
        touched=moved,
        heavy=(EAGER,),
    )


def caches(sizes: dict[str, Any], device: torch.device, dtype: torch.dtype) -> Problem:
    batch, keys = sizes.get("batch", 1), sizes["keys"]
    shape = (batch, sizes["key_heads"], keys, sizes["depth"])
    keep, counts = (x.to(device) for x in make_keep(batch, keys, sizes["ratio"]))
    index = keep.long()
    width = index.shape[1]

    def make(seed: int) -> list[Tensor]:
        generator = torch.Generator(device).manual_seed(seed)
        return [
            torch.randn(shape, generator=generator, device=device).to(dtype)
            for _ in range(2 * sizes["layers"])
        ]

    def ours(backend: str, tensors: list[Tensor]) -> list[Tensor]:
        ek.compact_kv_(tensors, keep, counts, backend=backend)
        return [tensor[:, :, :width] for tensor in tensors]

    def published(tensors: Sequence[Tensor]) -> list[Tensor]:
        return device_peers.published_compact_kv(tensors, index)

    def verify(run: Run, strict: bool) -> None:
        expected = published(make(0))
        assert_matches(run(make(0)), expected)

    moved = 2 * 2 * sizes["layers"] * batch * shape[1] * width * shape[3] * dtype.itemsize
    return Problem(
        make=make,
        ours=ours,
        peers={
            PUBLISHED: published,
            PLAIN: lambda tensors: device_peers.plain_compact_kv(tensors, index),
        },
        verify=verify,
        compiled=published,
        bytes_moved=moved,
        touched=moved,
    )


def paged_caches(sizes: dict[str, Any], device: torch.device, dtype: torch.dtype) -> Problem:
    """The same in blocks of `BLOCK_SLOTS` slots that lie anywhere."""
    batch, keys = sizes.get("batch", 1), sizes["keys"]
    heads, depth = sizes["key_heads"], sizes["depth"]
    keep, counts = (x.to(device) for x in make_keep(batch, keys, sizes["ratio"]))
    width, held = keep.shape[1], -(-keys // BLOCK_SLOTS)
    generator = torch.Generator().manual_seed(0)
    table = torch.randperm(batch * held, generator=generator).view(batch, held).to(device)
    block_table = table.to(torch.int32)

    def places(slots: Tensor) -> Tensor:
        """Slots of each batch row as rows of the flattened blocks, int64 ``[B * K]``."""
        return (table.gather(1, slots // BLOCK_SLOTS) * BLOCK_SLOTS + slots % BLOCK_SLOTS).flatten()

    source = places(keep.long())
    target = places(torch.arange(width, device=device).expand(batch, width))

    def make(seed: int) -> list[Tensor]:
        generator = torch.Generator(device).manual_seed(seed)
        shape = (batch * held, BLOCK_SLOTS, heads, depth)
        return [
            torch.randn(shape, generator=generator, device=device).to(dtype)
            for _ in range(2 * sizes["layers"])
        ]

    def ours(backend: str, tensors: list[Tensor]) -> list[Tensor]:
        ek.compact_kv_(tensors, keep, counts, block_table=block_table, backend=backend)
        return tensors

    def published(tensors: Sequence[Tensor]) -> list[Tensor]:
        return [tensor.view(-1, heads, depth).index_select(0, source) for tensor in tensors]

    def plain(tensors: Sequence[Tensor]) -> Sequence[Tensor]:
        for tensor, fresh in zip(tensors, published(tensors), strict=True):
            tensor.view(-1, heads, depth).index_copy_(0, target, fresh)
        return tensors

    def verify(run: Run, strict: bool) -> None:
        found = run(make(0))
        kept = [x.view(-1, heads, depth)[target] if x.dim() == 4 else x for x in found]
        assert_matches(kept, published(make(0)))

    moved = 2 * 2 * sizes["layers"] * batch * heads * width * depth * dtype.itemsize
    return Problem(
        make=make,
        ours=ours,
        peers={PUBLISHED: published, PLAIN: plain},
        verify=verify,
        compiled=None,
        bytes_moved=moved,
        touched=moved,
    )


def rows(sizes: dict[str, Any], device: torch.device, dtype: torch.dtype) -> Problem:
    keys = sizes["keys"]
    keep, counts = (x.to(device) for x in make_keep(1, keys, sizes["ratio"]))
    index = keep[0].long()

    def make(seed: int) -> list[Tensor]:
        generator = torch.Generator(device).manual_seed(seed)
        shapes = [(1, keys, sizes["hidden"]), *[(3, 1, keys, sizes["depth"])] * 2]
        draw = [torch.randn(shape, generator=generator, device=device) for shape in shapes]
        return [tensor.to(dtype) for tensor in draw]

    def plain(tensors: Sequence[Tensor]) -> list[Tensor]:
        return peers.plain_compact_rows(tensors, index)

    def verify(run: Run, strict: bool) -> None:
        assert_matches(run(make(0)), plain(make(0)))

    moved = 2 * nbytes(*plain(make(0)))
    return Problem(
        make=make,
        ours=lambda backend, tensors: ek.compact_rows(tensors, keep, counts, backend=backend),
        peers={
            PUBLISHED: lambda tensors: peers.published_compact_rows(tensors, index),
            PLAIN: plain,
        },
        verify=verify,
        compiled=plain,
        bytes_moved=moved,
        touched=moved,
    )
