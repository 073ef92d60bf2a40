"""What one emulated thread computes alone, and atomics, against their definitions."""

from __future__ import annotations

import math

import pytest
import torch

from tests.emu import ORDERS
from tests.emu.probe import call, order

WORD = 2**32


def prmt(x: int, y: int, selector: int) -> int:
    """PTX prmt without a mode: three bits choose a byte, the fourth spreads its sign."""
    pool = x.to_bytes(4, "little") + y.to_bytes(4, "little")
    result = []
    for i in range(4):
        nibble = selector >> (4 * i) & 15
        byte = pool[nibble & 7]
        result.append((0xFF if byte & 0x80 else 0) if nibble & 8 else byte)
    return int.from_bytes(bytes(result), "little")


def test_integer_functions() -> None:
    generator = torch.Generator().manual_seed(1)
    words = torch.randint(0, WORD, (600, 3), generator=generator)
    words[:8, 0] = torch.tensor([0, 1, 2**31, 2**32 - 1, 2**31 - 1, 0x80, 0x8000, 0x10000])
    words[:64, 2] = torch.arange(64)  # shifts past a word
    found = call("integers", words.to(torch.int32), torch.zeros(600, 8, dtype=torch.int32), 600)
    for (x, y, z), row in zip(words.tolist(), found.tolist(), strict=True):
        bits = f"{x:032b}"
        wanted = [
            prmt(x, y, z),
            (y << 32 | x) >> (z & 31) & (WORD - 1),
            x * y >> 32,
            bits.count("1"),
            len(bits) - len(bits.lstrip("0")),
            32 - bits.rindex("1") if x else 0,
            int(bits[::-1], 2),
            (x << 32 | y).bit_count(),
        ]
        assert [value % WORD for value in row] == wanted, (x, y, z)


def test_every_byte_of_a_permutation_spreads_its_sign() -> None:
    selectors = torch.arange(0x10000)
    words = torch.stack([selectors * 0 + 0x7F80017E, selectors * 0 + 0x0081FF40, selectors], 1)
    result = torch.zeros(len(words), 8, dtype=torch.int32)
    found = call("integers", words.to(torch.int32), result, len(words))[:, 0]
    assert [v % WORD for v in found.tolist()] == [prmt(*row) for row in words.tolist()]


def test_float_functions() -> None:
    edges = [0.0, -0.0, 0.5, -0.5, -1e-30, 1.0, -1.0, 255.99998, -255.99998, 2147483520.0]
    edges += [2147483648.0, -2147483648.0, -2147483904.0, 4294967040.0, 4294967296.0, 1e20, -1e20]
    edges += [math.inf, -math.inf, math.nan, -126.0, -126.5, -127.0, 127.9, 128.0, -149.0, -150.0]
    values = torch.cat([torch.tensor(edges), torch.randn(300) * 100])
    found = call("floats", values, torch.zeros(len(values), 3, dtype=torch.int32), len(values))
    powers = found[:, 2].contiguous().view(torch.float32).tolist()
    for value, row, power in zip(values.tolist(), found.tolist(), powers, strict=True):
        low, high = -(2**31), 2**31 - 1
        if math.isnan(value):
            assert row[:2] == [0, 0]
            assert math.isnan(power)
            continue
        floor = math.floor(value) if math.isfinite(value) else math.copysign(2**40, value)
        assert row[0] == min(max(floor, low), high), value
        whole = math.trunc(value) if math.isfinite(value) else math.copysign(2**40, value)
        assert row[1] % WORD == min(max(whole, 0), WORD - 1), value
        if value < -126:  # subnormal results are zero
            assert power == 0, value
        elif value >= 128:
            assert power == math.inf, value
        else:
            assert math.isclose(power, 2.0**value, rel_tol=1e-6), value


def test_widening_every_half_and_bfloat16() -> None:
    patterns = torch.arange(0x10000).to(torch.int16)
    found = call("widen", None, torch.zeros(0x10000, 2))
    for column, dtype in enumerate((torch.float16, torch.bfloat16)):
        wanted, mine = patterns.view(dtype).float(), found[:, column].contiguous()
        number = ~wanted.isnan()
        assert torch.equal(mine.isnan(), wanted.isnan())
        assert torch.equal(mine.view(torch.int32)[number], wanted.view(torch.int32)[number])


@pytest.mark.parametrize("name", ORDERS)
def test_atomics(name: str) -> None:
    """Every update counts, sums wrap, and each thread sees what was there before."""
    threads = 3 * 96
    values = torch.randint(-(2**31), 2**31, (threads,), dtype=torch.int32)
    result = torch.zeros(4 + 9 + threads, dtype=torch.int32)
    result[4 + 5] = -1
    with order(name, 5):
        call("atomics", values, result)
    total = sum(values.tolist())
    both, either = -1, 0
    for value in values.tolist():
        both, either = both & value, either | value
    words = [value % WORD for value in result[4:10].tolist()]
    least, most = min(0, *values.tolist()), max(0, *values.tolist())
    assert words == [v % WORD for v in (total, -total, least, most, either, both)]
    assert int(result[1]) >= threads  # the upper half of a sum of 64 bits
    assert float(result[2:3].view(torch.float32)) == threads
    assert 1 <= int(result[10]) <= threads
    assert int(result[11]) == 1
    exchanged = sorted([*result[13:].tolist(), int(result[12])])
    assert exchanged == sorted([0, *range(threads)])
