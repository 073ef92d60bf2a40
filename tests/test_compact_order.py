"""Machine code of the in-place compaction: a barrier on every way from a load to a store.

Threads of one program share the rows of a chunk. Without the barrier one thread may overwrite what
another has still to read, and neither the interpreter nor a race checker (which watches shared
memory) can see it. So the compiled code is read: whichever branches are taken, a barrier lies
between every load of rows and every store of rows behind it.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
ARCHITECTURES = (80, 90, 100, 120)
COMPILE = """
import json, subprocess, sys, tempfile
from pathlib import Path
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from erase_kernels.triton_kernels import compact_kv

found = {}
for architecture in json.loads(sys.argv[1]):
    for item in compact_kv.compilations(architecture):
        if not item.name.endswith("16 bytes, 2 tensors"):
            continue
        places = {name: (i,) for i, name in enumerate(item.signature)}
        constexprs = {places[name]: value for name, value in item.constexprs.items()}
        source = ASTSource(item.kernel, dict(item.signature), constexprs=constexprs)
        target = GPUTarget("cuda", architecture, 32)
        compiled = triton.compile(source, target=target, options=dict(item.options))
        disassembler = Path(triton.__file__).parent / "backends/nvidia/bin/nvdisasm"
        with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
            file.write(compiled.asm["cubin"])
            file.flush()
            command = [str(disassembler), "-c", file.name]
            code = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        found[f"{architecture} {item.name}"] = code
print(json.dumps(found))
"""
LABEL = re.compile(r"^(\.L_\w+):")
INSTRUCTION = re.compile(r"/\*[0-9a-f]{4,}\*/\s+(@!?U?P\w+\s+)?([A-Z][\w.]*)\s*([^;]*);")
LOAD, STORE, BARRIER = "LDG.E.128", "STG.E.128", "BAR.SYNC"  # rows move 16 bytes at a time


@pytest.fixture(scope="module")
def listings() -> dict[str, str]:
    """Compiled without the interpreter, which this process has chosen."""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    command = [sys.executable, "-W", "ignore", "-c", COMPILE, json.dumps(ARCHITECTURES)]
    done = subprocess.run(
        command, cwd=ROOT, env=environment, check=False, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)  # type: ignore[no-any-return]


def unguarded(listing: str) -> list[tuple[int, int]]:
    """Pairs (load, store) of instructions with a way from one to the other without a barrier."""
    code: list[tuple[bool, str, str]] = []  # predicated, operation, operands
    labels: dict[str, int] = {}
    for line in listing.splitlines():
        if match := LABEL.match(line.strip()):
            labels[match[1]] = len(code)
        elif match := INSTRUCTION.search(line):
            code.append((match[1] is not None, match[2], match[3]))
    loads = [i for i, (_, name, _) in enumerate(code) if name.startswith(LOAD)]
    stores = [i for i, (_, name, _) in enumerate(code) if name.startswith(STORE)]
    assert loads, "rows are not loaded 16 bytes at a time"
    assert stores, "rows are not stored 16 bytes at a time"
    pairs = []
    for load in loads:
        seen, waiting = set(), [load + 1]
        while waiting:
            i = waiting.pop()
            if i in seen or i >= len(code):
                continue
            seen.add(i)
            predicated, name, operands = code[i]
            if name.startswith(BARRIER):
                continue
            if i in stores:
                pairs.append((load, i))
            if name.startswith("BRA"):
                target = re.search(r"\.L_\w+", operands)
                assert target, f"a branch to nowhere: {operands}"
                waiting.append(labels[target[0]])
            assert not name.startswith(("BRX", "JMX", "CALL", "RET")), f"cannot follow {name}"
            sometimes = predicated or "," in operands  # BRA.U carries its predicate behind
            if sometimes or not name.startswith(("BRA", "EXIT")):
                waiting.append(i + 1)
    return pairs


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("operator", ["compact_kv", "compact_kv_paged"])
def test_a_barrier_parts_loads_from_stores(
    operator: str, architecture: int, listings: dict[str, str]
) -> None:
    name = f"{architecture} {operator} wide 16 bytes, 2 tensors"
    assert unguarded(listings[name]) == []


def test_the_check_sees_a_missing_barrier(listings: dict[str, str]) -> None:
    listing = listings["90 compact_kv wide 16 bytes, 2 tensors"]
    lines = listing.splitlines()
    last = max(i for i, line in enumerate(lines) if BARRIER in line)
    assert unguarded("\n".join(lines[:last] + lines[last + 1 :])) != []
