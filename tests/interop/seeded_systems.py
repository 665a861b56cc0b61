"""Systems whose numbers follow from a seed, and stores of them compared by value."""

import numpy as np
import torch

import zarrpipe as zp


def make_system(seed, *, labels=True):
    """A system whose numbers follow from its seed alone; every third has no edges."""
    rng = np.random.default_rng(seed)
    atoms = int(rng.integers(1, 9))
    edges = 0 if seed % 3 == 2 else int(rng.integers(1, 12))

    def floats(*shape):
        return torch.from_numpy(rng.normal(size=shape).astype(np.float32))

    fields = {
        "positions": floats(atoms, 3),
        "atomic_numbers": torch.from_numpy(rng.integers(1, 90, atoms)),
        "cell": floats(1, 3, 3),
        "pbc": torch.from_numpy(rng.integers(0, 2, (1, 3)).astype(bool)),
        "neighbor_list": torch.from_numpy(rng.integers(0, atoms, (edges, 2))),
        "neighbor_list_shifts": torch.from_numpy(rng.integers(-2, 3, (edges, 3), dtype=np.int32)),
    }
    if labels:
        fields |= {"energy": floats(1, 1), "forces": floats(atoms, 3), "stress": floats(1, 3, 3)}
    return zp.AtomicData(
        **fields,
        atom={"tag": torch.arange(atoms) + 10 * seed},
        edge={"weight": floats(edges, 2)},
        system={"temperature": floats(1, 1), "seed": torch.tensor([[seed]])},
    )


def make_batches(sizes):
    seeds = iter(range(sum(sizes)))
    return [zp.Batch.from_data_list([make_system(next(seeds)) for _ in range(n)]) for n in sizes]


def assert_same(found, expected, *, exactly=True):
    """A dict that nvalchemi has read against a system of ours."""
    if exactly:
        assert set(found) == set(expected.fields)
    for name, value in expected.fields.items():
        assert found[name].dtype == value.dtype, name
        assert torch.equal(found[name], value), (name, found[name], value)


def check_store(nvalchemi, store, systems):
    """Every sample, one by one, all at once, and scattered so that its other path is taken."""
    with nvalchemi.AtomicDataZarrReader(store) as reader:
        assert len(reader) == len(systems)
        for index, expected in enumerate(systems):
            assert_same(reader[index][0], expected)
            assert reader.get_metadata(index) == (expected.num_nodes, expected.num_edges)
        everything = list(range(len(systems)))
        for order in (everything, everything[::-1], everything[::3] + everything[1::3]):
            for index, (found, _) in zip(order, reader.read_many(order), strict=True):
                assert_same(found, systems[index])
        levels = {name: str(level) for name, level in systems[0].levels.items()}
        assert reader.field_levels == levels


def assert_batches_equal(found, expected):
    assert torch.equal(found.batch_ptr, expected.batch_ptr)
    assert torch.equal(found.edge_ptr, expected.edge_ptr)
    assert set(found.fields) == set(expected.fields)
    for name, value in expected.fields.items():
        assert torch.equal(found[name], value), name
        assert found.levels[name] == expected.levels[name], name
