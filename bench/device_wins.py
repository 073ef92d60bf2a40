"""Which of our backends is the fastest on which rows of a GPU's table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

EVEN = 0.03  # share by which times may differ and still count as the same


class Timed(Protocol):
    """Median of several runs."""

    @property
    def median(self) -> float: ...


class Row(Protocol):
    """What this module reads of a `bench.device_report.DeviceResult`."""

    row: str
    backends: tuple[str, ...]

    @property
    def seconds(self) -> Mapping[str, Timed]: ...


def operator_of(row: str) -> tuple[str, str]:
    """Operator and shape of a row by its name; caches in blocks count as one of their own."""
    words = row.split()
    width = 3 if words[1:2] == ["+"] else 1
    operator, shape = " ".join(words[:width]), words[width:]
    if shape[-1:] == ["paged"]:
        return f"{operator} paged", " ".join(shape[:-1])
    return operator, " ".join(shape)


def winner(result: Row) -> tuple[str, float] | None:
    """The fastest backend and how many times longer the next takes; None where less than two ran.

    The name is empty where the two are even.
    """
    times = sorted((result.seconds[b].median, b) for b in result.backends if b in result.seconds)
    if len(times) < 2:
        return None
    (best, name), (second, _) = times[:2]
    return ("" if second <= best * (1 + EVEN) else name), second / best


def section(results: Sequence[Row]) -> list[str]:
    """Lines for the page: operators, and per backend the rows it wins; nothing with one backend."""
    backends = list(dict.fromkeys(b for r in results for b in r.backends if b in r.seconds))
    won: dict[str, dict[str, list[str]]] = {}
    for result in results:
        found = winner(result)
        if found is None:
            continue
        operator, shape = operator_of(result.row)
        rows = won.setdefault(operator, {name: [] for name in (*backends, "")})
        rows[found[0]].append(f"{shape} {found[1]:.2f}x" if found[0] else shape)
    if not won:
        return []
    lines = ["", "Which backend is the fastest, and how many times longer the other takes:", ""]
    lines += ["| operator | " + " | ".join([*backends, f"even (within {EVEN:.0%})"]) + " |"]
    lines += ["|" + " --- |" * (len(backends) + 2)]
    for operator, rows in won.items():
        cells = [f"{len(found)}: {', '.join(found)}" if found else "0" for found in rows.values()]
        lines.append(f"| {operator} | " + " | ".join(cells) + " |")
    never = [
        f"{backend} on {operator}"
        for operator, rows in won.items()
        for backend in backends
        if not rows[backend]
    ]
    lines += ["", f"Never the fastest: {'; '.join(never) or 'none'}."]
    return lines
