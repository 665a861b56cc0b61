"""The public names, and what importing them costs."""

import importlib
import json
import subprocess
import sys

import pytest

import zarrpipe

HEAVY = ("lightning", "ase", "torch_geometric", "torchdata", "torch_sim", "mace", "nvalchemi")
HEAVY += ("hypothesis", "pytest", "matplotlib", "fsspec_s3", "numba")


def test_sorted_and_complete():
    """Every public class of the package stands in the one sorted list."""
    assert zarrpipe.__all__ == sorted(set(zarrpipe.__all__))
    expected = {
        "AtomicData",
        "AtomicDataZarrReader",
        "AtomicDataZarrWriter",
        "Batch",
        "ZarrArrayConfig",
        "ZarrData",
        "ZarrWriteConfig",
    }
    assert expected <= set(zarrpipe.__all__)


@pytest.mark.parametrize("name", zarrpipe.__all__)
def test_each_is_there_and_documented(name):
    item = getattr(zarrpipe, name)
    assert item.__doc__
    assert item.__module__.startswith("zarrpipe.")
    assert name in dir(zarrpipe)


def test_importing_brings_no_optional_library():
    code = (
        "import json, sys, zarrpipe, zarrpipe.testing;"
        "print(json.dumps(sorted({name.partition('.')[0] for name in sys.modules})))"
    )
    shown = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=True
    )
    loaded = set(json.loads(shown.stdout))
    assert {"torch", "zarr"} <= loaded
    assert loaded.isdisjoint(HEAVY)


def test_an_unknown_name():
    with pytest.raises(AttributeError, match="nothing_of_that_name"):
        importlib.import_module("zarrpipe").nothing_of_that_name  # noqa: B018
