"""Which batch row an encoded image belongs to, and which tiles make up one image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import accumulate, groupby

import torch
from torch import Tensor

from erase.hf.families import Encoded
from erase.hf.gather import offsets_of
from erase.hf.signals import Modality
from erase.methods import ImageSignals, Method
from erase.transfer import download, moved, upload

Owners = list[tuple[int, int]]
"""(number of the encoded image, batch row), in the order of their tokens in the batch."""


@dataclass(frozen=True)
class Stream:
    """One modality of a prefill: what was encoded, and where its tokens stand in the prompt."""

    modality: Modality
    encoded: tuple[Encoded, ...]
    placeholders: Tensor  # bool [B, S]


def assign_rows(sizes: Sequence[int], visual: Sequence[int], modality: str = "image") -> Owners:
    """(encoded image, batch row) for every image in the batch, in the order of its tokens.

    Beam search and ``num_return_sequences`` repeat each prompt row, but not its encoded images.

    Args:
        sizes: placeholder tokens of each encoded image.
        visual: placeholder tokens of each batch row.
        modality: for error messages.
    """
    repeats = sum(visual) // sum(sizes) if sum(sizes) else 1
    starts = [0, *accumulate(sizes)]
    owners: Owners = []
    at = end = 0  # images of the prompt row that ``row`` repeats: at..end
    for row, tokens in enumerate(visual):
        if row and row % max(repeats, 1) == 0:
            at = end
        end = at
        while end < len(sizes) and starts[end + 1] - starts[at] <= tokens:
            end += 1
        if starts[end] - starts[at] != tokens:
            raise ValueError(
                f"input_ids: row {row} has {tokens} {modality} tokens, which is no whole number of "
                f"{modality}s of {list(sizes[at:])} tokens"
            )
        owners.extend((i, row) for i in range(at, end))
    if end != len(sizes):
        raise ValueError(
            f"input_ids: {modality} tokens for {end} {modality}s, but {len(sizes)} were encoded"
        )
    return owners


def without_masked(stream: Stream, owners: Owners, valid: Tensor) -> Stream:
    """One ``Encoded`` per image of each row, whose candidates are its ``valid`` [B, S] tokens."""
    seen: list[int] = download(valid[stream.placeholders].to(torch.int32))
    encoded, at = [], 0
    for number, _ in owners:
        whole = stream.encoded[number]
        visible = torch.tensor(seen[at : at + whole.tokens], dtype=torch.bool)
        at += whole.tokens
        cells = visible if whole.candidates is None else visible[whole.candidates]
        index = upload(cells.nonzero()[:, 0].tolist(), torch.int64, whole.entropy.device)
        flags = visible if whole.candidates is None else visible & whole.candidates
        edges = None if whole.edges is None else whole.edges[index]
        encoded.append(Encoded(whole.entropy[index], flags, edges))
    return Stream(stream.modality, tuple(encoded), stream.placeholders)


def join_tiles(tiles: Sequence[Encoded], placeholders: Tensor) -> tuple[Encoded, ...]:
    """Tiles whose tokens follow one another in the prompt, joined into images.

    The encoder does not say how many tiles an image has; the prompt does. Reading it costs one
    more copy to the host than other models need. Images that nothing separates in the prompt count
    as one. As in ``assign_rows``, rows may be repeated where the encoded tiles are not.

    Raises:
        ValueError: a run of placeholder tokens is no whole number of tiles, or tiles are left over.
    """
    runs = _runs(download(placeholders))
    tokens = sum(tile.tokens for tile in tiles)
    repeats = max(1, sum(length for _, length in runs) // tokens) if tokens else 1
    joined: list[Encoded] = []
    at = 0
    for row, length in runs:
        if row % repeats:
            continue
        end, held = at, 0
        while end < len(tiles) and held < length:
            held += tiles[end].tokens
            end += 1
        if held != length:
            left = [tile.tokens for tile in tiles[at:]]
            raise ValueError(
                f"input_ids: row {row} has a run of {length} image tokens, which is no whole "
                f"number of tiles of {left} tokens"
            )
        joined.append(_join(tiles[at:end]))
        at = end
    if at != len(tiles):
        raise ValueError(f"input_ids: image tokens for {at} tiles, but {len(tiles)} were encoded")
    return tuple(joined)


def _join(tiles: Sequence[Encoded]) -> Encoded:
    entropy = torch.cat([tile.entropy for tile in tiles])
    edges = joined_edges(tiles)
    if all(tile.candidates is None for tile in tiles):
        return Encoded(entropy, edges=edges)
    every = partial(torch.ones, dtype=torch.bool, device="cpu")
    flags = [every(tile.tokens) if tile.candidates is None else tile.candidates for tile in tiles]
    return Encoded(entropy, torch.cat(flags), edges)


def joined_edges(encoded: Sequence[Encoded]) -> Tensor | None:
    """Edges one after the other; None where some were encoded without."""
    edges = [one.edges for one in encoded if one.edges is not None]
    return torch.cat(edges) if len(edges) == len(encoded) > 0 else None


def signals_of(encoded: Sequence[Encoded], device: torch.device) -> ImageSignals:
    """What a method gets to see of these images, on ``device``."""
    sizes = tuple(len(one.entropy) for one in encoded)
    entropy = moved(torch.cat([one.entropy for one in encoded]), device)
    edges = joined_edges(encoded)
    edges = None if edges is None else moved(edges, device)
    return ImageSignals(entropy, sizes, offsets_of(sizes, device), edges)


def check_needs(method: Method, signals: ImageSignals) -> None:
    """ValueError where the method ranks cells by what was not measured when they were encoded."""
    if "pixel_edges" in method.needs and signals.edges is None:
        raise ValueError(
            "method: it asks for edges of the pixels, but images were encoded in another session, "
            "whose method does not; encode them and run the model in the same one"
        )


def _runs(mask: Sequence[Sequence[bool]]) -> list[tuple[int, int]]:
    """(row, length) of every run of True entries of a [B, S] mask, in order."""
    return [
        (row, sum(1 for _ in run))
        for row, flags in enumerate(mask)
        for inside, run in groupby(flags)
        if inside
    ]
