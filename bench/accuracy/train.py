"""Trains the reading model: ``python -m bench.accuracy.train`` (resumes where it was stopped)."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy
from torch.utils.data import DataLoader, Subset

from bench.accuracy import curve
from bench.accuracy.curriculum import GLYPHS, Batch, Batches, joint_start
from bench.accuracy.forward import answer_logits, encode, patches, plan_for
from bench.accuracy.layout import conversation
from bench.accuracy.model import HIDDEN, WEIGHTS, build_model, save_model
from bench.accuracy.samples import Sample, held_out

STEPS = 9000
SEED = 0
PEAK_RATE = 2e-3
"""Learning rate of both optimisers; Muon's is scaled to AdamW's root mean square."""
WARM_UP = 50
"""Steps, once for the encoder alone and once more when the language model joins."""
CONSTANT = 0.35
"""Share of the joint steps at the peak rate; then a cosine down to ``FINAL_RATE``."""
FINAL_RATE = 0.02
"""Share of the peak rate at the last step."""
WEIGHT_DECAY = 0.05
MOMENTUM = 0.95
BETAS = (0.9, 0.98)
CLIP = 1.0
GLYPH_SCALE = 30.0
"""The classifier's loss is a mean over 30 mostly absent glyphs."""
GLYPH_POSITIVE = 4.0
"""Weight of a present glyph over an absent one."""
COMPILED_GRIDS = ((4, 4), (8, 8), (16, 16))
"""Grids whose encoder is compiled; the rarer ones would cost more than they save."""
REPORT_EVERY = 100
"""Steps between two points of the curve's loss."""
TEST_EVERY = 500
"""Steps between two measurements of exact match, on the validation split."""
TESTED = {(8, 8): 180, (16, 16): 60}
"""Images per measurement and grid."""


@dataclass
class Run:
    """A training run: what a checkpoint holds."""

    model: Any
    classifier: nn.Linear
    optimizers: list[torch.optim.Optimizer]
    seed: int
    steps: int
    step: int = 0
    seconds: float = 0.0
    points: list[dict[str, float]] = field(default_factory=list)

    def save(self, path: Path) -> None:
        """Writes the checkpoint whole or not at all."""
        part = path.with_suffix(".part")
        state = {
            "model": self.model.state_dict(),
            "classifier": self.classifier.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "seed": self.seed,
            "steps": self.steps,
            "step": self.step,
            "seconds": self.seconds,
            "points": self.points,
        }
        torch.save(state, part)
        os.replace(part, path)

    def load(self, path: Path) -> None:
        """Goes on from a checkpoint.

        Raises:
            ValueError: it is of another seed or number of steps.
        """
        state = torch.load(path, map_location="cpu", weights_only=True)
        for name in ("seed", "steps"):
            if state[name] != getattr(self, name):
                raise ValueError(
                    f"{name}: {path} is a run with {state[name]}, expected {getattr(self, name)}"
                )
        self.model.load_state_dict(state["model"])
        self.classifier.load_state_dict(state["classifier"])
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        self.step, self.seconds, self.points = state["step"], state["seconds"], state["points"]


def start(seed: int, steps: int, device: torch.device) -> Run:
    """An untrained model with its optimisers."""
    model = build_model(seed).to(device).train()
    torch.manual_seed(seed)
    classifier = nn.Linear(HIDDEN, len(GLYPHS)).to(device)
    matrices: list[nn.Parameter] = []
    others = list(classifier.parameters())
    for name, weight in model.named_parameters():
        inner = weight.ndim == 2 and "embed_tokens" not in name and "lm_head" not in name
        (matrices if inner else others).append(weight)
    muon = torch.optim.Muon(
        matrices,
        lr=PEAK_RATE,
        weight_decay=WEIGHT_DECAY,
        momentum=MOMENTUM,
        adjust_lr_fn="match_rms_adamw",
    )
    adam = torch.optim.AdamW(others, lr=PEAK_RATE, betas=BETAS, weight_decay=0.0, fused=True)
    return Run(model, classifier, [muon, adam], seed, steps)


def rate(step: int, steps: int) -> float:
    """Learning rate of a step."""
    joint = joint_start(steps)
    since = step if step < joint else step - joint
    warm = min(1.0, (since + 1) / WARM_UP)
    progress = (step - joint) / max(1, steps - joint)
    if progress <= CONSTANT:
        return PEAK_RATE * warm
    falling = (progress - CONSTANT) / (1 - CONSTANT)
    return PEAK_RATE * (FINAL_RATE + (1 - FINAL_RATE) * (1 + math.cos(math.pi * falling)) / 2)


class Trainer:
    """One step after the other."""

    def __init__(self, run: Run, device: torch.device, compiled: bool) -> None:
        self.run, self.device = run, device
        self.compiled = torch.compile(encode, dynamic=False) if compiled else encode
        self.losses: dict[str, list[float]] = {}

    def encode(self, images: Tensor, grid: tuple[int, int]) -> Tensor:
        """Visual tokens of u8 images."""
        visual = self.run.model.model.visual
        call = self.compiled if grid in COMPILED_GRIDS else encode
        tokens: Tensor = call(visual, patches(images.to(self.device)), plan_for(visual, grid))
        return tokens

    def step(self, batch: Batch) -> None:
        """Forward, backward, both optimisers."""
        run = self.run
        lr = rate(run.step, run.steps)
        for optimizer in run.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = lr
        with torch.autocast(self.device.type, torch.bfloat16):
            visual = self.encode(batch.images, batch.grid)
            found = run.classifier(visual)
            logits = None
            if batch.ids.numel():
                ids, predicting = batch.ids.to(self.device), batch.predicting.to(self.device)
                logits = answer_logits(run.model, ids, visual, batch.grid, predicting)
        glyphs = batch.glyphs.to(self.device)
        positive = torch.full((len(GLYPHS),), GLYPH_POSITIVE, device=self.device)
        glyph_loss = GLYPH_SCALE * binary_cross_entropy_with_logits(
            found.float(), glyphs, pos_weight=positive
        )
        loss = batch.glyph_weight * glyph_loss
        self._note("glyph_loss", glyph_loss)
        if logits is not None:
            wanted = ids[:, predicting + 1]
            answer_loss = cross_entropy(logits.float().flatten(0, 1), wanted.flatten())
            self._note("answer_loss", answer_loss)
            loss = loss + answer_loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self._parameters(), CLIP)
        for optimizer in run.optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        run.step += 1

    def _parameters(self) -> Iterator[nn.Parameter]:
        for optimizer in self.run.optimizers:
            for group in optimizer.param_groups:
                yield from group["params"]

    def _note(self, name: str, loss: Tensor) -> None:
        self.losses.setdefault(name, []).append(float(loss.detach()))

    @torch.no_grad()
    def exact_match(self, samples: Sequence[Sample], batch: int = 30) -> float:
        """Share of samples whose answer greedy decoding would give, end of turn included."""
        right = 0
        grid = samples[0].grid
        for at in range(0, len(samples), batch):
            some = samples[at : at + batch]
            images = torch.stack([torch.from_numpy(sample.image.copy()) for sample in some])
            prompts = [conversation(s, [s.asked], grid[0] * grid[1]) for s in some]
            ids = torch.tensor([row for row, _ in prompts], device=self.device)
            predicting = torch.tensor(prompts[0][1], device=self.device)
            visual = encode(
                self.run.model.model.visual,
                patches(images.to(self.device)),
                plan_for(self.run.model.model.visual, grid),
            )
            logits = answer_logits(self.run.model, ids, visual, grid, predicting)
            hits = logits.argmax(-1) == ids[:, predicting + 1]
            right += int(hits.all(1).sum())
        return right / len(samples)

    def point(self, test: bool) -> dict[str, float]:
        """A row of the curve: mean losses since the last one, and exact match if wanted."""
        row: dict[str, float] = {"step": self.run.step, "seconds": round(self.run.seconds, 1)}
        row |= {name: sum(values) / len(values) for name, values in self.losses.items()}
        self.losses.clear()
        if test:
            for grid, count in TESTED.items():
                samples = [held_out("validation", i, grid) for i in range(count)]
                row[f"exact_match_{grid[0] * grid[1]}"] = self.exact_match(samples)
        return row


def train(run: Run, device: torch.device, checkpoint: Path, compiled: bool) -> None:
    """Runs the remaining steps; the checkpoint is written at every measurement."""
    trainer = Trainer(run, device, compiled)
    rest = Subset(Batches(run.seed, run.steps), range(run.step, run.steps))
    workers = max(1, (os.cpu_count() or 2) // 2)
    loader: DataLoader[Batch] = DataLoader(
        rest, batch_size=None, num_workers=workers, prefetch_factor=4
    )
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, TimeRemainingColumn()) as progress:
        task = progress.add_task("training", total=run.steps, completed=run.step)
        last = time.perf_counter()
        for batch in loader:
            trainer.step(batch)
            now = time.perf_counter()
            run.seconds, last = run.seconds + now - last, now
            if run.step % REPORT_EVERY == 0 or run.step == run.steps:
                test = run.step % TEST_EVERY == 0 or run.step == run.steps
                point = trainer.point(test)
                run.points.append(point)
                said = ", ".join(f"{k} {v:.3f}" for k, v in point.items() if k != "step")
                progress.console.print(f"step {run.step}: {said}", highlight=False)
                if test:
                    run.save(checkpoint)
                    curve.write(run.points, checkpoint.parent)
                last = time.perf_counter()  # measuring is not training
            progress.update(task, completed=run.step)


def main(
    output: Annotated[Path, typer.Option(help="Folder of checkpoint, curve and weights.")],
    steps: Annotated[int, typer.Option(help="Optimiser steps in all.")] = STEPS,
    seed: Annotated[int, typer.Option(help="Of weights and data.")] = SEED,
    device: Annotated[str, typer.Option(help="cpu or cuda; by default CUDA when there.")] = "",
    compiled: Annotated[bool, typer.Option(help="Compile the encoder's common shapes.")] = True,
) -> None:
    """Train the reading model from scratch, or go on with the run in the output folder."""
    place = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    output.mkdir(parents=True, exist_ok=True)
    checkpoint = output / "checkpoint.pt"
    run = start(seed, steps, place)
    if checkpoint.exists():
        run.load(checkpoint)
        print(f"going on at step {run.step} of {run.steps}")
    train(run, place, checkpoint, compiled)
    save_model(run.model, output)
    print(f"weights: {output} ({WEIGHTS} holds the committed ones)")


if __name__ == "__main__":
    typer.run(main)
