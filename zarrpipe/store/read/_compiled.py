"""The gather, compiled by numba: each segment is copied by memcpy.

Imported only by `zarrpipe.store.read.kernels`, and only where numba is installed. What the
functions do is said there; the NumPy versions beside them give equal results.
"""

from typing import Any

from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic

_AHEAD = 1 << 14
"""Bytes that are asked for before they are copied: what a second-level cache has room for."""

_LINE = 64
_ADDRESS = types.intp
_READ = types.Array(types.int64, 1, "C", readonly=True)
_INT64 = types.int64[::1]
_TABLE = types.int64[:, ::1]


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
    """Ask for a cache line at the second level; any address is allowed."""

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


def _compiled(signature: Any) -> Any:
    """Compile at once, from the cache on disk where one can be had."""

    def compiled(function: Any) -> Any:
        try:
            return njit(signature, nogil=True, cache=True)(function)
        except RuntimeError:  # neither the package nor a home directory can be written
            return njit(signature, nogil=True)(function)

    return compiled


@_compiled(types.int64(_READ, _READ, _READ, _READ, _READ, _READ, _TABLE))
def locate(index, places, active, limits, atoms_ptr, edges_ptr, table):  # type: ignore[no-untyped-def]
    """See `zarrpipe.store.read.kernels.Kernels`."""
    for j in range(len(index)):
        sample = index[j]
        if sample < 0 or sample >= limits[0]:
            return 1
        row = active[sample] if len(active) else sample
        k = places[j] if len(places) else j
        table[0, k] = row
        table[1, k] = atoms_ptr[row]
        table[2, k + 1] = atoms_ptr[row + 1] - atoms_ptr[row]
        if table[2, k + 1] < 1 or table[1, k] < 0 or atoms_ptr[row + 1] > limits[1]:
            return 2
        table[3, k] = table[4, k + 1] = 0
        if len(edges_ptr):
            table[3, k] = edges_ptr[row]
            table[4, k + 1] = edges_ptr[row + 1] - edges_ptr[row]
            if table[4, k + 1] < 0 or table[3, k] < 0 or edges_ptr[row + 1] > limits[2]:
                return 2
    return 0


@_compiled(types.void(_TABLE, _READ, _READ, types.int64, _INT64))
def lay_out(table, levels, row_bytes, alignment, offsets):  # type: ignore[no-untyped-def]
    """See `zarrpipe.store.read.kernels.Kernels`."""
    count = table.shape[1] - 1
    table[2, 0] = table[4, 0] = 0
    for k in range(count):
        table[2, k + 1] += table[2, k]
        table[4, k + 1] += table[4, k]
    end = 0
    for column in range(len(levels)):
        offsets[column] = end
        rows = count if levels[column] == 0 else table[2 * levels[column], count]
        end += -(-rows * row_bytes[column] // alignment) * alignment
    for pointers in range(2):
        offsets[len(levels) + pointers] = end
        end += -(-8 * (count + 1) // alignment) * alignment
    offsets[len(levels) + 2] = end


@_compiled(types.void(_TABLE, _READ, _READ, _READ, _READ, _READ, types.int64, types.int64, _INT64))
def copy(table, places, addresses, levels, row_bytes, offsets, edges, last, words):  # type: ignore[no-untyped-def]
    """See `zarrpipe.store.read.kernels.Kernels`."""
    total = table.shape[1] - 1
    count = len(places) if len(places) else total
    target = words.ctypes.data
    for column in range(len(levels)):
        address, level, size = addresses[column], levels[column], row_bytes[column]
        if address == 0:
            continue
        begin = target + offsets[column]
        asked = ahead = 0
        for j in range(count):
            while asked < count and ahead < _AHEAD:  # waiting for memory is most of the time
                k = places[asked] if len(places) else asked
                start = table[0, k] if level == 0 else table[2 * level - 1, k]
                rows = 1 if level == 0 else table[2 * level, k + 1] - table[2 * level, k]
                begins, ends = address + start * size, address + (start + rows) * size
                for line in range(begins & -_LINE, ends, _LINE):
                    _prefetch(line)
                ahead += rows * size + _LINE
                asked += 1
            k = places[j] if len(places) else j
            start = table[0, k] if level == 0 else table[2 * level - 1, k]
            first = k if level == 0 else table[2 * level, k]
            rows = 1 if level == 0 else table[2 * level, k + 1] - first
            _memcpy(begin + first * size, address + start * size, rows * size)
            ahead -= rows * size + _LINE
    if edges >= 0:
        word = offsets[edges] // 8
        for j in range(count):
            k = places[j] if len(places) else j
            shift = table[2, k] - table[1, k]
            for place in range(word + 2 * table[4, k], word + 2 * table[4, k + 1]):
                words[place] += shift
    if last:
        for pointers in range(2):
            word = offsets[len(levels) + pointers] // 8
            for k in range(total + 1):
                words[word + k] = table[2 + 2 * pointers, k]
