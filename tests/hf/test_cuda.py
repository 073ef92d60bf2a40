"""What only a GPU can show: the host waits for it where a stock model does, and once a prefill.

torch reports where the host waits for a stream; the one announced copy of a prefill waits for an
event, which it does not report. On the CPU this file has no tests (``tests/hf/test_sync.py`` then
watches what would wait).
"""

from __future__ import annotations

import contextlib
import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

import erase
import erase_kernels
from erase import cli
from erase.demo import DemoSettings, Picture, build_model, run_picture
from erase.demo.operators import OPERATORS
from erase.hf import planning
from erase.tables import demo_notice
from tests.hf.calls import NEW_TOKENS, Outcome, forced_loop, generate_into
from tests.hf.cases import Case, by_name
from tests.hf.common import limits
from tests.hf.place import BACKEND, DEVICE, ON_GPU
from tests.models import FAMILIES, shared_model
from tests.prompts import chat_processor, photo

PACKAGES = tuple(f"{Path(package.__file__).parent}/" for package in (erase, erase_kernels))
CASES = [by_name(name) for name in ("greedy_photo", "greedy_page", "ragged_batch", "two_images")]


@contextlib.contextmanager
def waits() -> Iterator[Counter[str]]:
    """Where the host waited for the GPU: lines of Python and how often; filled at the end."""
    lines: Counter[str] = Counter()
    mode = torch.cuda.get_sync_debug_mode()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            yield lines
        finally:
            torch.cuda.set_sync_debug_mode(mode)
    for warning in caught:
        if "called a synchronizing" in str(warning.message):
            lines[f"{warning.filename}:{warning.lineno}"] += 1


@contextlib.contextmanager
def no_waits() -> Iterator[None]:
    """RuntimeError where the host would wait for a stream."""
    mode = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode(mode)


def run(model: Any, case: Case, style: str) -> None:
    inputs = case.build()[0].inputs
    with torch.no_grad():
        if style == "prefill":
            model(**inputs, use_cache=True)
        elif style == "loop":
            forced_loop(model, case.build())
        else:
            generate_into(Outcome(), model, NEW_TOKENS, **inputs)


def waits_of(model: Any, case: Case, style: str) -> Counter[str]:
    run(model, case, style)  # compiles kernels and fills caches
    with waits() as lines:
        run(model, case, style)
    return lines


def session_of(model: Any, case: Case, **fields: Any) -> erase.Session:
    return erase.prune(model, erase.EraseConfig(**case.settings(**fields)), chat_processor())


def check_waits(case: Case, family: str, style: str, query: str) -> None:
    model = shared_model(family)
    stock = waits_of(model, case, style)
    with session_of(model, case, query=query) as session:
        pruned = waits_of(model, case, style)
    assert session.report.rows[0].layer is not None
    assert not {line for line in pruned if line.startswith(PACKAGES)}
    assert not pruned - stock, "stock code called by a session waits"


def check_decode(case: Case, family: str, with_mask: bool) -> None:
    """Decode steps wait for nothing at all."""
    model, inputs = shared_model(family), case.build()[0].inputs
    mask = inputs["attention_mask"]
    with torch.no_grad(), session_of(model, case):
        cache = model(**inputs).past_key_values
        for step in range(1, 4):
            grown = torch.cat([mask, torch.ones_like(mask[:, :step])], dim=1)
            position = grown.sum(-1, keepdim=True) - 1 + model.model.rope_deltas
            step_inputs = {
                "input_ids": torch.full_like(mask[:, :1], 300),
                "attention_mask": grown if with_mask else None,
                "position_ids": position[None].expand(3, -1, -1),
            }
            guard = no_waits() if step > 1 else contextlib.nullcontext()  # the first compiles
            with guard:
                model(**step_inputs, past_key_values=cache)


def check_one_copy(case: Case, family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = []
    download = planning.download

    def counted(values: torch.Tensor) -> list[int]:
        sizes.append(values.numel())
        with no_waits():
            return download(values)

    monkeypatch.setattr(planning, "download", counted)
    model = shared_model(family)
    with session_of(model, case) as session:
        run(model, case, "generate")
    images = sum(len(row.images) for row in session.report.rows)
    assert sizes == [1 + 3 * images + 5 * len(session.report.rows)]


def check_stream(case: Case, family: str) -> None:
    """Everything runs on the caller's stream."""
    model = shared_model(family)
    limit = limits(case, family).logits
    with torch.no_grad(), session_of(model, case) as session:
        want = forced_loop(model, case.build())
        prompts = case.build()
        torch.cuda.synchronize(DEVICE)
        with torch.cuda.stream(torch.cuda.Stream(DEVICE)):
            torch.cuda._sleep(50_000_000)  # what runs on another stream would read too early
            got = forced_loop(model, prompts)
        torch.cuda.synchronize(DEVICE)
    first, second = session.reports
    for a, b in zip(first.rows, second.rows, strict=True):
        assert a.kept.device == DEVICE
        assert torch.equal(a.kept, b.kept)
    for a, b in zip(got.logits, want.logits, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=limit, equal_nan=True)


def check_demo() -> None:
    """The demo runs where its model is, and says on what."""
    model = build_model(0, DEVICE)
    picture = Picture("photo", Image.fromarray(photo(7, 9)))
    settings = DemoSettings(min_tokens=90, max_tokens=130, prefill_runs=1, max_new_tokens=3)
    shown = run_picture(model, picture, settings)
    assert {entry.operator for entry in shown.operators} == set(OPERATORS)
    assert {entry.backend for entry in shown.operators} == {BACKEND}
    assert set(shown.report.backends.values()) == {BACKEND}
    assert shown.final_cells.device == DEVICE
    assert len(shown.pruned.kv_bytes) == len(shown.unpruned.kv_bytes) == 3
    assert shown.pruned.kv_bytes[0] < shown.unpruned.kv_bytes[0]


if ON_GPU:

    def test_demo() -> None:
        assert cli._place(cli.Device.auto).type == DEVICE.type
        check_demo()
        assert torch.cuda.get_device_name(DEVICE) in demo_notice(build_model(0, DEVICE))

    def test_waits_are_seen() -> None:
        """A waiting line of Python is found by its file."""
        with waits() as lines:
            torch.ones(1, device=DEVICE).item()
        assert len(lines) == 1
        assert next(iter(lines)).startswith(__file__)
        with no_waits(), pytest.raises(RuntimeError, match="synchronizing"):
            torch.ones(1, device=DEVICE).item()

    @pytest.mark.parametrize("query", ["exact", "released"])
    @pytest.mark.parametrize("style", ["prefill", "loop", "generate"])
    @pytest.mark.parametrize("family", FAMILIES)
    @pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
    def test_no_hidden_wait(case: Case, family: str, style: str, query: str) -> None:
        check_waits(case, family, style, query)

    @pytest.mark.parametrize("with_mask", [True, False])
    @pytest.mark.parametrize("family", FAMILIES)
    @pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
    def test_decode_waits_for_nothing(case: Case, family: str, with_mask: bool) -> None:
        check_decode(case, family, with_mask)

    @pytest.mark.parametrize("family", FAMILIES)
    @pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
    def test_one_copy(case: Case, family: str, monkeypatch: pytest.MonkeyPatch) -> None:
        check_one_copy(case, family, monkeypatch)

    @pytest.mark.parametrize("family", FAMILIES)
    @pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
    def test_other_stream(case: Case, family: str) -> None:
        check_stream(case, family)
