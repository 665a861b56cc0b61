"""Stores and batches shared with nvalchemi 0.2 and 0.3, by value and in both directions."""

import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import seeded_systems
import torch
import zarr
from seeded_systems import (
    assert_batches_equal,
    assert_same,
    check_store,
    make_batches,
    make_system,
)

import zarrpipe as zp
from zarrpipe.adapters import as_batch, to_nvalchemi

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:nvalchemi")


SIZES = [3, 1, 4, 1, 5, 9]


@pytest.mark.parametrize("kind", ["path", "local", "memory", "dict"])
def test_its_reader_sees_every_append_while_the_sink_is_open_and_after_close(
    nvalchemi, tmp_path, kind
):
    store = {
        "path": tmp_path / "run.zarr",
        "local": zarr.storage.LocalStore(tmp_path / "run.zarr"),
        "memory": zarr.storage.MemoryStore(),
        "dict": {},
    }[kind]
    written = []
    with zp.ZarrData(store, capacity=100) as sink:
        for batch in make_batches(SIZES):
            sink.write(batch)
            sink.flush()
            written += batch.to_data_list()
            check_store(nvalchemi, store, written)
    check_store(nvalchemi, store, written)


def test_a_reader_that_is_open_follows_with_refresh(nvalchemi, tmp_path):
    first, *others = make_batches(SIZES)
    with zp.ZarrData(tmp_path / "run.zarr") as sink:
        sink.write(first)
        reader = nvalchemi.AtomicDataZarrReader(tmp_path / "run.zarr")
        count = len(first)
        for batch in others:
            sink.write(batch)
            assert len(reader) == count
            reader.refresh()
            count += len(batch)
            assert len(reader) == count
            assert_same(reader[-1][0], batch.get_data(-1))


def test_a_mask_a_second_session_and_a_compressed_store(nvalchemi, tmp_path):
    batches = make_batches(SIZES)
    config = {
        "core": {"compressors": (zarr.codecs.ZstdCodec(level=3),), "chunk_size": 16},
        "meta": {"chunk_size": 4},
    }
    written = []
    for batch in batches:
        mask = torch.arange(len(batch)) % 2 == 0
        with zp.ZarrData(tmp_path / "run.zarr", config=config) as sink:
            sink.write(batch, mask)
        written += batch.index_select(mask).to_data_list()
    check_store(nvalchemi, tmp_path / "run.zarr", written)


def test_labels_that_some_samples_lack(nvalchemi, tmp_path):
    with zp.ZarrData(tmp_path / "run.zarr") as sink:
        for seed in range(6):
            sink.write(make_system(seed, labels=seed % 2 == 1))
    with nvalchemi.AtomicDataZarrReader(tmp_path / "run.zarr") as reader:
        for seed in range(6):
            found, expected = reader[seed][0], make_system(seed, labels=seed % 2 == 1)
            assert_same(found, expected, exactly=False)
            if seed % 2 == 0:
                assert found["energy"].isnan().all()
                assert found["forces"].shape == (expected.num_nodes, 3)


def test_after_delete_and_defragment(nvalchemi, tmp_path):
    store = tmp_path / "run.zarr"
    systems = [make_system(seed) for seed in range(12)]
    with zp.ZarrData(store) as sink:
        sink.write(zp.Batch.from_data_list(systems[:5]))
        sink.write(zp.Batch.from_data_list(systems[5:]))
    writer = zp.AtomicDataZarrWriter(store)
    writer.delete([0, 4, 7])
    kept = [system for seed, system in enumerate(systems) if seed not in {0, 4, 7}]
    check_store(nvalchemi, store, kept)
    writer.defragment()
    check_store(nvalchemi, store, kept)


def test_its_loader_makes_batches_of_our_store(nvalchemi, tmp_path):
    systems = [make_system(seed) for seed in range(8)]
    with zp.ZarrData(tmp_path / "run.zarr") as sink:
        sink.write(systems[:3])
        sink.write(systems[3:])
    dataset = nvalchemi.Dataset(nvalchemi.AtomicDataZarrReader(tmp_path / "run.zarr"), device="cpu")
    batches = [as_batch(batch) for batch in nvalchemi.DataLoader(dataset, batch_size=4)]
    expected = [zp.Batch.from_data_list(systems[:4]), zp.Batch.from_data_list(systems[4:])]
    for found, wanted in zip(batches, expected, strict=True):
        for name, value in wanted.fields.items():
            assert torch.equal(found[name], value), name


WRITER = """
import sys
sys.path[:0] = {path!r}
import zarrpipe as zp
from {module} import make_system

with zp.ZarrData({store!r}, capacity=100_000) as sink:
    for seed in range({count}):
        sink.write(make_system(seed))
        print(seed, flush=True)
    sys.stdin.read()
"""


def start_writer(tmp_path, count):
    here = Path(seeded_systems.__file__)
    program = WRITER.format(
        path=[str(here.parent)],
        module=here.stem,
        store=str(tmp_path / "run.zarr"),
        count=count,
    )
    return subprocess.Popen(
        [sys.executable, "-c", program],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def kill(process):
    """End the writer without a chance to tidy up; the number of writes it had acknowledged."""
    process.send_signal(signal.SIGKILL)
    acknowledged = process.stdout.read().split()
    process.wait()
    process.stdin.close()
    process.stdout.close()
    return [int(seed) for seed in acknowledged]


def test_after_a_writer_was_killed_and_another_went_on(nvalchemi, tmp_path):
    process = start_writer(tmp_path, 7)
    for _ in range(7):
        process.stdout.readline()
    kill(process)
    check_store(nvalchemi, tmp_path / "run.zarr", [make_system(seed) for seed in range(7)])
    with zp.ZarrData(tmp_path / "run.zarr") as sink:
        assert len(sink) == 7
        sink.write(make_system(7))
    check_store(nvalchemi, tmp_path / "run.zarr", [make_system(seed) for seed in range(8)])


@pytest.mark.parametrize("delay", [0.011, 0.023, 0.037, 0.053])
def test_a_writer_killed_in_the_middle_leaves_a_prefix(nvalchemi, tmp_path, delay):
    process = start_writer(tmp_path, 50_000)
    process.stdout.readline()
    time.sleep(delay)
    acknowledged = kill(process)
    with nvalchemi.AtomicDataZarrReader(tmp_path / "run.zarr") as reader:
        least = max(acknowledged, default=0) + 1
        assert least <= len(reader) <= least + 1
        for seed in range(0, len(reader), max(1, len(reader) // 20)):
            assert_same(reader[seed][0], make_system(seed))
        assert_same(reader[-1][0], make_system(len(reader) - 1))


def test_what_was_acknowledged_reads_right_beside_a_writer(nvalchemi, tmp_path):
    """It reads pointers first and the mask last, so what arrives in between may look empty to it.

    Every sample whose write had returned before the refresh is right.
    """
    process = start_writer(tmp_path, 50_000)
    acknowledged = int(process.stdout.readline())
    try:
        reader = nvalchemi.AtomicDataZarrReader(tmp_path / "run.zarr")
        for _ in range(40):
            acknowledged = int(process.stdout.readline())
            reader.refresh()
            assert len(reader) > acknowledged
            assert_same(reader[acknowledged][0], make_system(acknowledged))
    finally:
        kill(process)


def test_a_mask_that_a_killed_writer_left_without_pointers_is_cleared(nvalchemi, tmp_path):
    """The one moment at which a kill shows it empty samples: until the next writer opens."""
    process = start_writer(tmp_path, 4)
    for _ in range(4):
        process.stdout.readline()
    kill(process)
    mask = zarr.open_array(tmp_path / "run.zarr" / "meta" / "samples_mask", mode="r+")
    mask[4:9] = True
    with nvalchemi.AtomicDataZarrReader(tmp_path / "run.zarr") as reader:
        assert len(reader) == 9
    with zp.ZarrData(tmp_path / "run.zarr") as sink:
        sink.write(make_system(4))
        check_store(nvalchemi, tmp_path / "run.zarr", [make_system(seed) for seed in range(5)])
    check_store(nvalchemi, tmp_path / "run.zarr", [make_system(seed) for seed in range(5)])


def nvalchemi_systems(nvalchemi, count):
    return to_nvalchemi(zp.Batch.from_data_list([make_system(i) for i in range(count)]))


def test_its_batches_and_systems_become_ours_and_back(nvalchemi):
    ours = zp.Batch.from_data_list([make_system(seed) for seed in range(6)])
    theirs = to_nvalchemi(ours)
    assert isinstance(theirs, nvalchemi.Batch)
    extra = {"atomic_masses", "atom_categories", "velocities"}
    back = as_batch(theirs)
    assert set(back.fields) - set(ours.fields) == extra
    assert_batches_equal(back.without(*extra), ours)
    assert_batches_equal(as_batch(theirs.to_data_list()), back)
    assert_batches_equal(as_batch(theirs.index_select([4, 1])), back.index_select([4, 1]))


def test_a_field_at_a_level_of_its_own_keeps_it(nvalchemi):
    """Five bonds beside five atoms are not taken for a field of atoms."""
    batch = to_nvalchemi(zp.Batch.from_data_list([make_system(seed) for seed in range(2)]))
    if not hasattr(batch, "add_level"):
        pytest.skip("nvalchemi 0.2 has no levels of the user's own")
    batch.add_level("bond", segmented=True)
    orders = [torch.arange(float(count)) for count in batch.num_nodes_list]
    batch.add_key("order", orders, level="bond")
    found = as_batch(batch)
    assert found.levels["order"] == "bond"
    assert torch.equal(found["order"].flatten(), torch.cat(orders))
    assert found.level_ptr("bond").diff().tolist() == batch.num_nodes_list


def test_its_names_levels_and_shapes_are_in_our_registry(nvalchemi):
    data = nvalchemi.AtomicData
    sets = {
        "atom": data._default_node_keys,
        "edge": data._default_edge_keys,
        "system": data._default_system_keys,
    }
    dense = {"neighbor_matrix", "neighbor_matrix_shifts", "num_neighbors"}
    theirs = {name: level for level, names in sets.items() for name in names - dense}
    ours = {name: str(spec.level) for name, spec in zp.data.fields.CORE_FIELDS.items()}
    assert ours == theirs


def test_a_store_that_it_has_written_once_is_read_by_ours(nvalchemi, tmp_path):
    theirs = nvalchemi_systems(nvalchemi, 9)
    nvalchemi.AtomicDataZarrWriter(tmp_path / "theirs.zarr").write(theirs)
    expected = as_batch(theirs)
    with zp.AtomicDataZarrReader(tmp_path / "theirs.zarr") as reader:
        assert len(reader) == 9
        for index, system in enumerate(expected.to_data_list()):
            assert_same(reader[index][0], system)
    dataset = zp.ZarrDataset(tmp_path / "theirs.zarr")
    assert_batches_equal(dataset.__getitems__([5, 0, 8]), expected.index_select([5, 0, 8]))
    with zp.ZarrData(tmp_path / "theirs.zarr") as sink:
        assert len(sink) == 9
        assert_batches_equal(sink.read(), expected)


def test_what_it_has_added_and_deleted_is_respected(nvalchemi, tmp_path):
    theirs = nvalchemi_systems(nvalchemi, 6)
    writer = nvalchemi.AtomicDataZarrWriter(tmp_path / "theirs.zarr")
    writer.write(theirs)
    extra = torch.arange(6.0).reshape(6, 1)
    writer.add_custom("extra", extra, "system")
    writer.delete([2])
    kept = [0, 1, 3, 4, 5]
    with zp.AtomicDataZarrReader(tmp_path / "theirs.zarr") as reader:
        assert len(reader) == 5
        for index, physical in enumerate(kept):
            found = reader[index][0]
            assert_same(found, as_batch(theirs).get_data(physical), exactly=False)
            assert found["extra"].tolist() == [[float(physical)]]


def test_a_store_that_it_has_written_is_not_written_to_by_ours(nvalchemi, tmp_path):
    theirs = nvalchemi_systems(nvalchemi, 4)
    nvalchemi.AtomicDataZarrWriter(tmp_path / "theirs.zarr").write(theirs)
    with pytest.raises(ValueError, match="zarrpipe did not write, and is left as it is"):
        zp.ZarrData(tmp_path / "theirs.zarr").write(theirs)
    check_store(nvalchemi, tmp_path / "theirs.zarr", as_batch(theirs).to_data_list())


def test_the_sink_serves_its_snapshot_hook(nvalchemi, tmp_path):
    hooks = sys.modules["nvalchemi.dynamics.hooks"]
    sink = zp.ZarrData(tmp_path / "run.zarr", capacity=20)
    hook = hooks.SnapshotHook(sink=sink, frequency=1)
    live = nvalchemi_systems(nvalchemi, 4)
    written = []
    for step in range(3):
        live.positions.add_(0.125)
        live.forces.mul_(2.0)
        hook(SimpleNamespace(batch=live, step_count=step), None)
        written.append(as_batch(live.clone()))
    expected = zp.Batch.concatenate(written)
    assert len(sink) == 12
    assert_batches_equal(sink.read(), expected)
    for _ in range(2):
        hook(SimpleNamespace(batch=live), None)
    with pytest.raises(RuntimeError, match="full"):
        hook(SimpleNamespace(batch=live), None)
    assert len(sink) == 20
    sink.close()
    check_store(
        nvalchemi,
        tmp_path / "run.zarr",
        zp.Batch.concatenate([expected, written[-1], written[-1]]).to_data_list(),
    )


def test_the_sink_serves_its_converged_snapshot_hook(nvalchemi, tmp_path):
    hooks = sys.modules["nvalchemi.dynamics.hooks"]
    live = nvalchemi_systems(nvalchemi, 4)
    with zp.ZarrData(tmp_path / "run.zarr") as sink:
        hook = hooks.ConvergedSnapshotHook(sink=sink)
        mask = torch.tensor([False, True, False, True])
        hook(SimpleNamespace(batch=live, converged_mask=mask), None)
        hook(SimpleNamespace(batch=live, converged_mask=None), None)
        assert len(sink) == 2
        found = sink.read()
    expected = as_batch(live).index_select(mask)
    assert torch.equal(found.positions, expected.positions)
    assert torch.equal(found.energy, expected.energy)


def test_a_run_of_its_dynamics_goes_into_the_sink(nvalchemi, tmp_path):
    """Its demo model and integrator, with our sink where its own would be."""
    demo = pytest.importorskip("nvalchemi.dynamics.demo")
    models = pytest.importorskip("nvalchemi.models.demo")
    hooks = sys.modules["nvalchemi.dynamics.hooks"]
    sink = zp.ZarrData(tmp_path / "run.zarr")
    dynamics = demo.DemoDynamics(
        model=models.DemoModelWrapper(models.DemoModel()),
        n_steps=4,
        dt=0.5,
        hooks=[hooks.SnapshotHook(sink=sink, frequency=2)],
    )
    systems = [
        nvalchemi.AtomicData(
            positions=torch.randn(n, 3),
            atomic_numbers=torch.full((n,), 6),
            forces=torch.zeros(n, 3),
            energy=torch.zeros(1, 1),
            velocities=torch.zeros(n, 3),
        )
        for n in (3, 5)
    ]
    final = dynamics.run(nvalchemi.Batch.from_data_list(systems))
    assert len(sink) == 4
    last = sink.read().index_select([2, 3])
    assert last.num_nodes_list == [3, 5]
    assert final.num_nodes == 8
    sink.close()
    with nvalchemi.AtomicDataZarrReader(tmp_path / "run.zarr") as reader:
        assert torch.equal(reader[3][0]["positions"], last.get_data(1).positions)


@pytest.mark.parametrize("single", [False, True], ids=["batches", "single systems"])
def test_neighbour_lists_that_it_appended_are_put_right(nvalchemi, tmp_path, single):
    """It stores indices relative to their batch; its own reader then gives negative ones."""
    store = tmp_path / "theirs.zarr"
    writer = nvalchemi.AtomicDataZarrWriter(store)
    batches = make_batches([4, 3, 5])
    writer.write(to_nvalchemi(batches[0]))
    for batch in batches[1:]:
        theirs = to_nvalchemi(batch)
        for part in theirs.to_data_list() if single else [theirs]:
            writer.append(part)
    with nvalchemi.AtomicDataZarrReader(store) as reader:
        assert reader[4][0]["neighbor_list"].min() < 0
    report = zp.check(store)
    assert report.kinds("error") == {"relative-edges"}
    repaired = zp.check(store, repair=True)
    assert repaired.ok, str(repaired)
    systems = [system for batch in batches for system in batch.to_data_list()]
    check_all(nvalchemi, store, systems)


def check_all(nvalchemi, store, systems):
    """Both readers give the systems as they were."""
    with nvalchemi.AtomicDataZarrReader(store) as theirs, zp.AtomicDataZarrReader(store) as ours:
        assert len(theirs) == len(ours) == len(systems)
        for index, system in enumerate(systems):
            assert_same(theirs[index][0], system, exactly=False)
            assert_same(ours[index][0], system, exactly=False)


def spanned(system):
    """The same system with an edge from its first atom to its last."""
    ends = torch.tensor([[0, system.num_nodes - 1]])
    fields = {name: value for name, value in system.fields.items() if name in KEPT}
    return zp.AtomicData(**fields, neighbor_list=ends)


KEPT = ("positions", "atomic_numbers", "cell", "pbc", "energy", "forces", "stress")


def test_what_it_defragmented_is_put_right_where_edges_span_their_system(nvalchemi, tmp_path):
    store = tmp_path / "theirs.zarr"
    writer = nvalchemi.AtomicDataZarrWriter(store)
    systems = [spanned(make_system(seed)) for seed in range(12)]
    writer.write(to_nvalchemi(zp.Batch.from_data_list(systems[:6])))
    writer.append(to_nvalchemi(zp.Batch.from_data_list(systems[6:])))
    writer.delete([1, 7])
    writer.defragment()
    assert zp.check(store).kinds("error") == {"relative-edges"}
    assert zp.check(store, repair=True).ok
    check_all(nvalchemi, store, [systems[i] for i in range(12) if i not in {1, 7}])


def test_its_good_store_has_no_errors_and_is_left_as_it_is(nvalchemi, tmp_path):
    store = tmp_path / "theirs.zarr"
    nvalchemi.AtomicDataZarrWriter(store).write(nvalchemi_systems(nvalchemi, 6))
    before = {path: path.read_bytes() for path in store.rglob("*") if path.is_file()}
    report = zp.check(store, repair=True)
    assert report.ok, str(report)
    assert report.repairs == ()
    assert {path: path.read_bytes() for path in store.rglob("*") if path.is_file()} == before
