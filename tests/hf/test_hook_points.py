"""Every hook point is looked up when a session opens; one that is gone is named, with the version.

Each test takes one point away, as another transformers version might, and puts it back.
"""

from __future__ import annotations

from collections.abc import Iterator
from types import MappingProxyType
from typing import Any

import pytest
import transformers
from torch import nn
from transformers import GenerationConfig
from transformers.cache_utils import DynamicCache, DynamicLayer
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

import erase
from erase.hf import hook_points, pruned_cache
from erase.hf.hook_points import CACHE_METHODS, FORWARD_ARGUMENTS
from tests.hf.cases import BASE_CONFIG
from tests.hf.common import snapshot
from tests.models import build_model

Patch = pytest.MonkeyPatch


@pytest.fixture(scope="module")
def model() -> Any:
    return build_model("qwen2_5_vl")


@pytest.fixture(autouse=True)
def nothing_is_changed(model: Any) -> Iterator[None]:
    before = snapshot(model)
    yield
    assert snapshot(model) == before


def parts(model: Any) -> dict[str, Any]:
    stack = model.model.language_model
    return {"base": model.model, "language_model": stack, "layer": stack.layers[0]}


def refusal(model: Any) -> str:
    """What prune() says; it must change nothing, and name the version."""
    before = snapshot(model)
    with pytest.raises(RuntimeError) as raised:
        erase.prune(model, erase.EraseConfig(**BASE_CONFIG))
    assert snapshot(model) == before
    message = str(raised.value)
    oldest, newest = hook_points.SUPPORTED_VERSIONS
    assert message.startswith(f"transformers {transformers.__version__}: ")
    assert message.endswith(f"supports transformers {oldest} to {newest}")
    return message


def with_arguments(*names: str) -> Any:
    """A function of these arguments."""
    scope: dict[str, Any] = {}
    exec(f"def renamed({', '.join(names)}): raise AssertionError", scope)
    return scope["renamed"]


def test_all_are_there(model: Any) -> None:
    with erase.prune(model, erase.EraseConfig(**BASE_CONFIG)):
        pass
    oldest, newest = (tuple(map(int, v.split("."))) for v in hook_points.SUPPORTED_VERSIONS)
    installed = tuple(map(int, transformers.__version__.split(".")[:2]))
    assert oldest <= installed <= newest, "a version was added to the tests: widen the range"


@pytest.mark.parametrize(
    ("part", "argument"),
    [(part, argument) for part, names in FORWARD_ARGUMENTS.items() for argument in names],
)
def test_argument_of_a_forward(model: Any, part: str, argument: str, monkeypatch: Patch) -> None:
    cls = type(parts(model)[part])
    left = [name for name in FORWARD_ARGUMENTS[part] if name != argument]
    monkeypatch.setattr(cls, "forward", with_arguments("self", "hidden_states", *left, "**kwargs"))
    message = refusal(model)
    assert f"{cls.__name__}.forward has no argument {argument}" in message


def test_hidden_states_elsewhere(model: Any, monkeypatch: Patch) -> None:
    cls = type(parts(model)["layer"])
    arguments = ("self", *FORWARD_ARGUMENTS["layer"], "hidden_states")
    monkeypatch.setattr(cls, "forward", with_arguments(*arguments))
    assert "takes attention_mask first, not hidden_states" in refusal(model)


def test_image_encoder_of_other_arguments(model: Any, monkeypatch: Patch) -> None:
    encoder = with_arguments("self", "pixels", "image_grid_thw", "**kwargs")
    monkeypatch.setattr(type(model.model), "get_image_features", encoder)
    assert "get_image_features has no argument pixel_values" in refusal(model)


def test_no_layers(model: Any) -> None:
    stack = model.model.language_model
    layers = stack._modules.pop("layers")
    try:
        assert "has no layers" in refusal(model)
        stack.layers = nn.Sequential(*layers)
        assert "layers is no list of decoder layers" in refusal(model)
    finally:
        stack.layers = layers


def test_no_attention(model: Any) -> None:
    layers = model.model.language_model.layers
    modules = [dict(layer._modules) for layer in layers]
    for layer in layers:
        del layer.self_attn
    try:
        assert "no decoder layer has a self_attn" in refusal(model)
    finally:
        for layer, own in zip(layers, modules, strict=True):
            layer._modules.clear()
            layer._modules.update(own)


def test_attention_that_ignores_the_registry(model: Any, monkeypatch: Patch) -> None:
    cls = type(model.model.language_model.layers[0].self_attn)
    monkeypatch.setattr(cls, "forward", with_arguments("self", "hidden_states", "**kwargs"))
    assert f"{cls.__name__} does not call the attention registry" in refusal(model)


def test_no_eager_attention() -> None:
    eager = build_model("qwen2_5_vl", "eager")
    cls = type(eager.model.language_model.layers[0].self_attn)
    names = {"ALL_ATTENTION_FUNCTIONS": ALL_ATTENTION_FUNCTIONS}
    exec("def forward(self): return ALL_ATTENTION_FUNCTIONS", names)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cls, "forward", names["forward"])
        assert f"{cls.__name__} has no eager_attention_forward" in refusal(eager)


def test_registries(model: Any, monkeypatch: Patch) -> None:
    config = model.config.text_config
    with monkeypatch.context() as patch:
        patch.delitem(ALL_ATTENTION_FUNCTIONS._global_mapping, "sdpa")
        assert config._attn_implementation == "sdpa"
        assert "'sdpa' is not in ALL_ATTENTION_FUNCTIONS" in refusal(model)
    with monkeypatch.context() as patch:
        patch.delitem(ALL_MASK_ATTENTION_FUNCTIONS._global_mapping, "sdpa")
        assert "'sdpa' is not in ALL_MASK_ATTENTION_FUNCTIONS" in refusal(model)
    with monkeypatch.context() as patch:
        patch.setattr(ALL_ATTENTION_FUNCTIONS, "_local_mapping", MappingProxyType({}))
        assert "ALL_ATTENTION_FUNCTIONS._local_mapping is no dict" in refusal(model)


def test_mask_function_of_other_arguments(model: Any, monkeypatch: Patch) -> None:
    masks = ALL_MASK_ATTENTION_FUNCTIONS._global_mapping
    monkeypatch.setitem(masks, "sdpa", with_arguments("batch_size", "cache_position", "**kwargs"))
    assert "the mask function of 'sdpa' has no argument q_length" in refusal(model)


@pytest.mark.parametrize("method", CACHE_METHODS)
def test_cache_methods(model: Any, method: str, monkeypatch: Patch) -> None:
    owner = next(cls for cls in DynamicCache.__mro__ if method in vars(cls))
    with monkeypatch.context() as patch:
        patch.delattr(owner, method)
        assert f"DynamicCache has no {method}" in refusal(model)
    if CACHE_METHODS[method]:
        monkeypatch.setattr(owner, method, with_arguments("self"))
        argument = CACHE_METHODS[method][0]
        assert f"DynamicCache.{method} has no argument {argument}" in refusal(model)


def test_overridden_cache_methods_are_in_the_table() -> None:
    """The table lists what the integration overrides."""
    kinds = (pruned_cache._Pruned, pruned_cache._PrunedDynamic, pruned_cache._PrunedStatic)
    own = {name for kind in kinds for name, value in vars(kind).items() if callable(value)}
    assert {name for name in own if not name.startswith("_")} == set(CACHE_METHODS)


def test_cache_layers_without_keys(model: Any, monkeypatch: Patch) -> None:
    def bare(self: Any) -> None:
        self.is_initialized = False

    monkeypatch.setattr(DynamicLayer, "__init__", bare)
    monkeypatch.delattr(DynamicLayer, "keys", raising=False)
    assert "DynamicLayer has no keys" in refusal(model)


@pytest.mark.parametrize("name", hook_points.GENERATION_SETTINGS)
def test_generation_settings(model: Any, name: str, monkeypatch: Patch) -> None:
    before = GenerationConfig.__init__

    def renamed(self: Any, **kwargs: Any) -> None:
        before(self, **kwargs)
        del self.__dict__[name]

    monkeypatch.setattr(GenerationConfig, "__init__", renamed)
    assert f"GenerationConfig has no {name}" in refusal(model)


def test_continuous_batching_under_another_name(model: Any, monkeypatch: Patch) -> None:
    owner = next(c for c in type(model).__mro__ if "init_continuous_batching" in vars(c))
    monkeypatch.delattr(owner, "init_continuous_batching")
    assert "has no init_continuous_batching" in refusal(model)


def test_other_versions_may_work(model: Any, monkeypatch: Patch) -> None:
    """The version alone is no reason to refuse."""
    monkeypatch.setattr(transformers, "__version__", "5.99.0")
    with erase.prune(model, erase.EraseConfig(**BASE_CONFIG)) as session:
        assert not session.closed
