"""Instructions that make and count gray levels, as text for ``inline_asm_elementwise``.

Each piece runs once per lane of one warp, on the four elements that a lane holds of a ``[32, 4]``
tensor. Which lane holds which pixels does not matter to a histogram, and results are only summed,
so nothing here depends on triton's layouts as long as every lane holds four elements of its own.

The accumulators are those of ``mma.m16n8``, two side by side: lane ``4 g + t`` holds in order the
sums (row, column) = (g, 2t), (g, 2t+1), (g+8, 2t), (g+8, 2t+1), and the same for columns 8 further
on. Rows are upper halves of levels, columns lower halves.

Bytes: ``prmt`` makes four entries of a one-hot matrix at once: its selector is four pixels'
nibbles, and of its eight table bytes only number ``g`` is not 0. A nibble's fourth bit makes it
repeat the byte's sign: table byte 0x01 gives 1 for nibble ``g`` and 0 for ``g + 8``; table byte
0x80 gives -128 and -1, from which BYTE_SOLVE works out the count of ``g + 8``.

Bits: each lane transposes 32 levels to eight words, one per bit, and ``g`` is compared with 32
pixels in a few logical instructions; the product is one of bits (``and``, then ``popc``). Less
work, where the hardware has it: compute capabilities 8.x and 9.0 (an emulation is slow elsewhere).
"""

from __future__ import annotations

BLOCKS = 8  # of 128 levels, counted at once by BIT_COUNT

_ALL = "0xffffffff"
_KEEP_PLACE = "0x31f"  # shfl: within the lanes of equal laneid % 4
_SUMS = [f"s{i}" for i in range(8)]


def operands(outputs: int, inputs: str) -> str:
    """Constraints of ``outputs`` registers and of ``inputs``, a letter each."""
    return ",".join(["=r"] * outputs + list(inputs))


def _scope(*lines: str) -> str:
    return "\n".join(["{", *lines, "}"])


def _take_sums(first: int) -> list[str]:
    return [f"mov.b32 {name}, ${first + i};" for i, name in enumerate(_SUMS)]


_GIVE_SUMS = [f"mov.b32 ${i}, {name};" for i, name in enumerate(_SUMS)]


def _shuffle(target: str, source: str, lane: int) -> str:
    """``target`` of lane i = ``source`` of lane ``lane + i % 4``."""
    return f"shfl.sync.idx.b32 {target}, {source}, {lane}, {_KEEP_PLACE}, {_ALL};"


def _multiply(shape: str, half: int) -> str:
    sums = ", ".join(_SUMS[4 * half : 4 * half + 4])
    right = f"b{2 * half}, b{2 * half + 1}"
    return f"mma.sync.aligned.{shape} {{{sums}}}, {{a0, a1, a2, a3}}, {{{right}}}, {{{sums}}};"


def _floats(outputs: list[int], words: list[int], byte: int, step: int) -> list[str]:
    """Bytes of ``words``, from ``byte`` on and every ``step``, as float32: 2^23 + b, less 2^23."""
    lines = []
    for i, output in enumerate(outputs):
        place = byte + i * step
        lines += [
            f"prmt.b32 d, ${words[place // 4]}, 0x4B000000, {0x7440 + place % 4:#x};",
            "mov.b32 f, d;",
            f"add.rn.f32 ${output}, f, 0fCB000000;",
        ]
    return lines


# $0-3 the bytes of $4. A conversion instruction would take the pipe that is busiest.
FLOATS = _scope(".reg .b32 d;", ".reg .f32 f;", *_floats([0, 1, 2, 3], [4], 0, 1))

# Bytes r g b r, g b r g, b r g b of $12-14 -> red $0-3, green $4-7, blue $8-11.
FLOATS_OF_TRIPLES = _scope(
    ".reg .b32 d;",
    ".reg .f32 f;",
    *(
        line
        for channel in range(3)
        for line in _floats([4 * channel + i for i in range(4)], [12, 13, 14], channel, 3)
    ),
)

# $0 level and $1 distance from it of ($2 std $3 + mean $4) scale $5, each operation rounded: some
# versions of ptxas fuse packed products and sums, whatever they are told.
RECOVER = _scope(
    ".reg .f32 e, f;",
    "mul.rn.f32 e, $2, $3;",
    "add.rn.f32 e, e, $4;",
    "mul.rn.f32 e, e, $5;",
    "add.rn.f32 f, e, 0f3F000000;",  # 0.5
    "max.f32 f, f, 0f00000000;",
    "min.f32 f, f, 0f437F0000;",  # 255
    "cvt.rmi.f32.f32 f, f;",
    "sub.rn.f32 e, e, f;",
    "abs.f32 $1, e;",
    "mov.b32 $0, f;",
)

# $0 four levels, floor($1-4), a byte each: 2^23 + y rounded down has them in its lowest byte.
LEVELS = _scope(
    ".reg .f32 f;",
    ".reg .b32 y<4>;",
    *(
        line
        for i in range(4)
        for line in (f"add.rm.f32 f, ${1 + i}, 0f4B000000;", f"mov.b32 y{i}, f;")
    ),
    "prmt.b32 y0, y0, y1, 0x0040;",
    "prmt.b32 y2, y2, y3, 0x0040;",
    "prmt.b32 $0, y0, y2, 0x5410;",
)

# --- bytes -----------------------------------------------------------------------------------

# $0-1 eight bytes, 0x01 at g; $2-3 eight bytes, 0x80 at g. $4-7 are ignored.
BYTE_TABLES = _scope(
    ".reg .b32 place;",
    ".reg .b64 table;",
    "mov.u32 place, %laneid;",
    "and.b32 place, place, 28;",
    "shl.b32 place, place, 1;",
    "mov.b64 table, 1;",
    "shl.b64 table, table, place;",
    "mov.b64 {$0, $1}, table;",
    "shl.b64 table, table, 7;",
    "mov.b64 {$2, $3}, table;",
)


def _byte_step(step: int) -> list[str]:
    """32 pixels, of eight lanes."""
    return [
        _shuffle("q0", "w", 8 * step),
        _shuffle("q1", "w", 8 * step + 4),
        "shr.u32 h0, q0, 16;",
        "shr.u32 h1, q1, 16;",
        *(f"prmt.b32 a{2 * i}, $9, $10, h{i};" for i in range(2)),
        *(f"prmt.b32 a{2 * i + 1}, $11, $12, h{i};" for i in range(2)),
        *(f"prmt.b32 b{i}, $9, $10, q{i};" for i in range(2)),
        *(f"prmt.b32 b{2 + i}, $11, $12, q{i};" for i in range(2)),
        _multiply("m16n8k32.row.col.s32.s8.s8.s32", 0),
        _multiply("m16n8k32.row.col.s32.s8.s8.s32", 1),
    ]


# $0-7 the sums $13-20 and what the four levels $8 of each lane add; $9-12 BYTE_TABLES.
BYTE_COUNT = _scope(
    ".reg .b32 w, d, q<2>, h<2>, a<4>, b<4>, s<8>;",
    *_take_sums(13),
    # Nibbles h3 l3 h2 l2 h1 l1 h0 l0 -> h3 h2 h1 h0 l3 l2 l1 l0.
    "shr.u32 d, $8, 4;",
    "xor.b32 d, d, $8;",
    "and.b32 d, d, 0x00f000f0;",
    "xor.b32 w, $8, d;",
    "shl.b32 d, d, 4;",
    "xor.b32 w, w, d;",
    "prmt.b32 w, w, w, 0x3120;",
    *(line for step in range(4) for line in _byte_step(step)),
    *_GIVE_SUMS,
)

_DROP_BLANKS = [  # which are levels 0: row 0, column 0
    ".reg .pred first;",
    ".reg .u32 lane;",
    "mov.u32 lane, %laneid;",
    "setp.eq.u32 first, lane, 0;",
    "@first sub.s32 s0, s0, $8;",
]


def _solve(i: int) -> list[str]:
    """Sums -> counts: with n the counts, the four sums of a column and of that + 8 are n00,

    -128 n00 - n10, -128 n00 - n01 and 16384 n00 + 128 (n10 + n01) + n11, modulo 2^32.
    """
    n00, n10, n01, n11 = _SUMS[i], _SUMS[i + 2], _SUMS[i + 4], _SUMS[i + 6]
    return [
        f"shl.b32 d, {n00}, 7;",
        f"add.s32 {n10}, {n10}, d;",
        f"neg.s32 {n10}, {n10};",
        f"add.s32 {n01}, {n01}, d;",
        f"neg.s32 {n01}, {n01};",
        f"add.s32 d, d, {n10};",
        f"add.s32 d, d, {n01};",
        "shl.b32 d, d, 7;",
        f"sub.s32 {n11}, {n11}, d;",
    ]


# $0-7 counts, from the sums $12-19 less $8 blanks.
BYTE_SOLVE = _scope(
    ".reg .b32 d, s<8>;", *_take_sums(12), *_solve(0), *_solve(1), *_DROP_BLANKS, *_GIVE_SUMS
)

# --- bits ------------------------------------------------------------------------------------

# $0-2 all ones where bit 0, 1, 2 of g is 0; $3 nothing. $4-7 are ignored.
BIT_TABLES = _scope(
    ".reg .b32 place, d;",
    "mov.u32 place, %laneid;",
    *(
        line
        for i in range(3)
        for line in (f"bfe.u32 d, place, {2 + i}, 1;", f"sub.s32 ${i}, d, 1;")
    ),
    "mov.b32 $3, 0;",
)


def _transpose() -> list[str]:
    """Words w0-7 of four levels -> w0-7 with bit 0-7 of 32 levels."""
    lines = []
    for shift, mask in ((4, 0x0F0F0F0F), (2, 0x33333333), (1, 0x55555555)):
        for i in range(BLOCKS):
            if i & shift:
                continue
            low, high = f"w{i}", f"w{i + shift}"
            lines += [
                f"shl.b32 d, {high}, {shift};",
                f"shr.u32 e, {low}, {shift};",
                f"lop3.b32 {low}, {low}, d, {mask:#x}, 0xe4;",  # bits of low where the mask is 1
                f"lop3.b32 {high}, e, {high}, {mask:#x}, 0xe4;",
            ]
    return lines


def _bit_step(step: int) -> list[str]:
    """256 pixels, of eight lanes."""
    lines = []
    for i in range(2):  # pixels 32 (laneid % 4) + 128 i of the product's 256
        lines += [_shuffle(f"q{bit}", f"w{bit}", 8 * step + 4 * i) for bit in range(8)]
        for first, no, yes in ((4, f"a{2 * i}", f"a{2 * i + 1}"), (0, f"b{i}", f"b{2 + i}")):
            lines += [
                f"xor.b32 d, q{first}, $16;",
                f"lop3.b32 d, q{first + 1}, $17, d, 0x28;",  # (q ^ table) & d
                f"lop3.b32 d, q{first + 2}, $18, d, 0x28;",
                f"lop3.b32 {no}, d, q{first + 3}, 0, 0x30;",  # d & ~q
                f"and.b32 {yes}, d, q{first + 3};",
            ]
    product = "m16n8k256.row.col.s32.b1.b1.s32.and.popc"
    return [*lines, _multiply(product, 0), _multiply(product, 1)]


# $0-7 the sums $20-27 and what the four levels in each of $8-15 of each lane add; $16-19
# BIT_TABLES.
BIT_COUNT = _scope(
    ".reg .b32 w<8>, d, e, q<8>, a<4>, b<4>, s<8>;",
    *_take_sums(20),
    *(f"mov.b32 w{i}, ${8 + i};" for i in range(BLOCKS)),
    *_transpose(),
    *(line for step in range(4) for line in _bit_step(step)),
    *_GIVE_SUMS,
)

# $0-7 counts, the sums $12-19 less $8 blanks.
BIT_SOLVE = _scope(".reg .b32 s<8>;", *_take_sums(12), *_DROP_BLANKS, *_GIVE_SUMS)
