"""`read_into`: values, units and signs of public dialects, and what is refused before writing."""

import importlib
import io
import sys
import warnings

import numpy as np
import pytest
import torch
import zarr
from extxyz_files import CELL, frame, frames_of_ase, water

import zarrpipe as zp
from zarrpipe.errors import ArgumentError, FieldError, LabelError, SourceError, StoreExistsError
from zarrpipe.testing import assert_batches_equal

pytestmark = pytest.mark.usefixtures("ase")
NINE = "0.01 0.02 0.03 0.02 0.05 0.06 0.03 0.06 0.09"
KCAL = 4184 / 1.6021766208e-19 / 6.022140857e23


@pytest.fixture
def write(tmp_path):
    def write(*frames, name="file.xyz"):
        path = tmp_path / name
        path.write_text("".join(frames))
        return path

    return write


@pytest.fixture
def read(write):
    """Batch of all samples that an import of frames writes, and its report."""

    def read(*frames, **options):
        store = {}
        report = zp.read_into(store, write(*frames), **options)
        return zp.ZarrDataset(store).read(slice(None)), report

    return read


def test_every_label_and_entry_is_that_of_ase(write):
    path = write(
        water(f'REF_energy=-1.5 REF_stress="{NINE}" step=3 name=a {CELL}', forces="force"),
        water(f"REF_energy=-2.5 step=4 virial='1 2 3 2 5 6 3 6 9' {CELL}", forces="force"),
        water("config_type=slab weight=0.5"),
    )
    store = {}
    zp.read_into(store, path)
    batch = zp.ZarrDataset(store).read([0, 1, 2])
    first, second, third = frames_of_ase(path)
    assert batch.energy[:2].tolist() == [[-1.5], [-2.5]]
    assert batch.present("energy").tolist() == [True, True, False]
    assert torch.isnan(batch.energy[2]).all()
    forces = np.concatenate([first.arrays["force"], second.arrays["force"]])
    assert np.array_equal(batch.forces[:6].numpy(), forces)
    assert batch.present("forces").tolist() == [True, True, False]
    stress = np.reshape(first.info["REF_stress"], (3, 3))
    assert np.array_equal(batch.stress[0].numpy(), stress)
    assert np.array_equal(batch.virial[1].numpy(), second.info["virial"])
    assert batch.present("virial").tolist() == [False, True, False]
    assert batch["step"].tolist()[:2] == [[3], [4]]
    assert batch.strings("name") == ["a", None, None]
    assert batch.strings("config_type") == [None, None, "slab"]
    assert np.array_equal(
        batch.positions.numpy(), np.concatenate([a.positions for a in (first, second, third)])
    )
    assert batch.pbc.tolist() == [[True] * 3, [True] * 3, [False] * 3]
    assert "isolated_atom" not in batch.fields


def test_units_are_converted_and_recorded(write):
    path = write(water(f"energy=-100.0 {CELL} stress='1 0 0 0 2 0 0 0 3'", forces="forces"))
    store = {}
    zp.read_into(
        store, path, units={"energy": "kcal/mol", "stress": "kbar"}, stress_sign="pressure"
    )
    batch = zp.ZarrDataset(store).read([0])
    assert batch.energy.item() == pytest.approx(-100 * KCAL, rel=1e-7)
    assert batch.forces[2, 2].item() == pytest.approx(0.8 * KCAL, rel=1e-7)
    kbar = 1 / 1602.1766208
    expected = [-kbar, -2 * kbar, -3 * kbar]
    assert torch.diagonal(batch.stress[0]).tolist() == pytest.approx(expected, rel=1e-7)
    (record,) = stored_imports(store)
    assert record["fields"]["energy"]["unit"] == "kcal/mol"
    assert record["fields"]["forces"]["unit"] == "kcal/mol/Angstrom"
    assert record["fields"]["stress"]["unit"] == "kbar"
    assert record["fields"]["stress"]["factor"] == pytest.approx(-kbar)
    assert record["complete"] is True


def stored_imports(store):
    return zarr.open_group(store, mode="r").attrs["zarrpipe"]["imports"]


def test_lengths_in_bohr(read):
    batch, _ = read(water(f"energy=-1.0 {CELL}", forces="forces"), units={"length": "bohr"})
    bohr = 0.5291772105638411
    assert batch.positions[1, 0].item() == pytest.approx(0.96 * bohr)
    assert batch.cell[0, 0, 0].item() == pytest.approx(5 * bohr)
    assert batch.forces[2, 2].item() == pytest.approx(0.8 / bohr)


@pytest.mark.parametrize(
    ("comment", "words"),
    [
        ("energy=-76.4", "energies look like Hartree.*--units energy=Hartree"),
        ("energy=-47900.0", "energies look like kcal/mol"),
        ("energy=-200600.0", "energies look like kJ/mol"),
        ("energy=-9999.0", "of -3333 eV an atom cannot be"),
        (f"stress='500 0 0 0 500 0 0 0 400' {CELL}", "look like bar.*--units stress=bar"),
        (f"stress='50 0 0 0 30 0 0 0 20' {CELL}", "look like kbar"),
        (f"stress='5 0 0 0 3 0 0 0 2' {CELL}", "look like GPa"),
        (f"virial='9e3 0 0 0 1 0 0 0 1' {CELL}", "look like kcal/mol.*--units virial=kcal/mol"),
        (
            f"stress='0.1 0 0 0 0.2 0 0 0 0.3' virial='12.5 0 0 0 25 0 0 0 37.5' {CELL}",
            "the stress has the sign of a pressure.*--stress-sign pressure",
        ),
        (
            f"stress='0.1 0 0 0 0.2 0 0 0 0' virial='-0.07802 0 0 0 -0.15604 0 0 0 0' {CELL}",
            "the stress is in GPa, by the virial beside it",
        ),
    ],
)
def test_labels_that_cannot_be_are_refused_before_anything_is_written(write, comment, words):
    path, store = write(*[water(comment)] * 3), {}
    with pytest.raises(LabelError, match=words):
        zp.read_into(store, path)
    assert store == {}
    report = zp.read_into(store, path, force=True)
    assert report.num_samples == 3
    assert len(report.plan.doubts) == 1


def test_forces_that_are_too_large(write):
    rows = [("O", 0.0, 0.0, 0.0, 60.0, -50.0, 40.0), ("H", 1.0, 0.0, 0.0, -60.0, 50.0, -40.0)]
    path = write(frame("", rows, "species:S:1:pos:R:3:forces:R:3"))
    with pytest.raises(LabelError, match=r"forces of typically 50\.7 eV/Angstrom are very large"):
        zp.read_into({}, path)


@pytest.mark.parametrize(
    "comment",
    ["energy=-2080.0", "energy=-14.2", "energy=9.7", f"stress='0.01 0 0 0 0 0 0 0 0' {CELL}"],
)
def test_plausible_labels(read, comment):
    """All electrons, pseudopotentials, energies of atomization, a small stress."""
    _, report = read(*[water(comment)] * 3)
    assert report.plan.doubts == ()


def test_units_that_the_file_states(read):
    comment = f"stress='5 0 0 0 3 0 0 0 2' stress_unit=GPa energy=-14.2 energy_unit=eV {CELL}"
    batch, report = read(water(comment))
    assert batch.stress[0, 0, 0].item() == pytest.approx(5 / 160.21766208)
    assert report.plan.units.unit("stress") == "GPa"
    assert batch.strings("stress_unit") == ["GPa"]
    with pytest.raises(LabelError, match=r"state a unit of stress, and 'furlong'.*--units stress"):
        read(water(comment.replace("GPa", "furlong")))
    with pytest.raises(LabelError, match=r"several units of stress \(GPa, bar\)"):
        read(water(comment), water(comment.replace("GPa", "bar")))
    silent = water(comment.replace("stress_unit=GPa ", ""))
    with pytest.raises(LabelError, match=r"several units of stress \(GPa, none\)"):
        read(water(comment), silent)
    said, _ = read(water(comment), silent, units={"stress": "GPa"})
    assert said.stress[:, 0, 0].tolist() == pytest.approx([5 / 160.21766208] * 2)


def test_a_unit_that_changes_between_the_frames_that_were_looked_at(write, monkeypatch):
    monkeypatch.setattr("zarrpipe.formats.read.files.extxyz._PART_FRAMES", 1)
    frames = [water(f"energy=-13.6 energy_unit={unit}") for unit in ("eV", "Hartree", "eV")]
    with pytest.raises(LabelError, match="frames state Hartree as the unit of energy, and those"):
        zp.read_into({}, write(*frames))


def test_a_stated_unit_is_that_of_its_label_alone(read):
    comment = f"energy=-10.0 energy_unit=kcal/mol {CELL}"
    batch, report = read(water(comment, forces="forces"))
    assert batch.energy.item() == pytest.approx(-10 * KCAL)
    assert batch.forces[2, 2].item() == 0.8
    assert report.plan.units.unit("forces") == "eV/Angstrom"


@pytest.mark.parametrize(
    ("symbols", "energies"),
    [
        ("H2", [-31.7, -31.6]),  # molecules with all electrons, eV
        ("H8", [-111.2]),  # metallic
        ("H", [-13.6]),
        ("CH4", [-1101.0, -1100.8]),
        ("Au", [-3.2, float("nan")]),
        ("Xe", [-7200.0]),
    ],
)
def test_good_energies_are_taken(write, symbols, energies):
    atoms = importlib.import_module("ase.formula").Formula(symbols)
    rows = [(name, 0.0, 0.0, float(i)) for i, name in enumerate(atoms)]
    path = write(*(frame(f"energy={energy}", rows) for energy in energies))
    assert zp.read_into({}, path).plan.doubts == ()


@pytest.mark.parametrize(("symbols", "energy"), [("H2", -1.17), ("H8", -4.4), ("CH4", -40.5)])
def test_hartrees_are_noticed(write, symbols, energy):
    atoms = importlib.import_module("ase.formula").Formula(symbols)
    rows = [(name, 0.0, 0.0, float(i)) for i, name in enumerate(atoms)]
    frames = [frame(f"energy={energy}", rows)] * 5 + [frame("energy=nan", rows)]
    with pytest.raises(LabelError, match="energies look like Hartree"):
        zp.read_into({}, write(*frames))


def test_a_few_large_forces_are_no_reason_to_refuse(write):
    """Frames of all parts that are looked at are judged together."""
    rows = [("O", 0.0, 0.0, 0.0, 60.0, -50.0, 40.0), ("H", 1.0, 0.0, 0.0, -60.0, 50.0, -40.0)]
    wild = frame("", rows, "species:S:1:pos:R:3:forces:R:3")
    path = write(*[water("", forces="forces")] * 500, wild)
    assert zp.read_into({}, path).num_samples == 501


def test_single_atoms_of_which_some_lack_forces(write):
    some = frame("energy=-13.6", [("H", 0.0, 0.0, 0.0)])
    others = frame("", [("H", 0.0, 0.0, 0.0, 0.1, 0.0, 0.0)], "species:S:1:pos:R:3:forces:R:3")
    assert zp.read_into({}, write(some, others, some)).num_samples == 3


def test_the_stress_of_dense_matter_is_taken(write):
    cell = 'Lattice="1.06 0 0 0 1.06 0 0 0 1.06"'
    path = write(frame(f"{cell} stress='-3.1 0 0 0 -3.1 0 0 0 -3.1'", [("H", 0.0, 0.0, 0.0)]))
    assert zp.read_into({}, path).plan.doubts == ()


def test_two_candidates_leave_nothing_behind(write):
    path, store = write(water("energy=1.0 REF_energy=-14.2", forces="forces")), {}
    with pytest.raises(LabelError, match="--label energy=REF_energy"):
        zp.read_into(store, path)
    assert store == {}
    report = zp.read_into(store, path, labels={"energy": "REF_energy", "model": "energy"})
    batch = zp.ZarrDataset(store).read([0])
    assert (batch.energy.item(), batch["model"].item()) == (-14.2, 1.0)
    assert report.plan.labels.left_out == {}


def test_the_first_key_that_a_frame_has(read):
    frames = [water("energy=1.0 REF_energy=-14.2"), water("energy=-2.0"), water("step=1")]
    batch, _ = read(*frames, labels={"energy": ["REF_energy", "energy"]})
    assert batch.energy[:2].tolist() == [[-14.2], [-2.0]]
    assert batch.present("energy").tolist() == [True, True, False]


def test_isolated_atoms_are_marked(read):
    hydrogen = [("H", 0.0, 0.0, 0.0)]
    batch, _ = read(
        frame("energy=-13.6 config_type=IsolatedAtom " + CELL, hydrogen),
        frame("energy=-13.6", hydrogen),
        frame("energy=-3.0 " + CELL, hydrogen),
        water("energy=-14.0"),
    )
    assert batch["isolated_atom"].tolist() == [[True], [True], [False], [False]]


def test_a_progress_bar_has_the_number_of_frames(write, capsys):
    path = write(*[water("energy=-1.0")] * 3)
    zp.read_into({}, path, progress=True)
    assert "3/3" in capsys.readouterr().err
    zp.read_into({}, path)
    assert capsys.readouterr().err == ""


def test_labels_that_are_not_numbers_are_taken_and_counted(read):
    batch, report = read(
        water("energy=nan", forces="forces"),
        water("energy=-1.0", forces="forces").replace("0.8", "inf"),
        water("energy=-1.0", forces="forces"),
    )
    assert report.not_finite == {"energy": 1, "forces": 1}
    assert torch.isnan(batch.energy[0]).item()
    assert torch.isinf(batch.forces).sum() == 1
    assert batch.present("energy").all()
    assert "1 samples have energy that is NaN or infinite" in str(report)


def test_frames_that_cannot_be_read_are_reported(write):
    good = water("energy=-1.0")
    path, store = write(good, good.replace("0.96", "x"), good), {}
    report = zp.read_into(store, path)
    assert (report.num_samples, len(zp.ZarrDataset(store))) == (2, 2)
    (failure,) = report.failures
    assert (failure.path, failure.frame, failure.line) == (str(path), 1, 6)
    assert f"{path}, frame 1, line 6: ValueError" in str(report)
    (record,) = stored_imports(store)
    assert [failed[:3] for failed in record["failed"]] == [[0, 1, 6]]
    with pytest.raises(SourceError, match="frame 1, line 6"):
        zp.read_into({}, path, strict=True)


def test_files_without_a_frame_that_can_be_read_are_refused(write):
    good = water("energy=-1.0")
    for text, words in (
        ("", "there is no frame in"),
        (good.replace("O ", "Q "), "none of 1 frames"),
    ):
        with pytest.raises(SourceError, match=words):
            zp.read_into({}, write(text))


def test_an_unreadable_first_frame_hides_nothing_of_the_others(write):
    good = water("energy=-76.4")
    with pytest.raises(LabelError, match="energies look like Hartree"):
        zp.read_into({}, write(good.replace("O ", "Q "), good, good, good))


def test_the_store_to_write_is_no_source(write, tmp_path):
    zp.read_into(tmp_path / "data" / "s.zarr", write(water("energy=-1.0"), name="one.xyz"))
    store = tmp_path / "data" / "s.zarr"
    with pytest.raises(ArgumentError, match="is both a source and the store to write"):
        zp.read_into(store, [tmp_path / "one.xyz", store], if_exists="replace")
    (tmp_path / "data" / "two.xyz").write_text(water("energy=-2.0"))
    (tmp_path / "data" / "loop").symlink_to(tmp_path / "data")
    report = zp.read_into(store, tmp_path / "data", if_exists="append")
    assert [source.path for source, _ in report.plan.sources] == [str(tmp_path / "data/two.xyz")]
    assert zp.ZarrDataset(store).read([0, 1]).energy.tolist() == [[-1.0], [-2.0]]


def test_options_that_change_labels_are_refused_for_stores(write, tmp_path):
    zp.read_into(tmp_path / "a.zarr", write(water("energy=-1.0")))
    for options in (
        {"units": {"energy": "kcal/mol"}},
        {"ignore": ["energy"]},
        {"labels": {"x": "y"}},
    ):
        with pytest.raises(
            ArgumentError, match=f"{next(iter(options))} cannot be given for stores"
        ):
            zp.read_into({}, tmp_path / "a.zarr", **options)


def test_numbers_are_not_changed_without_a_word(write):
    """Whole numbers of other kinds than those of the frames that were looked at."""
    beyond = water("id=5"), water("id=9223372036854775813")
    store = {}
    zp.read_into(store, write(*beyond))
    assert zp.ZarrDataset(store).read([0, 1])["id"].tolist() == [[5.0], [9223372036854775813.0]]


def test_keys_that_differ_in_digits(write):
    path = write(*[water("gfn1_energy=-1.0")] * 2, *[water("gfn2_energy=-2.0")] * 2)
    with pytest.raises(LabelError, match=r"gfn1_energy.* and .*gfn2_energy"):
        zp.read_into({}, path)
    store = {}
    zp.read_into(store, path, labels={"energy": ["gfn2_energy", "gfn1_energy"]})
    energies = zp.ZarrDataset(store).read(slice(None)).energy
    assert energies.tolist() == [[-1.0], [-1.0], [-2.0], [-2.0]]


def test_keys_of_different_shapes_for_one_label(read):
    nine = "stress='0.1 0 0 0 0.2 0 0 0 0.3'"
    six = "REF_stress='0.4 0.5 0.6 0 0 0'"
    labels = {"stress": ["REF_stress", "stress"]}
    batch, _ = read(water(f"{nine} {CELL}"), water(f"{six} {CELL}"), labels=labels)
    assert torch.diagonal(batch.stress, dim1=1, dim2=2).tolist() == [
        [0.1, 0.2, 0.3],
        [0.4, 0.5, 0.6],
    ]


def test_labels_that_are_not_found_are_told(write):
    plan = str(zp.read_into({}, write(water("E_tot_dft=-14.2")), dry_run=True).plan)
    assert "no energy: no key is named as one; labels={'energy': KEY} names it" in plan
    assert "no forces" in plan


def test_the_mark_of_isolated_atoms_comes_back_as_it_was(read):
    hydrogen = [("H", 0.0, 0.0, 0.0)]
    batch, _ = read(frame("energy=-13.6 isolated_atom=F", hydrogen), water("isolated_atom=T"))
    assert batch["isolated_atom"].tolist() == [[False], [True]]
    assert "isolated_atom_" not in batch.fields


def test_source_fields(write):
    first, second = (
        write(water("energy=-1.0 source=mine"), name="a.xyz"),
        write(water("energy=-2.0"), water("energy=-3.0"), name="b.xyz"),
    )
    store = {}
    zp.read_into(store, [second, first], source_fields=True)
    batch = zp.ZarrDataset(store).read([0, 1, 2])
    assert batch.strings("source") == [str(second), str(second), str(first)]
    assert batch["source_index"].tolist() == [[0], [1], [0]]
    assert batch.strings("source_") == [None, None, "mine"]
    assert batch.energy.tolist() == [[-2.0], [-3.0], [-1.0]]


def test_globs_directories_and_what_is_not_recognised(write, tmp_path):
    (tmp_path / "data" / "deep").mkdir(parents=True)
    write(water("energy=-1.0"), name="data/a.xyz")
    write(water("energy=-2.0"), name="data/deep/b.extxyz")
    write("words", name="data/notes.md")
    store = {}
    report = zp.read_into(store, tmp_path / "data")
    assert zp.ZarrDataset(store).read([0, 1]).energy.tolist() == [[-1.0], [-2.0]]
    assert report.plan.not_recognised == (str(tmp_path / "data" / "notes.md"),)
    again = {}
    zp.read_into(again, str(tmp_path / "data" / "**" / "*xyz"))
    assert len(zp.ZarrDataset(again)) == 2
    for wrong, words in (
        (tmp_path / "none.xyz", "there is no file"),
        (str(tmp_path / "*.db"), "nor one that it matches"),
        (tmp_path / "data" / "notes.md", "is not recognised: name it by format"),
        ([], r"sources=\[\], expected a path"),
        (3, "sources=3, expected a path"),
    ):
        with pytest.raises((OSError, ValueError, TypeError), match=words):
            zp.read_into({}, wrong)
    with pytest.raises(ArgumentError, match="format='xzy', expected one of"):
        zp.read_into({}, tmp_path, format="xzy")


def test_standard_input(monkeypatch):
    class Input:
        buffer = io.BytesIO(water("energy=-1.5").encode())

    monkeypatch.setattr(sys, "stdin", Input)
    store = {}
    zp.read_into(store, "-")
    assert zp.ZarrDataset(store)[0].energy.item() == -1.5
    with pytest.raises(ArgumentError, match="standard input cannot be resumed"):
        zp.read_into(store, "-", resume=True)


def test_a_store_that_has_samples(write):
    path, store = write(water("energy=-1.0")), {}
    zp.read_into(store, path)
    with pytest.raises(StoreExistsError, match="has 1 samples"):
        zp.read_into(store, path)
    other = write(water("energy=-2.0"), name="other.xyz")
    zp.read_into(store, other, if_exists="append")
    assert zp.ZarrDataset(store).read([0, 1]).energy.tolist() == [[-1.0], [-2.0]]
    assert len(stored_imports(store)) == 2
    with warnings.catch_warnings(record=True):
        warnings.simplefilter("always")
        zp.read_into(store, other, if_exists="replace")
    assert zp.ZarrDataset(store).read([0]).energy.tolist() == [[-2.0]]


def test_a_store_of_other_precision_is_continued_in_its_own(write):
    store = {}
    with zp.ZarrData(store) as sink:
        sink.write(zp.AtomicData(torch.zeros(1, 3), [2], energy=1.0, pbc=[False] * 3))
    zp.read_into(store, write(water("energy=-1.5", forces="forces")), if_exists="append")
    assert zp.ZarrDataset(store)[1].positions.dtype is torch.float32


def test_stores_as_sources(write, tmp_path):
    zp.read_into(tmp_path / "a.zarr", write(water("energy=-1.0 name=x", forces="forces")))
    store = {}
    report = zp.read_into(store, [tmp_path / "a.zarr", write(water("energy=-2.0"))])
    assert report.num_samples == 2
    copied = zp.ZarrDataset(store).read([0])
    assert_batches_equal(copied, zp.ZarrDataset(tmp_path / "a.zarr").read([0]))


def test_a_dry_run_writes_nothing_and_the_plan_is_told_first(write):
    path, store, told = write(water("energy=-1.0 nested=[[1,2],[3]]", forces="forces")), {}, []
    report = zp.read_into(store, path, dry_run=True, on_plan=lambda plan: told.append(str(plan)))
    assert store == {}
    assert report.num_samples == 0
    assert "energy  from results['energy'], eV" in told[0]
    assert "forces  from results['forces'], eV/Angstrom" in told[0]
    seen = []
    zp.read_into(store, path, on_plan=lambda _: seen.append(dict(store)))
    assert seen == [{}]


def test_units_of_own_fields_are_kept_with_the_store(write):
    store = {}
    zp.read_into(store, write(water("energy=-1.0 time=5.0")), units={"time": "fs"})
    assert zp.ZarrDataset(store).schema["time"].unit == "fs"
    with pytest.raises(ArgumentError, match=r"units has \['tme'\], expected energy, length"):
        zp.read_into({}, write(water("energy=-1.0 time=5.0")), units={"tme": "fs"})
    with pytest.raises(FieldError):
        zp.read_into({}, write(water("energy=-1.0 time=5.0")), labels={"time": "clock"})
    with pytest.raises(ArgumentError, match="stress_sign='down', expected one of tension, press"):
        zp.read_into({}, write(water("energy=-1.0")), stress_sign="down")
    with pytest.raises(ArgumentError, match="no key of the sources is a stress, and a virial"):
        zp.read_into({}, write(water(f"virial='1 0 0 0 1 0 0 0 1' {CELL}")), stress_sign="pressure")


def test_strings_that_are_too_many_are_left_out_and_counted(write, monkeypatch):
    for module in ("importer", "files.extxyz"):
        name = "MOST_CATEGORIES" if module == "importer" else "_PART_FRAMES"
        monkeypatch.setattr(f"zarrpipe.formats.read.{module}.{name}", 4)
    frames = [water(f"energy=-1.0 name=n{i}x kind={'ab'[i % 2]}") for i in range(10)]
    store = {}
    report = zp.read_into(store, write(*frames))
    batch = zp.ZarrDataset(store).read(slice(None))
    assert batch.strings("name") == ["n0x", "n1x", "n2x", "n3x", *[None] * 6]
    assert batch.strings("kind") == ["a", "b"] * 5
    assert report.cut == {"name": 6}


def test_entries_that_no_frame_had_that_was_looked_at(write, monkeypatch):
    """Where a scan looks at some frames only, as it does with files of very many patterns."""
    monkeypatch.setattr("zarrpipe.formats.read.files.extxyz.MOST_PATTERNS", 1)
    monkeypatch.setattr("zarrpipe.formats.read.files.extxyz._PART_FRAMES", 1)
    monkeypatch.setattr("zarrpipe.formats.read.planning._MOST_SAMPLED", 1)
    store = {}
    frames = water("a=1"), water("energy=-1.0 b=2.5"), water("a=2 c=word")
    report = zp.read_into(store, write(*frames))
    assert "keys of some frames only were looked at" in str(report.plan)
    batch = zp.ZarrDataset(store).read(slice(None))
    assert batch["a"].tolist() == [[1], [0], [2]]
    assert batch.present("b").tolist() == [False, True, False]
    assert batch.strings("c") == [None, None, "word"]
    with pytest.raises(LabelError, match=r"info\['a'\].* has fractions"):
        zp.read_into({}, write(water("a=1"), water("a=1.5")))
    with pytest.raises(LabelError, match="may each be the label energy"):
        zp.read_into({}, write(water("energy=-1.0"), water("REF_energy=-1.0")))
