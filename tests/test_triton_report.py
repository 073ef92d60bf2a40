"""Every kernel compiles without a GPU, and the report on that finds what it must find."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from erase_kernels import _backends
from tools import kernel_facts, sass, triton_report

ROOT = Path(__file__).resolve().parent.parent
HARMLESS = {
    "name": "a_kernel x",
    "kernel": "a_kernel",
    "luma": True,
    "warps": 4,
    "registers": 255,
    "stack": 0,
    "shared": 99 * 1024,
    "seconds": 1.0,
    "mix": dict.fromkeys(["total", *sass.MIX], 0),
}


def report(*arguments: str) -> tuple[int, list[str], str]:
    """Exit status, problems, output. The report compiles for real: it drops TRITON_INTERPRET."""
    command = [sys.executable, "-m", "tools.triton_report", *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    output = done.stdout + done.stderr
    return done.returncode, re.findall(r"^FAILED (.*)$", output, re.MULTILINE), output


def test_every_operator_compiles() -> None:
    """One configuration per kernel, for one architecture, at least one kernel per operator."""
    status, problems, output = report("--check-one")
    assert not problems, output
    assert status == 0, output
    compiled = [{"name": line} for line in output.splitlines() if re.search(r" \d\.\d$", line)]
    assert triton_report.uncovered(compiled) == []


def test_every_fault_is_found() -> None:
    status, problems, output = report("--module=tests.faulty_kernels", "--architecture=90")
    assert status == 1, output
    version = _backends.TRITON.version
    assert {problem.removeprefix(f"sm_90, triton {version}: ") for problem in problems} >= {
        "fused: 8 fused multiply-adds on the luma path",
        "oversize: 294912 bytes of shared memory; the limit is 227 KiB",
        "crashing: the compiler process ended with status 134: ",
    }
    text = "\n".join(problems)
    assert re.search(r"starved: spills: \d+ loads and stores of local memory", text)
    assert re.search(r"starved: a stack frame of \d+ bytes", text)
    assert re.search(r"misdeclared: ValueError: the signature differs .*BLOCK.*p_out", text)
    assert len(problems) == 6, text  # nothing about the harmless one
    assert "6 compilations" in output


def test_limits_are_limits() -> None:
    assert kernel_facts.faults(HARMLESS, 120) == []
    assert kernel_facts.faults({**HARMLESS, "shared": 99 * 1024 + 1}, 120) == [
        "101377 bytes of shared memory; the limit is 99 KiB"
    ]
    fused = {**HARMLESS, "mix": {**HARMLESS["mix"], "ffma": 1}}
    assert kernel_facts.faults(fused, 90) == ["1 fused multiply-adds on the luma path"]
    assert kernel_facts.faults({**fused, "luma": False}, 90) == []


def test_instructions_are_counted() -> None:
    lines = [
        "MOV R1, c[0x0][0x28] ;",
        "@!P0 LDG.E.128.CONSTANT R4, [R2.64] ;",
        "@P1 LDG.E.64 R4, [R2.64] ;",
        "LDG.E.64.CONSTANT R4, desc[UR6][R2.64] ;",
        "LDG.E R4, [R2.64] ;",
        "LDG.E.U8.STRONG.GPU R4, [R2.64] ;",
        "LDGSTS.E.BYPASS.128 [R3], [R2.64] ;",
        "LDGDEPBAR ;",
        "@!UPT STG.E.128 desc[UR4][R2.64], R4 ;",
        "HMMA.16816.F32.BF16 R4, R8, R2, R4 ;",
        "HGMMA.64x64x16.F32.BF16 R24, gdesc[UR8], R24 ;",
        "UTCHMMA gdesc[UR4], gdesc[UR6], tmem[UR5], tmem[UR8], idesc[UR9], UP0 ;",
        "MUFU.EX2 R4, R4 ;",
        "ATOMS.POPC.INC.32 RZ, [R2] ;",
        "REDG.E.ADD.S32.STRONG.GPU desc[UR4][R2.64], R5 ;",
        "BAR.SYNC.DEFER_BLOCKING 0x0 ;",
        "FFMA2 R4, R4, R5, R6 ;",
        "FMUL R4, R4, R5 ;",
        "FADD.FTZ R4, R4, R5 ;",
        "UPOPC UR4, UR5 ;",
        "VOTE.ANY R4, PT, P0 ;",
        "STL [R1+0x4], R3 ;",
        "LDL.LU R3, [R1+0x4] ;",
        "NOP ;",
    ]
    listing = "".join(f"        /*{16 * n:04x}*/    {line}\n" for n, line in enumerate(lines))
    once = ("ldg128", "ldg32", "ldg8", "async", "stg", "mma", "mufu", "bar", "ffma")
    expected = dict.fromkeys((*once, "fmul", "fadd", "popc", "vote"), 1)
    expected |= {"total": 23, "ldg64": 2, "ldg16": 0, "call": 0, "wgmma": 2, "atom": 2, "local": 2}
    found = list(sass.parse("\t.headerflags\n" + listing))
    assert [address for address, _ in found] == [16 * n for n in range(len(lines))]
    assert sass.count([name for _, name in found]) == expected
    with pytest.raises(RuntimeError, match="no instruction"):
        sass.count(["NOP"])


def test_an_operator_without_a_kernel_is_named() -> None:
    names = [f"{operator}_kernel large, fp32" for operator in _backends.TRITON_OPERATORS]
    assert triton_report.uncovered({"name": name} for name in names) == []
    assert triton_report.uncovered({"name": name} for name in names[1:]) == ["patch_entropy"]
    assert kernel_facts.operator_of("text_to_vision_scores_rows d64") == "text_to_vision_scores"
    assert kernel_facts.operator_of("compact_kv_paged users") == "compact_kv_paged"
    assert kernel_facts.operator_of("compact_kvx") == ""


def test_both_tritons_are_the_declared_ones() -> None:
    """The Makefile compiles with the oldest that the package accepts, and with the pinned one."""
    oldest = re.search(r"^TRITON_OLDEST := (\S+)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert oldest
    assert tuple(map(int, oldest[1].split(".")))[:2] == _backends.OLDEST_TRITON
    pinned = re.search(r"^triton==(\S+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    assert pinned
    assert pinned[1] == _backends.TRITON.version


def test_architectures_are_those_with_configurations() -> None:
    from erase_kernels.triton_kernels import _launch

    assert tuple(kernel_facts.SHARED_KIB) == _launch.ARCHITECTURES
