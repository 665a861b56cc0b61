"""Extended XYZ: every number is that of ASE, and a broken frame is told by its line."""

import numpy as np
import pytest
from extxyz_files import CELL, ase_frame, frame, frames_of_ase, water
from hypothesis import given
from hypothesis import strategies as st

from zarrpipe.formats.read.files import extxyz
from zarrpipe.formats.read.files.ase_frames import block_of
from zarrpipe.formats.read.files.extxyz import ExtXYZ
from zarrpipe.formats.read.files.extxyz_frames import FrameParser, _are_equal, pattern_of
from zarrpipe.formats.read.frames import ATOM, SYSTEM, Entry, Kind


@pytest.fixture
def read(tmp_path, ase):
    def read(*frames):
        path = tmp_path / "file.xyz"
        path.write_bytes("".join(frames).encode())
        reader = ExtXYZ()
        scan = reader.scan(str(path))
        return scan, [reader.read(part) for part in scan.parts]

    return read


DIALECTS = {
    "tabs and blanks": water("energy =  -1.5\tname = 'a b'").replace("  ", "\t"),
    "capitals": water('Energy=-1.5 Virial="1 2 3 4 5 6 7 8 9"'),
    "six numbers": water(f'REF_stress="1 2 3 4 5 6" {CELL}', forces="forces"),
    "nine numbers": water(f'stress="1 2 3 2 5 6 3 6 9" {CELL}', forces="force"),
    "words": water("T=T flag=F name=water text=1x word='two words' empty=\"\""),
    "lists": water('a="1 2 3" b="1.0 2 3" c="[[1, 2], [3, 4]]" d=[1,2] e="T F T"'),
    "exponents": water('energy=-1.5e-3 tol=1E5 big=123456789012 d="1e0 2 3"'),
    "calculator": water(f"free_energy=-2 dipole='1 2 3' magmom=2.5 {CELL}", forces="magmoms"),
    "single": frame("energy=-13.6 config_type=IsolatedAtom", [("H", 0.0, 0.0, 0.0)]),
    "numbers": frame("", [(8, 0.0, 0.0, 0.1)], "Z:I:1:pos:R:3"),
    "a logical": frame("", [("O", 0.0, 0.0, 0.1, "T")], "species:S:1:pos:R:3:fixed:L:1"),
    "labels": frame("", [("O", 0.0, 0.0, 0.1, "o1")], "species:S:1:pos:R:3:name:S:1"),
    "no properties": "1\nsome words\nHe 0 0 0.5\n",
    "no pbc": water('Lattice="5 0 0 1 5 0 0 2 5"'),
    "constraint": frame("", [("O", 0.0, 0.0, 0.1, 0)], "species:S:1:pos:R:3:move_mask:I:1"),
    "momenta": water("", forces="momenta"),
    "charges": frame("", [("O", 0.0, 0.0, 0.1, 0.5)], "species:S:1:pos:R:3:initial_charges:R:1"),
}


@pytest.mark.parametrize("text", DIALECTS.values(), ids=DIALECTS)
def test_a_dialect_is_read_as_ase_reads_it(read, text):
    """Twice, since the second frame of a pattern is parsed in the fast way where there is one."""
    scan, (block,) = read(text, text)
    expected = block_of([(0, ase_frame(text)), (1, ase_frame(text))])
    assert _are_equal(block, expected) or block.left_out == expected.left_out != {}
    for entry, column in expected.columns.items():
        assert Kind(kind_name(column.values), column.values.shape[1:]) in scan.entries[entry]


@pytest.mark.parametrize("key", ["stress", "virial"])
def test_six_numbers_where_ase_expects_nine(read, key):
    """They are xx, yy, zz, yz, xz, xy, as ASE has them elsewhere."""
    _, (block,) = read(*[water(f'{key}="1 2 3 4 5 6" {CELL}', forces="forces")] * 2)
    place = "results" if key == "stress" else "info"
    values = block.columns[Entry(SYSTEM, key, place)].values
    matrix = [[1.0, 6.0, 5.0], [6.0, 2.0, 4.0], [5.0, 4.0, 3.0]]
    assert values.tolist() == [[1.0, 2.0, 3.0, 4.0, 5.0, 6.0] if key == "stress" else matrix] * 2


def kind_name(values):
    return {"f": "float", "i": "int", "b": "bool", "O": "str"}[values.dtype.kind]


numbers = st.floats(-1e4, 1e4, allow_subnormal=False)


@given(
    values=st.lists(st.tuples(numbers, numbers, st.integers(0, 9**9)), min_size=2, max_size=5),
    style=st.sampled_from(["{:.8f}", "{:.3e}", "{!r}", "{:+.2f}"]),
)
def test_frames_of_one_pattern(values, style):
    """Their numbers are those of ASE to the bit, however they are written."""
    texts = [
        water(f"energy={style.format(a)} id=mp-{n} x='{style.format(b)} 1.0'", shift=b)
        for a, b, n in values
    ]
    frames = [ase_frame(text) for text in texts]
    parser = FrameParser()
    texts = [extxyz.Text(i, 3, t.splitlines()[1].encode(), t.encode()) for i, t in enumerate(texts)]
    assert _are_equal(parser.block(texts), block_of(enumerate(frames)))


def test_most_frames_are_parsed_without_ase(read, monkeypatch):
    calls = []
    monkeypatch.setattr(
        "zarrpipe.formats.read.files.extxyz_frames.block_of",
        lambda frames: calls.append(1) or block_of(frames),
    )
    _, (block,) = read(*(water(f"energy={i}.5 id={i}", forces="forces") for i in range(50)))
    assert len(block) == 50
    assert len(calls) == 1  # the trial of the one pattern


def test_frames_of_different_columns_are_parsed_together(read, monkeypatch):
    texts = [
        water(f"energy=-{i}.5", forces=(None, "forces", "momenta")[i % 3], shift=i)
        for i in range(9)
    ]
    expected = block_of(enumerate(map(ase_frame, texts)))
    _, (block,) = read(*texts)
    assert _are_equal(block, expected)
    monkeypatch.setattr("zarrpipe.formats.read.files.extxyz_frames.block_of", None)
    parser = FrameParser()
    frames = [
        extxyz.Text(i, 3, t.splitlines()[1].encode(), t.encode()) for i, t in enumerate(texts)
    ]
    parser._samples = {pattern_of(one.comment): {"Properties": "", "energy": 0.5} for one in frames}
    for one in frames:
        sample = parser._samples[pattern_of(one.comment)]
        sample["Properties"] = one.comment.decode().split()[0].removeprefix("Properties=")
    assert _are_equal(parser.block(frames), expected)


def test_a_pattern_has_no_numbers():
    assert pattern_of(b"e=-1.25e-3 n=17 s=mp-12") == pattern_of(b"e=7.5 n=4 s=mp-3")
    assert pattern_of(b"e=1.0") != pattern_of(b"e=1")
    assert pattern_of(b"e=1.0 f=T") != pattern_of(b"e=1.0 f=F")


def test_kinds_of_all_frames_are_found(read):
    scan, _ = read(water("a=1 b=x"), water("a=1.5 b=2"), water("c='1 2'"))
    kinds = {entry.key: kinds for entry, kinds in scan.entries.items()}
    assert kinds["a"] == {Kind("int"), Kind("float")}
    assert kinds["b"] == {Kind("str"), Kind("int")}
    assert kinds["c"] == {Kind("int", (2,))}
    assert scan.exhaustive


def test_parts_are_of_bounded_size(read, monkeypatch):
    monkeypatch.setattr(extxyz, "_PART_FRAMES", 3)
    scan, blocks = read(*(water(f"energy={i}.0", shift=i) for i in range(8)))
    assert [part.num_frames for part in scan.parts] == [3, 3, 2]
    assert [part.first for part in scan.parts] == [0, 3, 6]
    energies = [block.columns[Entry(SYSTEM, "energy", "results")].values for block in blocks]
    assert np.concatenate(energies).tolist() == [float(i) for i in range(8)]
    assert [block.frames.tolist() for block in blocks] == [[0, 1, 2], [3, 4, 5], [6, 7]]


GOOD = water("energy=1.0")


@pytest.mark.parametrize(
    ("broken", "line", "words"),
    [
        (GOOD.replace("0.96", "a.96"), 6, "ValueError"),
        (GOOD.replace("3\n", "4\n", 1), 6, "has 4 atoms by its first line"),
        (GOOD.replace("3\n", "2\n", 1), 6, "has 2 atoms by its first line"),
        (GOOD.replace("3\n", "three\n", 1), 6, "expected a number of atoms"),
        (GOOD.replace("O ", "Xx "), 6, "KeyError"),
    ],
)
def test_a_broken_frame_is_told_and_the_others_are_read(read, broken, line, words):
    scan, blocks = read(GOOD, broken, GOOD, GOOD)
    failures = [*scan.failures, *(failure for block in blocks for failure in block.failures)]
    assert [(failure.frame, failure.line) for failure in failures] == [(1, line)]
    assert words in failures[0].reason
    assert sum(map(len, blocks)) == 3
    for block in blocks:
        assert (block.columns[Entry(SYSTEM, "energy", "results")].values == 1.0).all()


def test_a_file_that_ends_within_a_frame(read):
    scan, (block,) = read(GOOD, GOOD[:-12])
    (failure,) = [*scan.failures, *block.failures]
    assert (failure.frame, failure.line, len(block)) == (1, 6, 1)


def test_blank_lines_between_frames(read):
    _, (block,) = read(GOOD, "\n", GOOD, "\n\n")
    assert len(block) == 2


def test_an_empty_file(read):
    scan, blocks = read("")
    assert (scan.num_frames, blocks, scan.failures) == (0, [], ())


def test_an_atom_and_a_system_have_levels_of_their_own(read):
    """Also where a system has as many atoms as a row has numbers."""
    _, (block,) = read(water("v='1 2 3'", forces="forces"))
    assert block.columns[Entry(SYSTEM, "v", "info")].values.shape == (1, 3)
    assert block.columns[Entry(ATOM, "forces", "results")].values.shape == (3, 3)


def test_the_numbers_of_a_file_are_those_of_ase(tmp_path, ase):
    rng = np.random.default_rng(3)
    atoms = [ase.build.molecule(name) for name in ("H2O", "CH4", "C6H6") * 4]
    for one in atoms:
        one.info.update(energy=float(rng.normal()), name=one.get_chemical_formula(), step=3)
        one.arrays["REF_forces"] = rng.normal(size=(len(one), 3))
    ase.io.write(tmp_path / "a.xyz", atoms, format="extxyz")
    reader = ExtXYZ()
    (part,) = reader.scan(str(tmp_path / "a.xyz")).parts
    assert _are_equal(reader.read(part), block_of(enumerate(frames_of_ase(tmp_path / "a.xyz"))))
