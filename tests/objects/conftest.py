"""An S3 server for each process that runs tests, and a new place in it for each test."""

from itertools import count

import pytest

pytest.importorskip("obstore", reason="the extra 's3' is not installed")
pytest.importorskip("moto", reason="moto is not installed")

from reliability.object_server import Behaviour, object_server

_PLACES = count()


@pytest.fixture(scope="session")
def server():
    with object_server() as running:
        yield running


@pytest.fixture
def url(server, monkeypatch, tmp_path):
    """URL of a place where no store is yet, whose stage is in a directory of the test."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "user-cache"))
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)
    server.behave(Behaviour())
    return server.url(f"place-{next(_PLACES)}/store.zarr")
