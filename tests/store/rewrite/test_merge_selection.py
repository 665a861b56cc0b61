"""Merging the samples that meet a condition, and some of the fields."""

import numpy as np
import pytest
import torch

import zarrpipe as zp
from zarrpipe.errors import ArgumentError, ArgumentTypeError, SchemaError
from zarrpipe.testing import assert_batches_equal

PLAIN = zp.ZarrWriteConfig()
STORES = ("plain", "published", "dict")


@pytest.fixture
def parts(tmp_path, data, request):
    """Two stores of 30 and 20 samples, the second without energies, one sample deleted."""
    kind, places = request.param, []
    for tag, count in enumerate((30, 20)):
        batch = data.batch(count, tag=tag)
        batch.add_field("round", torch.arange(count) % 4, "system")
        place = {} if kind == "dict" else tmp_path / f"part{tag}"
        config = zp.ZarrWriteConfig.published() if kind == "published" else None
        with zp.ZarrData(place, capacity=1000, config=config) as sink:
            sink.write(batch.without("energy") if tag else batch)
        places.append(place)
    with zp.AtomicDataZarrWriter(places[0]) as writer:
        writer.delete([7])
    return places


every_kind = pytest.mark.parametrize("parts", STORES, indirect=True)
CONDITIONS = (
    "round >= 2",
    "max_force < 1.5 and num_edges > 0",
    "has(energy) and energy > 0",
    "not has(energy)",
    "formula == 'HO' or has_element('C')",
    "num_atoms < 0",
)


@every_kind
@pytest.mark.parametrize("where", CONDITIONS)
@pytest.mark.parametrize("target", ["path", "dict"])
def test_a_merge_has_the_samples_that_meet_the_condition(parts, tmp_path, where, target):
    whole = zp.ZarrDataset(parts)
    index = whole.where(where)
    place = {} if target == "dict" else tmp_path / "target"
    assert zp.merge(parts, place, where=where) == len(index)
    assert zp.check(place).ok
    if not len(index):
        assert where == "num_atoms < 0"
        assert len(zp.ZarrDataset(place)) == 0
        return
    merged, expected = zp.ZarrDataset(place), whole.read(index)
    assert merged.ids.tolist() == whole.ids_of(index).tolist()
    if where == "not has(energy)":
        assert "energy" not in merged.schema or not merged.present("energy").any()
        expected, fields = expected.without("energy"), [f for f in whole.schema if f != "energy"]
        assert_batches_equal(merged.gather(np.arange(len(merged)), fields), expected)
    else:
        assert_batches_equal(merged.read(np.arange(len(merged))), expected)


@every_kind
@pytest.mark.parametrize(
    "fields", [["energy"], ["forces", "round"], ["neighbor_list"], [], ["positions"]]
)
def test_a_merge_has_the_fields_that_are_asked_for(parts, tmp_path, fields):
    whole, place = zp.ZarrDataset(parts), tmp_path / "target"
    assert zp.merge(parts, place, fields=fields, shuffle=3) == 49
    merged = zp.ZarrDataset(place)
    assert {*merged.schema} == {"positions", "atomic_numbers", *fields}
    order = [np.flatnonzero(whole.ids == one)[0] for one in merged.ids]
    assert sorted(order) == [*range(49)]
    expected = whole.gather(np.array(order), fields)
    assert_batches_equal(merged.read(np.arange(49)), expected)
    assert merged.num_edges.sum() == (whole.num_edges.sum() if "neighbor_list" in fields else 0)
    assert zp.check(place).ok
    with zp.ZarrData(place, capacity=100) as sink:  # and the store goes on
        sink.write(zp.AtomicData([[0.0, 0.0, 0.0]], [1]).to(dtype=torch.float64))
    assert len(zp.ZarrDataset(place)) == 50


@pytest.mark.parametrize("parts", ["plain"], indirect=True)
def test_kept_statistics_are_those_of_what_was_copied(parts, tmp_path):
    zp.merge(parts, tmp_path / "whole")  # its sums are stored
    places = [tmp_path / name for name in ("some", "none")]
    zp.merge(tmp_path / "whole", places[0], where="round == 1")
    zp.merge(tmp_path / "whole", places[1], fields=["forces"])
    for place in places:
        data = zp.ZarrDataModule(place, split=(1.0, 0.0, 0.0), batch_size=4)
        data.setup("fit")
        dataset = zp.ZarrDataset(place)
        batch = dataset.read(np.arange(len(dataset)))
        assert data.statistics.num_samples == len(dataset)
        rms = batch.forces.square().sum(-1).mean().div(3).sqrt().item()
        assert data.statistics.forces_rms == pytest.approx(rms)


def test_statistics_of_other_samples_are_not_taken_for_those_that_were_copied(tmp_path, data):
    batch = data.batch(20).add_field("round", torch.arange(20) // 10, "system")
    data.append(tmp_path / "store", batch[:10])  # closed: these ten are in the stored sums
    sink = zp.ZarrData(tmp_path / "store", capacity=1000)
    sink.write(batch[10:])
    sink._writer.abandon()  # as a kill would
    zp.merge(tmp_path / "store", tmp_path / "late", where="round == 1")
    module = zp.ZarrDataModule(tmp_path / "late", split=(1.0, 0.0, 0.0), batch_size=4)
    module.setup("fit")
    rms = batch[10:].forces.square().sum(-1).mean().div(3).sqrt().item()
    assert module.statistics.forces_rms == pytest.approx(rms)


@pytest.mark.parametrize("parts", ["plain"], indirect=True)
def test_wrong_selections_are_refused_before_anything_is_written(parts, tmp_path):
    place = tmp_path / "target"
    with pytest.raises(SchemaError, match="did you mean 'round'"):
        zp.merge(parts, place, where="rounds > 1")
    with pytest.raises(ArgumentError, match="where='round >' is no expression"):
        zp.merge(parts, place, where="round >")
    with pytest.raises(SchemaError, match=r"no store has a field 'force' \(did you mean 'forces'"):
        zp.merge(parts, place, fields=["force"])
    with pytest.raises(ArgumentTypeError, match="fields is 'forces', expected a list of names"):
        zp.merge(parts, place, fields="forces")
    assert not place.exists()


def test_levels_of_ones_own_go_with_their_last_field(tmp_path):
    bond = zp.Level.segmented("bond")
    other = {
        bond: {"bond_atoms": [[0, 1], [1, 0]], "bond_order": [1.0, 2.0]},
        "angle": {"angle_bonds": [[0, 1]]},
        zp.Level.product("pair", bond, "atom"): {"coupling": torch.arange(4.0)},
    }
    system = zp.AtomicData(
        [[0.0, 0.0, 0.0], [0.0, 0.0, 1.0]],
        [1, 8],
        other_levels=other,
        index_of={"bond_atoms": "atom", "angle_bonds": "bond"},
    )
    with zp.ZarrData(tmp_path / "store") as sink:
        sink.write([system, system])
    whole = zp.ZarrDataset(tmp_path / "store").read([0, 1])
    chosen = [["bond_atoms"], ["angle_bonds", "bond_order"], [], ["coupling", "bond_order"]]
    for place, fields in enumerate(chosen):
        target = tmp_path / str(place)
        assert zp.merge(tmp_path / "store", target, fields=fields, where="num_atoms == 2") == 2
        merged = zp.ZarrDataset(target).read([0, 1])
        assert {*merged.fields} == {"positions", "atomic_numbers", *fields}
        for name in fields:
            assert torch.equal(merged[name], whole[name]), name
        assert zp.check(target).ok
    for name in ("angle_bonds", "coupling"):
        with pytest.raises(
            SchemaError, match=f"{name!r}, which refers to bonds: add a field of bo"
        ):
            zp.merge(tmp_path / "store", tmp_path / "target", fields=[name])
    assert not (tmp_path / "target").exists()
