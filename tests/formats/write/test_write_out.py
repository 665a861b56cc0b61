"""Which samples are written, under which name, and what is refused before anything is changed."""

import os
import signal
import subprocess
import sys

import numpy as np
import pytest
import torch

import zarrpipe as zp
from zarrpipe.errors import ArgumentError, SchemaError, StoreEmptyError, StoreExistsError
from zarrpipe.formats.write.formats import FORMATS


@pytest.fixture
def numbered(tmp_path):
    """A store of 40 samples whose energy is their number, with forces of that norm, a string."""
    path = tmp_path / "numbered"
    with zp.ZarrData(path) as sink:
        for number in range(40):
            force = torch.zeros(2, 3, dtype=torch.float64)
            force[1, 2] = (number * 7) % 40
            positions = torch.tensor([[0.0, 0, 0], [0, 0, 1 + number / 40]], dtype=torch.float64)
            forces = None if number == 3 else force
            kind = {"kind": "even" if number % 2 == 0 else "odd"}
            sink.write(zp.AtomicData(positions, [1, 1], energy=number, forces=forces, system=kind))
    return path


def energies(path):
    return np.load(path)["energy"].flatten().astype(int).tolist()


def test_conditions_orders_and_limits(numbered, tmp_path):
    out = tmp_path / "out.npz"
    written = zp.write_out(numbered, out, where="kind == 'odd' and energy < 9")
    assert (written.path, written.num_samples) == (out, 4)
    assert energies(out) == [1, 3, 5, 7]
    zp.write_out(numbered, out, sort="max_force", limit=3, overwrite=True)
    assert energies(out) == [(39 - n) * 23 % 40 for n in range(3)]
    written = zp.write_out(numbered, out, sort="-max_force", overwrite=True)
    assert written.num_samples == 40
    assert energies(out)[:2] == [0, 23]
    assert energies(out)[-1] == 3  # has no forces
    zp.write_out(numbered, out, limit=2, overwrite=True)
    assert energies(out) == [0, 1]


def test_splits_are_those_of_a_data_module(numbered, tmp_path):
    shares = (0.5, 0.3, 0.2)
    module = zp.ZarrDataModule(numbered, split=shares)
    for split in ("train", "val", "test"):
        out = tmp_path / f"{split}.npz"
        zp.write_out(numbered, out, split=split, splits=shares)
        expected = getattr(module, f"{split}_dataset").system_field("energy")
        assert energies(out) == expected.flatten().astype(int).tolist()
    zp.write_out(numbered, tmp_path / "odd.npz", split="val", splits=shares, where="kind == 'odd'")
    both = [one for one in energies(tmp_path / "val.npz") if one % 2]
    assert energies(tmp_path / "odd.npz") == both


def test_splits_by_a_field_and_by_an_index_file(numbered, tmp_path):
    dataset = zp.ZarrDataset(numbered)
    zp.write_split(tmp_path / "mine.npy", dataset, [5, 2, 30])
    zp.write_out(numbered, tmp_path / "mine.npz", split=tmp_path / "mine.npy")
    assert energies(tmp_path / "mine.npz") == [2, 5, 30]
    halves = {"splits": (0.5, 0.5, 0.0), "split_by": "kind"}
    found = []
    for split in ("train", "val"):
        try:
            zp.write_out(numbered, tmp_path / f"{split}.npz", split=split, **halves)
            found.append({one % 2 for one in energies(tmp_path / f"{split}.npz")})
        except StoreEmptyError:
            found.append(set())
    assert found[0] | found[1] == {0, 1}
    assert not found[0] & found[1]
    np.save(tmp_path / "other.npy", np.array([1], dtype=np.uint64))
    with pytest.raises(ArgumentError, match="none of the 1 ids"):
        zp.write_out(numbered, tmp_path / "no.npz", split=tmp_path / "other.npy")


def test_fields_and_datasets_with_a_transform(numbered, tmp_path):
    zp.write_out(numbered, tmp_path / "some.npz", fields=["energy"], where="max_force > 30")
    assert "energy" in np.load(tmp_path / "some.npz")
    assert "forces" not in np.load(tmp_path / "some.npz")

    def doubled(batch):
        twice = batch.energy * 2
        return batch.without("forces").add_field("twice", twice, "system")

    dataset = zp.ZarrDataset(numbered, transform=doubled).index_select([7, 4])
    zp.write_out(dataset, tmp_path / "twice.npz", fields=["twice", "kind"])
    arrays = np.load(tmp_path / "twice.npz")
    assert arrays["twice"].flatten().tolist() == [14, 8]
    assert "energy" not in arrays


@pytest.mark.parametrize("form", [*FORMATS])
def test_every_format_has_all_samples_of_several_stores(numbered, place, tmp_path, form):
    for module in {"aselmdb": ["ase_db_backends"], "mace": ["h5py"], "parquet": ["pyarrow"]}.get(
        form, []
    ):
        pytest.importorskip(module)
    written = zp.write_out([numbered, place], tmp_path / "out", format=form)
    assert (written.format, written.num_samples) == (form, 45)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["numbered", "out"]


WRONG = {
    "format is 'poscar', expected one of extxyz": {"format": "poscar"},
    "no store has a field 'force'": {"fields": ["force"]},
    "fields is 'energy', expected a list": {"fields": "energy"},
    "split is 'training', expected one of": {"split": "training"},
    "limit is 0, expected an integer of at least 1": {"limit": 0},
    "chosen by where='energy > 99'": {"where": "energy > 99"},
    "split is .0.5, 0.5.": {"split": "val", "splits": (0.5, 0.5)},
    "force.*did you mean": {"sort": "max_forces"},
    "overwrite is 1": {"overwrite": 1},
}


@pytest.mark.parametrize("message", [*WRONG])
def test_wrong_arguments_write_nothing(numbered, tmp_path, message):
    with pytest.raises((ValueError, TypeError, RuntimeError), match=message):
        zp.write_out(numbered, tmp_path / "sub" / "out.npz", **WRONG[message])
    assert not (tmp_path / "sub").exists()


def test_wrong_places(numbered, tmp_path):
    with pytest.raises(ArgumentError, match=r"suffix of no known format.*\.xyz \(extxyz\)"):
        zp.write_out(numbered, tmp_path / "out.cif")
    with pytest.raises(ArgumentError, match="expected a local path"):
        zp.write_out(numbered, "s3://bucket/out.xyz")
    with pytest.raises(TypeError, match="expected the path"):
        zp.write_out(numbered, "")
    with pytest.raises(StoreExistsError, match="is a directory, and a file"):
        zp.write_out(numbered, numbered, format="extxyz", overwrite=True)
    assert len(zp.ZarrDataset(numbered)) == 40
    empty = zp.ZarrDataset(numbered).index_select([])
    with pytest.raises(StoreEmptyError, match="no samples"):
        zp.write_out(empty, tmp_path / "out.xyz")


def test_an_existing_file_is_replaced_only_when_asked(numbered, tmp_path):
    out = tmp_path / "out.npz"
    out.write_text("mine")
    with pytest.raises(FileExistsError, match="overwrite=True"):
        zp.write_out(numbered, out)
    with pytest.raises(SchemaError):
        zp.write_out(numbered, out, overwrite=True, fields=["nothing"])
    assert out.read_text() == "mine"
    zp.write_out(numbered, out, overwrite=True)
    assert len(energies(out)) == 40


def test_an_error_while_writing_leaves_what_was_there(numbered, tmp_path):
    def broken(batch):
        if len(batch) > 1:
            raise ZeroDivisionError
        return batch

    (tmp_path / "out.npz").write_text("mine")
    dataset = zp.ZarrDataset(numbered, transform=broken)
    with pytest.raises(ZeroDivisionError):
        zp.write_out(dataset, tmp_path / "out.npz", overwrite=True)
    assert (tmp_path / "out.npz").read_text() == "mine"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["numbered", "out.npz"]


KILLED = """
import os, signal, sys, zarrpipe as zp

def kill(batch):
    if len(batch) > 1:
        os.kill(os.getpid(), signal.SIGKILL)
    return batch

zp.write_out(zp.ZarrDataset(sys.argv[1], transform=kill), sys.argv[2])
"""


@pytest.mark.skipif(sys.platform == "win32", reason="needs SIGKILL")
@pytest.mark.parametrize("name", ["out.db", "out.memmap"])
def test_a_kill_leaves_no_half_file(numbered, tmp_path, name):
    command = [sys.executable, "-c", KILLED, str(numbered), str(tmp_path / name)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert not (tmp_path / name).exists()
    assert len([*tmp_path.iterdir()]) == 2  # the hidden directory
    zp.write_out(numbered, tmp_path / name)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["numbered", name]


def test_progress_is_shown_when_asked(numbered, tmp_path, capsys):
    zp.write_out(numbered, tmp_path / "out.npz")
    assert capsys.readouterr() == ("", "")
    zp.write_out(numbered, tmp_path / "out.npz", progress=True, overwrite=True)
    shown = capsys.readouterr()
    assert "40/40 " in shown.err
    assert shown.out == ""
