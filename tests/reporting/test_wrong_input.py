"""Stores that lack nearly everything, and arguments that are wrong."""

import json
import threading

import numpy as np
import pytest

import zarrpipe as zp
from zarrpipe.errors import ArgumentError, SchemaError, StoreNotFoundError

from .test_findings import written

PAIR = np.array([[0.0, 0.0, 0.0], [0.0, 0.0, 1.1]])


def pairs(count, **fields):
    return written(
        [
            {"positions": PAIR * (1 + place / 50), "atomic_numbers": [6, 8], **fields}
            for place in range(count)
        ]
    )


def titles(report):
    json.dumps(report.to_dict())
    return [one.title for one in report.findings]


BOX, PERIODIC = np.eye(3) * 4, [True] * 3


@pytest.mark.parametrize(
    ("count", "fields", "said"),
    [
        (1, {"energy": -1.0, "forces": PAIR}, []),
        (2, {}, ["No sample has energy", "No sample has forces"]),
        (9, {"forces": PAIR}, ["No sample has energy"]),
        (9, {"energy": -1.0}, ["No sample has forces"]),
        (9, {"energy": -1.0, "forces": PAIR, "cell": BOX}, []),
        (9, {"energy": -1.0, "forces": PAIR, "cell": BOX, "pbc": PERIODIC}, []),
        (9, {"energy": -1.0, "forces": PAIR, "pbc": PERIODIC}, ["usable cell"]),
        (9, {"energy": -1.0, "forces": PAIR, "pbc": PERIODIC, "cell": 0 * BOX}, ["usable cell"]),
        (
            9,
            {"energy": -1.0, "forces": PAIR, "pbc": PERIODIC, "cell": np.nan * BOX},
            ["usable cell"],
        ),
    ],
)
def test_a_store_without(count, fields, said):
    found = titles(zp.report(pairs(count, **fields)))
    assert len(found) == len(said)
    for title, text in zip(found, said, strict=True):
        assert text in title


def test_an_empty_store():
    store = pairs(1)
    with zp.ZarrData(store) as sink:
        sink.zero()
    report = zp.report(store)
    assert titles(report) == ["The store is empty"]
    assert report.structures is None
    assert len(zp.report(pairs(3), store).sections) > 5


def test_deleted_samples():
    store = pairs(9, energy=-1.0)
    with zp.AtomicDataZarrWriter(store) as writer:
        writer.delete([3, 4])
    report = zp.report(store)
    assert (report.samples, report.facts["deleted"]) == (7, 2)


def test_no_store(tmp_path):
    with pytest.raises(StoreNotFoundError, match="there is no Zarr store"):
        zp.report(tmp_path / "none")


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"where": "enrgy > 5"}, SchemaError, "did you mean 'energy'"),
        ({"split": (0.5, 0.1)}, ArgumentError, "sum to 1"),
        ({"split_by": "nope"}, SchemaError, "nope"),
        ({"max_samples": 0}, ArgumentError, "max_samples is 0"),
        ({"seed": -1}, ArgumentError, "seed is -1"),
    ],
)
def test_arguments(options, error, text):
    with pytest.raises(error, match=text):
        zp.report(pairs(2, energy=-1.0), **options)


def test_a_condition_that_nothing_meets():
    assert titles(zp.report(pairs(2, energy=-1.0), where="energy > 5")) == [
        "No sample meets the condition"
    ]


def test_a_level_of_the_users_own():
    bond = zp.Level.segmented("bond")
    sample = zp.AtomicData(PAIR, [6, 8], energy=-1.0, forces=PAIR)
    sample.add_field("order", np.array([3.0]), bond)
    store = {}
    with zp.ZarrData(store) as sink:
        sink.write([sample] * 3)
    assert ("order", "bond") in [row[:2] for row in zp.report(store).sections[0].tables[1].rows]


def test_a_store_that_is_being_written(tmp_path):
    """The report is that of the samples when it began."""
    stop = threading.Event()
    with zp.ZarrData(tmp_path / "run") as sink:
        sample = zp.AtomicData(PAIR, [6, 8], energy=-1.0, forces=PAIR)
        sink.write([sample] * 50)

        def write():
            while not stop.is_set():
                sink.write([sample] * 10)

        writer = threading.Thread(target=write)
        writer.start()
        try:
            report = zp.report(tmp_path / "run")
        finally:
            stop.set()
            writer.join()
    assert report.samples >= 50
    assert report.facts["with energy"] == report.samples
