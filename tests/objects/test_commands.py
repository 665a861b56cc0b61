"""The commands of zarrpipe on URLs of an object store."""

import json

import ase
import ase.io
import numpy as np
import obstore
import pytest

import zarrpipe as zp
from reliability.truth import everything, numbers_of, samples, serials, wrong_values
from zarrpipe.cli import main
from zarrpipe.errors import StoreExistsError, StoreFormatError, StoreLockedError
from zarrpipe.store.backend.location import Root
from zarrpipe.store.check.report import Severity
from zarrpipe.store.rewrite import target


def write(place, *starts):
    with zp.ZarrData(place) as sink:
        for start in starts:
            sink.write(samples(numbers_of(start, 5)))


def check_values(place, *starts):
    found = everything(place)
    assert wrong_values(found) is None
    assert serials(found) == np.concatenate([numbers_of(start, 5) for start in starts]).tolist()


def run(*words):
    assert main([*map(str, words)]) == 0


def objects(url):
    return Root.of(url).path.store.store


def test_check_and_info(url, capsys):
    write(url, 0, 100)
    run("check", url)
    capsys.readouterr()
    run("info", url, "--json")
    assert json.loads(capsys.readouterr().out)["samples"] == 10


def test_check_finds_a_lost_chunk_and_drops_its_samples(url):
    write(url, 0)
    obstore.delete(objects(url), "core/forces/c/0/0")
    assert {finding.kind for finding in zp.check(url).of(Severity.ERROR)} == {"missing-chunk"}
    write(f"{url}-whole", 100)
    zp.check(url, repair=True, drop=True)
    assert zp.check(url).ok
    assert len(zp.ZarrDataset(url)) == 0
    write(url, 100)
    check_values(url, 100)


def test_a_repair_is_refused_while_a_writer_has_the_store(url):
    with zp.ZarrData(url) as sink:
        sink.write(samples(numbers_of(0, 5)))
        with pytest.raises(StoreLockedError, match="is held by process"):
            zp.check(url, repair=True)
    check_values(url, 0)


def test_merge_in_all_directions(url, tmp_path):
    write(tmp_path / "local", 0)
    write(f"{url}-far", 100)
    run("merge", tmp_path / "local", f"{url}-far", url)
    check_values(url, 0, 100)
    run("merge", url, tmp_path / "back")
    check_values(tmp_path / "back", 0, 100)
    with pytest.raises(StoreExistsError, match="10 samples"):
        zp.merge(f"{url}-far", url)
    write(url, 200)
    check_values(url, 0, 100, 200)


def test_a_merge_is_refused_where_a_writer_is(url, tmp_path):
    write(tmp_path / "local", 0)
    with zp.ZarrData(url) as sink:
        sink.write(samples(numbers_of(0, 5)))
        sink.zero()
        with pytest.raises(StoreLockedError, match="is held by process"):
            zp.merge(tmp_path / "local", url)


def test_of_two_merges_into_one_place_one_is_refused(url, tmp_path, monkeypatch):
    write(tmp_path / "local", 0)
    refused = []

    def write_store(*args, **options):
        with monkeypatch.context() as second:
            second.setattr(target, "write_store", write_store_as_it_is)
            with pytest.raises(StoreLockedError) as error:
                zp.merge(tmp_path / "local", url)
        refused.append(error)
        write_store_as_it_is(*args, **options)

    write_store_as_it_is = target.write_store
    monkeypatch.setattr(target, "write_store", write_store)
    zp.merge(tmp_path / "local", url)
    assert len(refused) == 1
    check_values(url, 0)


def test_copy_to_and_from(url, tmp_path):
    write(tmp_path / "local", 0)
    run("copy", tmp_path / "local", url)
    check_values(url, 0)
    run("copy", url, tmp_path / "back")
    check_values(tmp_path / "back", 0)


def test_compact_says_what_to_do_instead(url):
    write(url, 0)
    with pytest.raises(StoreFormatError, match="merge"):
        zp.compact(url)
    check_values(url, 0)


def test_deleted_samples_are_gone_for_readers_and_after_a_merge(url, tmp_path):
    write(url, 0, 100)
    with zp.AtomicDataZarrWriter(url) as writer:
        writer.delete(range(5))
    check_values(url, 100)
    zp.merge(url, tmp_path / "merged")
    check_values(tmp_path / "merged", 100)
    write(url, 200)
    check_values(url, 100, 200)


def test_drain_and_zero(url):
    with zp.ZarrData(url) as sink:
        sink.write(samples(numbers_of(0, 5)))
        drained = sink.drain()
        assert wrong_values(drained) is None
        assert serials(drained) == numbers_of(0, 5).tolist()
        sink.write(samples(numbers_of(100, 5)))
    check_values(url, 100)


def test_import_and_export(url, tmp_path):
    frames = [ase.Atoms("OH", [[0, 0, i], [0, 1, i]], info={"energy": -float(i)}) for i in range(6)]
    ase.io.write(tmp_path / "frames.xyz", frames)
    run("import", tmp_path / "frames.xyz", url)
    dataset = zp.ZarrDataset(url)
    assert dataset.read(range(6)).positions[1::2, 2].tolist() == [0, 1, 2, 3, 4, 5]
    run("export", url, tmp_path / "out.xyz")
    again = ase.io.read(tmp_path / "out.xyz", ":")
    assert [atoms.positions[0, 2] for atoms in again] == [0, 1, 2, 3, 4, 5]
    assert zp.check(url).ok
