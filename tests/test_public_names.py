"""The public names, and what importing them costs."""

import importlib
import importlib.metadata
import inspect
import json
import subprocess
import sys
import tomllib
from pathlib import Path

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


def test_the_version_is_that_of_the_project(monkeypatch):
    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())
    assert zarrpipe.__version__ == project["project"]["version"]

    def missing(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", missing)
    assert not hasattr(zarrpipe, "__version__")


def test_what_is_listed_is_there():
    assert {*zarrpipe.__all__, "__version__", "adapters", "nodes", "transforms"} <= {*dir(zarrpipe)}
    for name in dir(zarrpipe):
        assert getattr(zarrpipe, name) is not None


def signatures():
    """Public functions, classes and methods of this package, with their signatures."""
    for name in zarrpipe.__all__:
        item = getattr(zarrpipe, name)
        yield name, inspect.signature(item)
        for method, function in inspect.getmembers(item, inspect.isroutine):
            own = (getattr(function, "__module__", None) or "").startswith("zarrpipe")
            if isinstance(item, type) and own and not method.startswith("_"):
                yield f"{name}.{method}", inspect.signature(function)


@pytest.mark.parametrize(("name", "signature"), [*signatures()], ids=lambda one: str(one)[:40])
def test_signatures_are_as_they_were_written(name, signature):
    """Without unions that Python has expanded, as those of ArrayLike and StoreLike."""
    for one in signature.parameters.values():
        shown = inspect.formatannotation(one.annotation)
        assert len(shown) < 80, f"{name}: {shown}"
        for part in ("numpy._", "zarr.", "zarrpipe.", "typing.", "Union[", "collections."):
            assert part not in shown, f"{name}: {shown}"
