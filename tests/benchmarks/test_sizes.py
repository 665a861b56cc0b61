"""The arithmetic of large stores, against stores that are small enough to make."""

from pathlib import Path

import obstore
import pytest
from obstore.store import MemoryStore
from zarr.storage import ObjectStore

import zarrpipe as zp
from benchmarks.sizes import SAMPLES, Sizes, molecules, table


@pytest.mark.parametrize("samples", [1, 65_535, 65_537, 140_000])
def test_files_of_a_local_store(tmp_path, samples):
    with zp.ZarrData(tmp_path / "s", capacity=samples) as sink:
        sink.write(molecules(samples, 2))
    found = [path for path in (tmp_path / "s").rglob("*") if path.is_file() and "c" in path.parts]
    chunks = [path for path in found if path.name.isdecimal() and "sums" not in path.parts]
    assert len(chunks) == Sizes.of_molecules(samples, 2).files()


@pytest.mark.parametrize("samples", [1, 16_384, 40_000])
def test_objects_of_an_object_store(samples):
    place = MemoryStore()
    with zp.ZarrData(ObjectStore(place)) as sink:
        sink.write(molecules(samples, 2))
    keys = [item["path"] for page in obstore.list(place) for item in page]
    chunks = [key for key in keys if "/c/" in key and "sums" not in key]
    assert len(chunks) == Sizes.of_molecules(samples, 2).objects()


def test_bytes():
    sizes = Sizes.of_molecules(1000, 2)
    batch = molecules(1000, 2)
    assert sizes.data_bytes == sum(batch[name].nbytes for name in batch.fields)
    assert sizes.pointer_bytes == 2 * 8 * 1001


def test_the_page_has_the_table():
    page = Path(__file__).parents[2] / "docs" / "understanding" / "scale.md"
    assert table() in page.read_text()
    assert f"{SAMPLES[-1]:,}" in table()
