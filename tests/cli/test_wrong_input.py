"""What is typed in wrongly gives one line that names the way out, and exit code 2."""

import pytest
import zarr

import zarrpipe as zp
from zarrpipe.cli import main

ONE = ("info", "stats", "head", "show", "check", "compact", "adopt")


def said_of(arguments, capsys):
    """The one line on standard error of a command that fails with exit code 2."""
    try:
        code = main([*map(str, arguments)])
    except SystemExit as ended:
        code = ended.code
    assert code == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.startswith("zarrpipe: ")
    assert shown.err.count("\n") == 1
    return shown.err


def commands_on(place, tmp_path):
    """Every command, on a store at a place."""
    yield from ([command, place] for command in ONE)
    yield ["merge", place, tmp_path / "target"]
    yield ["split", place, "-o", tmp_path / "splits"]


def test_no_store(tmp_path, capsys):
    for arguments in commands_on(tmp_path / "nothing", tmp_path):
        said = said_of(arguments, capsys)
        assert f"{tmp_path}/nothing: expected the path or URL of a store" in said
    assert [*tmp_path.iterdir()] == []


def test_a_file(tmp_path, capsys):
    (tmp_path / "frames.xyz").write_text("1\n\nH 0 0 0\n")
    for arguments in commands_on(tmp_path / "frames.xyz", tmp_path):
        said = said_of(arguments, capsys)
        assert "frames.xyz is a file, expected the directory of a Zarr store" in said
    assert [path.name for path in tmp_path.iterdir()] == ["frames.xyz"]


def test_a_store_of_another_tool(tmp_path, capsys):
    zarr.create_group(tmp_path / "other").create_array("x", shape=(3,), dtype="f4")
    for arguments in commands_on(tmp_path / "other", tmp_path):
        said = said_of(arguments, capsys)
        in_place = "is left as it is: write to another place"
        way_out = "expected a store that zarrpipe or nvalchemi wrote"
        assert (in_place if arguments[0] == "compact" else way_out) in said
    zarr.create_array(tmp_path / "array", shape=(3,), dtype="f4")
    for arguments in commands_on(tmp_path / "array", tmp_path):
        assert "expected the group of a store" in said_of(arguments, capsys)


@pytest.mark.parametrize(
    ("condition", "way_out"),
    [
        ("max_forces > 3", "did you mean 'max_force'?"),
        ("round >", "where more has to follow"),
        ("config_type == bulk", "a string is put in quotes: 'bulk'"),
        ("open('x')", "expected"),
        ("round", "expected what is true or false"),
    ],
)
def test_a_bad_condition(samples, tmp_path, capsys, condition, way_out):
    for command in ("stats", "show"):
        said = said_of([command, samples.path, "--where", condition], capsys)
        assert way_out in said
    said = said_of(["merge", samples.path, tmp_path / "new", "--where", condition], capsys)
    assert way_out in said
    assert not (tmp_path / "new").exists()
    said = said_of(["split", samples.path, "-o", tmp_path / "new", "--where", condition], capsys)
    assert way_out in said
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("options", "way_out"),
    [
        (["--fields", "enrgy"], "did you mean 'energy'?"),
        (["--fields", "energy,,forces"], "expected names as energy,forces"),
        (["--fields", "forces"], "read() gives it as an array"),
        (["--sort", "max_forces"], "did you mean 'max_force'?"),
        (["--sort", "config_type"], "has strings"),
        (["--limit", "-3"], "show --help says more"),
        (["--limit", "ten"], "show --help says more"),
    ],
)
def test_bad_fields_and_columns(samples, capsys, options, way_out):
    assert way_out in said_of(["show", samples.path, *options], capsys)


@pytest.mark.parametrize(
    ("options", "way_out"),
    [
        (["--fractions", "0.8,0.1"], "expected parts of 0 or more that sum to 1"),
        (["--fractions", "0.8,0.2"], "expected shares of train, val, test"),
        (["--fractions", "most,few,none"], "expected numbers as 0.9,0.05,0.05"),
        (["--by", "trajectory"], "no store has a field 'trajectory', they have"),
        (["--by", "forces"], "expected 'id' or a field at system level"),
    ],
)
def test_bad_splits(samples, tmp_path, capsys, options, way_out):
    arguments = [samples.path, "-o", tmp_path / "splits", *options]
    assert way_out in said_of(["split", *arguments], capsys)
    assert not (tmp_path / "splits").exists()
    assert way_out in said_of(["stats", samples.path, "--split", "train", *options], capsys)


def test_bad_splits_of_statistics(samples, tmp_path, capsys):
    said = said_of(["stats", samples.path, "--split", "validation"], capsys)
    assert "expected one of train, val, test, or an index file (.npy)" in said
    said = said_of(["stats", samples.path, "--split", tmp_path / "none.npy"], capsys)
    assert "give a file that zarrpipe.write_split wrote" in said
    with zp.ZarrData(tmp_path / "other") as sink:
        sink.write(zp.AtomicData([[0.0] * 3], [1]))
    zp.write_split(tmp_path / "other.npy", zp.ZarrDataset(tmp_path / "other"))
    said = said_of(["stats", samples.path, "--split", tmp_path / "other.npy"], capsys)
    assert "give the index file that was written for these stores" in said


def test_targets_that_cannot_be_written(samples, tmp_path, capsys, monkeypatch):
    (tmp_path / "file").write_text("")
    said = said_of(["merge", samples.path, tmp_path / "file"], capsys)
    assert "is a file, expected the directory" in said
    said = said_of(["merge", samples.path, samples.path], capsys)
    assert "use compact" in said
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").write_text("")
    said = said_of(["merge", samples.path, tmp_path / "full"], capsys)
    assert "give a path that does not exist" in said
    said = said_of(["split", samples.path, "-o", tmp_path / "file"], capsys)
    assert "give a place that may be written" in said

    def refused(*_):
        raise PermissionError(13, "Permission denied", "/read/only")

    monkeypatch.setattr("zarrpipe.store.rewrite.target.temp_sibling", refused)
    said = said_of(["merge", samples.path, tmp_path / "new"], capsys)
    assert said.startswith(
        "zarrpipe: /read/only: Permission denied: see whether the place is right"
    )


def test_an_error_of_reading_names_the_place(monkeypatch, capsys):
    class ClientConnectorError(OSError):
        def __str__(self):
            return f"Cannot connect to host 127.0.0.1:9 [{self.strerror}]"

    def refused(*_, **__):
        raise ClientConnectorError(111, "Connect call failed")

    monkeypatch.setattr("zarrpipe.dataset.zarr_dataset.Stores.open", refused)
    said = said_of(["head", "http://127.0.0.1:9/x.zarr"], capsys)
    assert said.startswith(
        "zarrpipe: head http://127.0.0.1:9/x.zarr: Cannot connect to host 127.0.0.1:9 [Connect call"
    )
    assert "can be reached, may be read or written" in said


def test_a_column_to_sort_by_that_is_not_there(samples, capsys):
    said = said_of(["show", samples.path, "--sort", "max_forces"], capsys)
    assert said.startswith("zarrpipe: --sort='max_forces', at 'max_forces'")
    assert "did you mean 'max_force'?" in said


def test_an_import_onto_samples_names_the_option(samples, tmp_path, capsys):
    pytest.importorskip("ase")
    (tmp_path / "one.xyz").write_text("1\nProperties=species:S:1:pos:R:3 energy=-1.0\nH 0 0 0\n")
    assert main(["import", str(tmp_path / "one.xyz"), str(samples.path)]) == 2
    assert "if_exists='append' (--if-exists append) to go on" in capsys.readouterr().err


def test_a_store_that_is_being_written(samples, capsys):
    with zp.ZarrData(samples.path) as sink:
        sink.write(samples.made[0])
        assert "one writer at a time" in said_of(["compact", samples.path], capsys)


def test_an_unknown_url(capsys):
    said = said_of(["info", "nowhere://bucket/store"], capsys)
    assert "is not a URL that can be opened" in said
