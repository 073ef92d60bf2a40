"""What a released library may link, use and export: readelf's tables, and what is wrong in them."""

from __future__ import annotations

import dataclasses
import re
import subprocess
from pathlib import Path

# libtorch.so brings torch's CUDA half into the library's lookup scope, where torch has one.
NEEDED = {"libtorch.so", "libtorch_cpu.so"}
ALLOWED = NEEDED | {
    "ld-linux-x86-64.so.2",
    "libc.so.6",
    "libdl.so.2",
    "libgcc_s.so.1",
    "libm.so.6",
    "libpthread.so.0",
    "librt.so.1",
    "libstdc++.so.6",
}
SYSTEM_VERSION = re.compile(r"^(GLIBC|GLIBCXX|CXXABI|GCC)_\d")
COMPILER_HOOKS = {"_ITM_deregisterTMCloneTable", "_ITM_registerTMCloneTable", "__gmon_start__"}
STABLE_INTERFACE = re.compile(r"^(aoti_)?torch_[a-z0-9_]+$")  # torch's C functions; no C++ of it
# Functions of libtorch_cuda.so: without CUDA they are missing, and the library must load all the
# same. Named here as well as found: a library that does not ask for the stream is wrong.
STREAM = "aoti_torch_get_current_cuda_stream"
CUDA_HALF = re.compile(r"^(aoti_torch_get_current_cuda|torch_c10_cuda_|aoti_torch_.*cuda_guard)")
# A C name that is not ours would take the place of another library's function of that name.
OWN_NAME = re.compile(r"^(erase_kernels_\w+|PyInit__C|_Z\w+|__bss_start|_edata|_end)$")


@dataclasses.dataclass(frozen=True)
class Symbol:
    """One row of the table of dynamic symbols."""

    name: str
    version: str  # as "GLIBC_2.14"; empty without
    defined: bool
    weak: bool


@dataclasses.dataclass(frozen=True)
class Library:
    """The tables of a shared library that decide where it loads."""

    needed: tuple[str, ...]
    run_path: str
    symbols: tuple[Symbol, ...]
    slots: dict[str, int]  # weak undefined symbol -> offset of a pointer the loader fills in

    @property
    def weak(self) -> set[str]:
        """Weak functions of torch's CUDA half."""
        return {s.name for s in self.symbols if s.weak and not s.defined and is_cuda(s.name)}


def is_cuda(name: str) -> bool:
    """Whether a symbol belongs to torch's CUDA half."""
    return bool(CUDA_HALF.match(name))


def readelf(flag: str, path: Path) -> str:
    """readelf's output in one line per entry."""
    command = ["readelf", "--wide", flag, str(path)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def read_library(path: Path) -> Library:
    """Reads the tables of a library."""
    dynamic = readelf("--dynamic", path)
    paths = re.findall(r"\((?:RPATH|RUNPATH)\).*\[(.*)\]", dynamic)
    symbols = tuple(parse_symbols(readelf("--dyn-syms", path)))
    missing = {s.name for s in symbols if s.weak and not s.defined}
    return Library(
        needed=tuple(re.findall(r"\(NEEDED\).*\[(.*)\]", dynamic)),
        run_path=":".join(paths),
        symbols=symbols,
        slots={
            name: offset
            for name, offset in parse_slots(readelf("--relocs", path)).items()
            if name in missing
        },
    )


def parse_symbols(table: str) -> list[Symbol]:
    """Rows of ``readelf --dyn-syms``: number, value, size, type, binding, visibility, section."""
    found = []
    for line in table.splitlines():
        fields = line.split()
        if len(fields) < 8 or not fields[0].rstrip(":").isdigit():
            continue
        name, _, version = fields[7].partition("@")
        defined = fields[6] != "UND"
        found.append(Symbol(name, version.lstrip("@"), defined, fields[4] == "WEAK"))
    return found


def parse_slots(table: str) -> dict[str, int]:
    """Symbol -> offset in the loaded library, of ``readelf --relocs``."""
    kinds = r"R_X86_64_(?:GLOB_DAT|JUMP_SLOT|64)"
    rows = re.findall(rf"^([0-9a-f]+)\s+[0-9a-f]+\s+{kinds}\s+[0-9a-f]+\s+(\w+)", table, re.M)
    return {name: int(offset, 16) for offset, name in rows}


def faults(library: Library) -> list[str]:
    """What keeps a library from a release; empty if nothing does."""
    needed = set(library.needed)
    found = [f"does not name {name} as NEEDED" for name in sorted(NEEDED - needed)]
    found += [f"needs {name}" for name in sorted(needed - ALLOWED)]
    if library.run_path:
        found.append(f"carries the search path {library.run_path}")
    for symbol in library.symbols:
        if symbol.defined:
            if not OWN_NAME.match(symbol.name):
                found.append(f"exports {symbol.name}")
        elif is_cuda(symbol.name):
            if not symbol.weak:
                found.append(f"{symbol.name} is not weak: no import where torch has no CUDA")
        elif not is_allowed_import(symbol):
            found.append(f"uses {symbol.name}, which is not of torch's stable interface")
    if STREAM not in library.weak:
        found.append(f"does not ask torch for the current stream ({STREAM}): no CUDA kernels?")
    return found


def is_allowed_import(symbol: Symbol) -> bool:
    """Whether every supported system and torch has the symbol."""
    if SYSTEM_VERSION.match(symbol.version) or symbol.name in COMPILER_HOOKS:
        return True
    return bool(STABLE_INTERFACE.match(symbol.name)) and not symbol.weak


def abi_faults(path: Path, python: str, platform: str) -> list[str]:
    """Functions newer than a version of Python's stable interface, or than a manylinux platform."""
    import kernel_abi_check  # of the development environment; not needed to read this module

    binary = kernel_abi_check.ObjectFile(str(path))
    found = [f"Python {python}: {item}" for item in binary.check_python_abi(python)]
    return found + [f"{platform}: {item}" for item in binary.check_manylinux(platform)]
