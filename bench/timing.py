"""How long and how much memory calls take, on a GPU or (to try the code) on the host.

On a GPU the calls of one measurement are captured into a CUDA graph, each on the next of several
copies of its operands, and replays of the graph are timed with events. Before every replay a read
of several times the L2 cache empties it, untimed, so that each call finds its operands cold, also
where the copies together are smaller than the cache. A call that makes the host wait cannot be
captured and is timed as it is; the timing says so.
"""

from __future__ import annotations

import dataclasses
import math
import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Protocol

import torch

GRAPH, CALLS = "graph", "calls"  # how a timing was taken
ROUND_S = 1.5e-3  # calls of one round together: far above a graph's launch and the events' step
MOST_CALLS = 128
HOST_BOUND_S = 1e-4  # a shorter call may have waited for the host alone: it gets all MOST_CALLS
LEAST_ROUNDS, MOST_ROUNDS = 5, 60
WARM_CALLS = 2
EVICTION = 4  # times the L2 cache that is read between rounds

Call = Callable[[], Any]


@dataclasses.dataclass(frozen=True)
class DeviceTiming:
    """Seconds per call.

    Attributes:
        median: of the rounds.
        q1: lower quartile.
        q3: upper quartile.
        rounds: how often the calls were timed together.
        calls: how many calls one round is.
        how: "graph", or "calls" where the host had to take part.
    """

    median: float
    q1: float
    q3: float
    rounds: int
    calls: int
    how: str


class Timer(Protocol):
    """Where calls run and how they are timed."""

    cache_bytes: int

    def finish(self) -> None:
        """Waits for everything that was started."""

    def evict(self) -> None:
        """Empties the caches."""

    def waits(self, call: Call) -> str:
        """Why ``call`` makes the host wait for the device; empty if it does not."""

    def record(self, calls: Sequence[Call]) -> Call:
        """A function that repeats ``calls`` with the least help of the host."""

    def seconds(self, play: Call, rounds: int) -> list[float]:
        """Time of each of several runs of ``play``, with cold caches."""

    def peak_extra(self, call: Call) -> int:
        """Bytes of memory that ``call`` takes at its peak, its result included."""


@dataclasses.dataclass(frozen=True)
class Round:
    """Calls that are timed together: ``play`` makes all ``calls`` of them."""

    play: Call
    calls: int
    how: str


def prepare_round(
    timer: Timer, function: Callable[[Any], Any], copies: Sequence[Any], capture: bool = True
) -> Round:
    """Warms ``function`` up and records as many calls of it as make a round.

    Args:
        timer: records them.
        function: of one argument.
        copies: its argument, as many times as the cache asks for; used in turn.
        capture: False where a graph would keep too much memory.
    """
    for copy in copies[:WARM_CALLS]:
        function(copy)
    timer.finish()
    single = partial(function, copies[-1])
    once = max(min(timer.seconds(single, 2)), 1e-7)
    count = MOST_CALLS if once < HOST_BOUND_S else min(math.ceil(ROUND_S / once), MOST_CALLS)
    calls = [partial(function, copies[i % len(copies)]) for i in range(count)]
    graph = capture and not timer.waits(single)
    play = timer.record(calls) if graph else partial(_run, calls)
    return Round(play, count, GRAPH if graph else CALLS)


def measure(
    timer: Timer,
    function: Callable[[Any], Any],
    copies: Sequence[Any],
    budget: float,
    capture: bool = True,
) -> DeviceTiming:
    """Times ``function`` in rounds that take about ``budget`` seconds; see `prepare_round`."""
    prepared = prepare_round(timer, function, copies, capture)
    round_s = max(min(timer.seconds(prepared.play, 2)), 1e-6)
    rounds = min(max(int(budget / round_s), LEAST_ROUNDS), MOST_ROUNDS)
    each = [total / prepared.calls for total in timer.seconds(prepared.play, rounds)]
    q1, median, q3 = statistics.quantiles(each, n=4, method="inclusive")
    return DeviceTiming(median, q1, q3, rounds, prepared.calls, prepared.how)


def _run(calls: Sequence[Call]) -> None:
    for call in calls:
        call()


class HostTimer:
    """Calls timed by the host's clock, in a process that has no GPU."""

    cache_bytes = 1 << 20

    def finish(self) -> None:
        pass

    def evict(self) -> None:
        pass

    def waits(self, call: Call) -> str:
        call()
        return ""

    def record(self, calls: Sequence[Call]) -> Call:
        return partial(_run, calls)

    def seconds(self, play: Call, rounds: int) -> list[float]:
        found = []
        for _ in range(rounds):
            start = time.perf_counter()
            play()
            found.append(time.perf_counter() - start)
        return found

    def peak_extra(self, call: Call) -> int:
        from bench.memory import peak_extra

        return peak_extra(call)


class CudaTimer:
    """CUDA graphs and events on one device."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.cache_bytes = int(torch.cuda.get_device_properties(device).L2_cache_size)
        elements = EVICTION * self.cache_bytes // 4
        self._evictor = torch.ones(elements, dtype=torch.float32, device=device)

    def finish(self) -> None:
        torch.cuda.synchronize(self.device)

    def evict(self) -> None:
        self._evictor.sum()  # a write would leave lines that the timed calls must flush

    def waits(self, call: Call) -> str:
        self.finish()
        torch.cuda.set_sync_debug_mode("error")
        try:
            call()
        except RuntimeError as error:
            if "synchroniz" not in str(error):
                raise
            return str(error).splitlines()[0]
        finally:
            torch.cuda.set_sync_debug_mode("default")
            self.finish()
        return ""

    def record(self, calls: Sequence[Call]) -> Call:
        stream = torch.cuda.Stream(self.device)
        stream.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(stream):
            for call in calls[:WARM_CALLS]:
                call()
        torch.cuda.current_stream(self.device).wait_stream(stream)
        self.finish()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=stream):
            for call in calls:
                call()
        return graph.replay

    def seconds(self, play: Call, rounds: int) -> list[float]:
        pairs = []
        for _ in range(rounds):
            self.evict()
            start = torch.cuda.Event(enable_timing=True)
            end = torch.cuda.Event(enable_timing=True)
            start.record()
            play()
            end.record()
            pairs.append((start, end))
        self.finish()
        return [start.elapsed_time(end) * 1e-3 for start, end in pairs]

    def peak_extra(self, call: Call) -> int:
        call()
        self.finish()
        torch.cuda.reset_peak_memory_stats(self.device)
        before = torch.cuda.memory_allocated(self.device)
        result = call()
        self.finish()
        peak = torch.cuda.max_memory_allocated(self.device)
        del result
        return int(peak - before)


def count_launches(call: Call) -> int | None:
    """Kernels and copies that ``call`` puts on a GPU; None where no profiler works.

    To be asked after everything was timed: a profiler that once ran slows what follows.
    """
    from torch.profiler import ProfilerActivity, profile

    call()
    torch.cuda.synchronize()
    try:
        with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as seen:
            call()
            torch.cuda.synchronize()
        events = list(seen.events())
    except (AssertionError, RuntimeError):
        return None
    on_device = [e for e in events if e.device_type == torch.autograd.DeviceType.CUDA]
    return sum("Sync" not in event.name for event in on_device) or None


def ceilings(
    timer: Timer, device: torch.device, copy_bytes: int, width: int
) -> tuple[float, float]:
    """Bytes per second (read plus written) of a copy, operations per second of a bf16 product."""
    source = torch.randint(0, 256, (copy_bytes,), dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    left, right = (torch.randn(width, width, device=device).to(torch.bfloat16) for _ in range(2))
    product = torch.empty_like(left)

    def copy() -> None:
        target.copy_(source)

    def multiply() -> None:
        torch.matmul(left, right, out=product)

    rates = []
    for play, work in ((copy, 2 * copy_bytes), (multiply, 2 * width**3)):
        timer.seconds(play, 5)  # clocks rise
        rates.append(work / statistics.median(timer.seconds(play, 15)))
    return rates[0], rates[1]
