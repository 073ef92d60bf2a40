"""Finds the stock model inside what people wrap around it, and wraps methods of its own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn
from transformers import PreTrainedModel

# Compiled modules, data parallelism, adapter libraries (which nest two), modules of one's own.
_INNER = ("_orig_mod", "module", "base_model", "model")


def unwrap(model: Any) -> Any:
    """The transformers model that ``model`` wraps; ``model`` itself where there is none.

    Adapter models, ``torch.compile``d modules, data-parallel wrappers and modules that hold the
    model as ``.model`` all end in the same forward of the same stock object. Hooks belong there:
    then it does not matter which of them is called.
    """
    inner = model
    while isinstance(inner, nn.Module) and not isinstance(inner, PreTrainedModel):
        children = (inner._modules.get(name) for name in _INNER)
        inner = next((child for child in children if child is not None), None)
    return model if inner is None else inner


def uncompiled(module: nn.Module) -> nn.Module:
    """The module behind a ``torch.compile``d one, else the module itself."""
    inner = module._modules.get("_orig_mod")
    return module if inner is None else inner


def hide_attribute(module: Any, name: str, value: Any) -> Callable[[], None]:
    """Set an instance attribute that hides the class's; returns what undoes it."""
    hidden = module.__dict__.get(name)
    setattr(module, name, value)

    def restore() -> None:
        if module.__dict__.get(name) is not value:
            return  # somebody put another one over ours: theirs to undo
        delattr(module, name)
        if hidden is not None:
            setattr(module, name, hidden)

    return restore
