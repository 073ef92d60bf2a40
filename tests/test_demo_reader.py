"""The folder of ``erase demo --reader``: what is loaded from it, and what is refused."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from bench.accuracy.model import build_model
from erase import cli
from erase.demo import ReaderError, check_reader, load_reader
from tests.demo_reader import CPU, KEEP, METHOD, loaded, stored
from tests.test_demo_command import run


def test_the_stored_model_and_settings_are_loaded() -> None:
    reader = loaded()
    assert reader.method == METHOD.replace(keep_ratio=KEEP)
    built = build_model(0).state_dict()
    own = reader.model.state_dict()
    assert built.keys() == own.keys()
    for name, weight in own.items():
        assert weight.dtype == torch.float32
        assert torch.equal(weight, built[name].half().float())
    assert not reader.model.training


def edit_json(name: str, **fields: Any) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        content = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps(content | fields))

    return edit


def smaller_vocabulary(folder: Path) -> None:
    text = json.loads((folder / "config.json").read_text())["text_config"]
    edit_json("config.json", text_config=text | {"vocab_size": 151936})(folder)


def write(name: str, text: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_text(text) and None


def without(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


BAD_FOLDERS = {
    "missing": (shutil.rmtree, "no such folder: "),
    "no model": (without("config.json"), "no config.json; expected a folder as save_pretrained()"),
    "broken config": (write("config.json", "{"), "cannot read "),
    "no object": (write("config.json", "[1]"), "expected model type 'qwen2_5_vl', got None"),
    "other model": (
        edit_json("config.json", model_type="llava"),
        "expected model type 'qwen2_5_vl', got 'llava'",
    ),
    "other tokenizer": (smaller_vocabulary, "got vocabulary 151936, image token "),
    "no weights": (
        without("model.safetensors"),
        "no weights; expected model.safetensors or model.safetensors.index.json",
    ),
    "no settings": (without("method.json"), "no method.json; expected the settings that"),
    "broken settings": (write("method.json", "{,}"), "cannot read "),
    "unknown setting": (edit_json("method.json", keep=1), "unknown fields ['keep']"),
    "wrong type": (edit_json("method.json", early_layer="1"), "early_layer: expected an int"),
    "layer": (edit_json("method.json", late_layer=8), "late_layer: expected a decoder layer of"),
}


@pytest.mark.parametrize("case", BAD_FOLDERS)
def test_bad_folders_are_refused_before_any_work(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    damage, said = BAD_FOLDERS[case]
    bad = tmp_path / "bad"
    shutil.copytree(stored(), bad)
    damage(bad)
    for work in ("load_reader", "reading_pictures", "builtin_pictures", "build_model"):
        monkeypatch.delattr(cli, work)
    shown = run("--reader", bad, "-o", tmp_path / "none.png")
    assert shown.exit_code == 2
    plain = re.sub(r"\s*│?\s*\n\s*│?\s*", " ", shown.output)
    assert "--reader" in plain
    assert not (tmp_path / "none.png").exists()
    with pytest.raises(ReaderError) as refused:
        check_reader(bad, KEEP)
    assert said in str(refused.value)
    assert str(refused.value)[:20] in plain


def test_weights_that_are_not_the_models_are_refused(tmp_path: Path) -> None:
    bad = tmp_path / "bad"
    shutil.copytree(stored(), bad)
    weights = load_file(bad / "model.safetensors")
    del weights["lm_head.weight"]
    save_file(weights, bad / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ReaderError, match=r"1 weights are missing, the first is lm_head\.weight"):
        load_reader(bad, check_reader(bad, KEEP), CPU)
    wide = load_file(stored() / "model.safetensors")
    wide["lm_tail.weight"] = wide["lm_head.weight"].clone()
    save_file(wide, bad / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ReaderError, match=r"1 weights have no place .* first is lm_tail\.weight"):
        load_reader(bad, check_reader(bad, KEEP), CPU)
    (bad / "model.safetensors").write_bytes(b"no weights")
    shown = run("--reader", bad, "-o", tmp_path / "none.png")
    assert shown.exit_code == 2
    assert "the weights cannot be loaded" in " ".join(shown.output.split())


def test_weights_of_more_layers_are_refused(tmp_path: Path) -> None:
    """Else the first layers alone would read."""
    bad = tmp_path / "bad"
    shutil.copytree(stored(), bad)
    config = json.loads((bad / "config.json").read_text())
    config["text_config"]["num_hidden_layers"] -= 1
    config["text_config"].pop("layer_types", None)
    (bad / "config.json").write_text(json.dumps(config))
    with pytest.raises(ReaderError, match=r"weights have no place in the model that config\.json"):
        load_reader(bad, check_reader(bad, KEEP), CPU)


def test_a_keep_ratio_of_its_own_is_replaced(tmp_path: Path) -> None:
    own = tmp_path / "own"
    shutil.copytree(stored(), own)
    edit_json("method.json", keep_ratio=0.5)(own)
    assert check_reader(own, 0.25) == METHOD.replace(keep_ratio=0.25)
