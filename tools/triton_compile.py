"""Compiles Triton kernels for one architecture, without a GPU, and says what came out.

A process of its own per architecture and triton (``tools.triton_report`` starts them): a pass that
crashes takes only this process along, and the other triton is found through PYTHONPATH. Events go
to a file, one JSON object per line, "start" before and "done" after every kernel, so that the
parent knows which one a crash belongs to.
"""

from __future__ import annotations

import argparse
import importlib
import json
import re
import subprocess
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

WARP = 32  # threads
ALIGNMENT = 16  # bytes a pointer is a multiple of, as the launcher finds at run time
DIVISIBLE = ":16"  # behind an integer type: the launcher finds it to be a multiple of 16
BIN = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
RESOURCES = re.compile(r"REG:(\d+) STACK:(\d+)")


def as_source(item: Any) -> ASTSource:
    """What triton compiles, from a `Compilation`: types by name, values and alignment by place."""
    names = item.kernel.arg_names
    if set(names) != set(item.signature):
        missing = sorted(set(names) ^ set(item.signature))
        raise ValueError(f"the signature differs from the kernel's arguments in {missing}")
    signature, attributes = {}, {}
    for place, name in enumerate(names):
        declared = item.signature[name]
        signature[name] = _plain(declared)
        parts = list(enumerate(declared)) if isinstance(declared, tuple) else [(None, declared)]
        for inner, kind in parts:
            pointer = kind.startswith("*") and name not in item.unaligned
            if pointer or kind.endswith(DIVISIBLE):
                key = (place,) if inner is None else (place, inner)
                attributes[key] = [["tt.divisibility", ALIGNMENT]]
    constants = {(names.index(name),): value for name, value in item.constexprs.items()}
    return ASTSource(item.kernel, signature, constexprs=constants, attrs=attributes)


def _plain(declared: Any) -> Any:
    if isinstance(declared, tuple):
        return tuple(_plain(kind) for kind in declared)
    return declared.removesuffix(DIVISIBLE)


def compile_one(item: Any, architecture: int, cubin: Path) -> dict[str, Any]:
    """Compiles into the file ``cubin``; registers, stack and shared memory."""
    # The default of enable_fp_fusion is announced to change; every launch relies on this one.
    options = {"enable_fp_fusion": True, **item.options}
    source = as_source(item)
    start = time.perf_counter()
    compiled = triton.compile(source, target=GPUTarget("cuda", architecture, WARP), options=options)
    seconds = time.perf_counter() - start
    cubin.write_bytes(compiled.asm["cubin"])
    command = [BIN / "cuobjdump", "-res-usage", cubin]
    usage = RESOURCES.findall(subprocess.run(command, capture_output=True, text=True).stdout)
    if not usage:
        raise RuntimeError("cuobjdump reports no registers")
    return {
        "seconds": seconds,
        "registers": max(int(registers) for registers, _ in usage),
        "stack": max(int(stack) for _, stack in usage),
        "shared": compiled.metadata.shared,
        "warps": compiled.metadata.num_warps,
        "cubin": str(cubin),
    }


def collect(modules: Iterable[str], architecture: int, one: bool) -> list[tuple[str, Any]]:
    """(module, compilation) pairs, each different one once.

    Args:
        modules: names of modules that define ``compilations``.
        architecture: compute capability, 90 for 9.0.
        one: only the first of every kernel and operator, which starts a compilation's name.

    Returns:
        Where a module fails to list its own, the error stands in their place.
    """
    pairs: list[tuple[str, Any]] = []
    seen = set()
    for name in modules:
        try:
            items = importlib.import_module(name).compilations(architecture)
        except Exception as error:
            pairs.append((name, error))
            continue
        for item in items:
            kernel = item.kernel.__name__
            key = (name, kernel, item.name.split()[0] if one else _fingerprint(item))
            if key not in seen:
                seen.add(key)
                pairs.append((name, item))
    return pairs


def _fingerprint(item: Any) -> str:
    def text(mapping: Mapping[str, Any]) -> str:
        return repr(sorted((k, getattr(v, "__name__", v)) for k, v in mapping.items()))

    parts = (item.signature, item.constexprs, item.options)
    return "|".join([*map(text, parts), repr(sorted(item.unaligned)), str(item.luma)])


def work(arguments: argparse.Namespace, emit: Callable[..., None]) -> None:
    emit("triton", version=triton.__version__, nvdisasm=str(BIN / "nvdisasm"))
    pairs = collect(arguments.module, arguments.architecture, arguments.one)
    emit("planned", count=len(pairs))
    for number, (module, item) in enumerate(pairs):
        if number < arguments.skip:
            continue
        broken = isinstance(item, Exception)
        facts = {
            "number": number,
            "module": module,
            "name": module if broken else item.name,
            "luma": not broken and item.luma,
        }
        emit("start", **facts)
        try:
            if broken:
                raise item
            cubin = arguments.events.parent / f"{number}.cubin"
            result = compile_one(item, arguments.architecture, cubin)
        except Exception as error:  # whatever a compiler pass throws is the kernel's result
            result = {"error": f"{type(error).__name__}: {error}"}
        emit("done", **facts, **result)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--module", action="append", required=True)
    parser.add_argument("--architecture", type=int, required=True)
    parser.add_argument("--one", action="store_true", help="only one compilation per kernel")
    parser.add_argument("--skip", type=int, default=0, help="compilations done by a run before")
    parser.add_argument("--events", type=Path, required=True)
    arguments = parser.parse_args()
    with arguments.events.open("a") as file:

        def emit(event: str, **facts: Any) -> None:
            file.write(json.dumps({"event": event, **facts}) + "\n")
            file.flush()

        work(arguments, emit)


if __name__ == "__main__":
    main()
