"""The sums that a store keeps are those of its samples, or are not believed; at any moment."""

import os
import random
import shutil
from collections.abc import Mapping

import numpy as np
import pytest
import torch
import zarr
from zarr.storage import MemoryStore

from zarrpipe import AtomicData, AtomicDataZarrWriter, Batch, ZarrData, ZarrDataset, compact, merge
from zarrpipe.errors import FieldError
from zarrpipe.store.backend import files
from zarrpipe.store.check.run import check
from zarrpipe.store.read.view import StoreView
from zarrpipe.store.statistics import stored_sums
from zarrpipe.store.statistics.stored_sums import read_sums, valid_sums
from zarrpipe.store.write.store_writer import StoreWriter
from zarrpipe.training.splits.assignment import hash_split
from zarrpipe.training.statistics import count, known_sums, measure, measure_split

SMALL = {group: {"chunk_size": 16} for group in ("meta", "core", "custom")}
ZSTD = {group: {"chunk_size": 16, "compressors": ({"name": "zstd"},)} for group in SMALL}
SHARDED = {group: {"chunk_size": 16, "shard_size": 64} for group in SMALL}
PUBLISHED = {group: {"sharded": True, "compressors": ({"name": "zstd"},)} for group in SMALL}
REFERENCE = {1: -13.6, 6: -1029.0, 8: -2042.0, 26: -34000.0}


def labelled(count, seed=0, *, energy=True, forces=True, elements=(1, 6, 8)):
    """Molecules with labels, of which every fifth lacks an energy and every seventh its forces."""
    rng, systems = np.random.default_rng([seed, count]), []
    for number in range(count):
        atoms = rng.choice(elements, size=rng.integers(1, 9))
        edges = rng.integers(0, len(atoms), size=(rng.integers(0, 4), 2))
        fields = {"neighbor_list": edges}
        if energy and number % 5 != 4:
            total = sum(
                REFERENCE.get(one, -300.0 * one) for one in atoms.tolist()
            ) + rng.normal() * len(atoms)
            fields["energy"] = torch.tensor([[total]], dtype=torch.float64)
        if forces and number % 7 != 6:
            fields["forces"] = torch.from_numpy(rng.normal(size=(len(atoms), 3)))
        systems.append(
            AtomicData(torch.from_numpy(rng.normal(size=(len(atoms), 3))), atoms, **fields)
        )
    return systems


def filled(store, count=60, config=None, **options):
    with ZarrData(store, config=config) as sink:
        for part in range(0, count, 20):
            sink.write(labelled(min(20, count - part), part, **options))
    return store


def kept_of(store):
    return valid_sums(StoreView(store).snapshot)


def assert_same(found, expected):
    """Statistics are equal to rounding."""
    for name, value in vars(expected).items():
        if isinstance(value, Mapping):
            assert dict(getattr(found, name)) == pytest.approx(dict(value), rel=1e-6, abs=1e-9), (
                name
            )
        else:
            assert getattr(found, name) == pytest.approx(value, rel=1e-6, abs=1e-9, nan_ok=True), (
                name
            )


def passed(store):
    """Statistics of a full pass."""
    return count(ZarrDataset(store)).statistics()


def assert_true(store, *, kept=True):
    """What a reader says is what a full pass says, and nothing was read for it where sums are."""
    dataset = ZarrDataset(store)
    assert (kept_of(store) is not None) == kept
    assert_same(measure(dataset).statistics(), count(dataset).statistics())


@pytest.fixture(
    params=[
        "local",
        "zstd",
        "memory",
        *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("sharded", "published")),
    ]
)
def store(request, tmp_path):
    config = {"zstd": ZSTD, "sharded": SHARDED}.get(request.param)
    if request.param == "published":
        merge(filled({}), tmp_path / "store", config=PUBLISHED)
        return tmp_path / "store"
    place = MemoryStore() if request.param == "memory" else tmp_path / "store"
    return filled(place, config=config)


class TestOneWriter:
    def test_all_is_counted_when_it_closes(self, store):
        assert kept_of(store).counts.samples == 60
        assert_true(store)

    def test_the_next_one_goes_on(self, store):
        with ZarrData(store) as sink:
            sink.write(labelled(20, 99, elements=(1, 26)))
            sink.flush()
            sink.write(labelled(5, 98))
        assert kept_of(store).counts.samples == 85
        assert_true(store)

    def test_a_flush_leaves_few_samples_to_readers(self, store):
        with ZarrData(store) as sink:
            for seed, counted in ((99, 60), (98, 68), (97, 68), (96, 76)):
                sink.write(labelled(4, seed))
                sink.flush()
                assert kept_of(store).counts.samples == counted
                assert_true(store)
        assert kept_of(store).counts.samples == 76

    def test_what_is_newer_is_read(self, store):
        with ZarrData(store) as sink:
            sink.write(labelled(20, 99))
            assert kept_of(store).counts.samples == 60
            assert_true(store)

    def test_after_deletions_all_is_counted_at_the_next_close(self, store, monkeypatch):
        monkeypatch.setattr(stored_sums, "_FREE_ATOMS", 10)
        with AtomicDataZarrWriter(store) as writer:
            writer.delete([0, 7, 33, -1])
            assert_true(store, kept=False)
            writer.append(labelled(6, 99))
            writer.delete([3, 60])
            assert_true(store, kept=False)
        assert kept_of(store).samples == 60
        assert_true(store)

    def test_a_kill_after_a_deletion_leaves_the_count_to_the_next_close(self, store, monkeypatch):
        monkeypatch.setattr(stored_sums, "_FREE_ATOMS", 10)
        writer = AtomicDataZarrWriter(store)
        writer.delete([0, 7])
        writer._writer.abandon()
        assert_true(store, kept=False)
        with AtomicDataZarrWriter(store) as writer:
            writer.append(labelled(1, 99))
        assert kept_of(store).samples == 59
        assert_true(store)

    def test_one_that_is_killed_leaves_those_of_before(self, store, monkeypatch):
        monkeypatch.setattr(stored_sums, "_DUE_SAMPLES", 15)
        sink = ZarrData(store)
        for seed in range(6):
            sink.write(labelled(6, 100 + seed))
        sink._writer.abandon()
        assert kept_of(store).counts.samples in (78, 84, 90)
        assert_true(store)
        with ZarrData(store) as sink:
            sink.write(labelled(2, 200))
        assert kept_of(store).counts.samples == 98
        assert_true(store)

    def test_a_field_that_comes_later(self, store):
        with AtomicDataZarrWriter(store) as writer:
            writer.append(labelled(4, 99, energy=False, forces=False))
            writer.add_custom("weight", np.ones(64), "system")
        assert_true(store)

    def test_labels_that_are_added_to_all_samples(self, tmp_path):
        bare = filled(tmp_path / "store", energy=False, forces=False)
        with AtomicDataZarrWriter(bare) as writer:
            writer.add_custom("energy", np.arange(60.0)[:, None], "system")
            assert kept_of(bare) is None
        assert_true(bare)

    @pytest.mark.parametrize("step", ["run", "publish_deleted"])
    def test_a_deletion_that_failed_leaves_no_sums_for_another(self, store, step):
        def fail(*_):
            raise OSError(28, "No space left on device")

        with AtomicDataZarrWriter(store) as writer:
            writer._open_writer()
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(StoreWriter, step, fail)
                with pytest.raises(OSError, match="No space"):
                    writer.delete([1, 2])
            assert_same(measure(ZarrDataset(store)).statistics(), passed(store))
            writer.delete([3, 4])
            assert_same(measure(ZarrDataset(store)).statistics(), passed(store))
        assert kept_of(store).samples == 58
        assert_true(store)

    def test_an_emptied_store_begins_anew(self, store):
        with ZarrData(store) as sink:
            sink.zero()
            assert read_sums(zarr.open_group(store, mode="r")) is None
            sink.write(labelled(7, 99))
        assert kept_of(store).samples == 7
        assert_true(store)

    def test_a_large_store_without_sums_is_left_without(self, store, monkeypatch):
        del zarr.open_group(store, mode="r+")["meta/sums"]
        monkeypatch.setattr(stored_sums, "_FREE_ATOMS", 10)
        with ZarrData(store) as sink:
            sink.write(labelled(3, 99))
        assert_true(store, kept=False)
        assert compact_or_merge(store) == 63

    def test_nothing_is_written_where_nothing_was(self, tmp_path):
        place = filled(tmp_path / "store")
        shutil.rmtree(place / "meta/sums")
        with ZarrData(place) as sink:
            sink.flush()
            sink._open_writer().flush()
        assert not (place / "meta/sums").exists()


def compact_or_merge(store):
    samples = compact(store)
    assert_true(store)
    return samples


class TestLabelsThatCannotBeSummed:
    @pytest.mark.parametrize("wrong", ["energy", "forces", "atomic_numbers"])
    def test_are_written_refused_in_statistics_and_deleted(self, store, wrong):
        bad = labelled(3, 99)
        if wrong == "atomic_numbers":
            bad[1].atomic_numbers[0] = 500
        else:
            bad[1][wrong][0, 0] = float("nan")
        with AtomicDataZarrWriter(store) as writer:
            writer.append(bad)
            writer.delete([2])
            writer._open_writer().flush(every=True)
            assert kept_of(store) is not None
            with pytest.raises(FieldError, match=f"field '{wrong}'"):
                measure(ZarrDataset(store)).statistics()
            writer.delete([60])
        assert_true(store)

    def test_a_sum_that_overflows_is_not_kept(self, store):
        bad = labelled(3, 99)
        bad[1].forces[0, 0] = 1e200
        with AtomicDataZarrWriter(store) as writer:
            writer.append(bad)
            writer._open_writer().flush(every=True)
            with pytest.MonkeyPatch.context() as patch:  # it is not tried again and again
                patch.setattr(stored_sums, "active_rows", None)
                writer.append(labelled(40, 98))
                writer._open_writer().flush(every=True)
            assert kept_of(store) is None
            writer.delete([61])
        assert_true(store)

    @pytest.mark.parametrize("label", ["energy", "forces"])
    def test_an_outlier_leaves_no_trace_when_it_is_deleted(self, store, label):
        bad = labelled(3, 99)
        bad[1][label][0, 0] = 1e12
        with AtomicDataZarrWriter(store) as writer:
            writer.append(bad)
            writer.delete([61])
            assert_same(
                measure(ZarrDataset(store)).statistics(), count(ZarrDataset(store)).statistics()
            )
            writer.append(labelled(2, 98))
        assert_true(store, kept=kept_of(store) is not None)

    def test_an_outlier_on_another_side_spoils_nothing(self, store):
        bad = labelled(3, 99)
        bad[1].energy[0, 0] = 1e13
        with ZarrData(store) as sink:
            sink.write(bad)
        dataset = ZarrDataset(store)
        side = int(hash_split(dataset.ids[61:62], [0.01] * 100)[0])
        share = 0.5 if side >= 50 else 1.0
        rows = np.flatnonzero(hash_split(dataset.ids, [0.01] * 100) < share * 100)
        sums = measure_split(dataset, rows, share)
        assert_same(sums.statistics(), count(dataset.index_select(rows)).statistics())


class TestRewrites:
    def test_compacted_and_defragmented(self, tmp_path):
        for place in (tmp_path / "store", MemoryStore()):
            filled(place)
            with AtomicDataZarrWriter(place) as writer:
                writer.delete([1, 2, 50])
                writer.defragment()
                assert_true(place)
                writer.append(labelled(3, 99))
                writer.delete([4])
            compact(place, shuffle=3)
            assert kept_of(place).counts.samples == 59
            assert_true(place)

    @pytest.mark.parametrize("without", [None, 0, 1])
    def test_merged(self, tmp_path, without):
        parts = [filled(tmp_path / "a"), filled({}, 35, elements=(8, 26)), filled({}, 0) or {}]
        with ZarrData(parts[2]):
            pass
        if without is not None:
            del zarr.open_group(parts[without], mode="r+")["meta/sums"]
        for number, config in enumerate((None, PUBLISHED)):
            merge(parts[:2], tmp_path / f"whole{number}", config=config, shuffle=1)
            assert kept_of(tmp_path / f"whole{number}").samples == 95
            assert_true(tmp_path / f"whole{number}")

    def test_what_is_kept_is_one_object(self, store):
        group = zarr.open_group(store, mode="r")
        array = group["meta/sums"]
        assert array.shape == array.chunks
        assert array.shards is None


class TestSides:
    @pytest.mark.parametrize("share", [0.9, 0.37, 0.01, 1.0, 0.995])
    def test_a_side_is_some_of_the_buckets(self, tmp_path, share):
        parts = [filled(tmp_path / "a", 120), filled({}, 80, elements=(8, 26))]
        dataset = ZarrDataset(parts)
        with ZarrData(parts[0]) as sink:
            sink.write(labelled(30, 99))
            dataset.refresh()
            rows = np.flatnonzero(hash_split(dataset.ids, (share, 1 - share)) == 0)
            _, rest = known_sums(dataset, rows, share)
            whole = share * 100 == round(share * 100)
            assert set(rest.tolist()) == (set(rows[rows >= 200].tolist()) if whole else set(rows))
            sums = measure_split(dataset, rows, share)
            assert_same(sums.statistics(), count(dataset.index_select(rows)).statistics())

    def test_samples_that_a_dataset_has_not_seen_are_in_no_sums(self, store):
        dataset = ZarrDataset(store)
        with ZarrData(store) as sink:
            sink.write(labelled(30, 99))
        assert measure(dataset).statistics().num_samples == 60


def sums_file(place):
    return place / "meta/sums/c/0"


class TestDoubt:
    @pytest.mark.parametrize("damage", ["short", "flipped", "gone", "zeros", "text", "metadata"])
    def test_torn_sums_are_none(self, tmp_path, damage):
        place = filled(tmp_path / "store")
        file, content = sums_file(place), bytearray(sums_file(place).read_bytes())
        if damage == "short":
            file.write_bytes(content[:1000])
        elif damage == "flipped":
            content[len(content) // 2] ^= 1
            file.write_bytes(content)
        elif damage == "gone":
            file.unlink()
        elif damage == "zeros":
            file.write_bytes(bytes(len(content)))
        elif damage == "text":
            shutil.rmtree(place / "meta/sums")
            zarr.open_group(place, mode="r+").create_array("meta/sums", data=np.arange(5))
        else:
            (place / "meta/sums/zarr.json").write_text("{")
        assert_true(place, kept=False)
        report = check(place)
        assert [found.kind for found in report.findings if found.severity != "note"] == ["sums"]
        assert check(place, repair=True).repairs
        assert not (place / "meta/sums").exists()
        with ZarrData(place) as sink:
            sink.write(labelled(2, 99))
        assert_true(place)

    def test_sums_of_another_store_are_none(self, tmp_path):
        place, other = filled(tmp_path / "store"), tmp_path / "other"
        with ZarrData(other) as sink:
            sink.write(labelled(60, 4))
        shutil.copy(sums_file(other), sums_file(place))
        assert_true(place, kept=False)

    def test_sums_of_more_rows_than_a_cut_of_power_left_are_removed(self, tmp_path):
        place = filled(tmp_path / "store")
        content = sums_file(place).read_bytes()
        group = zarr.open_group(place, mode="r+")
        group["meta/atoms_ptr"][51:] = 0
        group.update_attributes({**group.attrs.asdict(), "num_samples": 40})
        assert sums_file(place).read_bytes() == content
        assert_true(place, kept=False)
        sink = ZarrData(place)
        sink.write(labelled(20, 99))
        sink._writer.abandon()  # a kill, before anything is counted
        assert_true(place, kept=False)

    def test_labels_that_another_tool_changed_are_told_by_a_check(self, tmp_path):
        place = filled(tmp_path / "store")
        assert check(place).findings == ()
        zarr.open_group(place, mode="r+")["core/energy"][3] += 0.5
        (found,) = check(place).findings
        assert (found.kind, found.severity) == ("sums", "warning")
        assert check(place, repair=True).findings == ()
        assert_true(place, kept=False)


STEPS = ("write_at", "resize", "create", "reopen", "rename", "unlink", "link", "remove_folder")


def test_a_kill_at_any_step_leaves_sums_that_are_true_or_none(tmp_path, monkeypatch, seed):
    place = filled(tmp_path / "store", 20, config=SMALL)
    moments = []

    def watched(step):
        def copied(*arguments, **options):
            moments.append(tmp_path / f"{len(moments)}")
            shutil.copytree(place, moments[-1])
            return step(*arguments, **options)

        return copied

    with monkeypatch.context() as patch:
        for name in STEPS:
            patch.setattr(files, name, watched(getattr(files, name)))
        with AtomicDataZarrWriter(place, SMALL) as writer:
            writer.delete([3, 17])
            writer.append(labelled(3, 99))
            writer._writer.flush()
            writer.delete([4, 18])
    assert len(moments) > 40
    known, chosen = 0, moments
    if not os.environ.get("ZARRPIPE_EXHAUSTIVE"):
        chosen = random.Random(seed).sample(moments, 12)
    for moment in chosen:
        known += kept_of(moment) is not None
        statistics = measure(ZarrDataset(moment)).statistics()
        assert_same(statistics, count(ZarrDataset(moment)).statistics())
        with AtomicDataZarrWriter(moment, SMALL) as writer:
            writer.delete([0, 1])
            writer.append(labelled(2, 98))
        assert_true(moment, kept=kept_of(moment) is not None)
    assert known or chosen is not moments


def test_the_next_count_is_before_an_append_and_an_error_of_it_leaves_nothing_written(
    tmp_path, monkeypatch
):
    place = filled(tmp_path / "store", 20)
    monkeypatch.setattr(stored_sums, "_DUE_SAMPLES", 5)

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    sink = ZarrData(place)
    sink.write(labelled(6, 99))
    with monkeypatch.context() as patch:
        patch.setattr(files, "replace", full)
        with pytest.raises(OSError, match="No space left"):
            sink.write(labelled(3, 98))
    assert len(sink) == 26
    sink.write(labelled(3, 98))
    sink.close()
    assert kept_of(place).samples == 29
    assert_true(place)


def test_a_batch_on_its_own_gives_the_same_sums(tmp_path):
    place = filled(tmp_path / "store", 20)
    statistics = count(ZarrDataset(place)).statistics()
    batch = Batch.from_data_list(labelled(20))
    assert statistics.size_histogram == {
        size: batch.num_nodes_list.count(size) for size in sorted({*batch.num_nodes_list})
    }
    assert statistics.edges_per_atom == pytest.approx(batch.num_edges / batch.num_nodes)


class TestSize:
    """What sums take on disk, and which are stored."""

    def sums_bytes(self, place):
        return sum(file.stat().st_size for file in (place / "meta/sums").rglob("*"))

    def filled(self, place, count):
        with ZarrData(place) as sink:
            sink.write(labelled(count, elements=range(1, 90)))
        return place

    def test_a_thousand_samples_of_89_elements_take_less_than_100_kb(self, tmp_path):
        place = self.filled(tmp_path / "store", 1000)
        assert self.sums_bytes(place) < 100_000
        assert_true(place, kept=False)
        assert check(place).findings == ()

    def test_sums_without_fits_show_changed_labels_and_are_counted_again(
        self, tmp_path, monkeypatch
    ):
        place = filled(tmp_path / "store")
        whole = self.sums_bytes(place)
        monkeypatch.setattr(stored_sums, "_SMALL_BYTES", 1)
        monkeypatch.setattr(stored_sums, "_FREE_ATOMS", 1)
        with ZarrData(place) as sink:
            sink.write(labelled(20, 99))
        assert self.sums_bytes(place) < whole
        assert_true(place, kept=False)
        assert check(place).findings == ()
        monkeypatch.setattr(stored_sums, "_SMALL_BYTES", 1 << 16)
        with ZarrData(place) as sink:
            sink.write(labelled(20, 98))
        assert kept_of(place).samples == 100
        assert_true(place)
        monkeypatch.setattr(stored_sums, "_SMALL_BYTES", 1)
        with ZarrData(place) as sink:
            sink.write(labelled(20, 97))
        zarr.open_group(place, mode="r+")["core/energy"][3] += 0.5
        assert check(place).kinds() == {"sums"}


class TestDenseSums:
    """Version 1 of the array, which was not compressed."""

    @pytest.fixture
    def place(self, tmp_path):
        place = filled(tmp_path / "store")
        group = zarr.open_group(place, mode="r+")
        stored = read_sums(group)
        sums, counts = stored.sums, stored.counts
        parts = [sums.elements, sums.origin, np.hstack([sums.table, np.ones((100, 3))]).ravel()]
        parts += [one.ravel() for one in (sums.counts, sums.fraction, sums.moment, sums.gram)]
        parts += [sums.sizes, sums.size_counts]
        length = 18 + sum(map(len, parts))
        content = np.zeros(1 << 13)
        head = (stored_sums._MAGIC, 1.0, length, 0.0, *stored.generation)
        head += (counts.samples, counts.atoms, counts.edges, 0)
        head += (100, 15, len(sums.elements), len(sums.sizes), sums.fitted, 0.0)
        content[:length] = np.concatenate([head, *parts])
        content[3] = stored_sums._checksum(content)
        del group["meta/sums"]
        group.create_array("meta/sums", data=content, chunks=content.shape, compressors=None)
        return place

    def test_are_read(self, place):
        assert kept_of(place).samples == 60
        assert_true(place)
        assert check(place).findings == ()

    def test_are_continued_in_the_new_form(self, place):
        with ZarrData(place) as sink:
            sink.write(labelled(20, 99))
        assert kept_of(place).samples == 80
        assert zarr.open_group(place, mode="r")["meta/sums"].compressors
        assert_true(place)
