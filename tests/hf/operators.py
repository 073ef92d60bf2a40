"""Which operators a prefill must call, and on which backend."""

from __future__ import annotations

from tests.hf.place import BACKEND
from tests.oracle_choices import Turn

STAGE1_OPS = {"patch_entropy_from_pixels", "complexity_plan", "segmented_topk"}
STAGE2_OPS = {"text_to_vision_scores", "segmented_topk"}


def erase_ops(names: list[str]) -> set[str]:
    """Operators of ``erase_kernels`` among the dispatched ones, without their namespace."""
    prefix = "erase_kernels::"
    return {name.split(".")[0].removeprefix(prefix) for name in names if name.startswith(prefix)}


def backend_of(operator: str) -> str:
    """What an operator must run on: composite ones have one implementation, of torch operators."""
    return "torch" if operator.startswith("patch_edges") else BACKEND


def expected_ops(turns: list[Turn], kv: bool) -> set[str]:
    """Operators that these prefills need: nothing missing, nothing called in vain."""
    rows = [row for turn in turns for row in turn.rows]
    expected = set(STAGE1_OPS)
    if any(image.by_edges for row in rows for image in row.images):
        expected.add("patch_edges_from_pixels")
    if any(len(row.kept) < len(row.visual) for row in rows):
        expected.add("compact_rows")
    if any(row.layer is not None for row in rows):
        expected |= STAGE2_OPS | ({"compact_kv_"} if kv else set())
    return expected


def ran_ops(operators: set[str]) -> set[str]:
    """The private operators that calls of these public ones dispatch to here."""
    return {f"{op}_{backend_of(op)}".replace("__", "_") for op in operators}
