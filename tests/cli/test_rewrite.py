"""split, merge and compact: the files and stores that they write."""

import json

import numpy as np
import pytest

import zarrpipe as zp
from zarrpipe.cli import main
from zarrpipe.testing import assert_batches_equal


def test_split_writes_the_splits_of_a_data_module(samples, printed, tmp_path):
    options = ["--fractions", "0.5,0.3,0.2", "-o", tmp_path / "a" / "b"]
    shown = printed("split", samples.path, *options, "--json")
    data = zp.ZarrDataModule(samples.path, split=(0.5, 0.3, 0.2))
    data.setup("fit")
    own = {"train": data.train_dataset, "val": data.val_dataset, "test": data.test_dataset}
    assert (shown["by"], shown["shared"]) == ("id", 0)
    assert [*shown["splits"]] == [*own]
    for name, dataset in own.items():
        one = shown["splits"][name]
        assert one["file"] == str(tmp_path / "a" / "b" / f"{name}.npy")
        assert np.array_equal(np.load(one["file"]), np.sort(dataset.ids))
        assert one["samples"] == one["structures"] == len(dataset)
    files = {name: shown["splits"][name]["file"] for name in ("val", "test")}
    again = zp.ZarrDataModule(samples.path, split=files)
    again.setup("fit")
    assert np.array_equal(again.train_dataset.ids, data.train_dataset.ids)
    assert np.array_equal(again.test_dataset.ids, data.test_dataset.ids)


def test_split_replaces_no_file_unasked(samples, printed, tmp_path, capsys):
    printed("split", samples.path, "-o", tmp_path, "--fractions", "0.5,0.5,0")
    before = (tmp_path / "train.npy").read_bytes()
    assert not (tmp_path / "test.npy").exists()
    arguments = ["split", str(samples.path), "-o", str(tmp_path), "--where", "round == 0"]
    assert main([*arguments, "--fractions", "1,0,0"]) == 2
    assert "train.npy is there already" in capsys.readouterr().err
    assert (tmp_path / "train.npy").read_bytes() == before
    lines = printed(*arguments, "--fractions", "1,0,0", "--overwrite").splitlines()
    assert lines[1].split() == ["train", "10", "10", str(tmp_path / "train.npy")]
    assert len(np.load(tmp_path / "train.npy")) == 10


def test_a_structure_of_several_groups_is_in_one_file(samples, tmp_path, capsys):
    """The hashes put round 0 into train, round 1 into val, and round 2 into test."""
    twin = samples.made[0].clone()
    twin["round"][:] = 2
    with zp.ZarrData(samples.path) as sink:
        sink.write(twin)
    options = ["--fractions", "0.3,0.4,0.3", "--by", "round", "-o", str(tmp_path), "--json"]
    assert main(["split", str(samples.path), *options]) == 0
    said = capsys.readouterr()
    assert said.err == (
        "zarrpipe: warning: 1 of the structures stand in several splits by round: each is in the "
        "first of train, val, test\n"
    )
    shown = json.loads(said.out)
    ids = {name: set(np.load(one["file"]).tolist()) for name, one in shown["splits"].items()}
    of_sample = zp.ZarrDataset(samples.path).ids.tolist()
    assert ids["train"] == {*of_sample[:10], of_sample[30]}
    assert of_sample[30] == of_sample[0]
    assert ids["test"] == set(of_sample[20:30])
    assert set.union(*ids.values()) == set(of_sample)
    assert sum(map(len, ids.values())) == 30
    assert shown["splits"]["train"]["samples"] == 11
    assert shown["shared"] == 1


def test_merge(samples, printed, tmp_path):
    with zp.ZarrData(tmp_path / "more") as sink:
        sink.write(samples.made[3])
    target = tmp_path / "whole"
    options = ["--where", "round == 0", "--fields", "energy,forces,round"]
    shown = printed("merge", samples.path, tmp_path / "more", target, *options, "--json")
    sources = [str(samples.path), str(tmp_path / "more")]
    assert shown == {"sources": sources, "target": str(target), "samples": 11}
    expected = zp.Batch.from_data_list([*samples.made[:10], samples.made[3]])
    merged = zp.ZarrDataset(target)
    assert {*merged.schema} == {"positions", "atomic_numbers", "energy", "forces", "round"}
    expected = expected.without("config_type", "moment")
    assert_batches_equal(merged.read(np.arange(11)), expected)


def test_merge_shuffled_to_publish(samples, printed, tmp_path):
    printed("merge", samples.path, tmp_path / "by_command", "--shuffle", 7, "--publish")
    config = zp.ZarrWriteConfig.published(checksum=True)
    zp.merge(samples.path, tmp_path / "by_function", shuffle=7, config=config)
    by_command, by_function = (
        zp.ZarrDataset(tmp_path / name) for name in ("by_command", "by_function")
    )
    assert np.array_equal(by_command.ids, by_function.ids)
    assert not np.array_equal(by_command.ids, zp.ZarrDataset(samples.path).ids)
    codecs = {item.codec for item in zp.info(tmp_path / "by_command").fields}
    assert codecs == {"zstd, crc32c"}


@pytest.mark.parametrize("publish", [False, True])
def test_compact(samples, printed, publish):
    with zp.AtomicDataZarrWriter(samples.path) as writer:
        writer.delete([0, 5])
    options = ["--publish"] if publish else []
    assert printed("compact", samples.path, *options) == f"{samples.path}: 28 samples\n"
    facts = zp.info(samples.path)
    assert (facts.samples, facts.deleted) == (28, 0)
    assert {item.codec for item in facts.fields} == ({"zstd, crc32c"} if publish else {""})
    kept = zp.Batch.from_data_list([*samples.made[1:5], *samples.made[6:]])
    read = zp.ZarrDataset(samples.path).read(np.arange(28))
    assert read.strings("config_type") == kept.strings("config_type")
    assert_batches_equal(read.without("config_type"), kept.without("config_type"))
    shown = printed("compact", samples.path, "--shuffle", 1, "--json")
    assert shown == {"store": str(samples.path), "samples": 28}
