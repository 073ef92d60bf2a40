"""``supported_models``, and the page that says what works: it cannot be stale unnoticed."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import transformers

import erase
from erase.hf.families import FAMILIES
from tests import support_page
from tests.families import ALL
from tests.hf.styles import IN_OLDER, OLDER
from tests.support_plugin import PROPERTY, SupportPlugin


def family_type(name: str) -> str:
    (family,) = [family for family in ALL if family.name == name]
    return family.model().config.model_type


CELLS = {key: f"found {' '.join(key)}" for key in support_page.expected()}
CELLS |= {key: family_type(key[1]) for key in CELLS if key[2] == "type"}


def reported(cells: dict, write: bool = False, outcome: str = "passed") -> SupportPlugin:
    """A run whose tests reported these cells."""
    plugin = SupportPlugin(write)
    for key, content in cells.items():
        properties = [("other", 1), (PROPERTY, [*key, content])]
        report = SimpleNamespace(
            when="call", passed=outcome == "passed", user_properties=properties
        )
        plugin.pytest_runtest_logreport(report)
    plugin.finish()
    return plugin


@pytest.fixture
def page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Copies instead of the committed files, in the newest transformers."""
    for name in ("PAGE", "README"):
        copy = tmp_path / name
        copy.write_text(getattr(support_page, name).read_text())
        monkeypatch.setattr(support_page, name, copy)
    monkeypatch.setattr(transformers, "__version__", support_page.NEWEST)
    return tmp_path / "PAGE"


def test_models_of_every_adapter() -> None:
    models = erase.supported_models()
    assert [model.model_type for model in models] == erase.supported_model_types()
    assert all(model.summary and "\n" not in model.summary for model in models)
    for model in models:
        assert {erase.PRESETS[name].model_type for name in model.presets} <= {model.model_type}
    named = {name for model in models for name in model.presets}
    assert named == {
        name
        for name, preset in erase.PRESETS.items()
        if preset.model_type in erase.supported_model_types()
    }
    assert {model.family for model in models} == {type(family).__name__ for family in FAMILIES}
    with pytest.raises(AttributeError):
        models[0].released = True


def test_page_is_written_and_compared(page: Path) -> None:
    assert reported(CELLS, write=True).failed is False
    assert "found style qwen2_vl greedy" in page.read_text()
    again = reported(CELLS)
    assert (again.failed, again.said) == (False, "docs/support.md: as the tests found")


@pytest.mark.parametrize("kind", ["style", "refused", "fact"])
def test_stale_page_fails(page: Path, kind: str) -> None:
    reported(CELLS, write=True)
    changed = next(key for key in sorted(CELLS) if key[0] == kind and key[2] != "type")
    plugin = reported({**CELLS, changed: "something else"})
    session = SimpleNamespace(exitstatus=0)
    plugin.pytest_sessionfinish(session)
    assert session.exitstatus == pytest.ExitCode.TESTS_FAILED
    assert "--write-support" in plugin.said


def test_incomplete_or_failed_runs_say_nothing(page: Path) -> None:
    before = page.read_text()
    some = dict(list(CELLS.items())[1:])
    assert not reported(some).failed
    assert reported({}).said == ""
    assert reported(CELLS, outcome="failed").said == ""
    assert reported(some, write=True).failed, "asked to write, but could not"
    assert page.read_text() == before


def test_older_transformers_are_compared_by_rows(
    page: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    older = {key: "ok" for key in CELLS if key[2] in OLDER}
    reported({**CELLS, **older}, write=True)
    monkeypatch.setattr(transformers, "__version__", support_page.OLDEST)
    refused = {key: "worded differently" for key in CELLS if key[0] == "refused"}
    assert not reported({**CELLS, **dict.fromkeys(older, IN_OLDER), **refused}).failed
    lost = next(key for key in CELLS if key[0] == "style" and key not in older)
    assert reported({**CELLS, **older, lost: IN_OLDER}).failed
    with pytest.raises(RuntimeError, match=support_page.NEWEST):
        reported(CELLS, write=True)
