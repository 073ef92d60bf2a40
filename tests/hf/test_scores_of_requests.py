"""Stage-1 scores where rows repeat images, and where the method changes during a request."""

from __future__ import annotations

import contextlib
import functools
import inspect
import threading
from typing import Any

import pytest
import torch

import erase
from erase.hf.signals import IN_USE_KEY, InUse, method_for
from tests.edges_oracle import cell_edges
from tests.hf.cases import BASE_CONFIG, by_name
from tests.hf.place import DEVICE
from tests.models import shared_model
from tests.oracle_choices import CELL, best_cells
from tests.prompts import Prompt, chat_processor, encode, page, photo

QWEN = "qwen2_5_vl"
PLAIN = erase.EraseConfig(**BASE_CONFIG)
EDGES = PLAIN.replace(stage1_score="edges")
BEAMS = 3


def two_images() -> Prompt:
    return by_name("two_images").build()[0]


def ragged() -> Prompt:
    return encode([[photo(5, 6), " and ", page(3, 5), " What?"], [photo(4, 4), "Describe."]])


def reported(method: Any, prompt: Prompt, **options: Any) -> list[list[Any]]:
    """Image reports of each row of a prefill under generate()."""
    model = shared_model(QWEN)
    with torch.no_grad(), erase.prune(model, method, chat_processor()) as session:
        model.generate(**prompt.inputs, max_new_tokens=2, **options)
    assert session.prefills_pruned == 1
    return [row.images for row in session.report.rows]


def same(got: Any, want: Any) -> bool:
    """Whether two reports of an image have the same scores and cells."""
    return torch.equal(got.stage1_scores, want.stage1_scores) and torch.equal(got.kept, want.kept)


def encodes_before_forward() -> bool:
    """Whether generate() of this transformers hands the forward what it encoded."""
    forward = shared_model("qwen2_5_vl").model.forward
    return "mm_encoder_outputs" in inspect.signature(forward).parameters


@pytest.mark.parametrize("build", [two_images, ragged])
def test_every_beam_has_the_edges_of_its_images(build: Any) -> None:
    prompt = build()
    rows = reported(EDGES, prompt, num_beams=BEAMS, do_sample=False)
    images = [image for row in rows[::BEAMS] for image in row]
    assert len(images) == len(prompt.images) > 1
    for got, image in zip(images, prompt.images, strict=True):
        edges = cell_edges(image, CELL)
        assert torch.equal(got.stage1_scores.cpu(), torch.from_numpy(edges))
        assert got.kept.tolist() == best_cells(edges, len(got.kept), 0.0)
    for number, row in enumerate(rows):
        first = rows[number - number % BEAMS]
        assert len(row) == len(first)
        assert all(same(got, want) for got, want in zip(row, first, strict=True))


@pytest.mark.parametrize("method", [erase.Random(0.3, seed=4), EDGES.replace(stage1_spread=0.3)])
@pytest.mark.parametrize(
    "options",
    [
        {"num_beams": BEAMS, "do_sample": False},
        {"num_return_sequences": BEAMS, "do_sample": True, "top_k": 20},
    ],
    ids=["beams", "samples"],
)
def test_rows_of_a_prompt_keep_the_same_cells(method: Any, options: dict[str, Any]) -> None:
    """Also Random: it draws once for each encoded image, as it does without beams.

    Releases that encode inside the forward encode a copy of the pixels for each row.
    """
    copies = not encodes_before_forward()
    single = reported(method, ragged(), do_sample=False)
    rows = reported(method, ragged(), **options)
    assert len(rows) == BEAMS * len(single)
    for number, row in enumerate(rows):
        alone = single[number // BEAMS]
        if copies and isinstance(method, erase.Random) and number:
            assert [len(got.kept) for got in row] == [len(want.kept) for want in alone]
        else:
            assert all(same(got, want) for got, want in zip(row, alone, strict=True))


def test_scores_are_computed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    real = erase.EraseConfig.stage1_scores

    def counted(self: Any, *args: Any) -> Any:
        calls.append(self)
        return real(self, *args)

    monkeypatch.setattr(erase.EraseConfig, "stage1_scores", counted)
    reported(PLAIN.replace(stage1_score="deviation"), two_images(), do_sample=False)
    assert len(calls) == 1


def test_an_override_that_ended_before_the_encoder_ran(monkeypatch: pytest.MonkeyPatch) -> None:
    """The forward began under it, so its images are measured for its method."""
    model, prompt = shared_model(QWEN), two_images()
    blocks = contextlib.ExitStack()
    with torch.no_grad(), erase.prune(model, PLAIN, chat_processor()) as session:
        encode_images = model.model.get_image_features

        @functools.wraps(encode_images)
        def late(*args: Any, **kwargs: Any) -> Any:
            blocks.close()
            return encode_images(*args, **kwargs)

        with monkeypatch.context() as patch:
            patch.setattr(model.model, "get_image_features", late)
            blocks.enter_context(session.override(stage1_score="edges"))
            model(**prompt.inputs)
        assert session.method == PLAIN
    for got, image in zip(session.report.rows[0].images, prompt.images, strict=True):
        assert torch.equal(got.stage1_scores.cpu(), torch.from_numpy(cell_edges(image, CELL)))


def test_an_override_that_began_after_the_encoder_ran(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another thread's request goes on under the method under which its images were encoded."""
    model = shared_model(QWEN)
    encoded, overridden = threading.Event(), threading.Event()
    results: list[Any] = []

    def request() -> None:
        try:
            with torch.no_grad():
                inputs = two_images().inputs
                results.append(model.generate(**inputs, max_new_tokens=2, do_sample=False))
        except Exception as error:
            results.append(error)

    with erase.prune(model, PLAIN, chat_processor()) as session:
        request()
        encode_images = model.model.get_image_features

        @functools.wraps(encode_images)
        def slow(*args: Any, **kwargs: Any) -> Any:
            output = encode_images(*args, **kwargs)
            encoded.set()
            assert overridden.wait(timeout=60)
            return output

        with monkeypatch.context() as patch:
            patch.setattr(model.model, "get_image_features", slow)
            thread = threading.Thread(target=request)
            thread.start()
            assert encoded.wait(timeout=60)
            with session.override(stage1_score="edges"):
                overridden.set()
                thread.join(timeout=60)
                assert session.method == EDGES
        assert torch.equal(results[1], results[0])
        assert session.report.rows[0].images[0].stage1_scores is None
        with session.override(stage1_score="edges"):
            request()
        assert session.report.rows[0].images[0].stage1_scores is not None
    assert session.prefills_seen == session.prefills_pruned == 3


def test_which_method_a_request_has() -> None:
    """The one in use, unless this session encoded the images without what it needs."""
    plain, edges = InUse(1, PLAIN), InUse(1, EDGES)
    other = InUse(1, PLAIN.replace(keep_ratio=0.5))
    assert method_for(edges, [{IN_USE_KEY: plain}]) is PLAIN
    assert method_for(edges, [None, {IN_USE_KEY: edges}, {IN_USE_KEY: plain}]) is PLAIN
    assert method_for(edges, [{IN_USE_KEY: edges}]) is EDGES
    assert method_for(plain, [{IN_USE_KEY: edges}]) is PLAIN
    assert method_for(plain, [{IN_USE_KEY: other}]) is PLAIN
    assert method_for(edges, [{IN_USE_KEY: InUse(2, PLAIN)}]) is EDGES
    assert method_for(edges, [None, {}, (torch.ones(1, device=DEVICE),)]) is EDGES


def test_no_edges_without_stage_1() -> None:
    off = EDGES.replace(stage1=False)
    (got,) = reported(off, two_images(), do_sample=False)
    (want,) = reported(PLAIN.replace(stage1=False), two_images(), do_sample=False)
    assert [image.stage1_scores for image in got] == [None, None]
    assert [image.kept.tolist() for image in got] == [image.kept.tolist() for image in want]
