"""Runs the few PTX instructions of the counting kernels on one warp, with numpy.

Triton's interpreter cannot run inline assembly; this shows what it computes without a GPU.
"""

from __future__ import annotations

import re
from collections.abc import Callable

import numpy as np

LANES = 32
LANE = np.arange(LANES, dtype=np.uint32)


class Warp:
    """Registers by name, each an array of 32 lanes (uint32; float32 for operands ``f``)."""

    def __init__(self, text: str, outputs: int, inputs: list[np.ndarray]) -> None:
        self.registers = {f"${outputs + i}": value for i, value in enumerate(inputs)}
        self.registers["%laneid"] = LANE.copy()
        for line in text.replace("\n", " ").strip("{ }").split(";"):
            line = line.strip()
            if line and not line.startswith(".reg"):
                self.step(line)
        self.outputs = [self.registers[f"${i}"] for i in range(outputs)]

    def step(self, line: str) -> None:
        guard = np.ones(LANES, dtype=bool)
        if line.startswith("@"):
            name, line = line[1:].split(" ", 1)
            guard = self.registers[name]
        opcode, rest = line.split(" ", 1)
        names = [part.strip("{}") for part in re.findall(r"{[^}]*}|[^, ]+", rest)]
        if opcode.startswith("mma"):
            return self.mma(opcode, [part.split(", ") for part in names])
        if opcode == "mov.b64":
            return self.move_wide(names)
        sources = [self.value(name) for name in names[1:]]
        result = OPERATIONS[opcode.replace(".sync", "")](*sources)
        old = self.registers.get(names[0], np.zeros_like(result))
        self.registers[names[0]] = np.where(guard, result, old)
        return None

    def value(self, name: str) -> np.ndarray:
        if name in self.registers:
            return self.registers[name]
        if name.startswith("0f"):
            return np.full(LANES, int(name[2:], 16), np.uint32).view(np.float32)
        return np.full(LANES, int(name, 0), np.uint32)

    def move_wide(self, names: list[str]) -> None:
        if "," in names[0]:
            value = self.registers[names[1]]
            for part, name in enumerate(names[0].split(", ")):
                self.registers[name] = (value >> np.uint64(32 * part)).astype(np.uint32)
        else:
            self.registers[names[0]] = np.full(LANES, int(names[1], 0), np.uint64)

    def mma(self, opcode: str, operands: list[list[str]]) -> None:
        left, right = ([self.registers[name] for name in part] for part in operands[1:3])
        bits = ".b1." in opcode
        a = np.concatenate([np.stack(left[0::2], 1), np.stack(left[1::2], 1)])  # 8 + 8 rows
        # [g or g + 8, t, register] -> the row's entries, t first
        rows = [unpack(part.reshape(8, 4, 2).transpose(0, 2, 1), bits) for part in np.split(a, 2)]
        columns = unpack(np.stack(right, 1).reshape(8, 4, 2).transpose(0, 2, 1), bits)
        product = np.concatenate(rows) @ columns.T  # [16, 8]
        for i, name in enumerate(operands[0]):
            row = LANE // 4 + 8 * (i // 2)
            add = product[row, LANE % 4 * 2 + i % 2]
            self.registers[name] = (self.value(operands[3][i]) + add).astype(np.uint32)


def unpack(words: np.ndarray, bits: bool) -> np.ndarray:
    """uint32 ``[8, registers, 4]`` -> int64 ``[8, entries]``."""
    data = np.ascontiguousarray(words)
    if bits:
        return np.unpackbits(data.view(np.uint8), axis=-1).reshape(8, -1).astype(np.int64)
    return data.view(np.int8).reshape(8, -1).astype(np.int64)


def shuffle(source: np.ndarray, lane: np.ndarray, clamp: np.ndarray, mask: np.ndarray):
    assert (mask == 0xFFFFFFFF).all()
    kept = (clamp >> 8) & 31
    return source[(LANE & kept) | (lane & ~kept & 31)]


def permute(a: np.ndarray, b: np.ndarray, selector: np.ndarray) -> np.ndarray:
    table = (a.astype(np.uint64) | b.astype(np.uint64) << np.uint64(32)).view(np.uint8)
    table = table.reshape(LANES, 8)
    result = np.zeros(LANES, np.uint32)
    for i in range(4):
        nibble = (selector >> np.uint32(4 * i)) & 15
        byte = table[LANE, nibble & 7]
        byte = np.where(nibble & 8, np.where(byte & 0x80, 0xFF, 0), byte)
        result |= byte.astype(np.uint32) << np.uint32(8 * i)
    return result


def lookup3(a: np.ndarray, b: np.ndarray, c: np.ndarray, table: np.ndarray) -> np.ndarray:
    result = np.zeros(LANES, np.uint32)
    for i in range(8):
        if table[0] >> i & 1:
            x, y, z = (v if i & bit else ~v for v, bit in ((a, 4), (b, 2), (c, 1)))
            result |= x & y & z
    return result


def as_float(value: np.ndarray) -> np.ndarray:
    return value if value.dtype == np.float32 else value.view(np.float32)


def add_down(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    exact = a.astype(np.float64) + b
    near = exact.astype(np.float32)
    below = np.where(near > exact, np.nextafter(near, np.float32(-np.inf)), near)
    return below.astype(np.float32).view(np.uint32)


OPERATIONS: dict[str, Callable[..., np.ndarray]] = {
    "mov.b32": lambda a: a,
    "mov.u32": lambda a: a,
    "add.rn.f32": lambda a, b: as_float(a) + as_float(b),
    "sub.rn.f32": lambda a, b: as_float(a) - as_float(b),
    "mul.rn.f32": lambda a, b: as_float(a) * as_float(b),
    "max.f32": lambda a, b: np.fmax(a, b),
    "min.f32": lambda a, b: np.fmin(a, b),
    "abs.f32": np.abs,
    "cvt.rmi.f32.f32": np.floor,
    "add.s32": lambda a, b: a + b,
    "sub.s32": lambda a, b: a - b,
    "neg.s32": lambda a: np.uint32(0) - a,
    "and.b32": lambda a, b: a & b,
    "xor.b32": lambda a, b: a ^ b,
    "shl.b32": lambda a, b: a << b,
    "shr.u32": lambda a, b: a >> b,
    "shl.b64": lambda a, b: a << b.astype(np.uint64),
    "bfe.u32": lambda a, start, length: (a >> start) & ((np.uint32(1) << length) - np.uint32(1)),
    "setp.eq.u32": lambda a, b: a == b,
    "lop3.b32": lookup3,
    "prmt.b32": permute,
    "add.rm.f32": add_down,
    "shfl.idx.b32": shuffle,
}
