"""Several threads and several models: each forward is pruned as if it were alone."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch

import erase
from tests.hf.calls import direct, greedy
from tests.hf.cases import BASE_CONFIG
from tests.hf.common import snapshot
from tests.models import build_model
from tests.prompts import Prompt, chat_processor, encode, noise, page, photo

THREADS = 4
ROUNDS = 3
RATIOS = {"qwen2_5_vl": 0.25, "qwen2_vl": 0.5}


def prompts() -> list[list[Prompt]]:
    """One for each thread: other pictures, other layers, other lengths; one with two rows."""
    return [
        [encode([[photo(5, 6), "Describe the image."]])],
        [encode([[page(6, 7), "Describe the image."]])],
        [encode([[noise(2, 3), "What?"], [page(5, 5, seed=5), " Answer with yes or no."]])],
        [encode([["How many people are in the picture?"]])],
    ]


@pytest.fixture(scope="module")
def models() -> dict[str, Any]:
    return {family: build_model(family) for family in RATIOS}


def prune(model: Any, ratio: float) -> erase.Session:
    config = erase.EraseConfig(**{**BASE_CONFIG, "keep_ratio": ratio})
    return erase.prune(model, config, chat_processor(), keep_reports=100)


def together(*jobs: Callable[[], Any]) -> list[Any]:
    """All at once, each in a thread of its own, switching as often as Python can."""
    interval = sys.getswitchinterval()
    start = threading.Barrier(len(jobs))

    def run(job: Callable[[], Any]) -> Any:
        start.wait(timeout=60)
        with torch.no_grad():
            return job()

    sys.setswitchinterval(1e-5)
    try:
        with ThreadPoolExecutor(len(jobs)) as pool:
            return [f.result(timeout=120) for f in [pool.submit(run, job) for job in jobs]]
    finally:
        sys.setswitchinterval(interval)


def logits(model: Any, prompt: list[Prompt]) -> torch.Tensor:
    return direct(model, prompt).logits[0]


def alone(models: dict[str, Any]) -> dict[str, list[torch.Tensor]]:
    """Logits of every prompt, one after the other."""
    wanted = {}
    for family, model in models.items():
        with torch.no_grad(), prune(model, RATIOS[family]):
            wanted[family] = [logits(model, prompt) for prompt in prompts()]
    return wanted


def test_concurrent_forwards(models: dict[str, Any]) -> None:
    """Two models, each in several threads: their sessions do not mix, and report everything."""
    wanted, inputs = alone(models), prompts()
    before = {family: snapshot(model) for family, model in models.items()}
    work = [(family, i) for family in models for i in range(len(inputs))]

    def job(family: str, i: int) -> Callable[[], list[torch.Tensor]]:
        return lambda: [logits(models[family], inputs[i]) for _ in range(ROUNDS)]

    sessions = {family: prune(models[family], ratio) for family, ratio in RATIOS.items()}
    results = together(*(job(*item) for item in work))
    for (family, i), outcomes in zip(work, results, strict=True):
        assert all(torch.equal(got, wanted[family][i]) for got in outcomes)
    for session in sessions.values():
        session.remove()
    for family, session in sessions.items():
        with_images = (len(inputs) - 1) * ROUNDS
        assert session.prefills_seen == session.prefills_pruned == with_images
        kept = sorted([len(row.kept) for row in report.rows] for report in session.reports)
        sizes = [[30], [42], [6, 25]]
        ratio = RATIOS[family]
        assert kept == sorted([[int(n * ratio) for n in rows] for rows in sizes] * ROUNDS)
        assert snapshot(models[family]) == before[family]


def test_concurrent_generation(models: dict[str, Any]) -> None:
    """generate() of two models at once; a Qwen model itself keeps one prompt's positions."""
    inputs = prompts()[2]
    wanted = {}
    for family, model in models.items():
        with torch.no_grad(), prune(model, RATIOS[family]):
            wanted[family] = greedy(model, inputs)
    with prune(models["qwen2_5_vl"], 0.25), prune(models["qwen2_vl"], 0.5):
        results = together(*(lambda m=model: greedy(m, inputs) for model in models.values()))
    for got, want in zip(results, wanted.values(), strict=True):
        assert torch.equal(got.tokens[0], want.tokens[0])
        assert all(torch.equal(a, b) for a, b in zip(got.logits, want.logits, strict=True))


def test_sessions_come_and_go(models: dict[str, Any]) -> None:
    """A forward is pruned or not, but never in part, whatever another thread does to the model.

    The other model's session is there all the time.
    """
    before = {family: snapshot(model) for family, model in models.items()}
    wanted, inputs = alone(models), prompts()
    first, second = models["qwen2_5_vl"], models["qwen2_vl"]
    with torch.no_grad():
        stock = [logits(first, prompt) for prompt in inputs]
    done = threading.Event()
    numbers: list[tuple[int, int, int]] = []

    def open_and_close() -> None:
        while not done.is_set():
            with prune(first, RATIOS["qwen2_5_vl"]) as session:
                time.sleep(0.005)
            numbers.append((session.prefills_seen, session.prefills_pruned, len(session.reports)))

    def forwards(model: Any, i: int) -> Callable[[], list[torch.Tensor]]:
        def run() -> list[torch.Tensor]:
            try:
                return [logits(model, inputs[i]) for _ in range(12)]
            finally:
                if model is first and i == 0:
                    done.set()

        return run

    with prune(second, RATIOS["qwen2_vl"]) as steady:
        jobs = [forwards(first, 0), forwards(first, 1), forwards(second, 2), open_and_close]
        one, two, other, _ = together(*jobs)
        assert steady.prefills_pruned == 12
    assert all(torch.equal(got, wanted["qwen2_vl"][2]) for got in other)
    for i, outcomes in enumerate((one, two)):
        for got in outcomes:
            assert torch.equal(got, stock[i]) or torch.equal(got, wanted["qwen2_5_vl"][i])
    assert {family: snapshot(model) for family, model in models.items()} == before
    assert len(numbers) > 1
    assert all(seen == pruned == reports for seen, pruned, reports in numbers)
    assert sum(pruned for _, pruned, _ in numbers) > 0


def test_closing_waits_for_a_running_prefill(models: dict[str, Any]) -> None:
    """And not for one that was interrupted, nor for the forward that closes the session itself."""
    model, prompt = models["qwen2_5_vl"], prompts()[0]
    wanted = alone({"qwen2_5_vl": model})["qwen2_5_vl"][0]
    reached, closing = threading.Event(), threading.Event()

    def hold(*_: Any) -> None:
        reached.set()
        closing.wait(timeout=30)
        time.sleep(0.05)

    session = prune(model, RATIOS["qwen2_5_vl"])
    handle = model.model.language_model.layers[2].register_forward_pre_hook(hold)

    def close() -> bool:
        reached.wait(timeout=30)
        closing.set()
        session.remove()
        return session.prefills_pruned == 1

    got, pruned = together(lambda: logits(model, prompt), close)
    handle.remove()
    assert pruned
    assert torch.equal(got, wanted)

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    session = prune(model, 0.25)
    handle = model.model.language_model.layers[2].register_forward_pre_hook(interrupt)

    def interrupted() -> None:
        with pytest.raises(KeyboardInterrupt):
            logits(model, prompt)

    together(interrupted)
    handle.remove()
    with pytest.warns(UserWarning, match="interrupted"):
        session.remove()  # returns
    assert session.closed
