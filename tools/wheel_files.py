"""What a wheel and an sdist hold, and whether the sdist builds."""

from __future__ import annotations

import re
import sys
import tarfile
import zipfile
from pathlib import Path

from tools import wheel_library
from tools.wheel_run import Failed, clean_environ, run, say

LIBRARY = "erase_kernels/_C.abi3.so"
MOST_BYTES = 5 * 10**6  # of a wheel
WHEEL_NAME = re.compile(r"erase_kernels-([\w.]+)-cp310-abi3-(manylinux_2_\d+_x86_64)\.whl")
PYTHON_ABI = "3.10"  # the cp310 of the name


def only_one(folder: Path, pattern: str) -> Path:
    """The one file of dist/ that matches."""
    found = sorted(folder.glob(pattern))
    if len(found) != 1:
        raise Failed(f"{folder} holds {len(found)} files {pattern}; `make wheel` makes one")
    return found[0]


def member_faults(names: list[str]) -> list[str]:
    """Files that do not belong into a wheel, and those that are missing."""
    own = re.compile(r"^(erase|erase_kernels|erase_kernels-[\w.]+\.dist-info)/")
    found = [f"holds {name}" for name in names if not own.match(name)]
    left_over = re.compile(r"(_native_missing\.txt|\.pyc|\.new|\.(cpp|h|cu|cuh))$")
    found += [f"holds {name}" for name in names if left_over.search(name)]
    libraries = [name for name in names if re.search(r"\.so(\.|$)", name)]
    if libraries != [LIBRARY]:
        found.append(f"holds the libraries {libraries} instead of {LIBRARY}")
    needed = ("erase_kernels/py.typed", "erase_kernels/__init__.py", "erase/py.typed")
    found += [f"lacks {name}" for name in needed if name not in names]
    if not any(re.match(r"erase_kernels/triton_kernels/configs/.*\.json", n) for n in names):
        found.append("lacks the settings of the Triton kernels")
    return found


def check_files(wheel: Path, sdist: Path, folder: Path) -> None:
    """Name, size and contents of the wheel, and the tables of its library."""
    named = WHEEL_NAME.fullmatch(wheel.name)
    if not named:
        raise Failed(f"{wheel.name} is not named as {WHEEL_NAME.pattern}")
    if f"erase_kernels-{named[1]}.tar.gz" != sdist.name:
        raise Failed(f"{wheel.name} and {sdist.name} are of different versions")
    with zipfile.ZipFile(wheel) as archive:
        found = member_faults(archive.namelist())
        library = Path(archive.extract(LIBRARY, folder))
    if wheel.stat().st_size > MOST_BYTES:
        found.append(f"{wheel.stat().st_size} bytes are more than {MOST_BYTES}")
    found += wheel_library.faults(wheel_library.read_library(library))
    platform = named[2].removesuffix("_x86_64")
    found += wheel_library.abi_faults(library, PYTHON_ABI, platform)
    if found:
        raise Failed(f"{wheel.name}:\n" + "\n".join(f"  {fault}" for fault in found))
    sizes = f"{wheel.stat().st_size / 1e6:.2f} MB, library {library.stat().st_size / 1e6:.2f} MB"
    say(f"{wheel.name}: {sizes}; links, symbols and {platform} are in order")


def check_sdist(wheel: Path, sdist: Path, folder: Path) -> None:
    """The sdist builds the same wheel by itself; for speed without the CUDA kernels."""
    with tarfile.open(sdist) as archive:
        names = [name.partition("/")[2] for name in archive.getnames()]
    strange = [name for name in names if name.endswith((".so", ".pyc")) or name.startswith("build")]
    if strange:
        raise Failed(f"{sdist.name} holds {strange}")
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    run(
        [*pip, "--wheel-dir", folder, sdist],
        f"{sdist.name} does not build",
        cwd=folder,
        env=clean_environ(ERASE_KERNELS_NATIVE="1", ERASE_KERNELS_CUDA="0"),
    )
    contents = [packaged(path) for path in (only_one(folder, "*.whl"), wheel)]
    if contents[0] != contents[1]:
        difference = sorted(contents[0] ^ contents[1])
        raise Failed(f"{sdist.name} builds a wheel with other files: {difference}")
    size = f"{sdist.stat().st_size / 1e6:.2f} MB"
    say(f"{sdist.name}: {size}; builds a wheel with the same {len(contents[0])} files")


def packaged(wheel: Path) -> set[str]:
    """Files of the packages in a wheel."""
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if not name.endswith("/")}
    return {name for name in names if ".dist-info/" not in name}
