"""The figures of the pages in docs/understanding are those of the benchmarks, and links lead on."""

import re
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[2] / "docs"
FOLDER = DOCS / "understanding"
PAGES = ("overview", "commit_protocol", "epochs", "performance")

READS, MANY = "molecules, batches of 64", "molecules, batches of 512"
ZSTD = "molecules, zstd, 20 ms a request, batches of 64"
LARGE, COLD = "100,000,000 samples", "1,500 MB, batches of 64"
ONE, SOME, LOTS = "append of 1 sample", "append of 32 samples", "append of 256 samples"
WORKERS = "molecules, batches of 64, a transform that does nothing, on every core"
BUDGET = "10,000 structures, batches of at most 1,024 atoms"

# page, what it says, and the table, row and column of the figure, with the number as it is there
FIGURES = (
    ("performance", "760,000 samples/s", READS, "zarrpipe", 1, 760_000),
    ("performance", "84 microseconds", READS, "zarrpipe", 1, 64 / 84e-6),
    ("performance", "3.0 million samples/s", MANY, "zarrpipe", 1, 3.0e6),
    ("performance", "of 670,000", "structures, batches of 64", "zarrpipe", 1, 670_000),
    ("performance", "45,000 samples/s", "edges, batches of 64", "zarrpipe", 1, 45_000),
    ("performance", "767,000 samples/s", READS, "gather from RAM *", 1, 767_000),
    ("performance", "arrays 34,000", READS, "LMDB of pickled NumPy", 1, 34_000),
    ("performance", "`InMemoryDataset` 15,000", READS, "PyG InMemoryDataset *", 1, 15_000),
    ("performance", "HDF5 6,000", READS, "HDF5 CSR", 1, 6_000),
    ("performance", "database 4,700", READS, "ASE SQLite", 1, 4_700),
    ("performance", "zarr-python 1,600", READS, "zarr-python oindex *", 1, 1_600),
    ("performance", "some 18 times as fast", READS, "memory copy *", 3, 18),
    ("performance", "4 times", "structures, batches of 64", "memory copy *", 3, 4.3),
    ("performance", "3 times in batches", "structures, batches of 512", "memory copy *", 3, 2.9),
    ("performance", "556 MB/s", COLD, "first epoch, train loader", 1, 556),
    ("performance", "773 MB/s", COLD, "files read in order", 1, 773),
    ("performance", "127,000 | 0.11", ZSTD, "first epoch *", 1, 127_000),
    ("performance", "127,000 | 0.11", ZSTD, "first epoch *", 3, 0.11),
    ("performance", "1,100,000 | 0.99", ZSTD, "second epoch *", 1, 1_100_000),
    ("performance", "1,100,000 | 0.99", ZSTD, "second epoch *", 3, 0.99),
    ("performance", "47,100 | 0.044", ZSTD, "epochs with a cache of half *", 1, 47_100),
    ("performance", "47,100 | 0.044", ZSTD, "epochs with a cache of half *", 3, 0.044),
    ("performance", "0.37 times", WORKERS, "two workers", 3, 0.37),
    ("performance", "0.01 times", WORKERS, "two workers of torch's DataLoader", 3, 0.01),
    ("performance", "0.05 MB", "growth over 20 epochs after the first", "private", 1, 0.05),
    ("performance", "0.13 ms for 1", ONE, "zarrpipe", 1, 0.13),
    ("performance", "0.29 ms for 32", SOME, "zarrpipe", 1, 0.29),
    ("performance", "0.53 ms for 256", LOTS, "zarrpipe", 1, 0.53),
    ("performance", "120 times as long", SOME, "zarr-python append", 3, 120),
    (
        "performance",
        "(1.06 times)",
        "append of 32 samples to a store that has some",
        "at 5,000,000 samples",
        3,
        1.06,
    ),
    ("performance", "opening takes 1.6 s", LARGE, "open", 1, 1.6),
    ("performance", "an epoch 11 s", LARGE, "plan one epoch, one of 8 ranks", 1, 11),
    ("performance", "append 2.4 ms", LARGE, "refresh after an append", 1, 0.0024),
    ("performance", "needs 1.0 GB", LARGE, "peak of a rank that opens and plans", 1, 1_000),
    ("commit_protocol", "3.6 to 7.2 times", ONE, "zarrpipe", 4, 7.2),
    ("commit_protocol", "3.6 to 7.2 times", SOME, "zarrpipe", 4, 3.6),
    ("commit_protocol", "0.1 to 0.5 ms", LOTS, "zarrpipe", 1, 0.53),
    ("commit_protocol", "2.4 ms at 100", LARGE, "refresh after an append", 1, 0.0024),
    ("epochs", "97.8 % of a budget", BUDGET, "share of the budget that is filled", 1, 0.978),
    (
        "epochs",
        "3.1 % above the mean",
        BUDGET,
        "heaviest of 8 ranks beyond their mean, worst step",
        1,
        0.031,
    ),
    ("overview", "about 0.3 ms", SOME, "zarrpipe", 1, 0.287),
)


def benchmarks(table, row, column):
    """Number in a table of the page of benchmarks, wherever that page is."""
    (page,) = DOCS.rglob("benchmarks.md")
    parts = page.read_text().split(f"\n**{table}**\n")[1:]
    lines = [line for part in parts for line in part.partition("\n**")[0].splitlines()]
    cells = next(line.split("|")[1:-1] for line in lines if line.startswith(f"| {row} |"))
    return float(cells[column].replace(" ", ""))


@pytest.mark.parametrize(("page", "quoted", "table", "row", "column", "value"), FIGURES)
def test_a_figure_of_a_page_is_that_of_the_benchmarks(page, quoted, table, row, column, value):
    assert quoted in " ".join((FOLDER / f"{page}.md").read_text().split())
    assert benchmarks(table, row, column) == pytest.approx(value, rel=0.05)


@pytest.mark.parametrize("name", PAGES)
def test_a_page_fits_two_screens_and_leads_to_promises_and_reasons(name):
    page = (FOLDER / f"{name}.md").read_text()
    assert page.count("\n") <= 120
    assert "](../adr/" in page
    links = [link for link in re.findall(r"\]\(([^)#]+)", page) if "://" not in link]
    for link in links:
        here = (FOLDER / link).resolve()
        assert here.is_relative_to(DOCS)
        if link.startswith(("../adr", "../promises", "../diagrams", "../reference/format")):
            assert here.is_file(), link
