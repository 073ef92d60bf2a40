"""Runs the stock model on samples, unpruned and pruned, and remembers every answer."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image

import erase
from bench.accuracy.layout import ANSWER_TOKENS
from bench.accuracy.samples import CELL, Sample, held_out
from erase.demo_assets import load_processor
from erase.hf.resolution import ResolutionWarning
from erase.inspection import image_processor
from erase.methods import Downsample, Method, Random

BATCH = 30
"""Samples of one generate(): a multiple of the kinds of background."""
MOST_CELLS = 4096


@dataclass(frozen=True)
class Outcome:
    """What a method did on some samples, arrays of one entry per sample.

    Attributes:
        right: bool, both digits.
        kept: f32, final share of the image's visual tokens, of the image before any scaling.
        prefill: f32, that share averaged over the decoder's layers during prefill.
        entered: f32, share that stage 1 let in.
        layer: i32, 0-based layer of stage 2, -1 where there was none.
        level: i32, complexity level, 0 = most complex; -1 where the method has none.
        median: f32 nats, complexity; NaN where nothing was pruned.
        covered: f32, share of the asked label's cells among the finally kept; NaN if not known.
    """

    right: np.ndarray
    kept: np.ndarray
    prefill: np.ndarray
    entered: np.ndarray
    layer: np.ndarray
    level: np.ndarray
    median: np.ndarray
    covered: np.ndarray

    @classmethod
    def joined(cls, parts: Sequence[Outcome]) -> Outcome:
        """The outcomes of consecutive batches as one."""
        return cls(
            *(np.concatenate([getattr(part, name) for part in parts]) for name in cls.fields())
        )

    @classmethod
    def fields(cls) -> tuple[str, ...]:
        """Names of the arrays, in order."""
        return tuple(cls.__dataclass_fields__)


Job = tuple[str, Method | Downsample | None]
"""(name, method); None: unpruned."""


class Bed:
    """The model, its processor, and what is the same for all methods."""

    def __init__(self, model: Any) -> None:
        self.model = model
        area = CELL * CELL
        self.processor = load_processor(image_processor(area, MOST_CELLS * area))

    def inputs(self, images: Sequence[Image.Image], samples: Sequence[Sample]) -> Any:
        """The processor's tensors; all questions are equally long, so nothing is padded."""
        prompts = [
            self.processor.apply_chat_template(
                [
                    {
                        "role": "user",
                        "content": [{"type": "image"}, {"type": "text", "text": sample.question}],
                    }
                ],
                tokenize=False,
                add_generation_prompt=True,
            )
            for sample in samples
        ]
        batch = self.processor(images=list(images), text=prompts, return_tensors="pt")
        return batch.to(self.model.device)

    def run(
        self,
        split: str,
        indices: Sequence[int],
        grid: tuple[int, int],
        jobs: Sequence[Job],
        progress: Callable[[], None] = lambda: None,
    ) -> dict[str, Outcome]:
        """Every job on the same samples; ``progress`` is called after each job of each batch."""
        parts: dict[str, list[Outcome]] = {name: [] for name, _ in jobs}
        for at in range(0, len(indices), BATCH):
            samples = [held_out(split, i, grid) for i in indices[at : at + BATCH]]
            images = [Image.fromarray(sample.image) for sample in samples]
            inputs = self.inputs(images, samples)
            with _encoded_once(self.model.model.visual):
                for name, method in jobs:
                    if isinstance(method, Downsample):
                        continue
                    if isinstance(method, Random):  # other tokens in every batch
                        method = method.replace(seed=method.seed + indices[at])
                    parts[name].append(self._outcome(samples, inputs, method))
                    progress()
            for name, method in jobs:
                if isinstance(method, Downsample):
                    small = method.prepare(images)
                    outcome = self._outcome(samples, self.inputs(small, samples), None)
                    parts[name].append(_scaled(outcome, images, small))
                    progress()
        return {name: Outcome.joined(done) for name, done in parts.items()}

    def _outcome(self, samples: Sequence[Sample], inputs: Any, method: Method | None) -> Outcome:
        with warnings.catch_warnings():
            # The published settings assume larger images; the thresholds here are the bed's own.
            warnings.simplefilter("ignore", ResolutionWarning)
            if method is None:
                right = self._answers(samples, inputs)
                return _unpruned(right)
            with erase.prune(self.model, method, processor=self.processor) as session:
                right = self._answers(samples, inputs)
        if session.report is None:
            raise RuntimeError("the prompt left no report: its prefill was not pruned")
        return _reported(right, session.report, samples, inputs, self.model.config)

    def _answers(self, samples: Sequence[Sample], inputs: Any) -> np.ndarray:
        with torch.no_grad():
            output = self.model.generate(**inputs, max_new_tokens=ANSWER_TOKENS, do_sample=False)
        tokens = output[:, inputs["input_ids"].shape[1] :]
        texts = self.processor.batch_decode(tokens, skip_special_tokens=True)
        return np.array([t == s.answer for t, s in zip(texts, samples, strict=True)])


@contextmanager
def _encoded_once(visual: Any) -> Iterator[None]:
    """Inside, the encoder's output for the same tensor of pixels is computed once and reused."""
    stock = visual.forward
    seen: dict[int, Any] = {}

    def forward(hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        key = hidden_states.data_ptr()
        if key not in seen:
            seen[key] = stock(hidden_states, *args, **kwargs)
        return type(seen[key])(**seen[key])

    visual.forward = forward
    try:
        yield
    finally:
        del visual.forward


def _unpruned(right: np.ndarray) -> Outcome:
    n = len(right)
    ones = np.ones(n, dtype=np.float32)
    none = np.full(n, -1, dtype=np.int32)
    return Outcome(right, ones, ones, ones, none, none, ones * np.nan, ones)


def _scaled(
    outcome: Outcome, before: Sequence[Image.Image], after: Sequence[Image.Image]
) -> Outcome:
    """An unpruned run on smaller images: shares of the tokens of the larger ones."""
    share = np.array(
        [b.width * b.height / (a.width * a.height) for a, b in zip(before, after, strict=True)],
        dtype=np.float32,
    )
    nothing = np.full_like(share, np.nan)
    return Outcome(
        outcome.right, share, share, share, outcome.layer, outcome.level, nothing, nothing
    )


def _reported(
    right: np.ndarray, report: Any, samples: Sequence[Sample], inputs: Any, config: Any
) -> Outcome:
    ids = inputs["input_ids"]
    first = (ids == config.image_token_id).int().argmax(1).tolist()
    rows = []
    for row, sample, start in zip(report.rows, samples, first, strict=True):
        image = row.images[0]
        kept = (row.kept - start).tolist()
        rows.append(
            (
                row.kept_ratio,
                row.prefill_ratio,
                len(image.kept) / row.visual_tokens,
                -1 if row.layer is None else row.layer,
                image.level,
                image.median,
                np.isin(sample.answer_cells(), kept).mean(),
            )
        )
    kept, prefill, entered, layer, level, median, covered = (
        np.array(column) for column in zip(*rows, strict=True)
    )
    return Outcome(
        right,
        kept.astype(np.float32),
        prefill.astype(np.float32),
        entered.astype(np.float32),
        layer.astype(np.int32),
        level.astype(np.int32),
        median.astype(np.float32),
        covered.astype(np.float32),
    )
