"""The steps of `tools.gpu_check`."""

from __future__ import annotations

import argparse
import importlib.util
import os
import sys

from tools.gpu_steps import Step
from tools.native_library import ROOT

LOGS = ROOT / "build" / "gpu-check"
MEASURED = LOGS / "bench"  # what the benchmarks write
SPARE_CORES = 2  # not used by test workers
MOST_WORKERS = 14  # each holds a CUDA context
STUCK_S = 90  # after which a test's stack is printed

SANITIZERS = ("memcheck", "racecheck", "initcheck")
TESTS = ("operators", "stress", "integration")
NAMES = ("facts", "native", *SANITIZERS, *TESTS, "flash", "first-calls", "benchmarks")
QUICK = ("facts", *TESTS, "benchmarks")
NEED_NATIVE = (*SANITIZERS, "first-calls")
STRESS = "tests/device/test_compact_stress.py"

TEST_ENVIRONMENT = {
    "ERASE_KERNELS_TEST_DEVICE": "cuda",
    "TRITON_INTERPRET": "0",
    "HF_HUB_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
}


def plan(arguments: argparse.Namespace) -> list[Step]:
    """The steps, in order. What "{architecture}" and "{backends}" are, the run finds out."""
    steps = [
        Step("facts", "machine and versions", (sys.executable, "-m", "tools.gpu_facts"), 60),
        build(),
        *map(sanitizer, SANITIZERS),
        *test_steps(arguments.quick),
        flash(),
        first_calls(),
        benchmarks(arguments),
    ]
    wanted = arguments.only or (QUICK if arguments.quick else NAMES)
    return [step for step in steps if step.name in ("facts", *wanted)]


def build() -> Step:
    command = (sys.executable, "setup.py", "--quiet", "build_ext", "--inplace")
    environment = {
        "ERASE_KERNELS_NATIVE": "1",
        "ERASE_KERNELS_CUDA": "1",
        "ERASE_KERNELS_CUDA_ARCHITECTURES": "{architecture}-real",
        "MAX_JOBS": str(os.cpu_count() or 1),
    }
    return Step("native", "native library for this GPU", command, 180, environment)


def sanitizer(name: str) -> Step:
    command = (sys.executable, "-m", "tools.sanitize", name)
    return Step(name, f"native kernels under {name}", command, 400, beside=True)


def test_steps(quick: bool) -> list[Step]:
    """Operators and stress, which must find every backend there should be; integration."""
    pytest = [sys.executable, "-m", "pytest", "-v", "--tb=short", "--durations=10"]
    pytest += ["-p", "no:cacheprovider", "-o", f"faulthandler_timeout={STUCK_S}"]
    if importlib.util.find_spec("xdist"):
        workers = max(min((os.cpu_count() or 1) - SPARE_CORES, MOST_WORKERS), 1)
        pytest += ["-n", str(workers)]
    if quick:
        pytest += ["--maxfail=5"]
    every = {**TEST_ENVIRONMENT, "ERASE_KERNELS_TEST_BACKENDS": "{backends}"}
    operators = (*pytest, f"--ignore={STRESS}", "tests/device")
    stress, integration = (*pytest, STRESS), (*pytest, "tests/hf")
    return [
        Step("operators", "operator tests", operators, 500, every, tests=True),
        Step("stress", "compaction in place, over and over", stress, 120, every, tests=True),
        Step("integration", "integration tests", integration, 240, TEST_ENVIRONMENT, tests=True),
    ]


def flash() -> Step:
    command = (sys.executable, "-m", "tools.flash_attention")
    what = "integration tests with flash-attn"
    return Step("flash", what, command, 120, TEST_ENVIRONMENT, tests=True)


def first_calls() -> Step:
    command = (sys.executable, "-m", "tools.first_call")
    what = "first call of every operator"
    return Step("first-calls", what, command, 180, quiet=True, reserve_s=60)


def benchmarks(arguments: argparse.Namespace) -> Step:
    command = [sys.executable, "-m", "bench", "--device", "cuda", "--budget", "{seconds}"]
    command += ["--out", str(MEASURED.relative_to(ROOT))]
    if arguments.quick:
        command += ["--quick"]
    if arguments.revision:
        command += ["--revision", arguments.revision]
    return Step("benchmarks", "benchmarks", tuple(command), 300, quiet=True, reserve_s=120)
