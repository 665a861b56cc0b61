"""Reports made by hand, small and with all that a page can show."""

from dataclasses import replace

import numpy as np

from zarrpipe import AtomicData, Batch
from zarrpipe.data.tables import Table
from zarrpipe.reporting.contents import (
    Figure,
    Finding,
    Kind,
    Report,
    Section,
    Series,
    Severity,
    Structures,
)

WATER = np.array([[0.0, 0.0, 0.12], [0.0, 0.76, -0.48], [0.0, -0.76, -0.48]])
EDGES = np.logspace(-2, 2, 21)
COUNTS = np.array([0, 0, 1, 3, 9, 20, 41, 70, 90, 77, 50, 31, 14, 6, 2, 1, 0, 0, 1, 0], float)

FIGURES = (
    Figure(
        "max_force",
        "Largest force",
        Kind.HISTOGRAM,
        (Series("train", COUNTS, EDGES), Series("test", COUNTS[::-1].copy(), EDGES)),
        "largest force (eV/Å)",
        "structures",
        log_x=True,
        log_y=True,
    ),
    Figure(
        "sources",
        "Structures by source",
        Kind.BARS,
        (Series("all", np.array([3.0, 5.0]), labels=("molecular dynamics", "$x_1$")),),
        "source",
        "structures",
    ),
    Figure(
        "growth",
        "Growth",
        Kind.LINES,
        (Series("all", np.array([10.0, 30.0, 70.0]), np.arange(3.0)),),
        "round",
        "structures",
    ),
    Figure(
        "map",
        "Map",
        Kind.POINTS,
        (Series("all", np.sin(np.arange(2000.0)), np.arange(2000.0)),),
        "component 1",
        "component 2",
    ),
    Figure(
        "elements",
        "Elements",
        Kind.ELEMENTS,
        (Series("all", np.array([10.0, 10_000.0]), labels=("O", "H")),),
        y_label="atoms",
    ),
)
"""One of each kind."""


def waters(count: int) -> Structures:
    """Water in a cell and H2S without in turn, ever longer; the last has the largest force."""
    samples, forces = [], np.arange(1.0, count + 1)
    for place in range(count):
        data = {
            "positions": WATER * (1, 1 + place, 1),
            "atomic_numbers": [8 if place % 2 else 16, 1, 1],
            "forces": WATER * forces[place],
            "pbc": [bool(place % 2)] * 3,
            "cell": 6 * np.eye(3) * (place % 2),
        }
        samples.append(AtomicData(**data))
    places = np.arange(count)
    return Structures(
        Batch.from_data_list(samples),
        10 * places,
        {
            "sample": (10 * places).tolist(),
            "formula": ["H2O" if place % 2 else "H2S" for place in range(count)],
            "max_force": (0.9 * forces).tolist(),
            "energy_off": [float("nan"), *np.linspace(-1, 1, count - 1).tolist()],
            "source": ["md" if place % 2 else "dimer" for place in range(count)],
            "map_1": np.cos(places).tolist(),
            "map_2": np.sin(places).tolist(),
        },
        {"max_force": "eV/Å", "energy_off": "eV"},
        {"largest force": places[::-1].copy(), "unusual energy": places},
    )


FAULTS = (
    (Severity.ERROR, "An exploded frame", (70,), 1),
    (Severity.ERROR, "Stress in bar", (10, 20, 30), 30),
    (Severity.ERROR, "Energies in kcal/mol", (40,), 1),
    (Severity.WARNING, "Samples without forces", (0, 50), 2),
    (Severity.WARNING, "A duplicate", (60,), 1),
    (Severity.NOTE, "An element in one sample", (999,), 1),
)


def example() -> Report:
    """A report of a store of 5,000 samples with six findings and one figure of each kind."""
    findings = tuple(
        Finding(
            severity,
            title,
            "The largest force is 100 times that of all others, as after a simulation exploded.",
            "zarrpipe delete STORE --where 'max_force > 50'",
            samples,
            count,
            section="forces",
        )
        for severity, title, samples, count in FAULTS
    )
    table = Table(("element", "atoms"), (("H", "10,000"), ("O", "10")), {1}, "Atoms by element")
    return Report(
        ("/data/some where/water.zarr",),
        {
            "samples": 5000,
            "atoms": 15_000,
            "elements": ["H", "O"],
            "largest_force": 7.2,
            "scanned": 5000,
            "deleted": 0,
        },
        findings,
        (
            Section("forces", "Forces & their sizes", "By element.", (table,), FIGURES[:2]),
            Section("all_else", "All else", "", (), FIGURES[2:]),
        ),
        waters(8),
        looked_at=2000,
        samples=5000,
    )


def empty() -> Report:
    """Of a store without samples."""
    return Report(("/data/empty.zarr",), {"samples": 0}, (), (), None, 0, 0)


def of_one() -> Report:
    """Of a store of one sample, which has neither forces nor a place in a map."""
    hydrogen = AtomicData([[0.0, 0.0, 0.0], [0.74, 0.0, 0.0]], [1, 1])
    structures = Structures(Batch.from_data_list([hydrogen]), np.array([0]), {})
    return Report(("one.zarr",), {"samples": 1}, (), (), structures, 1, 1)


def of_two() -> Report:
    """Of two stores, of which the second has a sample with the number of one of the first."""
    one = example()
    structures = one.structures
    properties = structures.properties | {
        "store": ["A"] * 4 + ["B"] * 4,
        "sample": [0, 10, 20, 30, 0, 10, 20, 30],
    }
    found = Finding(Severity.ERROR, "Stress in bar", "It is.", "", (10,), 1, store=1)
    facts = {"A": one.facts, "B": {"samples": 7, "with forces": 3}}
    return replace(
        one,
        stores=("/data/old.zarr", "/data/new.zarr"),
        facts=facts,
        findings=(found,),
        structures=replace(structures, properties=properties),
    )


def hostile(text: str) -> Report:
    """A report with a text in all places where a store's strings can come."""
    one = example()
    structures = one.structures
    count = len(structures.samples)
    properties = structures.properties | {"formula": [text] * count, text: [1.0] * count}
    figure = replace(FIGURES[1], title=text, x_label=text, note=text)
    figure = replace(figure, series=(replace(figure.series[0], labels=("a", text), name=text),))
    table = Table((text, "b"), ((text, text),), title=text)
    return Report(
        (text,),
        {text: text},
        (Finding(Severity.ERROR, text, text, text, (0,), 1, section=text),),
        (Section(text, text, text, (table,), (figure,)),),
        replace(structures, properties=properties, orders={text: np.arange(count)}),
        1,
        2,
    )
