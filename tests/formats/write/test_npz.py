"""Archives of NumPy hold all that a store has."""

import numpy as np
import torch

import zarrpipe as zp
from zarrpipe.testing import assert_batches_equal


def read_back(path):
    """Batch of an archive, by the rules of the page on exports."""
    arrays = dict(np.load(path, allow_pickle=False))
    named = {
        kind: {
            key.removeprefix(f"{kind}/"): arrays.pop(key)
            for key in [*arrays]
            if key.startswith(f"{kind}/")
        }
        for kind in ("level", "unit", "index_of", "present", "categories", "level_ptrs", "kind")
    }
    ptr, edges = (torch.from_numpy(arrays.pop(name)) for name in ("batch_ptr", "edge_ptr"))
    kinds = {name: str(kind) for name, kind in named["kind"].items()}
    assert kinds == {"bond": "segmented", "pair": "product atom atom", "run": "uniform"}
    own = {"run": zp.Level.uniform("run")}
    own |= {"bond": zp.Level.segmented("bond"), "pair": zp.Level.product("pair", "atom", "atom")}
    levels = {name: own.get(str(level), str(level)) for name, level in named["level"].items()}
    return zp.Batch(
        {name: torch.from_numpy(values) for name, values in arrays.items()},
        ptr,
        edges,
        levels=levels,
        level_ptrs={own[name]: torch.from_numpy(p) for name, p in named["level_ptrs"].items()},
        index_of={name: own.get(str(one), str(one)) for name, one in named["index_of"].items()},
        categories={name: words.tolist() for name, words in named["categories"].items()},
        present={name: torch.from_numpy(mask) for name, mask in named["present"].items()},
    ), {name: str(unit) for name, unit in named["unit"].items()}


def check_same(found, expected):
    """Equal values, and strings, whose codes may differ."""
    strings = ("config_type", "mp_id")
    for name in strings:
        assert found.strings(name) == expected.strings(name)
    assert_batches_equal(found.without(*strings), expected.without(*strings))


def test_everything_comes_back(place, tmp_path):
    written = zp.write_out(place, tmp_path / "out.npz")
    assert written.left_out == {}
    found, units = read_back(written.path)
    dataset = zp.ZarrDataset(place)
    check_same(found, dataset.read(slice(None)))
    assert units == dataset.units
    assert units["temperature"] == "K"


def test_row_numbers_go_on_from_batch_to_batch(place, tmp_path):
    """Batches begin with one sample, then two, so that there are several."""
    order = [0, 1, 2, 3, 4, 1, 0, 0]
    dataset = zp.ZarrDataset(place).index_select(order)
    found, _ = read_back(zp.write_out(dataset, tmp_path / "out.npz").path)
    check_same(found, zp.ZarrDataset(place).read(order))
    assert found.neighbor_list[-1].tolist() == [found.num_nodes - 1, found.num_nodes - 3]


def test_stores_with_other_vocabularies(place, tmp_path):
    with zp.ZarrData(tmp_path / "other") as sink:
        sink.write(
            zp.AtomicData([[0.0, 0, 0]], [1], system={"config_type": "slab"}).to(
                dtype=torch.float64
            )
        )
    stores = [tmp_path / "other", place]
    found, _ = read_back(zp.write_out(stores, tmp_path / "out.npz").path)
    expected = ["slab", *zp.ZarrDataset(place).strings("config_type")]
    assert found.strings("config_type") == expected


def test_the_same_samples_make_the_same_bytes(place, tmp_path):
    for name in ("one.npz", "other.npz"):
        zp.write_out(place, tmp_path / name)
    assert (tmp_path / "one.npz").read_bytes() == (tmp_path / "other.npz").read_bytes()
