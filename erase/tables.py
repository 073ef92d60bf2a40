"""The command line's tables."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from erase.demo.operators import OperatorTime
from erase.demo.reading import Answer, Reading
from erase.demo.run import DemoResult, Side
from erase.extras import DISTRIBUTION, EXTRAS, install_command, missing, version
from erase.hf import SupportedModel, supported_models
from erase.inspection import Inspection
from erase.methods import EraseConfig
from erase.methods.presets import PRESETS
from erase_kernels import BackendInfo

NOTHING = "-"
HASH_SHOWN = 12
"""Leading hex digits of the build's fingerprint."""
_KIB = 2**10
_MIB = 2**20
READER_OPTION = "--reader bench/accuracy/weights"
"""What a checkout passes to let the demo read."""
_MILLISECONDS = 1e3


def share(part: int, whole: int) -> str:
    """``part`` with its percentage of ``whole``."""
    return f"{part} ({part / whole:.1%})" if whole else str(part)


def level_text(level: int, method: EraseConfig) -> str:
    """The level, how many there are, and what it means for the pruning layer."""
    kind = "complex: late" if level < method.num_complex_levels else "simple: early"
    return f"{level} of 0..{len(method.entropy_thresholds)} ({kind} layer)"


def inspection_table(name: str, preset: str, seen: Inspection) -> Table:
    """Everything ``erase inspect`` found."""
    size, method = len(seen.entropy), seen.method
    rows, columns = seen.grid
    _, height, width = seen.image.shape
    ratio = method.stage1_keep_ratios[seen.level]
    table = _two_columns(f"{name}, as {preset} would see it")
    table.add_row("resized to", f"{width} x {height} pixels")
    table.add_row("visual tokens", f"{size} ({columns} x {rows} cells of {seen.cell} pixels)")
    low, high = float(seen.entropy.min()), float(seen.entropy.max())
    table.add_row("entropy", f"{low:.3f} to {high:.3f} nats")
    table.add_row("median entropy", f"{seen.median:.3f} nats")
    thresholds = " > ".join(f"{value:.3f}" for value in method.entropy_thresholds)
    table.add_row("thresholds", f"{thresholds} nats")
    table.add_row("complexity level", level_text(seen.level, method))
    table.add_row("stage 1 keeps", share(len(seen.kept), size))
    table.add_row("stage 1 ratio", f"{ratio:.3f} (at least the final {method.keep_ratio})")
    if seen.final is not None:
        table.add_row("pruned after layer", f"{seen.layer} (0-based)")
        table.add_row("finally kept", share(seen.final, size))
    table.add_row("backends", _backends(seen.backends))
    return table


def info_table(info: BackendInfo, models: Sequence[str]) -> RenderableType:
    """Versions and backends, then the optional extras."""
    general = _two_columns(f"{DISTRIBUTION} here")
    for component, number in info.versions.items():
        general.add_row(component, number)
    for component in ("transformers", "typer", "rich"):
        general.add_row(component, version(component))
    general.add_row("native library", info.native)
    if info.native_hash:
        general.add_row("native build", info.native_hash[:HASH_SHOWN])
    if info.cpu_clone:
        general.add_row("CPU instruction set", info.cpu_clone)
    general.add_row("backend for CPU tensors", info.cpu)
    general.add_row("backend for CUDA tensors", info.cuda)
    general.add_row("model types", ", ".join(models))
    extras = Table(title="Optional extras", title_justify="left")
    for heading in ("extra", "state"):
        extras.add_column(heading, overflow="fold")
    for extra, packages in EXTRAS.items():
        absent = missing(extra)
        have = ", ".join(f"{name} {version(name)}" for name in packages if name not in absent)
        state = f"missing {', '.join(absent)}: {install_command(extra)}" if absent else have
        extras.add_row(extra, Text(state))
    return Group(general, extras)


def models_table() -> Table:
    """The published settings that can be named."""
    table = Table(title="Presets", title_justify="left")
    for heading in ("preset", "thresholds (nats)", "stage-1 ratios", "layers", "images", "source"):
        table.add_column(heading, overflow="fold")
    for name, preset in PRESETS.items():
        method = EraseConfig.for_model(preset.model)
        table.add_row(
            name,
            " ".join(f"{value:.3f}" for value in preset.entropy_thresholds),
            " ".join(f"{value:.3f}" for value in preset.stage1_keep_ratios),
            f"{method.early_layer} or {method.late_layer}",
            str(preset.resolution),
            preset.source,
        )
    return table


def videos_of(model: SupportedModel) -> str:
    """What becomes of a video."""
    if model.videos_are_images:
        return "frames as images"
    return "opt-in" if model.videos else "pass through"


def supported_table() -> Table:
    """The model types that can be pruned."""
    table = Table(title="Model types", title_justify="left")
    for heading in ("model type", "stage 2 after", "videos", "released query", "presets"):
        table.add_column(heading, overflow="fold")
    for model in supported_models():
        table.add_row(
            model.model_type,
            model.stage2,
            videos_of(model),
            "yes" if model.released else "no",
            ", ".join(model.presets) or NOTHING,
        )
    return table


def demo_tables(result: DemoResult) -> RenderableType:
    """One picture of the demo: both sides, then the operators."""
    return Group(_sides_table(result), _operator_table(result.operators))


def _sides_table(result: DemoResult) -> Table:
    row, left, right = result.report.rows[0], result.unpruned, result.pruned
    image, size = row.images[0], row.visual_tokens
    _, height, width = result.image.shape
    tokens = f"{size} visual + {result.prompt_tokens - size} text tokens"
    title = f"{result.picture.name}: {width} x {height} pixels, {tokens}"
    table = Table(title=Text(title), title_justify="left")
    table.add_column("")
    table.add_column("unpruned", overflow="fold", ratio=1)
    table.add_column("pruned", overflow="fold", ratio=1)
    table.add_row("prompt", Text(result.picture.question), "the same")
    table.add_row("median entropy", NOTHING, f"{image.median:.3f} nats")
    table.add_row("complexity level", NOTHING, level_text(image.level, result.method))
    table.add_row("visual tokens, stage 1", str(size), share(len(image.kept), size))
    layer = "stage 2 had nothing to drop" if row.layer is None else f"{row.layer} (0-based)"
    table.add_row("pruned after layer", NOTHING, layer)
    table.add_row("visual tokens, final", str(size), share(len(row.kept), size))
    table.add_row("KV cache, prefill", _mib(left, 0), _mib(right, 0, left))
    table.add_row("KV cache, first decode", _mib(left, 1), _mib(right, 1, left))
    runs = len(left.prefills)
    table.add_row(f"prefill, median of {runs}", _ms(left.prefill), _ms(right.prefill, left.prefill))
    table.add_row("  vision encoder", _ms(left.vision), _ms(right.vision))
    table.add_row("  all else", _ms(left.language), _ms(right.language, left.language))
    table.add_row("generated tokens", _ids(left), _ids(right))
    table.add_row("generated text", Text(printable(left.text)), Text(printable(right.text)))
    return table


def _operator_table(operators: list[OperatorTime]) -> Table:
    table = Table(title="operators of this prefill, each timed alone", title_justify="left")
    table.add_column("operator")
    table.add_column("backend")
    table.add_column("on", overflow="fold")
    table.add_column("ms", justify="right")
    for entry in operators:
        milliseconds = f"{entry.seconds * _MILLISECONDS:.3f}"
        table.add_row(entry.operator, entry.backend, Text(entry.what), milliseconds)
    return table


def reading_table(readings: Sequence[Reading]) -> Table:
    """What the reader was asked, what is printed, and what it says unpruned and pruned."""
    table = Table(title="reading labels, unpruned and pruned", title_justify="left")
    answers = ("asked", "printed", "unpruned says", "pruned says")
    for heading in ("picture", *answers, "visual tokens", "after layer", "KV KiB"):
        table.add_column(heading, overflow="fold")
    for reading in readings:
        row, left, right = reading.report.rows[0], reading.unpruned, reading.pruned
        table.add_row(
            reading.picture.name,
            reading.picture.prompt.question,
            reading.picture.printed,
            Text(answer_text(left)),
            Text(answer_text(right)),
            f"{row.visual_tokens} -> {len(row.images[0].kept)} -> {len(row.kept)}",
            NOTHING if row.layer is None else str(row.layer),
            f"{left.kv_bytes / _KIB:.0f} -> {right.kv_bytes / _KIB:.0f}",
        )
    return table


def answer_text(answer: Answer) -> str:
    """What was said, and whether it is right."""
    said = printable(answer.text).strip() or "nothing"
    return f"{said} ({'right' if answer.right else 'wrong'})"


def reading_notice(model: Any) -> str:
    """What the reading shows, and what it does not."""
    return (
        f"The reader is a stock Qwen2.5-VL of {_size(model)}, trained to read such labels and "
        "nothing else; the page and the photograph are real, the labels were printed on them. "
        "Visual tokens: all -> after stage 1 -> after stage 2; keys and values: of the unpruned "
        "prefill -> of the pruned one. Two answers show how it works, not how often it does."
    )


def reader_hint() -> str:
    """How to see the demo read."""
    return (
        "This demo pruned a model without training. To see a trained one read labels too: "
        f"erase demo {READER_OPTION}, in a checkout (the weights are in no wheel)."
    )


def _size(model: Any) -> str:
    millions = sum(weight.numel() for weight in model.parameters()) / 1e6
    layers = model.config.text_config.num_hidden_layers
    return f"{layers} decoder layers, {millions:.1f} million parameters"


def demo_notice(model: Any) -> str:
    """What the timed part of the demo does not show."""
    where = torch.cuda.get_device_name(model.device) if model.device.type == "cuda" else "the CPU"
    return (
        f"The model that is timed has the true architecture of Qwen2.5-VL but is tiny "
        f"({_size(model)}) and its weights are random: they make no sense of the "
        "picture, so neither its words nor the tokens that stage 2 keeps mean anything. "
        "Stage 1 needs no weights: it keeps what it would keep for a trained model. Times are for "
        f"this tiny model on this machine ({where}, {torch.get_num_threads()} CPU threads)."
    )


def printable(text: str) -> str:
    """``text`` with a middle dot for what a terminal would not print, or would obey."""
    return "".join(char if char.isprintable() else "\N{MIDDLE DOT}" for char in text)


def _two_columns(title: str) -> Table:
    table = Table(title=Text(title), title_justify="left", show_header=False)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    return table


def _backends(backends: dict[str, str]) -> str:
    return ", ".join(f"{operator}: {name}" for operator, name in sorted(backends.items()))


def _mib(side: Side, forward: int, base: Side | None = None) -> str:
    if forward >= len(side.kv_bytes):
        return NOTHING
    held = side.kv_bytes[forward]
    text = f"{held / _MIB:.2f} MiB"
    return text if base is None else f"{text} ({held / base.kv_bytes[forward]:.1%})"


def _ms(seconds: float, base: float | None = None) -> str:
    text = f"{seconds * _MILLISECONDS:.0f} ms"
    return text if base is None else f"{text} ({base / seconds:.2f}x the speed)"


def _ids(side: Side) -> str:
    return " ".join(str(token) for token in side.tokens)
