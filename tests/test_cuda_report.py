"""The report on the CUDA kernels finds what it must find, in real machine code and recorded text.

No test of this file builds the library; where there is no nvcc, the text alone is tested.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from erase_kernels._backends import TRITON_OPERATORS
from tools import cuda_report, kernel_facts, sass

ROOT = Path(__file__).resolve().parent.parent

# One kernel per fault; the array is indexed by what only the run knows.
FAULTY = r"""
namespace erase_kernels {
namespace {
struct Operands {
  const float* from;
  float* to;
};

__global__ void compact_rows_kernel(Operands x) { x.to[threadIdx.x] = x.from[threadIdx.x]; }

template <int kPart>
__global__ void patch_entropy_kernel(Operands x) {
  __shared__ float tile[64];
  tile[threadIdx.x] = x.from[threadIdx.x];
  __syncthreads();
  x.to[threadIdx.x] = __fmaf_rn(tile[63 - threadIdx.x], x.from[kPart], 1.0f);
}

__global__ void compact_kv_kernel(Operands x, int n) {
  float local[64];
  for (int i = 0; i < n; ++i) local[(i * n) & 63] = x.from[i];
  for (int i = 0; i < n; ++i) x.to[i] = local[(n - i) & 63];
}

__global__ void __launch_bounds__(1024, 2) segmented_topk_kernel(Operands x) {
  float held[80];
#pragma unroll
  for (int i = 0; i < 80; ++i) held[i] = x.from[threadIdx.x + 1024 * i];
  __syncthreads();
#pragma unroll
  for (int i = 0; i < 80; ++i) x.to[threadIdx.x * 80 + i] = held[i] * held[(i * 7 + 3) % 80];
}

__device__ __noinline__ float outside(float x) { return __fsqrt_rn(x) + 1.0f; }
__global__ void stray_kernel(Operands x) { x.to[threadIdx.x] = outside(x.from[threadIdx.x]); }
}  // namespace
void* kernels[] = {(void*)compact_rows_kernel,   (void*)patch_entropy_kernel<5>,
                   (void*)compact_kv_kernel,     (void*)segmented_topk_kernel,
                   (void*)stray_kernel};
}  // namespace erase_kernels
"""

USAGE = """
Fatbin elf code:
================
arch = sm_80
code version = [1,8]
host = linux
compile_size = 64bit

Resource usage:
 Common:
  GLOBAL:0
 Function _Z4kindIfLi4EEvPKT_i:
  REG:15 STACK:8 SHARED:256 LOCAL:0 CONSTANT[0]:372 TEXTURE:0 SURFACE:0 SAMPLER:0

Fatbin elf code:
================
arch = sm_90a
code version = [1,8]
host = linux
compile_size = 64bit

Resource usage:
 Common:
  GLOBAL:0
 Function _Z4kindIfLi4EEvPKT_i:
  REG:18 STACK:0 SHARED:1280 LOCAL:0 CONSTANT[0]:548 TEXTURE:0 SURFACE:0 SAMPLER:0
 Function _Z5otherv:
  REG:4 STACK:0 SHARED:0 LOCAL:0 CONSTANT[0]:548 TEXTURE:0 SURFACE:0 SAMPLER:0

Fatbin ptx code:
================
arch = sm_80
code version = [9,0]
host = linux
compile_size = 64bit
compressed
ptxasOptions =  --fmad false
"""

CODE = """
Fatbin elf code:
================
arch = sm_80
code version = [1,8]
host = linux
compile_size = 64bit

\tcode for sm_80
\t.target\tsm_80

\t\tFunction : _Z4kindIfLi4EEvPKT_i
\t.headerflags\t@"EF_CUDA_SM80 EF_CUDA_VIRTUAL_SM(EF_CUDA_SM80)"
        /*0000*/                   LDC R1, c[0x0][0x28] ;          /* 0x00000a00ff017b82 */
                                                                   /* 0x000fe20000000800 */
        /*0010*/               @P0 STL.64 [R1+0x8], R4 ;           /* 0x00000000000b7919 */
                                                                   /* 0x000fe20000000800 */
        /*0020*/                   NOP ;                           /* 0x0000000000007918 */
\t\t..........

Fatbin elf code:
================
arch = sm_90a
code version = [1,8]
host = linux
compile_size = 64bit

\tcode for sm_90a
\t.target\tsm_90a

\t\tFunction : _Z5otherv
\t.headerflags\t@"EF_CUDA_SM90 EF_CUDA_VIRTUAL_SM(EF_CUDA_SM90)"
        /*0000*/                   EXIT ;                          /* 0x000000000000794d */
\t\t..........

\t\tFunction : _Z4kindIfLi4EEvPKT_i
\t.headerflags\t@"EF_CUDA_SM90 EF_CUDA_VIRTUAL_SM(EF_CUDA_SM90)"
        /*0000*/                   FFMA R0, R2, R11, R13 ;         /* 0x0000000b02007223 */
        /*0010*/                   CALL.REL.NOINC 0x250 ;          /* 0x0000000000107944 */
\t\t..........
"""


def test_listings_are_read() -> None:
    usage = cuda_report.parse_usage(USAGE)
    kind = "_Z4kindIfLi4EEvPKT_i"
    assert usage == {
        (1, kind): {"architecture": 80, "registers": 15, "stack": 8, "shared": 256},
        (2, kind): {"architecture": 90, "registers": 18, "stack": 0, "shared": 256},
        (2, "_Z5otherv"): {"architecture": 90, "registers": 4, "stack": 0, "shared": 0},
    }
    code = cuda_report.parse_code(CODE)
    assert set(code) == set(usage)
    assert (code[1, kind]["total"], code[1, kind]["local"]) == (2, 1)
    assert (code[2, kind]["ffma"], code[2, kind]["call"]) == (1, 1)
    assert code[2, "_Z5otherv"]["total"] == 1


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("erase_kernels::compact_rows_kernel(erase_kernels::Table)", "compact_rows_kernel"),
        (
            "void erase_kernels::(anonymous namespace)::patch_entropy_kernel<unsigned char, 4, "
            "(erase_kernels::Kind)1>(unsigned char const*, float (*)(int))",
            "patch_entropy_kernel<unsigned char, 4, (Kind)1>",
        ),
        ("void erase_kernels::detail::f<erase_kernels::A::B<3> >(int)", "f<A::B<3> >"),
        ("_Z5otherv", "_Z5otherv"),
    ],
)
def test_names_are_short(name: str, expected: str) -> None:
    assert cuda_report.short(name) == expected


def kernel(name: str, **changes: object) -> dict[str, object]:
    mix = dict.fromkeys(["total", *sass.MIX], 0)
    facts = {"name": name, "luma": False, "registers": 9, "stack": 0, "shared": 0, "mix": mix}
    return {**facts, **changes}


def test_every_operator_needs_a_kernel_and_every_kernel_an_operator() -> None:
    whole = [kernel(f"{source}_kernel<4>") for source in set(TRITON_OPERATORS.values())]
    assert cuda_report.problems(whole, 90, operators=True) == []
    lacking = [k for k in whole if k["name"] != "compact_kv_kernel<4>"]
    assert cuda_report.problems(lacking, 90, operators=True) == [
        "sm_90: no kernel of compact_kv",
        "sm_90: no kernel of compact_kv_paged",
    ]
    lacking = [k for k in whole if k["name"] != "patch_entropy_kernel<4>"]
    assert cuda_report.problems(lacking, 90, operators=True) == [
        "sm_90: no kernel of patch_entropy"
    ]
    stray = [*whole, kernel("gather_kernel")]
    assert cuda_report.problems(stray, 90, operators=True) == [
        "sm_90: gather_kernel: the name begins with no operator's"
    ]
    assert cuda_report.problems([], 120, operators=False) == ["sm_120: no kernel at all"]


def test_tables_have_a_cell_per_heading() -> None:
    rows = cuda_report.table([kernel("a"), {"name": "b", "luma": True, "error": "lost"}])
    assert {len(row) for row in rows} == {len(rows[0])}
    assert rows[2][:2] == ["b (luma)", "failed"]
    text = cuda_report.markdown({"sm_90, nvcc 13.0, 2 kernels": rows})
    assert "## sm_90, nvcc 13.0, 2 kernels" in text
    assert "| a | 9 | 0 | 0 | 0 | 0 |" in text
    assert len(kernel_facts.text_table(rows)) == 3


def test_without_nvcc_the_report_says_how_to_get_it() -> None:
    command = [sys.executable, "-m", "tools.cuda_report"]
    environment = {**os.environ, "CUDACXX": "/no/such/nvcc"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 1
    assert "no nvcc was found" in done.stdout
    assert cuda_report.NVCC_HINT in done.stdout


def nvcc() -> str:
    """The compiler, where setup.py looks for it too; skips where there is none."""
    home = os.environ.get("CUDA_HOME", "/usr/local/cuda")
    places = [os.environ.get("CUDACXX", ""), f"{home}/bin/nvcc", "nvcc", "/usr/local/cuda/bin/nvcc"]
    found = next(filter(None, map(shutil.which, filter(None, places))), None)
    if found is None:
        reason = "no nvcc: what the report finds in compiled kernels is not tested"
        print(reason)
        pytest.skip(reason)
    return found


def test_every_fault_is_found(tmp_path: Path) -> None:
    source, binary, page = tmp_path / "faulty.cu", tmp_path / "faulty.o", tmp_path / "page.md"
    source.write_text(FAULTY)
    compile_it = [nvcc(), "-std=c++17", "-O3", "-arch=sm_90", "-c", "-o", binary, source]
    subprocess.run(compile_it, check=True)
    command = [sys.executable, "-m", "tools.cuda_report", "--binary", binary, "--markdown", page]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1, done.stdout + done.stderr
    found = [line for line in done.stdout.splitlines() if line.startswith("FAILED")]
    text = "\n".join(found)
    assert "FAILED sm_90: patch_entropy_kernel<5>: 1 fused multiply-adds on the luma path" in found
    assert "sm_90: compact_kv_kernel: a stack frame of 256 bytes" in text
    assert "sm_90: segmented_topk_kernel: spills: " in text
    assert "sm_90: segmented_topk_kernel: a stack frame of " in text
    assert "compact_rows_kernel" not in text  # the harmless one
    table = [[cell.strip() for cell in line.split("|")] for line in page.read_text().splitlines()]
    columns = next(row for row in table if "CALL" in row)
    facts = {row[1]: dict(zip(columns, row, strict=True)) for row in table if len(row) > 3}
    assert facts["patch_entropy_kernel<5> (luma)"]["static smem"] == "256"
    assert int(facts["stray_kernel"]["CALL"]) > 0
    assert facts["compact_rows_kernel"]["CALL"] == "0"


def test_an_object_without_kernels_is_an_error(tmp_path: Path) -> None:
    source, binary = tmp_path / "empty.cu", tmp_path / "empty.o"
    source.write_text("int nothing() { return 0; }\n")
    subprocess.run([nvcc(), "-arch=sm_90", "-c", "-o", binary, source], check=True)
    tables, found = cuda_report.report([binary], [90], operators=False)
    assert (tables, found) == ({}, ["no kernel at all", "sm_90: no kernel at all"])
