"""Counts the instructions of compiled kernels, by kind."""

from __future__ import annotations

import bisect
import collections
import re
import struct
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

# Column -> instructions it counts; each is matched from its beginning. Blackwell adds packed forms
# of the float instructions (FFMA2); tcgen05 products are UTC?MMA.
MIX = {
    "ldg128": r"LDG\..*\b128",
    "ldg64": r"LDG\..*\b64\b",
    "ldg32": r"LDG\.(?!.*\b(?:128|64|U16|S16|U8|S8)\b)",
    "ldg16": r"LDG\..*\b[US]16",
    "ldg8": r"LDG\..*\b[US]8",
    "async": r"LDGSTS|UBLKCP|UTMALDG",
    "stg": r"STG",
    "mma": r"[HIQDO]MMA",
    "wgmma": r"[HIQ]GMMA|UTC\w*MMA",
    "mufu": r"MUFU",
    "atom": r"ATOM|RED[G.]|RED$",
    "bar": r"BAR|SYNCS",
    "ffma": r"FFMA",
    "fmul": r"FMUL",
    "fadd": r"FADD",
    "popc": r"U?POPC",
    "vote": r"U?VOTE",
    "call": r"CALL",
    "local": r"LDL|STL",
}
_MIX = {column: re.compile(pattern) for column, pattern in MIX.items()}
INSTRUCTION = re.compile(r"/\*([0-9a-f]{4,})\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_.]*)")
SUFFIXED = 90  # from this compute capability on, triton compiles for the -a variant
# ELF64: where the header says where section headers are, and what they hold.
SECTIONS_AT, SECTION_COUNT_AT, SECTION = 40, 58, "<IIQQQQIIQQ"


def machine_code(cubin: bytes) -> bytes:
    """The instructions of all functions of an ELF file, one function after the other."""
    (start,) = struct.unpack_from("<Q", cubin, SECTIONS_AT)
    size, number, names = struct.unpack_from("<HHH", cubin, SECTION_COUNT_AT)
    headers = [struct.unpack_from(SECTION, cubin, start + i * size) for i in range(number)]
    strings = headers[names][4]
    return b"".join(
        cubin[header[4] : header[4] + header[5]]
        for header in headers
        if cubin.startswith(b".text.", strings + header[0])
    )


def count(instructions: Sequence[str]) -> dict[str, int]:
    """How many there are without padding, and of each column of `MIX`."""
    found = collections.Counter(instructions)
    found.pop("NOP", None)
    if not found:
        raise RuntimeError("nvdisasm lists no instruction")
    columns = {
        column: sum(n for name, n in found.items() if pattern.match(name))
        for column, pattern in _MIX.items()
    }
    return {"total": sum(found.values()), **columns}


def parse(listing: str) -> Iterator[tuple[int, str]]:
    """Address and name of every instruction of a disassembly."""
    for address, name in INSTRUCTION.findall(listing):
        yield int(address, 16), name


def mixes(nvdisasm: Path, architecture: int, cubins: Sequence[bytes]) -> list[dict[str, int]]:
    """`count` of each kernel. They are disassembled together, since each start takes 0.3 s."""
    if not cubins:
        return []
    codes = [machine_code(cubin) for cubin in cubins]
    starts = [0]
    for code in codes:
        starts.append(starts[-1] + len(code))
    target = f"SM{architecture}{'a' if architecture >= SUFFIXED else ''}"
    with tempfile.NamedTemporaryFile(suffix=".bin") as file:
        file.write(b"".join(codes))
        file.flush()
        command = [nvdisasm, "--binary", target, file.name]
        done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"nvdisasm failed: {done.stderr.strip()}")
    names: list[list[str]] = [[] for _ in codes]
    for address, name in parse(done.stdout):
        names[bisect.bisect_right(starts, address) - 1].append(name)
    return [count(each) for each in names]
