"""One picture through the stock model, unpruned and pruned, with everything the demo shows."""

from __future__ import annotations

import statistics
import time
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

import erase
from erase.demo.operators import OperatorTime, PrefillShapes, time_operators
from erase.demo.pictures import Picture
from erase.demo.timing import ForwardWatch, synchronize
from erase.demo_assets import load_processor, load_tokenizer
from erase.hf.architecture import inspect_model
from erase.hf.families._patches import patch_layout
from erase.hf.pixels import statistics_for
from erase.hf.resolution import ResolutionWarning
from erase.inspection import cell_side, image_processor, resize
from erase.report import PrefillReport

PRESET = "Qwen2.5-VL-7B"
MIN_TOKENS = 2000
MAX_TOKENS = 2500
"""Bounds of the image processor in visual tokens: high resolution that two CPU cores can bear."""
TIMING_BUDGET = 20.0
"""Seconds per picture after which no further pair of timed prefills starts (on a busy machine)."""


@dataclass(frozen=True)
class DemoSettings:
    """What can be chosen. ``prefill_runs``: timed prefills of each side at most, all warm."""

    keep: float = 0.15
    max_new_tokens: int = 16
    prefill_runs: int = 3
    min_tokens: int = MIN_TOKENS
    max_tokens: int = MAX_TOKENS

    @property
    def steps(self) -> int:
        """How often ``run_picture`` reports progress."""
        return 3 + self.prefill_runs

    def image_processor(self) -> Any:
        """The stock image processor with these bounds."""
        area = cell_side(image_processor(1, 1)) ** 2
        return image_processor(self.min_tokens * area, self.max_tokens * area)


@dataclass
class Side:
    """One way to run the prompt: unpruned or pruned.

    Attributes:
        tokens, text: what was generated greedily.
        kv_bytes: cache bytes after each forward of generate(), read from the cache's tensors;
            the first is the prefill.
        prefills, visions: seconds of each timed prefill, and of the vision encoder in it.
    """

    tokens: list[int]
    text: str
    kv_bytes: list[int]
    prefills: list[float] = field(default_factory=list)
    visions: list[float] = field(default_factory=list)

    @property
    def prefill(self) -> float:
        """Median seconds of a prefill, vision encoder included."""
        return statistics.median(self.prefills)

    @property
    def vision(self) -> float:
        """Median seconds of the vision encoder."""
        return statistics.median(self.visions)

    @property
    def language(self) -> float:
        """Median seconds of a prefill without the vision encoder; pruning is in it."""
        return statistics.median(a - b for a, b in zip(self.prefills, self.visions, strict=True))


@dataclass(frozen=True)
class DemoResult:
    """A picture, both sides, the report of the pruned prefill, and operator times.

    Attributes:
        image: u8 [3, H, W], as resized by the processor; ``cell``: side of a visual token in it.
        prompt_tokens: length of the unpruned prompt, visual tokens included.
        final_cells: i64, ascending cells of the image that stay after both stages.
    """

    picture: Picture
    image: Tensor
    cell: int
    prompt_tokens: int
    method: erase.EraseConfig
    unpruned: Side
    pruned: Side
    report: PrefillReport
    final_cells: Tensor
    operators: list[OperatorTime]


def run_picture(
    model: Any,
    picture: Picture,
    settings: DemoSettings,
    progress: Callable[[str], None] = lambda step: None,
) -> DemoResult:
    """Prompt in, tokens out, unpruned and pruned.

    Args:
        model: a stock Qwen2.5-VL on its device, without an open session; left as it was.
        progress: told the name of each longer step before it starts.
    """
    resizer = settings.image_processor()
    processor, cell = load_processor(resizer), cell_side(resizer)
    inputs = prompt_inputs(processor, picture).to(model.device)
    method = erase.EraseConfig.for_model(model, transfer_from=PRESET, keep_ratio=settings.keep)

    def session() -> erase.Session:
        with warnings.catch_warnings():
            # The pictures are as large as they are; the report shows what that makes of them.
            warnings.simplefilter("ignore", ResolutionWarning)
            return erase.prune(model, method, processor=processor)

    progress("unpruned: prompt in, tokens out")
    unpruned = _generate(model, inputs, settings)
    progress("pruned: prompt in, tokens out")
    with session() as opened:
        pruned = _generate(model, inputs, settings)
    report = opened.report
    if report is None:
        raise RuntimeError("the pruned prompt left no report: its prefill was not seen")
    start = time.perf_counter()
    for turn in range(settings.prefill_runs):
        if turn and time.perf_counter() - start > TIMING_BUDGET:
            break
        progress(f"timing prefills, {turn + 1} of {settings.prefill_runs}")
        _time_prefill(model, inputs, unpruned, nullcontext())
        _time_prefill(model, inputs, pruned, session())
    progress("timing operators")
    image = resize(picture.image, resizer)
    first = int((inputs["input_ids"][0] == model.config.image_token_id).nonzero()[0])
    shapes = PrefillShapes(
        image=image,
        cell=cell,
        pixel_values=inputs["pixel_values"],
        layout=patch_layout(
            model.config.vision_config, statistics_for(inspect_model(model), processor)
        ),
        length=inputs["input_ids"].shape[1],
        first=first,
        text_config=model.config.text_config,
    )
    return DemoResult(
        picture=picture,
        image=image,
        cell=cell,
        prompt_tokens=shapes.length,
        method=method,
        unpruned=unpruned,
        pruned=pruned,
        report=report,
        final_cells=report.rows[0].kept - first,
        operators=time_operators(shapes, method, report),
    )


def prompt_inputs(processor: Any, picture: Picture) -> Any:
    """Model inputs of a picture and its question, as one user turn of the chat template."""
    content = [{"type": "image"}, {"type": "text", "text": picture.question}]
    prompt = processor.apply_chat_template(
        [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
    )
    return processor(images=[picture.image], text=[prompt], return_tensors="pt")


def _generate(model: Any, inputs: Any, settings: DemoSettings) -> Side:
    tokenizer = load_tokenizer()
    with torch.no_grad(), ForwardWatch(model) as watch:
        output = model.generate(
            **inputs,
            max_new_tokens=settings.max_new_tokens,
            do_sample=False,
            # A random model would emit image placeholders, or stop, at random.
            suppress_tokens=sorted(tokenizer.added_tokens_decoder),
        )
    tokens = output[0, inputs["input_ids"].shape[1] :].tolist()
    return Side(tokens, tokenizer.decode(tokens), watch.kv_bytes)


def _time_prefill(
    model: Any, inputs: Any, side: Side, session: AbstractContextManager[Any]
) -> None:
    with torch.no_grad(), session, ForwardWatch(model) as watch:
        synchronize(model.device)
        start = time.perf_counter()
        model(**inputs, use_cache=True, logits_to_keep=1)
        synchronize(model.device)
        side.prefills.append(time.perf_counter() - start)
    if watch.kv_bytes != side.kv_bytes[:1]:
        raise RuntimeError(
            f"the timed prefill left {watch.kv_bytes} bytes in the cache, generate() left "
            f"{side.kv_bytes[:1]}: they did different work"
        )
    side.visions.extend(watch.vision_seconds)
