"""Imports go one way, and importing changes nothing."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

# What each module of erase_kernels may import from its own package. A name covers its submodules.
ALLOWED: dict[str, set[str]] = {
    "erase_kernels": {"_backends", "_schemas", "_status", "ops", "pixel_layout"},
    "erase_kernels.__main__": {""},
    "erase_kernels.ops": {
        "ops",
        "_backends",
        "_checks",
        "_numerics",
        "_schemas",
        "pixel_layout",
        "reference",
    },
    "erase_kernels.ops._edges": {"_numerics", "_schemas", "_status", "pixel_layout"},
    "erase_kernels.reference": {"_checks", "_numerics"},
    "erase_kernels._backends": {"_native", "_schemas", "triton_kernels"},
    "erase_kernels.triton_kernels": {"_numerics", "_status", "pixel_layout", "triton_kernels"},
    "erase_kernels._native": {"_source_hash", "_status"},
    "erase_kernels._schemas": {"_numerics"},
    "erase_kernels._numerics": set(),
    "erase_kernels._checks": set(),
    "erase_kernels._status": set(),
    "erase_kernels._source_hash": set(),
    "erase_kernels.pixel_layout": {"_checks"},
    "erase_kernels.testing": {"_schemas", "pixel_layout", "testing_cases", "testing_selection"},
    "erase_kernels.testing_selection": {"reference", "testing"},
}
# Third-party packages the operators may need; transformers is none of them.
KERNEL_PACKAGES = {"torch", "triton", "numpy"}
# Files among methods and adapters that are neither.
SHARED = {"presets"}
MODULES = sorted((ROOT / "erase_kernels").rglob("*.py"))
INTEGRATION = sorted((ROOT / "erase").rglob("*.py"))


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports_of(path: Path) -> set[str]:
    """Every module imported anywhere in a file, lazily or not; relative imports made absolute."""
    name = module_name(path)
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parents = package.split(".")[: len(package.split(".")) - node.level + 1]
            base = ".".join([*parents, *filter(None, [node.module])]) if node.level else node.module
            found.update(f"{base}.{alias.name}" for alias in node.names)
    return found


def within(name: str, modules: set[str]) -> bool:
    return any(name == module or name.startswith(f"{module}.") for module in modules)


def rule_of(name: str) -> set[str]:
    fitting = [m for m in ALLOWED if name == m or (m != "erase_kernels" and name.startswith(m))]
    assert fitting, f"{name} has no place in the table of allowed imports"
    return ALLOWED[max(fitting, key=len)]


@pytest.mark.parametrize("path", MODULES, ids=module_name)
def test_operators(path: Path) -> None:
    allowed = {f"erase_kernels.{part}" for part in rule_of(module_name(path))}
    if "erase_kernels." in allowed:  # public names only
        allowed = {f"erase_kernels.{name}" for name in public_names()}
    for name in imports_of(path):
        top = name.split(".")[0]
        if top == "erase_kernels":
            assert within(name, allowed), f"{module_name(path)} imports {name}"
        else:
            assert top in KERNEL_PACKAGES | sys.stdlib_module_names, name


@pytest.mark.parametrize("path", INTEGRATION, ids=module_name)
def test_integration_uses_public_names(path: Path) -> None:
    for name in imports_of(path):
        if name.split(".")[0] == "erase_kernels" and name != "erase_kernels":
            public = name.split(".")[1]
            assert public in public_names() | {"__version__"}, f"{module_name(path)}: {name}"
        assert name.split(".")[0] not in {"tests", "bench"}, name


@pytest.mark.parametrize("path", INTEGRATION, ids=module_name)
def test_siblings_do_not_import_each_other(path: Path) -> None:
    """An adapter never imports an adapter, nor a method a method; what they share has a `_`."""
    package, _, name = module_name(path).rpartition(".")
    if package not in ("erase.hf.families", "erase.methods") or name in SHARED or name[0] == "_":
        return
    names = {module_name(p).rpartition(".")[2] for p in INTEGRATION if p.parent == path.parent}
    siblings = {
        f"{package}.{n}" for n in names - SHARED - {name, package.rpartition(".")[2]} if n[0] != "_"
    }
    offenders = {imported for imported in imports_of(path) if within(imported, siblings)}
    assert not offenders, f"{module_name(path)} imports {offenders}"


def public_names() -> set[str]:
    tree = ast.parse((ROOT / "erase_kernels" / "__init__.py").read_text())
    for node in tree.body:
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "__all__":
            return set(ast.literal_eval(node.value))
    raise AssertionError("erase_kernels has no __all__")


def run(script: str) -> str:
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_works_where_triton_is_blocked() -> None:
    out = run(
        "import sys; sys.modules['triton'] = None\n"
        "import torch, erase_kernels as ek\n"
        "print(ek.patch_entropy(torch.zeros(28, 28, dtype=torch.uint8), 28).item())\n"
        "print(ek.backend_info().versions['triton'])\n"
    )
    assert out.split("\n")[:2] == ["0.0", "not installed"]


def test_operators_do_not_load_what_they_do_not_need() -> None:
    out = run(
        "import sys, erase_kernels\n"
        "print([m for m in ('transformers', 'triton', 'torch._dynamo', 'matplotlib', 'erase')"
        " if m in sys.modules])"
    )
    assert out.strip() == "[]"


def test_importing_changes_nothing_global() -> None:
    run(
        "import torch, warnings, random, os, locale, decimal\n"
        "def state():\n"
        "    return (torch.get_num_threads(), torch.get_default_dtype(), torch.is_grad_enabled(),\n"
        "            torch.initial_seed(), torch.get_rng_state().tolist(), random.getstate(),\n"
        "            list(warnings.filters), dict(os.environ), decimal.getcontext().prec,\n"
        "            torch.are_deterministic_algorithms_enabled(),\n"
        "            torch.backends.cuda.matmul.allow_tf32)\n"
        "before = state()\n"
        "import erase_kernels\n"
        "assert state() == before\n"
    )
