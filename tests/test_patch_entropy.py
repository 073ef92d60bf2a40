"""patch_entropy: exact histograms, entropies within 1e-6 of float64, the same bits everywhere."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from erase_kernels import _numerics, patch_entropy
from erase_kernels.testing import assert_matches, cases, make_image, record_ops
from tests import entropy_oracle
from tests.selection import BACKENDS, Banded, check_compiled, check_opcheck
from tests.test_luma import run_with_clone

TOLERANCE = 1e-6  # nats, against float64
ODD_PATCHES = [1, 2, 3, 7, 13, 14, 16, 28, 32, 33, 61]


def assert_entropies(image: Tensor, patch: int) -> None:
    """Both backends agree to the bit, and with numpy within the tolerance."""
    with record_ops() as ops:
        native = patch_entropy(image, patch, backend="native")
    assert ops == ["erase_kernels::patch_entropy_native"]
    assert_matches(native, patch_entropy(image, patch, backend="reference"))
    expected = entropy_oracle.patch_entropy(image.numpy(), patch)
    assert native.dtype == torch.float32
    np.testing.assert_allclose(native.double().numpy(), expected, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("patch", ODD_PATCHES)
@pytest.mark.parametrize("kind", ["scene", "noise", "flat"])
def test_against_float64(patch: int, kind: str, poisoned) -> None:
    assert_entropies(make_image(2 * patch, 3 * patch, kind=kind, seed=patch), patch)


@pytest.mark.parametrize("patch", [200, 260])
def test_patches_counted_in_several_passes(patch: int) -> None:
    image = torch.randint(0, 256, (patch, patch), dtype=torch.uint8)
    image[: patch // 2] = 9  # one bin overflows a byte many times over
    assert_entropies(image, patch)


def test_rows_longer_than_a_pass() -> None:
    side = 2100
    image = torch.randint(0, 3, (side, side), dtype=torch.uint8)
    image[::2] = 1  # every increment of a pass falls on one bin
    table = torch.arange(side * side + 1).square()  # any table will do; the real one takes long
    counts = torch.bincount(image.view(-1).int())
    native = torch.ops.erase_kernels.patch_entropy_native([image], side, table)
    assert native.item() == float((table[-1] - counts.square().sum()).float() * 2.0**-40)


@pytest.mark.parametrize("columns", [1, 2, 17, 36, 37, 73, 80])
def test_rows_of_more_cells_than_a_block(columns: int) -> None:
    assert_entropies(make_image(28, 28 * columns, kind="noise"), 28)


def test_a_flat_cell_is_exactly_zero() -> None:
    for backend in BACKENDS:
        entropy = patch_entropy(make_image(56, 56, kind="flat"), 28, backend=backend)
        assert entropy.tolist() == [0.0] * 4
        assert not torch.signbit(entropy).any()


def test_every_level_once_is_ln_256() -> None:
    image = torch.arange(256, dtype=torch.uint8).view(16, 16)
    assert_entropies(image, 16)
    assert patch_entropy(image, 16).item() == np.float32(np.log(256))


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_sequence_is_one_call(backend: str) -> None:
    images = [
        make_image(28, 56),
        make_image(84, 28, hwc=True, seed=1),
        make_image(56, 56, kind="noise", seed=2)[0],
        make_image(28, 28, seed=3)[:1],
    ]
    with record_ops() as ops:
        together = patch_entropy(images, 28, backend=backend)
    assert ops == ["erase_kernels::patch_entropy_native"] * (backend == "native")
    assert_matches(together, torch.cat([patch_entropy(i, 28, backend=backend) for i in images]))
    assert together.shape == (2 + 3 + 4 + 1,)


def strided_views(image: Tensor) -> dict[str, Tensor]:
    """The same pixels at different strides."""
    height, width = image.shape[1:]
    rgba = torch.zeros(height, width, 4, dtype=torch.uint8)
    rgba[..., :3] = image.permute(1, 2, 0)
    wide = torch.zeros(3, 2 * height, 3 * width, dtype=torch.uint8)
    wide[:, ::2, ::3] = image
    bgr = image.flip(0).permute(1, 2, 0).contiguous()
    return {
        "hwc": image.permute(1, 2, 0).contiguous().permute(2, 0, 1),
        "rgba": rgba.permute(2, 0, 1)[:3],
        "transposed": image.mT.contiguous().mT,
        "every other": wide[:, ::2, ::3],
        "gap": torch.cat([bgr.new_zeros(height, 1, 3), image.permute(1, 2, 0)], 1)[:, 1:].permute(
            2, 0, 1
        ),
    }


@pytest.mark.parametrize("name", ["hwc", "rgba", "transposed", "every other", "gap"])
@pytest.mark.parametrize("patch", [1, 7, 28])
def test_strides(name: str, patch: int) -> None:
    image = make_image(2 * patch, 5 * patch, kind="noise", seed=patch)
    view = strided_views(image)[name]
    assert torch.equal(view, image)
    assert_matches(patch_entropy(view, patch), patch_entropy(image, patch))
    gray = view[1]
    assert_matches(patch_entropy(gray, patch), patch_entropy(gray.contiguous(), patch))


def test_one_gray_value_for_all_channels() -> None:
    gray = make_image(28, 28, kind="noise")[:1]
    assert_entropies(gray.expand(3, 28, 28), 28)


@pytest.mark.parametrize("hwc", [False, True])
@pytest.mark.parametrize("width", [1, 5, 9, 10, 11, 15, 16, 17, 31, 33])
def test_inputs_are_read_inside_their_bounds(width: int, hwc: bool) -> None:
    """Guard bands of another level change nothing, and stay as they are."""
    image = make_image(width, width, kind="noise", seed=width)
    banded = Banded(image.permute(1, 2, 0).contiguous() if hwc else image)
    view = banded.view.permute(2, 0, 1) if hwc else banded.view
    assert_matches(patch_entropy(view, width), patch_entropy(image, width))
    assert banded.intact()
    assert torch.equal(view, image)


LAST_BYTE_SCRIPT = """
import ctypes, mmap, sys, torch, erase_kernels as ek
assert ek.backend_info().cpu_clone == sys.argv[1]
page = mmap.PAGESIZE
area = mmap.mmap(-1, 4 * page)
start = ctypes.addressof(ctypes.c_char.from_buffer(area))
libc = ctypes.CDLL(None, use_errno=True)
assert libc.mprotect(ctypes.c_void_p(start + 3 * page), page, 0) == 0
for side in (1, 3, 8, 9, 10, 16, 28, 31):
    size = 3 * side * side
    flat = torch.frombuffer(area, dtype=torch.uint8, count=3 * page)[3 * page - size:]
    for image in (flat.view(3, side, side), flat.view(side, side, 3).permute(2, 0, 1)):
        ek.patch_entropy(image, side, backend="native")
print("inside")
"""


@pytest.mark.parametrize("clone", ["baseline", "avx2", "avx512"])
def test_the_last_byte_of_memory_is_not_passed(clone: str, supported_clones: set[str]) -> None:
    """An image that ends where readable memory ends; one byte more would end the process."""
    if clone not in supported_clones:
        pytest.skip(f"this processor has no {clone}")
    done = run_with_clone(clone, LAST_BYTE_SCRIPT)
    assert done.stdout == "inside\n", (done.returncode, done.stderr)


def test_threads_do_not_change_results(threads) -> None:
    image = make_image(140, 196, kind="scene")
    results = threads(lambda: patch_entropy([image, image[:, :28]], 28))
    for result in results[1:]:
        assert_matches(result, results[0])


@settings(max_examples=40, deadline=None)
@given(
    patch=st.integers(1, 40),
    rows=st.integers(1, 3),
    columns=st.integers(1, 4),
    channels=st.sampled_from([0, 1, 3]),
    levels=st.integers(1, 256),
    seed=st.integers(0, 2**31),
)
def test_any_size(patch, rows, columns, channels, levels, seed) -> None:
    generator = torch.Generator().manual_seed(seed)
    shape = (rows * patch, columns * patch)
    shape = (channels, *shape) if channels else shape
    image = torch.randint(0, levels, shape, generator=generator, dtype=torch.uint8)
    assert_entropies(image, patch)


def test_no_cells() -> None:
    for backend in BACKENDS:
        assert (
            patch_entropy(torch.empty(3, 0, 28, dtype=torch.uint8), 28, backend=backend).numel()
            == 0
        )


@pytest.mark.parametrize("case", cases("patch_entropy")[:2], ids=lambda c: c.name)
def test_named_shapes(case) -> None:
    image = make_image(case.sizes["height"], case.sizes["width"])
    patch = case.sizes["patch_size"]
    assert_matches(patch_entropy(image, patch), patch_entropy(image, patch, backend="reference"))


# --- torch.compile, opcheck, bad input ---------------------------------------------------------


def test_compiled() -> None:
    image = make_image(56, 84)

    def doubled(x: Tensor) -> Tensor:
        return patch_entropy(x, 28) * 2

    assert_matches(check_compiled(doubled, image), doubled(image))


def test_compiled_reference_and_patch_sizes() -> None:
    image = make_image(56, 84)
    for patch in (14, 28):
        compiled = torch.compile(
            lambda x, p=patch: patch_entropy([x, x], p, backend="reference"), fullgraph=True
        )
        assert_matches(compiled(image), patch_entropy([image, image], patch))


@pytest.mark.parametrize("hwc", [False, True])
def test_opcheck(hwc: bool) -> None:
    images = [make_image(28, 56, hwc=hwc), make_image(28, 28)[0]]
    check_opcheck("patch_entropy_native", images, 28, _numerics.entropy_table(784))


def test_opcheck_table() -> None:
    check_opcheck("entropy_table", 9, torch.device("cpu"))


GOOD = torch.zeros(3, 28, 56, dtype=torch.uint8)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((GOOD.float(), 28), TypeError, r"image: expected dtype torch.uint8, got torch.float32"),
        ((GOOD.numpy(), 28), TypeError, r"image: expected a uint8 tensor .* got ndarray"),
        (([GOOD, 3], 28), TypeError, r"image: expected a torch.Tensor, got int"),
        (([], 28), ValueError, r"image: expected at least one image"),
        ((GOOD[None], 28), ValueError, r"image: expected shape .* got \(1, 3, 28, 56\)"),
        ((GOOD[:2], 28), ValueError, r"image: expected shape .* got \(2, 28, 56\)"),
        ((GOOD[0, 0], 28), ValueError, r"image: expected shape .* got \(56,\)"),
        ((GOOD[:, :27], 28), ValueError, r"multiples of patch_size=28, got \(3, 27, 56\)"),
        ((GOOD[:, :, :55], 28), ValueError, r"multiples of patch_size=28, got \(3, 28, 55\)"),
        (([GOOD, GOOD[:, :27]], 28), ValueError, r"multiples of patch_size=28"),
        ((GOOD, 0), ValueError, r"patch_size: expected at least 1, got 0"),
        ((GOOD, -28), ValueError, r"patch_size: expected at least 1, got -28"),
        ((GOOD, 28.0), TypeError, r"patch_size: expected an int, got float"),
        ((GOOD, True), TypeError, r"patch_size: expected an int, got bool"),
        (
            ([GOOD, GOOD.to("meta")], 28),
            ValueError,
            r"image: expected every image on cpu, got meta",
        ),
    ],
)
def test_bad_input(arguments, error, message: str) -> None:
    for backend in (None, *BACKENDS):
        with pytest.raises(error, match=message):
            patch_entropy(*arguments, backend=backend)


def test_the_operator_checks_for_itself() -> None:
    """The private operator is safe for other callers too."""
    table = _numerics.entropy_table(784)
    op = torch.ops.erase_kernels.patch_entropy_native
    for arguments, message in [
        (([], 28, table), "images"),
        (([GOOD.float()], 28, table), "images"),
        (([GOOD[:, :27]], 28, table), "images"),
        (([GOOD], 28, table[:-1]), "table"),
        (([GOOD], 28, table.int()), "table"),
        (([GOOD], 0, table), "patch_size"),
    ]:
        with pytest.raises(ValueError, match=message):
            op(*arguments)
