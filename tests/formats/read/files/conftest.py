"""What readers return, taken apart into single frames, to compare with what libraries read."""

import pickle
import warnings
from types import SimpleNamespace

import numpy as np
import pytest


@pytest.fixture(scope="session")
def load():
    def import_or_skip(name):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return pytest.importorskip(name)

    return import_or_skip


def frames_of(block):
    """Single frames of a block: structure, and values by entry of those that are present."""
    ends = {
        "system": np.arange(len(block) + 1),
        "atom": np.concatenate(([0], np.cumsum(block.num_atoms))),
    }
    if block.num_edges is not None:
        ends["edge"] = np.concatenate(([0], np.cumsum(block.num_edges)))
    for entry, column in block.columns.items():
        assert len(column.values) == ends[entry.level][-1]
        assert column.present.shape == (len(block),)
        assert column.present.any()
    for i, number in enumerate(block.frames):
        first, last = ends["atom"][i : i + 2]
        values = {}
        for entry, column in block.columns.items():
            begin, end = ends[entry.level][i : i + 2]
            rows = column.values[begin:end]
            if column.present[i]:
                values[entry] = rows[0] if entry.level == "system" else rows
        yield SimpleNamespace(
            number=int(number),
            numbers=block.atomic_numbers[first:last],
            positions=block.positions[first:last],
            cell=block.cell[i],
            pbc=block.pbc[i],
            values=values,
        )


@pytest.fixture(scope="session")
def read_all():
    """Scan and all frames of a source; a scan goes through pickle, as it does to processes."""

    def read(reader, path):
        scan = pickle.loads(pickle.dumps(reader.scan(str(path))))
        blocks = [reader.read(part) for part in scan.parts]
        frames = [frame for block in blocks for frame in frames_of(block)]
        failures = [failure for block in blocks for failure in block.failures]
        for part, block in zip(scan.parts, blocks, strict=True):
            assert len(block) + len(block.failures) == part.num_frames
        left_out = {entry: why for block in blocks for entry, why in block.left_out.items()}
        return SimpleNamespace(
            scan=scan, blocks=blocks, frames=frames, failures=failures, left_out=left_out
        )

    return read


@pytest.fixture(scope="session")
def assert_same():
    """A frame has this structure and just these values."""

    def check(frame, numbers, positions, cell, pbc, values):
        np.testing.assert_array_equal(frame.numbers, numbers)
        np.testing.assert_array_equal(frame.positions, positions)
        np.testing.assert_array_equal(frame.cell, cell)
        np.testing.assert_array_equal(frame.pbc, pbc)
        assert set(frame.values) == set(values)
        for entry, value in values.items():
            np.testing.assert_array_equal(frame.values[entry], value, err_msg=str(entry))

    return check
