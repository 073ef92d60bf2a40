"""The ``erase`` command: demo, inspect, info, models."""

from __future__ import annotations

import enum
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, NoReturn

import torch
import typer
from PIL import Image
from rich.console import Console

import erase_kernels
from erase import tables, visualize
from erase.demo import (
    PRESET,
    DemoSettings,
    Picture,
    Reader,
    ReaderError,
    ReadingPicture,
    build_model,
    builtin_pictures,
    check_reader,
    load_reader,
    read_all,
    reading_pictures,
    run_picture,
)
from erase.demo.operators import OPERATORS as DEMO_OPERATORS
from erase.extras import DISTRIBUTION, MissingExtraError, require
from erase.hf import supported_model_types
from erase.inspection import OPERATORS, ImageShapeError, inspect_image, load_image, resize
from erase.methods import PRESETS, EraseConfig, find_preset
from erase.methods.presets import PixelBounds
from erase.panels import demo_figure, inspection_panels
from erase.progress import prefixed, progress_bar

app = typer.Typer(
    name="erase",
    help="Two-stage visual token pruning for vision-language models.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_show_locals=False,
)


class Device(str, enum.Enum):
    """Where the demo runs."""

    auto = "auto"
    cpu = "cpu"
    cuda = "cuda"


Keep = Annotated[float, typer.Option(help="Share of visual tokens to keep in the end, in (0, 1].")]


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"{DISTRIBUTION} {erase_kernels.__version__}")
        raise typer.Exit()


@app.callback()
def _options(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_version, is_eager=True, help="Print the version."),
    ] = False,
) -> None: ...


@app.command()
def info() -> None:
    """Versions, backends and why any is missing, optional extras."""
    Console().print(tables.info_table(erase_kernels.backend_info(), supported_model_types()))


@app.command()
def models() -> None:
    """Model types that can be pruned, and the settings that --model of `erase inspect` knows."""
    console = Console()
    console.print(tables.supported_table())
    console.print(tables.models_table())


@app.command()
def inspect(
    image: Annotated[Path, typer.Argument(help="Any image file that Pillow opens.")],
    model: Annotated[
        str, typer.Option(help="Preset or hub name: thresholds, ratios, resolution.")
    ] = "Qwen2.5-VL-7B",
    keep: Keep = 0.15,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="Picture; default <image>_entropy.png.")
    ] = None,
) -> None:
    """Draw an image's entropies and what stage 1 keeps of it."""
    preset = find_preset(model)
    if preset is None:
        known = ", ".join(PRESETS)
        raise typer.BadParameter(f"no preset for {model!r}; known: {known}", param_hint="--model")
    if not isinstance(preset.resolution, PixelBounds):
        reason = f"{model!r} cuts images into tiles; only whole images are shown"
        raise typer.BadParameter(reason, param_hint="--model")
    method = _method(preset.model, keep)
    opened = _open(image, "IMAGE")
    _require("plots", "erase inspect")
    target = _writable(output or Path(f"{image.stem}_entropy.png"))
    _check_backends(OPERATORS, torch.device("cpu"))
    with _refused("IMAGE", ImageShapeError):
        seen = inspect_image(opened, preset, method)
    _save(visualize.pruning_figure([inspection_panels(image.name, seen)]), target)
    console = Console()
    console.print(tables.inspection_table(image.name, preset.model, seen))
    _say_where(console, target)


@app.command()
def demo(
    image: Annotated[
        Path | None, typer.Option(help="Your picture instead of the built-in photograph and page.")
    ] = None,
    reader: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help="A trained model that reads labels, and its method.json; no wheel has one.",
        ),
    ] = None,
    keep: Keep = 0.15,
    device: Annotated[Device, typer.Option(help="Where to run.")] = Device.auto,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Tokens to generate when timed.")] = 16,
    output: Annotated[
        Path, typer.Option("-o", "--output", help="Picture of what was kept.")
    ] = Path("erase_demo.png"),
    seed: Annotated[int, typer.Option(min=0, help="Seed of the model's random weights.")] = 0,
) -> None:
    """Prune a small random Qwen2.5-VL on real images, beside its unpruned self.

    With --reader, a trained model reads labels first, unpruned and pruned.
    """
    _method(PRESETS[PRESET].model, keep)
    opened = None if image is None else _open(image, "--image")
    with _refused("--reader", ReaderError):
        method = None if reader is None else check_reader(reader, keep)
    _require("plots", "erase demo")
    target = _writable(output)
    place = _place(device)
    settings = DemoSettings(keep=keep, max_new_tokens=max_new_tokens)
    pictures = _pictures(settings, image, opened)
    labelled = [] if reader is None or method is None else _labelled(reader, method, place)
    with progress_bar(len(labelled) + 1 + len(pictures) * settings.steps) as step:
        readings = read_all(labelled, step)
        step("building the model")
        model = build_model(seed, place)
        results = []
        for picture in pictures:
            told = prefixed(step, picture.name)
            results.append(run_picture(model, picture, settings, told))
    _save(demo_figure(results, readings), target)
    console = Console()
    if labelled:
        console.print(tables.reading_table(readings))
        console.print(tables.reading_notice(labelled[0][0].model), highlight=False)
    for result in results:
        console.print(tables.demo_tables(result))
    console.print(tables.demo_notice(model), highlight=False)
    if not labelled:
        console.print(tables.reader_hint(), markup=False, highlight=False)
    _say_where(console, target)


def _pictures(
    settings: DemoSettings, path: Path | None, opened: Image.Image | None
) -> list[Picture]:
    """The user's picture, or the built-in ones."""
    if path is None or opened is None:
        _require("demo", "the built-in photograph and page (--image takes your own)")
        return builtin_pictures()
    with _refused("--image", ImageShapeError):
        resize(opened, settings.image_processor())
    return [Picture(path.name, opened)]


def _labelled(
    folder: Path, method: EraseConfig, device: torch.device
) -> list[tuple[Reader, ReadingPicture]]:
    """The reader in ``folder``, and what it is to read."""
    _require("demo", "the labelled page and photograph of --reader")
    with _refused("--reader", ReaderError):
        reader = load_reader(folder, method, device)
    return [(reader, picture) for picture in reading_pictures()]


def _method(name: str, keep: float) -> EraseConfig:
    """The preset's settings; only ``keep`` can be wrong in them."""
    try:
        return EraseConfig.for_model(name, keep_ratio=keep)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--keep") from error


def _open(path: Path, hint: str) -> Image.Image:
    try:
        return load_image(path)
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        # Pillow's readers report some broken files as SyntaxError.
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise typer.BadParameter(f"cannot read {path}: {reason}", param_hint=hint) from error


@contextmanager
def _refused(hint: str, kind: type[ValueError]) -> Iterator[None]:
    try:
        yield
    except kind as error:
        raise typer.BadParameter(str(error), param_hint=hint) from error


def _writable(path: Path) -> Path:
    """Refuses before the work what could not be written after it."""
    folder = path.parent
    if not folder.is_dir():
        raise typer.BadParameter(f"no such folder: {folder}", param_hint="--output")
    if path.is_dir():
        raise typer.BadParameter(f"is a folder: {path}", param_hint="--output")
    try:
        visualize.check_format(path)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--output") from error
    return path


def _save(figure: Any, path: Path) -> None:
    try:
        visualize.save_figure(figure, path)
    except OSError as error:
        _fail(f"cannot write {path}: {error.strerror}")


def _place(device: Device) -> torch.device:
    """CUDA where asked for, or where it is there and the operators run on it; else the CPU."""
    cuda, cpu = torch.device("cuda"), torch.device("cpu")
    if device is Device.cuda and not torch.cuda.is_available():
        raise typer.BadParameter("torch sees no CUDA device here", param_hint="--device")
    if device is Device.cpu or not torch.cuda.is_available():
        _check_backends(DEMO_OPERATORS, cpu)
        return cpu
    try:
        for operator in DEMO_OPERATORS:
            erase_kernels.choose_backend(operator, cuda)
    except RuntimeError as error:
        if device is Device.cuda:
            raise typer.BadParameter(str(error), param_hint="--device") from error
        typer.echo(f"running on the CPU: {error}", err=True)
        _check_backends(DEMO_OPERATORS, cpu)
        return cpu
    return cuda


def _check_backends(operators: Iterable[str], device: torch.device) -> None:
    """Ends the program where an operator cannot run at all, e.g. with a stale build."""
    try:
        for operator in operators:
            erase_kernels.choose_backend(operator, device)
    except RuntimeError as error:
        _fail(str(error))


def _require(extra: str, purpose: str) -> None:
    try:
        require(extra, purpose)
    except MissingExtraError as error:
        _fail(str(error))


def _say_where(console: Console, path: Path) -> None:
    console.print(f"picture: {path}", soft_wrap=True, markup=False, highlight=False)


def _fail(message: str) -> NoReturn:
    typer.echo(f"Error: {message}", err=True)
    raise typer.Exit(1)


def main() -> None:
    """Entry point of the ``erase`` command and of ``python -m erase``."""
    app(prog_name="erase")
