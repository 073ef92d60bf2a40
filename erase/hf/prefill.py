"""One prefill with new images: plan, stage 1, scoring, stage 2, and putting the output back."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from erase.hf import cache as kv
from erase.hf.current import drafted_tokens
from erase.hf.deepstack import MASK_ARGUMENT, PLANES_ARGUMENT, Deepstack
from erase.hf.drafts import append_step, split_drafts
from erase.hf.families import Encoded
from erase.hf.gather import gather_rows, take
from erase.hf.masks import like_given, past_validity, slot_mask, token_mask
from erase.hf.planning import Surroundings, check_layers, plan_images
from erase.hf.prompt import Prompt
from erase.hf.pruned_cache import cache_state, mark_pruned
from erase.hf.recurrent import linear_mask, mask_of_layer, masks_by_kind
from erase.hf.refusals import (
    check_all_encoded,
    check_checkpointing,
    check_encoded,
    check_layers_seen,
    refuse_without_pixels,
)
from erase.hf.reporting import build_report
from erase.hf.scoring import Observed, RowScores, Scored, score_rows
from erase.hf.signals import APPROXIMATE_KEY, Modality, entropies_in
from erase.hf.slots import Move, Slots, join_valid
from erase.methods import Method
from erase.transfer import moved

if TYPE_CHECKING:
    from erase.hf.session import Session


@dataclass(eq=False)
class Prefill:
    """State of one forward; made by the pre-hook of the vision-language model."""

    session: Session
    method: Method
    prompt: Prompt
    expected: tuple[Modality, ...]  # what was brought, and must have been encoded by then
    encoded: dict[Modality, tuple[Encoded, ...]] = field(default_factory=dict)
    approximate: bool = False
    row_scores: dict[int, RowScores] = field(default_factory=dict)
    operators: set[str] = field(default_factory=set)  # used after planning, for the report
    changed: bool = False
    layers_seen: int = 0
    deepstack: Deepstack | None = None
    _masked: int = 0  # image tokens of the deepstack planes that are padding
    _scoring: nn.Module | None = None
    _pending: Observed | None = None
    _scored: Scored | None = None
    _residual: Tensor | None = None
    _cache: Any = None
    _drafts: dict[str, Any] | None = None  # arguments of a step that follows the pruned prompt
    _overrides: dict[str, Any] = field(default_factory=dict)

    def receive(self, encoder_output: Any, modality: Modality) -> None:
        """Entropies of this prefill's images, or of its videos."""
        check_encoded(encoder_output, modality)
        encoded = entropies_in(encoder_output)
        if encoded is not None:
            self.encoded[modality] = encoded
        self.approximate |= bool(encoder_output.get(APPROXIMATE_KEY, False))

    # -- before the language model -------------------------------------------------------------

    def enter(self, kwargs: dict[str, Any]) -> dict[str, Any]:
        """Plan, and run stage 1: the language model's arguments, shortened."""
        embeds = kwargs["inputs_embeds"]
        cache = kwargs.get("past_key_values")
        kv.check_cache(cache)
        if torch.is_grad_enabled():
            check_checkpointing(self.session.architecture.layers)
        check_all_encoded(self.expected, self.encoded)
        self.batch, self.length = embeds.shape[:2]
        self.device, self.dtype = embeds.device, embeds.dtype
        self.past, self.logical_past = kv.physical_length(cache), kv.logical_length(cache)
        self.state, self.capacity = kv.state_of(cache), kv.capacity(cache)
        given, static = kwargs.get("attention_mask"), self.capacity is not None
        token = token_mask(given, self.batch, self.logical_past, self.length, static)
        mask = token.tokens
        self.past_valid = past_validity(
            None if self.state is None else self.state.valid,
            0 if self.state is None else self.state.width,
            mask,
            self.batch,
            self.past,
            self.length,
            self.device,
        )
        valid = None
        if mask is not None:
            valid = moved(mask[:, -self.length :], self.device, torch.bool)
        faults = (kv.filled_rows(cache, self.batch, self.device), token.unfit)
        self._plan(valid, faults)
        if self.drafted and self.plan.drops_later:
            prompt, self._drafts = split_drafts(kwargs, self.drafted)
            self.prompt = self.prompt.without_last(self.drafted)
            return self.enter(prompt)
        full = all(count == self.length for count in self.plan.counts.valid)
        if all(count == self.past for count in self.plan.counts.past):
            self.past_valid = None
        self.slots = Slots(
            width=self.length,
            counts=self.plan.counts.valid,
            valid=None if full else valid,
            visual=self.plan.visual,
            text=self._text,
            positions=None,
        )
        return self._stage1(kwargs)

    def _plan(self, valid: Tensor | None, faults: tuple[Tensor | None, ...]) -> None:
        architecture = self.session.architecture
        streams, unpruned, visual = self.prompt.streams(architecture, self.encoded, self.device)
        text = ~visual if valid is None else ~visual & valid
        # Assisted generation appends tokens that it may take back: they must not choose.
        self.drafted = drafted_tokens(self.logical_past + self.length)
        text = text.narrow(1, 0, self.length - self.drafted)
        self._text = torch.nn.functional.pad(text, (0, self.drafted))
        devices = tuple(self.session.devices)
        past = self.past_valid, self.past
        around = Surroundings(self._text, unpruned, valid, *past, devices, faults)
        self.plan = plan_images(self.method, streams, around)
        check_layers(self.plan, architecture.facts)
        if self.session.videos and any(self.plan.counts.unpruned):
            # Whatever did not come with pixels has no entropies either.
            refuse_without_pixels("video" if "image" in self.encoded else "image")

    def _stage1(self, kwargs: dict[str, Any]) -> dict[str, Any]:
        plan, kwargs = self.plan, dict(kwargs)
        planes = kwargs.get(PLANES_ARGUMENT)
        if planes:
            self.deepstack = Deepstack(kwargs[MASK_ARGUMENT], planes)
            self._masked = sum(plan.counts.masked)
        if plan.drops or self.method.force_gathers:
            keep = self.slots.keep_all()
            if plan.drops:
                keep = self.slots.keep_valid(plan.kept_visual())
            move = self.slots.compact(keep, plan.entering_counts(), identity=not plan.drops)
            self._adopt(move, plan.drops)
            if self.deepstack is not None:
                self._follow(self.deepstack, move, sum(plan.counts.visual) - sum(plan.entered))
                kwargs |= self.deepstack.arguments()
            positions = self.session.architecture.family.full_positions(
                kwargs.get("position_ids"), self.batch, self.length, self.logical_past, self.device
            )
            kwargs["inputs_embeds"] = gather_rows(
                [kwargs["inputs_embeds"]], move.index, move.counts
            )[0]
            kwargs["position_ids"] = take(positions, move.index, move.counts)
            # Layers would read the gaps in them as packed sequences; the tables are made above.
            self._overrides["position_ids"] = None
        if self.slots.positions is not None or self.state is not None:
            masks = like_given(kwargs.get("attention_mask"), self._masks())
            if masks is None and kwargs.get("past_key_values") is None:
                # So would the making of masks, where it gets neither a mask nor a cache.
                width = self.past + self.slots.width
                masks = torch.ones(self.batch, width, dtype=torch.bool, device=self.device)
            kwargs["attention_mask"] = masks
        kv.check_room(kwargs.get("past_key_values"), self.past + self.slots.width)
        return kwargs

    def _masks(self) -> Any:
        config, slots = self.session.architecture.text_config, self.slots
        valid = join_valid(self.past_valid, self.past, slots, self.device)
        sizes = self.batch, slots.width, self.past
        mask = slot_mask(config, valid, *sizes, self.dtype, self.device, self.capacity)
        return masks_by_kind(config, mask, linear_mask(slots))

    def _follow(self, deepstack: Deepstack, move: Move, dropped: int) -> None:
        if dropped:  # masked image tokens go with the rest of the padding
            dropped += self._masked
            self._masked = 0
        deepstack.follow(move, dropped)

    def _adopt(self, move: Move, drops: bool) -> None:
        self.slots = move.slots
        self.operators.add("compact_rows")
        self.changed = self.changed or drops

    # -- inside the decoder ----------------------------------------------------------------------

    def before_layer(
        self, index: int, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Apply stage 2 of the layer before, and get ready to score this one."""
        self.layers_seen += 1
        kwargs = {**kwargs, **self._overrides}
        hidden = args[0] if args else kwargs.pop("hidden_states")
        self._cache = kwargs.get("past_key_values")
        hidden = self._apply_scored(index, hidden)
        kwargs.update(self._overrides)
        config = self.session.architecture.text_config
        kwargs["attention_mask"] = mask_of_layer(config, index, kwargs.get("attention_mask"))
        if self.plan.rows_pruned_after(index):
            self._layer, self._scoring = index, self.session.architecture.attention(index)
            self._position_embeddings = kwargs["position_embeddings"]
            if "residual_queries" in self.method.needs:
                self._residual = hidden
        return (hidden, *args[1:]), kwargs

    def before_norm(self, args: tuple[Any, ...]) -> tuple[Any, ...]:
        """Apply stage 2 of the last layer."""
        last = len(self.session.architecture.layers)
        return (self._apply_scored(last, args[0]), *args[1:])

    def wants(self, module: nn.Module) -> bool:
        """Whether this attention module is the one to score now."""
        return module is self._scoring and not self.session.closed

    def observe(self, module: nn.Module, query: Tensor, key: Tensor, scale: float | None) -> None:
        """Remember what the layer attended with; its queries are replaced where the method asks."""
        self._scoring = None
        scale = query.shape[-1] ** -0.5 if scale is None else scale
        seen = Observed(module, query.detach(), key.detach(), scale)
        if self._residual is not None and self.session.architecture.family.released_from_output:
            self._pending = seen  # its output is not there yet
            return
        self._score(seen, self._residual)

    def _score(self, seen: Observed, residual: Tensor | None) -> None:
        skip = 0
        if residual is not None:
            family = self.session.architecture.family
            skip = family.released_skip or 0
            # Hooks of a layer run before its inputs are brought to its device.
            given = (residual, *self._position_embeddings)
            hidden, cos, sin = (moved(t, seen.query.device) for t in given)
            with torch.no_grad():
                query = family.residual_query(seen.module, hidden, (cos, sin))
            seen = dataclasses.replace(seen, query=query)
        self._residual, self._pending = None, None
        self._scored = score_rows(self, self._layer, seen, skip)
        self.row_scores.update(self._scored.rows)
        self.operators.add("text_to_vision_scores")

    def _apply_scored(self, index: int, hidden: Tensor) -> Tensor:
        """Stage 2 of layer ``index - 1``, if it has one: shortens hidden states and the cache."""
        if not self.plan.rows_pruned_after(index - 1):
            return hidden
        if self._pending is not None:
            self._score(self._pending, hidden)
        if self._scored is None:
            raise RuntimeError(
                f"stage 2: the attention of layer {index - 1} was never seen; was the model's "
                "attention implementation changed while the session was open?"
            )
        scored, self._scored = self._scored, None
        move = scored.move
        if kv.written(self._cache, self.past) is not None:
            # Autograd may have saved the keys and values, so only inference overwrites them.
            in_place = not hidden.requires_grad
            width = move.slots.width
            kv.evict(
                self._cache, index - 1, self.past, move.index, move.counts, width, in_place=in_place
            )
            if in_place:
                self.operators.add("compact_kv_")
        embeddings = self._position_embeddings
        hidden, *embeddings = gather_rows([hidden, *embeddings], move.index, move.counts)
        self._adopt(move, scored.dropped > 0)
        if self.deepstack is not None and self.deepstack.expects_more:
            self._follow(self.deepstack, move, scored.dropped)
        self._overrides = {
            "attention_mask": self._masks(),
            # Detached: as rows of one gather they would carry the gradient of the hidden states.
            "position_embeddings": tuple(t.detach() for t in embeddings),
            "position_ids": None,
        }
        return hidden

    # -- after the language model ----------------------------------------------------------------

    def leave(self, output: Any) -> Any:
        """Put hidden states back to the prompt's length, mark the cache, file the report."""
        cache = kv.written(output.past_key_values, self.past)
        check_layers_seen(self.layers_seen, len(self.session.architecture.layers))
        if self.slots.positions is not None:
            output.last_hidden_state = self.slots.scatter(output.last_hidden_state, self.length)
        report = build_report(self, cache)
        if cache is not None and (self.changed or self.state is not None):
            mark_pruned(cache, cache_state(self, report))
        self.session.file(report)
        if self._drafts is not None:
            append_step(output, self._drafts, self)
        return output
