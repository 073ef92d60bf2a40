"""Writes docs/support.md out of what the test matrix found, and the README's rows about it."""

from __future__ import annotations

import re
from pathlib import Path

import transformers

import erase
from erase.tables import videos_of
from tests.families import ALL
from tests.families._base import TinyFamily
from tests.hf.refused import REFUSALS
from tests.hf.styles import COLUMNS, IN_OLDER, OLDER
from tests.support_plugin import COMMAND, Cells

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "support.md"
README = ROOT / "README.md"
FACTS = ("type", "class", "cell", "positions", "remarks")
"""What the tests find out about each family, beside its calls."""


def expected() -> set[tuple[str, str, str]]:
    """Everything that a complete run finds."""
    columns = [("style", column) for column in COLUMNS]
    columns += [("refused", refusal.name) for refusal in REFUSALS]
    columns += [("fact", fact) for fact in FACTS]
    return {(kind, family.name, column) for family in ALL for kind, column in columns}


def pinned(name: str) -> str:
    """The transformers of a file of constraints."""
    (version,) = re.findall(r"^transformers==([\d.]+)", (ROOT / name).read_text(), re.MULTILINE)
    return version


NEWEST, OLDEST = pinned("constraints-dev.txt"), pinned("constraints-min.txt")


def table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def families(cells: Cells) -> str:
    """What each model type is."""
    known = {model.model_type: model for model in erase.supported_models()}
    rows = []
    for family in ALL:
        kind, *facts = (cells["fact", family.name, fact] for fact in FACTS)
        model = known[kind]
        rows.append(
            [
                _label(cells, family),
                f"`{facts[0]}`",
                f"{facts[1]} px",
                *facts[2:],
                model.stage2,
                videos_of(model),
                "yes" if model.released else "no",
                ", ".join(model.presets) or "none",
            ]
        )
    head = ["model type", "class", "cell", "positions", "tokens"]
    return table([*head, "stage 2 after", "videos", "released query", "presets"], rows)


def _label(cells: Cells, family: TinyFamily) -> str:
    """The model type, and which of its models where there are several."""
    kind = cells["fact", family.name, "type"]
    variant = family.name.removeprefix(kind).strip("_")
    return f"`{kind}`" + f" ({variant})" * bool(variant)


def adapters() -> str:
    """What a token of each adapter is, in its own words."""
    said: dict[str, list[str]] = {}
    for model in erase.supported_models():
        said.setdefault(model.summary, []).append(f"`{model.model_type}`")
    return "\n".join(f"- {', '.join(kinds)}: {summary}." for summary, kinds in said.items())


def matrix(cells: Cells) -> str:
    """Families against call styles."""
    rows = []
    for family in ALL:
        found = [cells["style", family.name, column] for column in COLUMNS]
        rows.append([_label(cells, family), *map(_newest, COLUMNS, found)])
    return table(["", *COLUMNS], rows)


def _newest(column: str, found: str) -> str:
    return "ok" if column in OLDER and found == IN_OLDER else found


def refusals(cells: Cells) -> str:
    """Each refusal and what it says, whatever the number of image tokens is."""
    rows = []
    for refusal in REFUSALS:
        messages = [cells["refused", family.name, refusal.name] for family in ALL]
        said = {re.sub(r"\d+ image tokens", "n image tokens", text) for text in messages}
        rows += [[refusal.name, message] for message in sorted(said)]
    return table(["refused", "message"], rows)


def page(cells: Cells) -> str:
    """docs/support.md."""
    styles = table(["column", "call"], [[f"**{k}**", v] for k, v in COLUMNS.items()])
    older = "\n".join(f"- **{column}**: {reason}." for column, reason in OLDER.items())
    return TEMPLATE.format(
        command=COMMAND,
        newest=NEWEST,
        oldest=OLDEST,
        families=families(cells),
        adapters=adapters(),
        styles=styles,
        matrix=matrix(cells),
        older=older,
        refusals=refusals(cells),
    )


TEMPLATE = """# What is supported, and how it is tested

`{command}` writes this page out of what its tests find.
A complete test run fails where the page is not up to date. `erase.supported_models()` gives the
first table as data, and `erase models` prints it.

## Model types

{families}

- **cell**: side of the square of pixels behind one visual token, in the tested model.
- **positions**: axes of a token's position; pruned tokens leave gaps, the others keep theirs.
- **stage 2 after**: recurrent layers have neither scores nor slots to evict, so hybrids prune
  after a full-attention layer; a method that names another is refused when it is installed.
- **videos**: opt-in: pruned with `erase.prune(..., videos=True)`, else they pass through unpruned,
  as they always do elsewhere; some processors hand over frames as images, pruned like images.
- **released query**: `query="released"` scores as the published code does; refused elsewhere.
- **presets**: published settings; other models need thresholds of their own or `transfer_from=`.

{adapters}

## Calls

{matrix}

What transformers {oldest} does not have everywhere:

{older}

Every cell is a small model of the stock class with random weights (fp32, six decoder layers) on
transformers {newest} and {oldest}. *ok* means:

- Kept sets, levels, layers and scores are those that an independent oracle chooses from the uint8
  image and the stock eager attention weights.
- Logits equal those of the stock model under per-layer attention masks to 1e-5 wherever a token was
  kept, generated tokens are the same, and every layer of the cache has the oracle's length.
- Pruning changed the logits clearly; with `keep_ratio=1`, gathers forced, no bit changes.

{styles}

### Lengths of recorded outputs

With stage 2 after layer k (0-based), S1 tokens after stage 1 and S2 after stage 2:

- `hidden_states[i]` has S1 tokens up to i = k + 1 (the output of layer k), S2 from there on; the
  last entry, which is normalised, has S2 in any case.
- `attentions[i]` is S1 x S1 up to i = k, S2 x S2 from there on.
- `logits` and `last_hidden_state` have the prompt's length; pruned positions hold nothing of use.

## Refused

With a `ValueError` before the language model runs and before anything is changed, in every family
(one test each):

{refusals}
"""


def readme(text: str) -> str:
    """The README with its rows about models and calls as they are."""
    names = ", ".join(f"`{model.model_type}`" for model in erase.supported_models())
    rows = {
        "models": f"{names}; stock classes and weights, transformers {_short(OLDEST)} to 5.x, "
        "no fork, no patched class",
        "calls": "`generate()`, `model(...)`, loops by hand, "
        f'`pipeline("image-text-to-text")`; every model type in {len(COLUMNS)} call styles against '
        "an independent oracle: [docs/support.md](docs/support.md)",
    }
    for name, content in rows.items():
        text, count = re.subn(
            rf"^\| {name} \| .* \|$", f"| {name} | {content} |", text, flags=re.MULTILINE
        )
        if count != 1:
            raise ValueError(f"README.md: expected one row {name!r}, found {count}")
    return text


def _short(version: str) -> str:
    return ".".join(version.split(".")[:2])


def write(cells: Cells) -> None:
    """Both files, from a run with the newest transformers."""
    if transformers.__version__ != NEWEST:
        raise RuntimeError(
            f"docs/support.md is written with transformers {NEWEST}, this is "
            f"{transformers.__version__}"
        )
    PAGE.write_text(page(cells))
    README.write_text(readme(README.read_text()))


def differences(cells: Cells) -> list[str]:
    """Files that do not say what was found.

    Another transformers than the newest may lack a family, and words its errors in its own way: of
    it only the rows of the two tables must be there.
    """
    committed = PAGE.read_text() if PAGE.exists() else ""
    stale = page(cells) != committed
    if transformers.__version__ != NEWEST:
        rows = f"{families(cells)}\n{matrix(cells)}".splitlines()
        stale = not set(rows) <= set(committed.splitlines())
    text = README.read_text()
    return ["docs/support.md"] * stale + ["README.md"] * (readme(text) != text)
