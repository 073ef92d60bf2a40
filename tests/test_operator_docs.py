"""docs/operators.md: every example runs, and every operator is there."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch

import erase_kernels
from erase_kernels import choose_backend
from erase_kernels.testing import record_ops

PAGE = (Path(__file__).parent.parent / "docs" / "operators.md").read_text()
OPERATORS = [
    name for name in erase_kernels.__all__ if name.startswith(("compact", "patch", "text"))
]
OPERATORS += ["complexity_plan", "segmented_topk"]


def test_every_example_runs_in_order() -> None:
    examples = re.findall(r"^```python\n(.*?)^```", PAGE, flags=re.MULTILINE | re.DOTALL)
    scope: dict[str, Any] = {}
    with record_ops() as names:
        for example in examples:
            exec(example, scope)
    for name in OPERATORS:
        backend = choose_backend(name, torch.device("cpu"))
        assert f"erase_kernels::{name.rstrip('_')}_{backend}" in names, name
        assert f"ek.{name}(" in PAGE, name
    assert sum("assert" in example for example in examples) >= len(OPERATORS)


def test_sections_compare_with_what_people_write() -> None:
    sections = PAGE.split("\n## ")[1:]
    assert len(sections) == 5
    for section in sections:
        by_hand, ours = section.split("```python\n")[1:3]
        assert "by_hand" in by_hand or "scores_from_weights" in by_hand
        assert "ek." not in by_hand.split("```")[0]
        assert "ek." in ours
