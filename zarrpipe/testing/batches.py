"""Batches made for tests, and their comparison by value."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
import zarr

from zarrpipe.data.batch import Batch
from zarrpipe.data.collate import fill_value
from zarrpipe.data.csr import Int64Array, pointers
from zarrpipe.data.fields import CORE_FIELDS, FieldSpec, Kind
from zarrpipe.data.levels import BUILT_IN, Level
from zarrpipe.data.schema import Schema
from zarrpipe.store.backend.location import StoreLike

_DTYPES = {Kind.INTEGER: torch.int64, Kind.NUMBER: torch.int64, Kind.BOOL: torch.bool}
_FREE_SHAPE = (4,)


def random_batch(
    rng: np.random.Generator,
    num_graphs: int,
    *,
    atoms: tuple[int, int] = (1, 6),
    edges: tuple[int, int] | None = None,
    fields: Sequence[str | FieldSpec] = ("energy", "forces"),
    dtype: torch.dtype = torch.float32,
    dtypes: Mapping[str, torch.dtype] | None = None,
    absent: float = 0.0,
) -> Batch:
    """Batch of random systems, whose values are practically all different.

    Parameters
    ----------
    rng
        The only source of randomness.
    num_graphs
        Number of systems B, 0 included.
    atoms
        Least and greatest number of atoms of a system.
    edges
        Least and greatest number of edges of a system; None for a batch without
        ``neighbor_list`` and ``neighbor_list_shifts``.
    fields
        Further fields: names of the registry, and `FieldSpec` for own ones.
    dtype
        Dtype of positions and of all other floating-point fields.
    dtypes
        Dtypes of single fields.
    absent
        Share of the systems that lack a field, for each of `fields` by itself.
    """
    counts = rng.integers(atoms[0], atoms[1] + 1, num_graphs)
    edge_counts = np.zeros(num_graphs, dtype=np.int64)
    if edges is not None:
        edge_counts = rng.integers(edges[0], edges[1] + 1, num_graphs)
    ptr, edge_ptr = pointers(counts), pointers(edge_counts)
    totals = {Level.ATOM: int(ptr[-1]), Level.EDGE: int(edge_ptr[-1]), Level.SYSTEM: num_graphs}
    specs = [item if isinstance(item, FieldSpec) else CORE_FIELDS[item] for item in fields]
    required = [CORE_FIELDS["positions"], CORE_FIELDS["atomic_numbers"]]
    values = {
        spec.name: _random_rows(rng, spec, totals[spec.level], (dtypes or {}).get(spec.name, dtype))
        for spec in (*required, *specs)
    }
    if edges is not None:
        start, count = np.repeat(ptr[:-1], edge_counts), np.repeat(counts, edge_counts)
        ends = [start + rng.integers(0, np.maximum(count, 1)) for _ in range(2)]
        values["neighbor_list"] = torch.from_numpy(np.stack(ends, axis=1))
        shifts = rng.integers(-2, 3, (totals[Level.EDGE], 3))
        values["neighbor_list_shifts"] = torch.from_numpy(shifts)
    present = {}
    rows = {Level.ATOM: counts, Level.EDGE: edge_counts, Level.SYSTEM: np.ones_like(counts)}
    for spec in specs if absent else ():
        has = rng.random(num_graphs) >= absent
        lacking = torch.from_numpy(np.repeat(~has, rows[spec.level]))
        values[spec.name][lacking] = fill_value(values[spec.name].dtype)
        present[spec.name] = torch.from_numpy(has)
    levels = {spec.name: spec.level for spec in specs}
    batch_ptr, edge_pointers = torch.from_numpy(ptr), torch.from_numpy(edge_ptr)
    return Batch(values, batch_ptr, edge_pointers, levels=levels, present=present)


def _random_rows(
    rng: np.random.Generator, spec: FieldSpec, rows: int, dtype: torch.dtype
) -> torch.Tensor:
    """Random rows of a field; `dtype` is that of floats, and of a user's own integers."""
    shape = (rows, *(_FREE_SHAPE if spec.shape is None else spec.shape))
    if spec.kind is not Kind.FLOAT:
        own = spec.name not in CORE_FIELDS and not dtype.is_floating_point
        wanted = dtype if own and spec.kind is Kind.INTEGER else _DTYPES[spec.kind]
        values = rng.integers(0, 2 if spec.kind is Kind.BOOL else 100, shape)
        return torch.from_numpy(values).to(wanted)
    return torch.from_numpy(rng.normal(size=shape)).to(dtype)


def numbered_batch(index: Sequence[int] | Int64Array, generation: int = 0) -> Batch:
    """Batch whose values identify their sample, so that a mix-up shows.

    Sample i has 1 + i % 5 atoms and i % 4 edges; energy, positions and the own field ``serial``
    are functions of i and the generation.

    Parameters
    ----------
    index
        Numbers of the samples [B].
    generation
        Distinguishes samples of the same number, from 0 to 999.
    """
    numbers = np.asarray(index, dtype=np.int64).reshape(-1)
    atoms, edges = 1 + numbers % 5, numbers % 4
    ptr, edge_ptr = pointers(atoms), pointers(edges)
    value = (numbers + generation * 1e9)[:, None]
    place = np.arange(ptr[-1]) - np.repeat(ptr[:-1], atoms)
    edge = np.arange(edge_ptr[-1]) - np.repeat(edge_ptr[:-1], edges)
    ends = np.stack([edge, edge + 1], axis=1) % np.repeat(atoms, edges)[:, None]
    positions = np.repeat(value, atoms, axis=0) + place[:, None] / 8 + np.array([0.0, 0.25, 0.5])
    fields = {
        "positions": positions,
        "atomic_numbers": 1 + place,
        "energy": value,
        "forces": -positions,
        "neighbor_list": ends + np.repeat(ptr[:-1], edges)[:, None],
        "serial": numbers,
    }
    tensors = {name: torch.from_numpy(rows) for name, rows in fields.items()}
    batch_ptr, edge_pointers = torch.from_numpy(ptr), torch.from_numpy(edge_ptr)
    return Batch(tensors, batch_ptr, edge_pointers, levels={"serial": "system"})


def assert_batches_equal(actual: Batch, expected: Batch) -> None:
    """Fail unless two batches have the same fields, levels, dtypes, pointers, presence and values.

    Values are compared exactly; NaN equals NaN. The order of the fields does not matter.

    Raises
    ------
    AssertionError
        Naming what differs first.
    """
    _same("fields", sorted(actual.fields), sorted(expected.fields))
    _same("levels", dict(actual.levels), dict(expected.levels))
    _same(
        "index_of", *({n: r.index_of for n, r in one.roles.items()} for one in (actual, expected))
    )
    _same("pointer_levels", {*actual.pointer_levels}, {*expected.pointer_levels})
    for level in expected.pointer_levels:
        here, there = actual.level_ptr(level).tolist(), expected.level_ptr(level).tolist()
        _same(level.batch_pointers, here, there)
    _same("partly_present", actual.partly_present, expected.partly_present)
    for name in expected.partly_present:
        here, there = actual.present(name).tolist(), expected.present(name).tolist()
        _same(f"presence of {name!r}", here, there)
    for name, value in expected.fields.items():
        _same(f"dtype of {name!r}", actual[name].dtype, value.dtype)
        _same(f"shape of {name!r}", tuple(actual[name].shape), tuple(value.shape))
        try:
            torch.testing.assert_close(
                actual[name].detach().cpu(),
                value.detach().cpu(),
                rtol=0,
                atol=0,
                equal_nan=True,
            )
        except AssertionError as error:
            raise AssertionError(f"field {name!r} differs: {error}") from None


def assert_plain_zarr(store: StoreLike, whole: Batch, *, exact: bool) -> None:
    """Fail unless plain zarr-python reads the samples of a batch, and no others, from a store.

    Parameters
    ----------
    store
        A store that zarrpipe wrote, without deleted samples.
    whole
        What it has to hold.
    exact
        Whether shapes and ``num_samples`` must be exact, as they are after a flush.
    """
    group = zarr.open_group(store, mode="r", use_consolidated=False)
    expected = {level.pointers: whole.level_ptr(level) for level in whole.pointer_levels}
    for level in BUILT_IN.values():
        expected[str(level.mask)] = torch.ones(whole.num_rows(level), dtype=torch.bool)
    lacking = {}
    for name, item in Schema.of(whole).items():
        expected[item.path] = whole[name]
        if item.index_of is not None:
            has = whole.present(name).repeat_interleave(whole.rows_per_graph(item.level))
            lacking[item.path] = ~has.numpy()
    for name in whole.partly_present:
        expected[f"present/{name}"] = whole.present(name)
    for path, value in expected.items():
        array = group[path]
        _same(f"kind of {path}", type(array), zarr.Array)
        stored = np.array(array[...])  # type: ignore[index]
        _same(f"dtype of {path}", stored.dtype, value.numpy().dtype)
        if exact:
            _same(f"shape of {path}", stored.shape, tuple(value.shape))
        if path in lacking:  # row numbers of systems that lack the field are not specified
            stored[: len(value)][lacking[path]] = 0
        np.testing.assert_array_equal(stored[: len(value)], value.numpy(), err_msg=path)
    listed: Any = group.attrs["fields"]
    listed = listed["core"] | listed["custom"] | listed.get("levels", {})
    _same("levels", listed, dict(whole.levels))
    if exact:
        _same("num_samples", group.attrs["num_samples"], whole.num_graphs)


def _same(what: str, actual: object, expected: object) -> None:
    if actual != expected:
        raise AssertionError(f"{what}: {actual}, expected {expected}")
