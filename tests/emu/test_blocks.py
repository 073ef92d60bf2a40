"""Order, shared memory, barriers, asynchronous copies and mistakes in the emulator."""

from __future__ import annotations

import re
import subprocess
import sys
import threading

import pytest
import torch
from torch import Tensor

from tests.emu import ORDERS, build
from tests.emu.probe import MISTAKES, ROOT, call, library, order

POISON = -0x32323233  # four bytes 0xCD


def trace(name: str, seed: int = 0, shape: tuple[int, ...] = (2, 3, 2, 16, 4, 2)) -> Tensor:
    """When each thread of each block began, and when it went on: [blocks, threads, 2]."""
    gx, gy, gz, bx, by, bz = shape
    result = torch.zeros(gx * gy * gz, bx * by * bz, 2, dtype=torch.int32)
    with order(name, seed):
        return call("trace", None, result, *shape)


def test_forward_and_reverse() -> None:
    for name in ("forward", "reverse"):
        found = trace(name)
        blocks = found[:, :, 0].min(1).values.tolist()
        assert blocks == sorted(blocks, reverse=name == "reverse")
        for block in found:  # the four warps of a block
            starts = block.view(4, 32, 2)[:, :, 0]
            flat = starts.flatten().tolist()
            assert flat == sorted(flat, reverse=name == "reverse")
            ends = block.view(4, 32, 2)[:, :, 1].max(1).values
            first, second = (0, 1) if name == "forward" else (3, 2)
            assert int(ends[first]) < int(starts[second].min())  # a warp runs as far as it can


def test_shuffled() -> None:
    """The seed decides, and nothing that ran before; every seed has an order of its own."""
    traces = {seed: trace("shuffled", seed) for seed in range(6)}
    for seed, found in traces.items():
        trace("shuffled", seed + 1)
        assert torch.equal(trace("shuffled", seed), found)
        assert sorted(found.flatten().tolist()) == list(range(found.numel()))
    assert len({tuple(found.flatten().tolist()) for found in traces.values()}) == len(traces)
    for name in ("forward", "reverse"):
        assert all(not torch.equal(found, trace(name)) for found in traces.values())
    firsts = {int(found[:, :, 0].argmin()) for found in traces.values()}
    assert len(firsts) > 2  # blocks and threads


def test_large_blocks() -> None:
    for name in ORDERS:
        found = trace(name, 0, (2, 1, 1, 32, 4, 8))
        assert sorted(found.flatten().tolist()) == list(range(4096))


@pytest.mark.parametrize("name", ORDERS)
def test_shared_memory_is_poisoned_in_every_block(name: str) -> None:
    with order(name):
        found = call("poison", torch.zeros(1, dtype=torch.int32), torch.zeros(192).int())
    assert found.tolist() == [POISON] * 192


def test_a_missing_barrier_shows() -> None:
    values = torch.arange(1, 1001, dtype=torch.int32)
    right = {}
    for barrier in (0, 1):
        for name, seed in [("forward", 0), ("reverse", 0), *(("shuffled", s) for s in range(5))]:
            with order(name, seed):
                found = call("sum", values, torch.zeros(1, dtype=torch.int32), barrier, 1000)
            right.setdefault(barrier, []).append(int(found) == 500500)
    assert all(right[1])
    assert not all(right[0][:3])
    assert not all(right[0][2:])


def test_warps_run_far_ahead_of_each_other() -> None:
    """A race that warps in lockstep would hide: the reader has three operations to go."""
    found = []
    for name, seed in [("forward", 0), ("reverse", 0), *(("shuffled", s) for s in range(12))]:
        with order(name, seed):
            found.append(int(call("behind", None, torch.zeros(1, dtype=torch.int32))))
    assert found[0] == 2
    assert found[1] == POISON
    assert {2, POISON} <= set(found[2:])


@pytest.mark.parametrize("name", ORDERS)
@pytest.mark.parametrize("threads", [32, 96, 1024])
def test_votes_of_a_block(name: str, threads: int) -> None:
    with order(name):
        for share in (0.0, 0.01, 0.5, 1.0):
            votes = torch.where(torch.rand(threads) < share, 6, 0).to(torch.int32)
            found = call("block_votes", votes, torch.zeros(threads, 3).int(), threads)
            yes = int((votes != 0).sum())
            assert (found == torch.tensor([yes, yes > 0, yes == threads])).all()


def test_copies_land_when_waited_for() -> None:
    given = torch.arange(10, 18, dtype=torch.int32)
    found = call("copies", given, torch.zeros(5, 12, dtype=torch.int32)).tolist()
    old, gone, zero = [1] * 4, [POISON] * 4, [0] * 4
    first, second = given[:4].tolist(), [14, 15, 16, 1]
    spoiled = [POISON] * 3 + [1]
    assert found[0] == gone + old + old  # spoiled as soon as the copy starts
    assert found[1] == gone + spoiled + old
    assert found[2] == first + spoiled + gone  # one group may still be under way
    assert found[3] == first + second + gone  # its copy belongs to no group yet
    assert found[4] == first + second + zero


def test_every_thread_waits_for_its_own_copies() -> None:
    given = torch.arange(8, dtype=torch.int32)
    for waits, second in ((1, given[4:].tolist()), (0, [POISON] * 4)):
        for name in ORDERS:
            with order(name):
                found = call("halves", given, torch.zeros_like(given), waits).tolist()
            assert found == given[:4].tolist() + second


MESSAGES = {
    "barrier": r"probe: threads wait for ever: \[0, 17\) at __syncthreads mistakes.cpp:\d+; "
    r"\[17, 32\) at __syncwarp mistakes.cpp:\d+; \[32, 64\) returned;",
    "two barriers": r"\[0, 32\) at __syncthreads mistakes.cpp:\d+; \[32, 64\) at __syncthreads",
    "missing lane": r"\[0, 31\) at __shfl_sync mistakes.cpp:\d+; \[31, 32\) returned;",
    "foreign mask": "a lane calls a warp operation whose mask lacks it",
    "inactive source": "a shuffle reads a lane that is not in its mask",
    "two operations": "lanes of one mask are at different warp operations",
    "width": "a shuffle's width must be a power of two",
    "far": "a shuffle by a warp or more",
    "misaligned copy": "an asynchronous copy of misaligned memory",
    "misaligned source": "an asynchronous copy of misaligned memory",
    "misaligned row": "mistakes.cpp:.* a misaligned matrix row",
    "too much shared": "more shared memory than every device has",
    "too much dynamic": "more shared memory than every device has",
    "grid": "a grid or block that CUDA refuses",
    "block": "a grid or block that CUDA refuses",
    "behind dynamic": "something was written behind dynamic shared memory",
}


@pytest.mark.parametrize("name", ORDERS)
@pytest.mark.parametrize("mistake", MESSAGES)
def test_mistakes(mistake: str, name: str) -> None:
    """Each is named, also when another one came before, and the next launch is as good as ever."""
    given, result = torch.zeros(64, dtype=torch.int32), torch.zeros(1024, dtype=torch.int32)
    with order(name):
        for _ in range(2):
            with pytest.raises(RuntimeError, match=MESSAGES[mistake]):
                call("mistake", given, result, MISTAKES.index(mistake), 0)
            assert call("nothing", None, torch.zeros_like(result)).sum() == 1024


def test_returned_threads_do_not_hold_up_a_barrier() -> None:
    result = torch.zeros(64, dtype=torch.int32)
    call("mistake", torch.zeros(64).int(), result, MISTAKES.index("none"), 0)
    assert result.tolist() == [1] * 32 + [0] * 32


def test_launches_are_counted_and_threads_of_the_host_take_turns() -> None:
    before = library().erase_emulator_launches()
    results = [torch.zeros(1, dtype=torch.int32) for _ in range(8)]
    values = torch.arange(1, 1001, dtype=torch.int32)

    def several(result: Tensor) -> None:
        for _ in range(50):
            call("sum", values, result, 1, 1000)

    threads = [threading.Thread(target=several, args=(result,)) for result in results]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [int(result) for result in results] == [500500] * 8
    assert library().erase_emulator_launches() - before == 8 * 50


def test_an_unknown_order_is_refused() -> None:
    assert library().erase_emulator_order(b"sideways", 0) == 1


def test_a_forked_process_can_go_on() -> None:
    script = (
        "import os, torch\n"
        "from tests.emu.probe import call\n"
        "values = torch.arange(1, 1001, dtype=torch.int32)\n"
        "def total(): return int(call('sum', values, torch.zeros(1).int(), 1, 1000))\n"
        "assert total() == 500500\n"
        "child = os.fork()\n"
        "if child == 0: os._exit(0 if total() == 500500 else 1)\n"
        "assert os.waitpid(child, 0)[1] == 0 and total() == 500500\n"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_nothing_is_exported_but_what_is_called() -> None:
    """Two such libraries in one process must not share variables."""
    listing = ["nm", "--dynamic", "--defined-only", "--format=posix"]
    for path in (build.probes(), build.library()):
        done = subprocess.run([*listing, str(path)], capture_output=True, text=True, check=True)
        for line in done.stdout.splitlines():
            name, kind = line.split()[:2]
            if name.startswith(("erase_", "probe_")):
                continue
            assert not re.search("emulator|erase_kernels", name), line
            assert kind != "u", line  # GNU's unique symbols, which a process has once
