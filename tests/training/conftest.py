"""Small stores with the truth beside them."""

import importlib
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch

from zarrpipe import AtomicData, Batch, ZarrData
from zarrpipe.store.root import StoreLike


def random_batch(count: int, seed: int = 0, *, edges: bool = True, tag: int = 0) -> Batch:
    """`count` systems of 1 to 6 atoms; field `serial` counts them from 1000 * tag."""
    random = np.random.default_rng([seed, tag])
    systems = []
    for serial in range(count):
        atoms = int(random.integers(1, 7))
        fields: dict[str, object] = {}
        if edges:
            shape = (int(random.integers(0, 5)), 2)
            fields["neighbor_list"] = random.integers(0, atoms, size=shape)
        systems.append(
            AtomicData(
                torch.from_numpy(random.normal(size=(atoms, 3))),
                torch.from_numpy(random.choice([1, 6, 8], size=atoms)),
                energy=torch.tensor([[float(random.normal())]], dtype=torch.float64),
                forces=torch.from_numpy(random.normal(size=(atoms, 3))),
                system={"serial": torch.tensor([serial + 1000 * tag])},
                **fields,
            )
        )
    return Batch.from_data_list(systems)


def append(store: StoreLike, batch: Batch) -> Batch:
    """Append to a store, as a sink does, and give the batch back."""
    with ZarrData(store, capacity=1000) as sink:
        sink.write(batch)
    return batch


def assert_equal(got: Batch, expected: Batch) -> None:
    assert set(got.fields) == set(expected.fields)
    assert torch.equal(got.batch_ptr, expected.batch_ptr)
    for name, value in expected.fields.items():
        assert got[name].dtype == value.dtype, name
        assert torch.equal(got[name], value), name
    assert got.partly_present == expected.partly_present
    for name in expected.partly_present:
        assert torch.equal(got.present(name), expected.present(name)), name


@pytest.fixture
def data() -> SimpleNamespace:
    """Helpers: ``data.batch(count, ...)``, ``data.append(store, batch)``, ``data.same(a, b)``."""
    return SimpleNamespace(batch=random_batch, append=append, same=assert_equal)


@pytest.fixture
def store(tmp_path: Path) -> tuple[Path, Batch]:
    """A store of 40 systems, and the batch that was written."""
    return tmp_path / "store", append(tmp_path / "store", random_batch(40))


@pytest.fixture
def transforms(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The module transforms.py, under a name by which worker processes import it too."""
    monkeypatch.syspath_prepend(Path(__file__).parent)
    return importlib.import_module("transforms")


@pytest.fixture(scope="session")
def two_ranks_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store that test_ddp.py trains on and grows."""
    path = tmp_path_factory.mktemp("grown") / "store"
    append(path, random_batch(40))
    return path
