"""Entropies and edges of pixels: taken where they are encoded, brought to the forward that asks.

``get_image_features`` is the one function that sees ``pixel_values`` on every route: newer
transformers call it in generate(), before the forward, and hand its output over as
``mm_encoder_outputs``; older ones and direct calls run it inside the forward. What
was measured therefore travels as an entry of its output, and is also given to the open prefill.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from erase.hf.current import current_prefill
from erase.hf.families import Encoded, Family, Measure, Statistics, one_token_per_cell
from erase.methods import Method
from erase_kernels import patch_edges_from_pixels, patch_entropy_from_pixels

Modality = Literal["image", "video"]
PIXELS: dict[Modality, str] = {"image": "pixel_values", "video": "pixel_values_videos"}
"""The argument that brings the pixels of each modality."""

ENTROPY_KEY = "erase_entropy"
"""Entry of the encoder output: one ``Encoded`` per image, video or tile."""
APPROXIMATE_KEY = "erase_approximate"
"""Entry beside it where bf16 pixels may be recovered only approximately."""
IN_USE_KEY = "erase_in_use"
"""Entry beside it: the ``InUse`` under which it was encoded."""


@dataclass(frozen=True)
class InUse:
    """A session, by its number, and the method that it used at some moment."""

    session: int
    method: Method


AskInUse = Callable[[], InUse]
"""Asked at each call, for overrides change it."""


def method_for(now: InUse, outputs: Iterable[Any]) -> Method:
    """The method in use, unless it needs what was not measured in one of the encoder ``outputs``.

    Then an override began between the encoder and the forward, perhaps in another thread: the
    request goes on under the method under which it began. Outputs of another session, and None,
    say nothing.
    """
    for output in outputs:
        then = output.get(IN_USE_KEY) if isinstance(output, dict) else None
        if then is None or then.session != now.session:
            continue
        if "pixel_edges" in now.method.needs - then.method.needs:
            method: Method = then.method
            return method
    return now.method


class _Encoding(threading.local):
    video = False


_encoding = _Encoding()


@contextlib.contextmanager
def _encoding_video() -> Iterator[None]:
    """Some models encode videos by calling their own ``get_image_features``."""
    before, _encoding.video = _encoding.video, True
    try:
        yield
    finally:
        _encoding.video = before


def with_image_entropies(
    encode: Callable[..., Any],
    base: Any,
    family: Family,
    statistics: Statistics,
    ask: AskInUse,
) -> Callable[..., Any]:
    """``get_image_features`` that also measures each cell; same signature."""
    signature = inspect.signature(encode)

    @functools.wraps(encode)
    def get_image_features(*args: Any, **kwargs: Any) -> Any:
        if _encoding.video:
            return encode(*args, **kwargs)
        bound = signature.bind(*args, **kwargs)
        bound.apply_defaults()
        call = family.read({**bound.arguments, **bound.arguments.get("kwargs", {})})
        # First, so that pixels that cannot be undone are refused before the encoder's work.
        used = ask()
        measured = _measured(lambda measure: family.cells(base, statistics, call, measure), used)
        output: Any = encode(*args, **kwargs)
        if isinstance(output, tuple):  # return_dict=False: nothing to attach them to
            return output
        placed = [family.tokens(base, call, cells, output.pooler_output) for cells in measured]
        encoded = _joined(*placed)
        return _attach(output, encoded, used, call, "image", statistics)

    return get_image_features


def with_video_entropies(
    encode: Callable[..., Any],
    base: Any,
    family: Family,
    statistics: Statistics | None,
    ask: AskInUse,
) -> Callable[..., Any]:
    """``get_video_features``, with measured cells unless ``statistics`` is None; same signature."""
    signature = inspect.signature(encode)

    @functools.wraps(encode)
    def get_video_features(*args: Any, **kwargs: Any) -> Any:
        if statistics is None:
            with _encoding_video():
                return encode(*args, **kwargs)
        bound = signature.bind(*args, **kwargs)
        bound.apply_defaults()
        call = {**bound.arguments, **bound.arguments.get("kwargs", {})}
        used = ask()
        measured = _measured(
            lambda measure: family.video_cells(base, statistics, call, measure), used
        )
        with _encoding_video():
            output: Any = encode(*args, **kwargs)
        if isinstance(output, tuple):
            return output
        encoded = _joined(*[one_token_per_cell(cells, output.pooler_output) for cells in measured])
        return _attach(output, encoded, used, call, "video", statistics)

    return get_video_features


def _measured(cells: Callable[[Measure], Tensor], used: InUse) -> list[Tensor]:
    """Entropies, then edges where the method asks for them: f32 [cells] each."""
    edges = [patch_edges_from_pixels] if "pixel_edges" in used.method.needs else []
    return [cells(measure) for measure in (patch_entropy_from_pixels, *edges)]


def _joined(entropies: list[Encoded], edges: list[Encoded] | None = None) -> list[Encoded]:
    """One ``Encoded`` with both measures out of one for each."""
    if edges is None:
        return entropies
    pairs = zip(entropies, edges, strict=True)
    return [replace(one, edges=other.entropy) for one, other in pairs]


def _attach(
    output: Any,
    encoded: list[Encoded],
    used: InUse,
    call: Mapping[str, Any],
    modality: Modality,
    statistics: Statistics,
) -> Any:
    output[ENTROPY_KEY] = tuple(encoded)
    output[IN_USE_KEY] = used
    pixels = call[PIXELS[modality]]
    first = pixels[0] if isinstance(pixels, (list, tuple)) else pixels
    if first.dtype == torch.bfloat16 and not statistics.exact_in_bfloat16:
        output[APPROXIMATE_KEY] = True
    prefill = current_prefill()
    if prefill is not None:
        prefill.receive(output, modality)
    return output


def entropies_in(output: Any) -> tuple[Encoded, ...] | None:
    """The entropies that an encoder output carries, if any."""
    return output.get(ENTROPY_KEY) if isinstance(output, dict) else None
