"""Matrix products of float32 for the loops that Numba compiles: tiles of the result that stay in a core's registers.

PyTorch gives such products to MKL, which leaves out the widest instructions of CPUs that are not Intel's, and takes one
small matrix after the other, each from memory that is long cold. Here a loop multiplies what it has just made.
"""

import itertools
import platform
from typing import Any

import llvmlite.binding as llvm
import numpy as np
from jaxtyping import Float32
from llvmlite import ir
from numba.core import cgutils, config, types
from numba.extending import intrinsic

from skiprec.row_kernels import compiled

# R rows of the result, C columns, K numbers a sum.

# What Numba compiles for: this machine, unless NUMBA_CPU_FEATURES names another.
FEATURES = (llvm.get_host_cpu_features().flatten() if config.CPU_FEATURES is None else config.CPU_FEATURES).split(",")
LANES = 16 if "+avx512f" in FEATURES else 8 if "+avx" in FEATURES else 4
"""Numbers in a register."""
HAS_MANY = LANES == 16 or platform.machine() in ("aarch64", "arm64")
"""Whether there are 32 registers, or 16."""
TILE_ROWS, TILE_VECTORS = (5, 4) if HAS_MANY else (6, 2)
"""Rows of a tile, and registers that one of its rows takes: so that all stays in them."""
TILE_COLUMNS = TILE_VECTORS * LANES
SUMMED_AT_ONCE = 128
"""Terms of a sum before the next tile's are: what they are made of is still in the core's first cache then."""

INT = ir.IntType(64)
NUMBER = ir.FloatType()
VECTOR = ir.VectorType(NUMBER, LANES)
FUSED = ("contract",)
"""A product and the sum that it goes into may be rounded once."""


def tile_of(n_rows: int, n_vectors: int) -> Any:
    """Makes the loop over one tile, with as many rows and registers a row as are said.

    Compiled code alone calls it, as add_tile(a, b, c, row, column, start, stop, adds): c[row:, column:] is the sum of
    the products of a and b in terms start to stop, and of what it was if it adds. Beyond the last row of c the last one
    is taken again; columns beyond the last are neither read nor written.
    """

    @intrinsic
    def add_tile(
        context: Any, a: Any, b: Any, c: Any, row: Any, column: Any, start: Any, stop: Any, adds: Any
    ) -> tuple[Any, Any]:
        def generate(target: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            row, column, start, stop, adds = arguments[3:]
            a, b, c = (
                Matrix(builder, target.make_array(kind)(target, builder, array))
                for kind, array in zip(signature.args[:3], arguments[:3], strict=True)
            )
            last = builder.sub(c.n_rows, INT(1))
            rows = [smaller(builder, builder.add(row, INT(r)), last) for r in range(n_rows)]
            places = [builder.add(column, INT(v * LANES)) for v in range(n_vectors)]
            masks = [lanes_below(builder, builder.sub(c.n_columns, place)) for place in places]
            sums = [[cgutils.alloca_once(builder, VECTOR) for _ in places] for _ in rows]

            for total in itertools.chain(*sums):
                builder.store(VECTOR(None), total)
            with cgutils.for_range_slice(builder, start, stop, INT(1)) as (k, _):
                vectors = [b.load(k, place, mask) for place, mask in zip(places, masks, strict=True)]
                for r, totals in zip(rows, sums, strict=True):
                    number = spread(builder, builder.load(a.at(r, k)))
                    for vector, total in zip(vectors, totals, strict=True):
                        product = builder.fmul(number, vector, flags=FUSED)
                        builder.store(builder.fadd(builder.load(total), product, flags=FUSED), total)
            # What was there is added last: sums of SUMMED_AT_ONCE terms each, as one long chain would lose digits. Read
            # before anything is written, as the last row may be there twice.
            with builder.if_then(adds):
                for r, totals in zip(rows, sums, strict=True):
                    for place, mask, total in zip(places, masks, totals, strict=True):
                        before = c.load(r, place, mask)
                        builder.store(builder.fadd(before, builder.load(total)), total)
            for r, totals in zip(rows, sums, strict=True):
                for place, mask, total in zip(places, masks, totals, strict=True):
                    c.store(builder.load(total), r, place, mask)
            return target.get_dummy_value()

        n = types.int64
        return types.void(a, b, c, n, n, n, n, types.boolean), generate

    return add_tile


class Matrix:
    """Addresses in a two-dimensional array of compiled code."""

    def __init__(self, builder: ir.IRBuilder, array: Any) -> None:
        self.builder = builder
        self.data = builder.bitcast(array.data, cgutils.voidptr_t)
        self.n_rows, self.n_columns = cgutils.unpack_tuple(builder, array.shape)
        self.strides = cgutils.unpack_tuple(builder, array.strides)

    def at(self, row: ir.Value, column: ir.Value, kind: ir.Type = NUMBER) -> ir.Value:
        """Where a number is, or a vector begins."""
        build = self.builder
        offset = build.add(*(build.mul(n, stride) for n, stride in zip((row, column), self.strides, strict=True)))
        return build.bitcast(build.gep(self.data, [offset]), kind.as_pointer())

    def load(self, row: ir.Value, column: ir.Value, mask: ir.Value) -> ir.Value:
        """LANES numbers of a row, 0 where the mask is."""
        kind = ir.FunctionType(VECTOR, [VECTOR.as_pointer(), ir.IntType(32), mask.type, VECTOR])
        function = cgutils.get_or_insert_function(self.builder.module, kind, f"llvm.masked.load.v{LANES}f32.p0")
        return self.builder.call(function, [self.at(row, column, VECTOR), ir.IntType(32)(4), mask, VECTOR(None)])

    def store(self, vector: ir.Value, row: ir.Value, column: ir.Value, mask: ir.Value) -> None:
        """Write a vector where the mask is."""
        kind = ir.FunctionType(ir.VoidType(), [VECTOR, VECTOR.as_pointer(), ir.IntType(32), mask.type])
        function = cgutils.get_or_insert_function(self.builder.module, kind, f"llvm.masked.store.v{LANES}f32.p0")
        self.builder.call(function, [vector, self.at(row, column, VECTOR), ir.IntType(32)(4), mask])


def smaller(builder: ir.IRBuilder, a: ir.Value, b: ir.Value) -> ir.Value:
    """Of two numbers."""
    return builder.select(builder.icmp_signed("<", a, b), a, b)


def spread(builder: ir.IRBuilder, value: ir.Value) -> ir.Value:
    """A vector of one value."""
    kind = ir.VectorType(value.type, LANES)
    vector = builder.insert_element(kind(ir.Undefined), value, ir.IntType(32)(0))
    return builder.shuffle_vector(vector, kind(ir.Undefined), ir.VectorType(ir.IntType(32), LANES)(None))


def lanes_below(builder: ir.IRBuilder, n: ir.Value) -> ir.Value:
    """A mask of a vector's first n numbers."""
    numbers = ir.VectorType(INT, LANES)(list(range(LANES)))
    return builder.icmp_signed("<", numbers, spread(builder, n))


add_tile = tile_of(TILE_ROWS, TILE_VECTORS)
add_narrow_tile = tile_of(2 * TILE_ROWS, TILE_VECTORS // 2)


@compiled
def multiply(
    a: Float32[np.ndarray, "R K"], b: Float32[np.ndarray, "K C"], c: Float32[np.ndarray, "R C"], adds: bool = False
) -> None:
    """Compiled code alone: c = a @ b, or c += a @ b if it adds.

    c shares no memory with the others. Each number is summed in the order of its terms, whatever the tiles: it depends
    on no shape but K.

    Raises:
        ValueError: If a row of b or c has gaps.
    """
    R, K, C = a.shape[0], a.shape[1], b.shape[1]
    if R > 0 and K > 0 and C > 1 and (b.strides[1] != b.itemsize or c.strides[1] != c.itemsize):
        raise ValueError("a row has gaps, expected one whose numbers lie beside each other")
    if K == 0 and not adds:
        c[:] = 0
    for start in range(0, K, SUMMED_AT_ONCE):
        stop, adding = min(start + SUMMED_AT_ONCE, K), adds or start > 0
        for column in range(0, C, TILE_COLUMNS):
            if 2 * (C - column) <= TILE_COLUMNS:
                for row in range(0, R, 2 * TILE_ROWS):
                    add_narrow_tile(a, b, c, row, column, start, stop, adding)
            else:
                for row in range(0, R, TILE_ROWS):
                    add_tile(a, b, c, row, column, start, stop, adding)
