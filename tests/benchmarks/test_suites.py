"""Every suite, tiny, through the command line: each row is there and each number is one."""

import json
import math

import numpy as np
import pytest
import zarr

import zarrpipe as zp
from benchmarks import __main__ as command
from benchmarks import loop, memory, objects, plans, probe, report, scale
from benchmarks.engines import ENGINES
from benchmarks.machine import facts
from benchmarks.rows import read_rows

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::UserWarning:torch.*"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:torch.*"),
    pytest.mark.filterwarnings("ignore::FutureWarning:torch.*"),
]
pytest.importorskip("psutil", reason="the extra 'bench' is not installed")


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    return tmp_path_factory.mktemp("benchmarks")


@pytest.fixture
def run(work):
    """Run one suite at the size of the tests; its rows, by case and name."""

    def run_suite(suite, *more):
        out = work / f"{suite}.jsonl"
        rows = command.main(
            ["--only", suite, "--size", "small", "--work", str(work), "--out", str(out), *more]
        )
        assert read_rows([out])[0] == rows
        for row in rows:
            assert row.suite == suite
            assert all(map(math.isfinite, (row.value, row.low, row.high, *row.ratios.values())))
            assert row.low <= row.value <= row.high
        return {(row.case, row.name): row for row in rows}

    return run_suite


@pytest.fixture
def here(monkeypatch):
    """Probes in this process, which has imported everything."""

    def ask(name, **arguments):
        return json.loads(json.dumps(probe.PROBES[name](**arguments)))

    for suite in (memory, plans, scale):
        monkeypatch.setattr(suite, "ask", ask)


def test_reads_of_every_engine_that_is_installed(run, work, capsys):
    rows = run("reads", "--data", "molecules,edges,bonds", "--batch-sizes", "16")
    installed = {engine.name for engine in ENGINES if engine.installed}
    cases = {
        "molecules, batches of 16": installed,
        "edges, batches of 16": installed - {"atompack"},
        "bonds, batches of 16": installed - {"atompack", "nvalchemi", "nvalchemi on zarrpipe"},
        "bonds beside molecules, batches of 16": {"molecules", "bonds"},
    }
    for case, names in cases.items():
        assert {name for found, name in rows if found == case} == names
        if "beside" in case:
            assert rows[case, "molecules"].ratios["molecules"] == 1.0
            assert rows[case, "bonds"].unit == "MB/s"
            continue
        ours = rows[case, "zarrpipe"]
        assert ours.ratios["zarrpipe"] == 1.0
        assert ours.unit == "samples/s"
    assert "reads: edges, batches of 16" in capsys.readouterr().out

    document = work / "document.md"
    document.write_text(
        "<!-- begin bars --><!-- end bars -->\n<!-- begin reads --><!-- end reads -->"
    )
    pytest.importorskip("matplotlib", reason="the extra 'bench' is not installed")
    picture = work / "picture.png"
    report.main([str(work / "reads.jsonl"), "--docs", str(document), "--plot", str(picture)])
    assert "| edges against NumPy index + take from RAM | >= 1.50 |" in document.read_text()
    assert "**molecules, batches of 16**" in document.read_text()
    assert picture.stat().st_size > 10_000


def test_writes(run):
    rows = run("writes")
    for case in ("append of 1 sample", "append of 32 samples", "append of 256 samples"):
        assert rows[case, "zarrpipe"].ratios["zarrpipe"] == 1.0
        assert rows[case, "raw positional writes"].ratios["raw positional writes"] == 1.0
        assert (case, "zarr-python append") in rows
    case = "append of 32 samples of bonds"
    assert rows[case, "zarrpipe"].ratios["zarrpipe"] == 1.0
    assert (case, "HDF5 CSR") in rows
    assert (case, "atompack") not in rows
    assert ("append of 32 samples to a store that has some", "at 1,000 samples") in rows


def test_files(run):
    rows = run("files")
    names = {"zarrpipe, one process", "zarrpipe, two processes", "ase.io.read"}
    assert {name for _, name in rows} == names
    for (_, name), row in rows.items():
        assert row.unit == "frames/s"
        assert (row.ratios["ase.io.read"] == 1.0) is (name == "ase.io.read")


def test_whole(run):
    assert {name for _, name in run("whole")} == {
        "zarrpipe",
        "memory copy",
        "memory copy into fresh pages",
    }


def test_loop(run, monkeypatch):
    monkeypatch.setattr(loop, "WORKERS", 1)
    rows = run("loop", "--data", "molecules", "--batch-sizes", "32")
    names = [name for _, name in rows]
    assert names[:2] == ["bare gather", "train loader, no workers"]
    assert names[2:] == ["no workers", "two workers", "two workers of torch's DataLoader"]


def test_cold(run):
    rows = run("cold")
    assert [name for _, name in rows] == ["files read in order", "first epoch, train loader"]


def test_far(run):
    rows = run("far")
    assert len({case for case, _ in rows}) == 2
    for case in {case for case, _ in rows}:
        names = [name for other, name in rows if other == case]
        assert names[0] == "local store"
        assert {"first epoch", "opening and first epoch", "second epoch"} <= set(names)


def test_objects(run, monkeypatch):
    pytest.importorskip("obstore", reason="the extra 's3' is not installed")
    pytest.importorskip("moto", reason="moto is not installed")
    for name, value in {"WRITES": 5, "DIRECT_WRITES": 2, "RATES": (2,), "INTERVALS": 2}.items():
        monkeypatch.setattr(objects, name, value)
    rows = run("objects")
    assert [name for _, name in rows] == [
        "local store",
        "with a stage",
        "without",
        "2 writes between uploads",
    ]


@pytest.mark.usefixtures("here")
def test_memory(run, monkeypatch):
    monkeypatch.setattr(memory, "FEW", 0)
    monkeypatch.setattr(memory, "MANY", 1)
    rows = run("memory")
    names = [name for _, name in rows]
    assert names[:2] == ["resident", "private"]
    assert len(names) == 4


@pytest.mark.usefixtures("here")
def test_scale(run):
    rows = run("scale")
    assert {row.unit for row in rows.values()} == {"s", "MB"}
    assert len(rows) == 9


@pytest.mark.usefixtures("here")
def test_plans(run, monkeypatch):
    monkeypatch.setattr(plans, "sizes", lambda *_: np.full(128, 128))  # eight make a batch
    rows = run("plans")
    assert {row.unit for row in rows.values()} == {"", "s", "MB"}
    assert len(rows) == 3 + 3 * len(plans.LONG)
    found = {name: row.value for (_, name), row in rows.items() if row.unit == ""}
    assert list(found.values()) == [1.0, 0.0, 0.0]


def test_a_store_that_has_only_pointers_is_valid(tmp_path):
    scale.write(tmp_path / "run.zarr", 40_000)
    dataset = zp.ZarrDataset(tmp_path / "run.zarr")
    assert len(dataset) == 40_000
    counts = dataset.num_atoms
    assert 14 <= counts.min() < counts.max() <= 26
    assert len(set(dataset.ids.tolist())) == 40_000
    assert dataset.__getitems__([0, 39_999]).num_nodes == counts[0] + counts[-1]
    group = zarr.open_group(tmp_path / "run.zarr", mode="r")
    assert group["core/positions"].shape == (counts.sum(), 3)
    assert group["meta/atoms_ptr"][:].tolist() == [0, *counts.cumsum().tolist()]


def test_a_probe_in_a_process_of_its_own(tmp_path):
    scale.write(tmp_path / "run.zarr", 1_000)
    found = probe.ask("plan", store=str(tmp_path / "run.zarr"), batch_size=8, ranks=5)
    assert found["share"] == 0.2


def test_suites_are_named_on_the_command_line():
    with pytest.raises(SystemExit, match="no suite 'read'; there are reads, writes"):
        command.main(["--only", "read"])


def test_facts_of_the_machine():
    found = facts()
    assert found["cores"] >= 1
    assert found["versions"]["numpy"].count(".") >= 1
    assert set(found) >= {"cpu", "memory_gb", "date", "commit", "python"}
