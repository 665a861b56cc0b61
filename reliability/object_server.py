"""An S3 server on this machine, behind a proxy that fails, delays and drops answers on request.

The server is moto's, in a process of its own that ends with the one that started it. All requests
go through a proxy in that process, which counts them.
"""

import json
import os
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

BUCKET = "zarrpipe"
"""Bucket that the server has from the start."""

CONTROL = "/-/control"
"""Path at which the proxy takes a behaviour and gives counts."""


@dataclass(frozen=True)
class Behaviour:
    """What the proxy does to requests.

    Parameters
    ----------
    fail
        Share of requests that are answered by 500 or 503 and not carried out.
    drop
        Share of requests that are carried out, and whose connection is closed without an answer.
    delay
        Seconds before each answer.
    conditional
        Whether conditions of requests (If-Match, If-None-Match) reach the server.
    seed
        Seed of what is drawn.
    """

    fail: float = 0.0
    drop: float = 0.0
    delay: float = 0.0
    conditional: bool = True
    seed: int = 0


@dataclass
class Traffic:
    """Requests by method, and bytes of bodies, in both directions."""

    requests: dict[str, int] = field(default_factory=dict)
    sent: int = 0
    received: int = 0

    @property
    def total(self) -> int:
        """Number of requests."""
        return sum(self.requests.values())


@dataclass(frozen=True)
class ObjectServer:
    """A running server; see `object_server`."""

    endpoint: str

    @property
    def environment(self) -> dict[str, str]:
        """Environment variables with which S3 clients find the server."""
        return {
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_ACCESS_KEY_ID": "key",
            "AWS_SECRET_ACCESS_KEY": "secret",
            "AWS_REGION": "us-east-1",
            "AWS_ALLOW_HTTP": "true",
        }

    def url(self, name: str) -> str:
        """URL of a place in the bucket."""
        return f"s3://{BUCKET}/{name}"

    def behave(self, behaviour: Behaviour) -> None:
        """Let the proxy behave so from now on, and count from zero."""
        self._control(json.dumps(asdict(behaviour)).encode())

    def traffic(self) -> Traffic:
        """Count requests since the last `behave`."""
        return Traffic(**self._control(None))

    def _control(self, content: bytes | None) -> Any:
        request = urllib.request.Request(self.endpoint + CONTROL, content)
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.load(answer)


@contextmanager
def object_server(address: str = "127.0.0.1") -> Iterator[ObjectServer]:
    """Run a server at an address until the end of the with statement, or of this process."""
    command = [sys.executable, "-m", "reliability.object_proxy", address]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        said = process.stdout.readline()
        if not said:
            raise ChildProcessError("the S3 server did not start")
        yield ObjectServer(f"http://{address}:{int(said)}")
    finally:
        process.stdin.close()
        process.wait(60)
        process.stdout.close()


@contextmanager
def environment_of(server: ObjectServer, cache: Path) -> Iterator[None]:
    """Let this process and its children find the server, and keep stages in a directory."""
    before = dict(os.environ)
    os.environ.update(server.environment, XDG_CACHE_HOME=str(cache))
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)
