"""The integration's oracle: what a pruned model must compute, worked out in another way.

Nothing here comes from the packages under test. Stage 1 is ``tests/oracle_choices.py``. Stage-2
scores are the attention weights that the stock eager attention returns (what
``output_attentions`` reports) or, for the released query, float64 arithmetic on the residual stream
before (Qwen2) or after (Qwen3) the layer.
Nothing is removed: every decoder layer of the full-length model gets a 4-D mask that hides the
pruned columns, so positions, cache and decoding are those of the unpruned model. Linear-attention
layers, which no mask makes blind, run over the visible tokens alone (``tests/oracle_states.py``).

Use it around any call of the model::

    with Oracle(model, config, images) as oracle:
        out = model.generate(**inputs)
    oracle.turns[-1].rows[0].kept
"""

from __future__ import annotations

import functools
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from tests.oracle_choices import (
    Picture,
    RowChoice,
    Turn,
    choose_image,
    choose_row,
    pictures_on,
    top_indices,
)
from tests.oracle_rotary import rotate
from tests.oracle_states import see_only

RELEASED_SKIP = {"qwen2_vl": 15, "qwen2_5_vl": 15, "qwen3_vl": 4, "qwen3_vl_moe": 4}
"""Text tokens the published code leaves out of the queries."""


def _double(x: torch.Tensor) -> torch.Tensor:
    return x.detach().double().cpu()


class Oracle:
    """Masks an unpatched eager model so that it computes what the pruned one must.

    Its own state is on the CPU, wherever the model is.

    Args:
        model: stock model with ``attn_implementation="eager"``.
        config: anything with the fields of the ERASE configuration.
        images: resized uint8 images [3, H, W] or pictures, in the order in which the coming
            prefills use them.
        follow: reports whose stage-2 choices replace its own; it still scores for itself.
        videos: the same for videos, which are pruned too; None: they are not.
    """

    def __init__(
        self,
        model: Any,
        config: Any,
        images: list[Any],
        follow: list[Any] | None = None,
        videos: list[Any] | None = None,
    ) -> None:
        assert model.config.get_text_config()._attn_implementation == "eager"
        self.model = model
        self.config = config
        self.turns: list[Turn] = []
        self.other_prefills = 0  # prefills without images
        self._left = [("image", list(images))]
        if videos is not None:
            self._left.append(("video", list(videos)))
        self._follow = follow
        self._handles: list[Any] = []
        self._hidden: torch.Tensor | None = None  # bool [B, L]: columns pruned for good
        self._valid: torch.Tensor | None = None  # bool [B, L]: not padding
        self._now: SimpleNamespace | None = None

    def __enter__(self) -> Oracle:
        base = self.model.base_model
        self._stack = getattr(base, "language_model", None) or base.text_model
        self._handles.append(base.register_forward_pre_hook(self._begin, with_kwargs=True))
        for index, layer in enumerate(self._stack.layers):
            before = functools.partial(self._mask_layer, index)
            self._handles.append(layer.register_forward_pre_hook(before, with_kwargs=True))
            if hasattr(layer, "linear_attn"):
                visible = functools.partial(self._visible_to_state, index)
                self._handles.append(see_only(layer.linear_attn, self._stack.config, visible))
                continue
            after = functools.partial(self._after_attention, index)
            self._handles.append(layer.self_attn.register_forward_hook(after, with_kwargs=True))
        end = self._stack.norm.register_forward_pre_hook(lambda _, args: self._after_layer(args[0]))
        self._handles.append(end)
        return self

    def __exit__(self, *exc: object) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    @property
    def unused_images(self) -> int:
        """Images and videos that no prefill has used."""
        return sum(len(pictures) for _, pictures in self._left)

    @property
    def kept_columns(self) -> torch.Tensor:
        """bool [B, L]: columns of the unpruned sequence that are neither padding nor pruned."""
        return self._valid & ~self._hidden

    @property
    def batch(self) -> int:
        return self._valid.shape[0]

    # -- one forward ---------------------------------------------------------------------------

    def _begin(self, module: Any, args: tuple, kwargs: dict) -> None:
        ids = (args[0] if args else kwargs["input_ids"]).cpu()
        cache = kwargs.get("past_key_values")
        past = 0 if cache is None else cache.get_seq_length()
        self._extend_state(ids, past, kwargs.get("attention_mask"))
        places = self._places(ids)
        rows = None
        if any(bool(places[modality].any()) for modality, _ in self._left):
            rows = self._choose_rows(places, past)
            self.turns.append(Turn(rows, past, ids.shape[1]))
        elif ids.shape[1] > 1:
            self.other_prefills += 1
        self._now = SimpleNamespace(
            past=past, length=ids.shape[1], rows=rows, stage1=None, pending=None
        )
        if rows is not None:
            self._now.stage1 = self._hidden_by(rows, "stage1")
            self._commit(rows)

    def _extend_state(self, ids: torch.Tensor, past: int, mask: torch.Tensor | None) -> None:
        batch, length = ids.shape
        new = torch.zeros(batch, length, dtype=torch.bool)
        if past == 0:
            self._hidden, self._valid = new, ~new
        else:
            self._hidden = torch.cat([self._hidden[:, :past], new], dim=1)
            self._valid = torch.cat([self._valid[:, :past], ~new], dim=1)
        if mask is not None:
            assert mask.shape == self._valid.shape
            self._valid = mask.bool().cpu().clone()

    def _places(self, ids: torch.Tensor) -> dict[str, torch.Tensor]:
        """bool [B, S]: placeholders of each modality."""
        config = self.model.config
        video = getattr(config, "video_token_id", None)
        return {
            "image": ids == config.image_token_id,
            "video": torch.zeros_like(ids).bool() if video is None else ids == video,
        }

    def _choose_rows(self, places: dict[str, torch.Tensor], past: int) -> list[RowChoice]:
        text = self._valid[:, past:] & ~places["image"] & ~places["video"]
        rows = []
        for b in range(len(text)):
            images: list[Picture] = []
            visual: list[int] = []
            for modality, left in self._left:
                columns = (past + places[modality][b].nonzero().flatten()).tolist()
                shown = pictures_on(left, self._valid[b, columns].tolist())
                images += shown
                flags = [candidate for picture in shown for candidate in picture.candidates]
                visual += [v for v, candidate in zip(columns, flags, strict=True) if candidate]
            queries = (past + text[b].nonzero().flatten()).tolist()
            choices = [choose_image(self.config, picture) for picture in images]
            rows.append(choose_row(self.config, visual, queries, choices))
        return rows

    def _hidden_by(self, rows: list[RowChoice], stage: str) -> torch.Tensor:
        hidden = self._hidden.clone()
        for b, row in enumerate(rows):
            stays = set(getattr(row, stage))
            hidden[b, [v for v in row.visual if v not in stays]] = True
        return hidden

    def _commit(self, rows: list[RowChoice]) -> None:
        if all(row.kept is not None for row in rows):
            self._hidden = self._hidden_by(rows, "kept")
            self.turns[-1].valid_after = self.kept_columns.sum(1).tolist()

    def _mask_layer(self, index: int, module: Any, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
        now = self._now
        self._after_layer(args[0])
        now.layer_input = args[0]
        if hasattr(module, "linear_attn"):
            return args, kwargs
        hidden = self._hidden if now.rows is None else self._hidden_at(index)
        total = now.past + now.length
        rows = torch.arange(now.past, total)[:, None]
        causal = torch.arange(total)[None, :] <= rows
        allowed = causal[None] & (self._valid & ~hidden)[:, None, :]
        dtype = args[0].dtype
        # Also in float64 a number that fp32 has: the softmax is in fp32, and padding sees nothing.
        lowest = max(torch.finfo(dtype).min, torch.finfo(torch.float32).min)
        mask = torch.zeros(allowed.shape, dtype=dtype).masked_fill(~allowed, lowest)
        return args, {**kwargs, "attention_mask": mask[:, None].to(args[0].device)}

    def _visible_to_state(self, index: int) -> torch.Tensor | None:
        """bool [B, S] of the new tokens a linear-attention layer sees; None: as the stock model."""
        if self._now.rows is None:
            return None
        hidden = self._hidden_at(index)[:, self._now.past :]
        return self._valid[:, self._now.past :] & ~hidden if bool(hidden.any()) else None

    def _hidden_at(self, index: int) -> torch.Tensor:
        """Stage-1 set up to the row's layer, final set above it."""
        hidden = self._now.stage1.clone()
        for b, row in enumerate(self._now.rows):
            if row.layer is not None and index > row.layer:
                stays = set(row.kept)
                hidden[b, [v for v in row.visual if v not in stays]] = True
        return hidden

    # -- stage 2 -------------------------------------------------------------------------------

    def _after_attention(
        self, index: int, module: Any, args: tuple, kwargs: dict, output: tuple
    ) -> None:
        rows = self._now.rows
        if rows is None or not any(row.wanted_layer == index for row in rows):
            return
        if self.config.query != "released":
            self._finish_rows(index, _double(output[1]))  # [B, H, S, past + S]
        elif hasattr(module, "q_norm"):
            self._now.pending = index, module, kwargs  # Qwen3 asks with what leaves the layer
        else:
            self._finish_rows(index, self._released_weights(module, kwargs, self._now.layer_input))

    def _after_layer(self, hidden: torch.Tensor) -> None:
        """The residual stream as the next layer, or the last norm, gets it."""
        if self._now.pending is not None:
            (index, module, kwargs), self._now.pending = self._now.pending, None
            self._finish_rows(index, self._released_weights(module, kwargs, hidden))

    def _finish_rows(self, index: int, weights: torch.Tensor) -> None:
        for b, row in enumerate(self._now.rows):
            if row.wanted_layer == index:
                self._finish_row(index, row, weights[b].mean(0))
                if self._follow is not None:
                    row.kept = self._follow[len(self.turns) - 1].rows[b].kept.tolist()
        self._commit(self._now.rows)

    def _finish_row(self, index: int, row: RowChoice, weights: torch.Tensor) -> None:
        released = self.config.query == "released"
        skip = RELEASED_SKIP[self.model.config.model_type] if released else 0
        queries = [t - self._now.past for t in row.text[skip:]]
        row.layer = index
        row.candidates = row.stage1
        row.scores = weights[queries][:, row.candidates].sum(0).numpy()
        row.kept = [row.candidates[i] for i in top_indices(row.scores, row.budget)]
        last, first_dropped = (
            np.sort(row.scores)[::-1][row.budget - 1 :][:2] if row.budget else (0, 0)
        )
        if last > 0:
            row.margin = float((last - first_dropped) / last)

    def _released_weights(
        self, module: Any, kwargs: dict[str, Any], residual: torch.Tensor
    ) -> torch.Tensor:
        """float64 [B, H, S, L]: queries of the un-normalised ``residual``, keys of the layer."""
        cos, sin = map(_double, kwargs["position_embeddings"])
        sections = self.model.config.get_text_config().rope_parameters["mrope_section"]

        def heads(name: str, x: torch.Tensor) -> torch.Tensor:
            projection = getattr(module, f"{name}_proj")
            y = _double(x) @ _double(projection.weight).T
            if projection.bias is not None:
                y = y + _double(projection.bias)
            y = y.view(*x.shape[:2], -1, module.head_dim)
            norm = getattr(module, f"{name}_norm", None)
            if norm is not None:
                mean_square = y.pow(2).mean(-1, keepdim=True)
                y = y / (mean_square + norm.variance_epsilon).sqrt() * _double(norm.weight)
            return rotate(y.transpose(1, 2), cos, sin, sections)

        query, key = heads("q", residual), heads("k", kwargs["hidden_states"])
        cache = kwargs.get("past_key_values")
        if cache is not None:
            past = cache.layers[module.layer_idx].keys[:, :, : self._now.past]
            key = torch.cat([_double(past), key], dim=2)
        key = key.repeat_interleave(query.shape[1] // key.shape[1], dim=1)
        logits = query @ key.transpose(2, 3) * module.scaling + _double(kwargs["attention_mask"])
        return torch.softmax(logits, dim=-1)
