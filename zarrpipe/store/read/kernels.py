"""The steps of a gather that touch every sample, compiled by numba.

Importing this module imports numba and loads the compiled code, so only functions import it.
Levels are numbers: 0 for systems, then those that have pointers, in the order of the plan.

Table of the K samples of a batch, int64 [2 L + 1, K + 1] for L levels that have pointers:

========== ====================================================================
row        entry k
========== ====================================================================
0          row of sample k in its store
2 l - 1    first row of sample k in the store at level l
2 l        pointers of the batch at level l, [K + 1]; counts until `lay_out`
========== ====================================================================

Source, the description of a store, int64 [3 L + 2 + C] for the C arrays of a batch:

========== ====================================================================
entry      meaning
========== ====================================================================
0, 1       number of samples, and address of the rows that are not deleted (0: none is)
3 l - 1    number of committed rows at level l
3 l        address of the pointers of level l; 0 if they are not needed
3 l + 1    fewest rows of a sample at level l
3 L + 2    address of the first row of each array; 0 if the store lacks it
========== ====================================================================

Arrays of a batch, int64 [3, C]: level, bytes of a row, and the level whose row numbers its int64
values are, so that each sample's shift from store to batch is added (0: none).

Layout of a batch, int64 [L + 2 + C + L + 1]: rows by level, K + 1, offset in bytes of each array
and of each pointer array, and the length of all.
"""

from typing import Any

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic

OUTSIDE, DAMAGED = -1, -2
"""A sample does not exist; pointers fall, are negative, or exceed the committed rows."""

_ALIGNMENT = 64
_PREFETCHED = 1 << 14  # bytes that fit into a second-level cache
_LINE = 64
_ALL = np.zeros(0, dtype=np.int64)
_ADDRESS = types.intp
_READ = types.Array(types.int64, 1, "C", readonly=True)
_ARRAYS = types.Array(types.int64, 2, "C", readonly=True)
_TABLE = types.int64[:, ::1]
_INT64 = types.int64[::1]
_BYTES = types.uint8[::1]


@intrinsic
def _memcpy(typingctx, target, source, nbytes):  # type: ignore[no-untyped-def]
    """Copy bytes from one address to another."""

    def codegen(context, builder, signature, args):  # type: ignore[no-untyped-def]
        pointer = cgutils.voidptr_t
        target, source = (builder.inttoptr(address, pointer) for address in args[:2])
        cgutils.raw_memcpy(builder, target, source, args[2], 1)
        return context.get_dummy_value()

    return types.void(_ADDRESS, _ADDRESS, _ADDRESS), codegen


@intrinsic
def _prefetch(typingctx, address):  # type: ignore[no-untyped-def]
    """Prefetch a cache line into the second level; any address is allowed."""

    def codegen(context, builder, signature, args):  # type: ignore[no-untyped-def]
        pointer, number = cgutils.voidptr_t, ir.IntType(32)
        function = builder.module.declare_intrinsic(
            "llvm.prefetch",
            [pointer],
            ir.FunctionType(ir.VoidType(), [pointer, number, number, number]),
        )
        read, second_level, data = number(0), number(2), number(1)
        builder.call(function, [builder.inttoptr(args[0], pointer), read, second_level, data])
        return context.get_dummy_value()

    return types.void(_ADDRESS), codegen


@intrinsic
def _load(typingctx, address):  # type: ignore[no-untyped-def]
    """Value of the int64 at an address."""

    def codegen(context, builder, signature, args):  # type: ignore[no-untyped-def]
        return builder.load(builder.inttoptr(args[0], ir.IntType(64).as_pointer()))

    return types.int64(_ADDRESS), codegen


@intrinsic
def _store(typingctx, address, value):  # type: ignore[no-untyped-def]
    """Set the int64 at an address."""

    def codegen(context, builder, signature, args):  # type: ignore[no-untyped-def]
        builder.store(args[1], builder.inttoptr(args[0], ir.IntType(64).as_pointer()))
        return context.get_dummy_value()

    return types.void(_ADDRESS, types.int64), codegen


def _compiled(signature: Any) -> Any:
    """Compile at import, or load from the cache on disk if a place for it is writable."""

    def compiled(function: Any) -> Any:
        try:
            return njit(signature, nogil=True, cache=True)(function)
        except RuntimeError:  # neither the package nor a home directory is writable
            return njit(signature, nogil=True)(function)

    return compiled


@_compiled(types.int64(_READ, types.int64, _READ, _READ, _TABLE))
def locate(samples, known, places, source, table):  # type: ignore[no-untyped-def]
    """Look up samples [J] in the pointers of a store, and fill columns of the table.

    Only the first `known` samples may be read. `places` [J] are the columns; empty for the first J.
    Returns 0, `OUTSIDE` or `DAMAGED`.
    """
    levels = (table.shape[0] - 1) // 2
    for j in range(len(samples)):
        sample = samples[j]
        if sample < 0 or sample >= source[0] or sample >= known:
            return OUTSIDE
        row = _load(source[1] + 8 * sample) if source[1] else sample
        k = places[j] if len(places) else j
        table[0, k] = row
        for level in range(1, levels + 1):
            rows, pointers = source[3 * level - 1], source[3 * level]
            table[2 * level - 1, k] = table[2 * level, k + 1] = 0
            if pointers:
                start = _load(pointers + 8 * row)
                stop = _load(pointers + 8 * row + 8)
                if start < 0 or stop - start < source[3 * level + 1] or stop > rows:
                    return DAMAGED
                table[2 * level - 1, k] = start
                table[2 * level, k + 1] = stop - start
    return 0


@_compiled(types.void(_TABLE, _ARRAYS, _INT64))
def lay_out(table, arrays, layout):  # type: ignore[no-untyped-def]
    """Turn the counts of a table into pointers, and set the offset of each array of the batch."""
    levels, count = (table.shape[0] - 1) // 2, table.shape[1] - 1
    layout[0], layout[levels + 1] = count, count + 1
    for level in range(1, levels + 1):
        table[2 * level, 0] = 0
        for k in range(count):
            table[2 * level, k + 1] += table[2 * level, k]
        layout[level] = table[2 * level, count]
    end, place = 0, levels + 2
    for column in range(arrays.shape[1]):
        layout[place] = end
        nbytes = layout[arrays[0, column]] * arrays[1, column]
        end += -(-nbytes // _ALIGNMENT) * _ALIGNMENT
        place += 1
    for _ in range(levels):
        layout[place] = end
        end += -(-8 * (count + 1) // _ALIGNMENT) * _ALIGNMENT
        place += 1
    layout[place] = end


@_compiled(types.void(_TABLE, _READ, _READ, _ARRAYS, _READ, _BYTES))
def copy(table, places, source, arrays, layout, out):  # type: ignore[no-untyped-def]
    """Copy the rows of the samples at `places` (empty: all) from a store into the batch."""
    levels = (table.shape[0] - 1) // 2
    count = len(places) if len(places) else table.shape[1] - 1
    for column in range(arrays.shape[1]):
        address, level, size = source[3 * levels + 2 + column], arrays[0, column], arrays[1, column]
        if address == 0:
            continue
        begin = out.ctypes.data + layout[levels + 2 + column]
        asked = prefetched = 0
        for j in range(count):
            while asked < count and prefetched < _PREFETCHED:  # waiting takes most time
                k = places[asked] if len(places) else asked
                start = table[0, k] if level == 0 else table[2 * level - 1, k]
                rows = 1 if level == 0 else table[2 * level, k + 1] - table[2 * level, k]
                begins, ends = address + start * size, address + (start + rows) * size
                for line in range(begins & -_LINE, ends, _LINE):
                    _prefetch(line)
                prefetched += rows * size + _LINE
                asked += 1
            k = places[j] if len(places) else j
            start = table[0, k] if level == 0 else table[2 * level - 1, k]
            first = k if level == 0 else table[2 * level, k]
            rows = 1 if level == 0 else table[2 * level, k + 1] - first
            _memcpy(begin + first * size, address + start * size, rows * size)
            prefetched -= rows * size + _LINE
            counted = arrays[2, column]
            if counted:
                shift = table[2 * counted, k] - table[2 * counted - 1, k]
                for word in range(begin + first * size, begin + (first + rows) * size, 8):
                    _store(word, _load(word) + shift)


@_compiled(types.void(_TABLE, _READ, _BYTES))
def put_pointers(table, layout, out):  # type: ignore[no-untyped-def]
    """Write the pointers into the batch."""
    levels = (table.shape[0] - 1) // 2
    for level in range(1, levels + 1):
        begin = out.ctypes.data + layout[len(layout) - 2 - levels + level]
        for k in range(table.shape[1]):
            _store(begin + 8 * k, table[2 * level, k])


@_compiled(types.int64(_READ, types.int64, _READ, _ARRAYS, _INT64, _BYTES))
def read(samples, known, source, arrays, layout, out):  # type: ignore[no-untyped-def]
    """Read a batch from one store; return its length in bytes, or an error.

    Nothing is copied if the batch is longer than `out`.
    """
    levels = (len(layout) - 3 - arrays.shape[1]) // 2
    table = np.empty((2 * levels + 1, len(samples) + 1), dtype=np.int64)
    status = locate(samples, known, _ALL, source, table)
    if status:
        return status
    lay_out(table, arrays, layout)
    nbytes = layout[len(layout) - 1]
    if nbytes <= len(out):
        copy(table, _ALL, source, arrays, layout, out)
        put_pointers(table, layout, out)
    return nbytes
