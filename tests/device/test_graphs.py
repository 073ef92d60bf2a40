"""What only a GPU can show: graphs, streams, devices, and that the host never waits.

Without a GPU the operands of these tests are tested themselves.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

import erase_kernels as ek
from erase_kernels import _backends
from erase_kernels.testing import record_ops
from tests.device.subjects import SUBJECTS, VARIANTS, Subject
from tests.device.support import BACKENDS, DEVICE, ON_GPU
from tests.selection import same_bits

each_subject = pytest.mark.parametrize("name", SUBJECTS)
each_backend = pytest.mark.parametrize("backend", BACKENDS)


def same(one: list[Tensor], other: list[Tensor]) -> bool:
    return len(one) == len(other) and all(map(same_bits, one, other))


def eager(subject: Subject, variant: int, backend: str) -> list[Tensor]:
    """A plain call on fresh operands; proves which private operator ran."""
    subject.fill(variant)
    with record_ops() as names:
        result = subject.call(backend)
    assert names == [f"erase_kernels::{subject.ran}_{backend}"]
    return subject.outcome(result)


if ON_GPU:
    SLEEP_CYCLES = 400_000_000  # about 0.2 s, far longer than a call takes the host

    @contextlib.contextmanager
    def no_waiting() -> Iterator[None]:
        """torch raises where it would make the host wait."""
        torch.cuda.set_sync_debug_mode("error")
        try:
            yield
        finally:
            torch.cuda.set_sync_debug_mode("default")

    @each_backend
    @each_subject
    def test_a_graph_replays_on_other_values(name: str, backend: str) -> None:
        subject = SUBJECTS[name](DEVICE)
        expected = [eager(subject, variant, backend) for variant in range(VARIANTS)]
        graph = torch.cuda.CUDAGraph()
        torch.cuda.synchronize()
        with torch.cuda.graph(graph):
            result = subject.call(backend)
        for variant in (*range(VARIANTS), 0):
            subject.fill(variant)
            graph.replay()
            torch.cuda.synchronize()
            assert same(subject.outcome(result), expected[variant]), variant
        ek.check_status(DEVICE)

    @each_backend
    @each_subject
    def test_the_host_does_not_wait(name: str, backend: str) -> None:
        subject = SUBJECTS[name](DEVICE)
        expected = [eager(subject, variant, backend) for variant in range(VARIANTS)]
        with no_waiting():
            subject.fill(1)
            result = subject.call(backend)
        assert same(subject.outcome(result), expected[1])

    @each_backend
    @each_subject
    def test_work_is_ordered_on_the_current_stream(name: str, backend: str) -> None:
        """Behind a sleeping stream the host runs ahead, and the operator sees what comes last."""
        subject = SUBJECTS[name](DEVICE)
        expected = [eager(subject, variant, backend) for variant in range(VARIANTS)]
        subject.fill(0)
        torch.cuda.synchronize()
        stream, done = torch.cuda.Stream(DEVICE), torch.cuda.Event()
        with torch.cuda.stream(stream):
            subject.call(backend)  # the stream's memory is allocated
            torch.cuda.synchronize()
            torch.cuda._sleep(SLEEP_CYCLES)
            subject.fill(2)
            result = subject.call(backend)
            done.record()
        assert not done.query(), "the host waited for the device"
        stream.synchronize()
        assert same(subject.outcome(result), expected[2])

    @pytest.mark.skipif(torch.cuda.device_count() < 2, reason="there is one CUDA device only")
    @each_backend
    @each_subject
    def test_tensors_of_another_device_stay_there(name: str, backend: str) -> None:
        other = torch.device("cuda", 1)
        expected = eager(SUBJECTS[name](DEVICE), 1, backend)
        subject = SUBJECTS[name](other)
        assert torch.cuda.current_device() == 0
        assert same(eager(subject, 1, backend), expected)
        assert torch.cuda.current_device() == 0
        ek.check_status(other)

else:

    def test_no_operator_is_forgotten() -> None:
        ran = {make_subject(DEVICE).ran for make_subject in SUBJECTS.values()}
        assert ran == set(_backends.TRITON_OPERATORS)

    @each_subject
    def test_subjects_are_sound(name: str) -> None:
        """Each call repeats itself, and every variant has a result of its own."""
        subject = SUBJECTS[name](DEVICE)
        results = [eager(subject, variant, "native") for variant in range(VARIANTS)]
        assert same(eager(subject, 0, "native"), results[0])
        for one in range(VARIANTS):
            for other in range(one):
                assert not same(results[one], results[other]), (one, other)
