"""Facts as a page in the browser, served to this machine only."""

import base64
import errno
import hashlib
import json
import re
import threading
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.resources import files
from typing import Any, Self
from urllib.parse import urlsplit

from zarrpipe.errors import ArgumentError

HOST = "127.0.0.1"
_NAMES = frozenset({HOST, "localhost", "[::1]"})
_PATIENCE = 10.0


class PageServer:
    """Serves the page and the latest facts to browsers of this machine, until it is closed.

    Requests whose Host header names another host are refused, so that a page of another site cannot
    read the facts by DNS rebinding.

    Parameters
    ----------
    port : int
        Port of 127.0.0.1; 0 for any that is free.

    Raises
    ------
    ArgumentError
        If the port is taken, or may not be used.
    """

    def __init__(self, port: int) -> None:
        try:
            self._server = _Server((HOST, port), _Handler)
        except (OSError, OverflowError) as error:
            why = "is taken" if getattr(error, "errno", 0) == errno.EADDRINUSE else str(error)
            raise ArgumentError(
                f"port {port} of {HOST}: {why}: give another one by --port, or 0 for any that is "
                "free"
            ) from error
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()

    @property
    def url(self) -> str:
        """Address of the page."""
        return f"http://{HOST}:{self._server.server_address[1]}/"

    def show(self, facts: Mapping[str, Any]) -> None:
        """Let the page show facts of JSON's kinds."""
        self._server.facts = json.dumps(facts).encode()

    def close(self) -> None:
        """Serve no longer."""
        self._server.shutdown()
        self._server.server_close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class _Server(ThreadingHTTPServer):
    """The latest facts, and the page, whose script and style alone a browser is to run."""

    daemon_threads = True
    facts = b"null"

    def __init__(self, *given: Any) -> None:
        text = files("zarrpipe.watch").joinpath("page.html").read_text(encoding="utf-8")
        self.page = text.encode()
        self.policy = "; ".join(
            [
                "default-src 'none'",
                f"script-src {_hash_of(text, 'script')}",
                f"style-src {_hash_of(text, 'style')}",
                "connect-src 'self'",
                "img-src data:",
                "base-uri 'none'",
                "frame-ancestors 'none'",
            ]
        )
        super().__init__(*given)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Ignore browsers that have left."""


def _hash_of(page: str, tag: str) -> str:
    """Hash of the one script or style of a page, as a content security policy names it."""
    found = re.search(rf"<{tag}>(.*)</{tag}>", page, re.DOTALL)
    digest = hashlib.sha256(found.group(1).encode() if found else b"").digest()
    return f"'sha256-{base64.b64encode(digest).decode()}'"


class _Handler(BaseHTTPRequestHandler):
    """Answers one browser."""

    server: _Server
    timeout = _PATIENCE

    def do_GET(self) -> None:
        """Answer with the page or with the facts."""
        if not _is_this_machine(self.headers.get_all("Host", [])):
            self.send_error(421, "this page is for http://127.0.0.1 and http://localhost only")
            return
        path = urlsplit(self.path).path
        if path == "/":
            self._answer(self.server.page, "text/html; charset=utf-8")
        elif path == "/facts.json":
            self._answer(self.server.facts, "application/json")
        else:
            self.send_error(404)

    def _answer(self, content: bytes, kind: str) -> None:
        self.send_response(200)
        for name, value in (
            ("Content-Type", kind),
            ("Content-Length", str(len(content))),
            ("Content-Security-Policy", self.server.policy),
            ("Cross-Origin-Resource-Policy", "same-origin"),
            ("X-Content-Type-Options", "nosniff"),
            ("Referrer-Policy", "no-referrer"),
            ("Cache-Control", "no-store"),
        ):
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)

    def version_string(self) -> str:
        """Name of the server."""
        return "zarrpipe"

    def log_message(self, format: str, *_: Any) -> None:  # noqa: A002  as it is called there
        """Print no line for each request."""


def _is_this_machine(hosts: list[str]) -> bool:
    """Whether a request names this machine, at any port, as that of a tunnel by ssh.

    >>> [_is_this_machine([host]) for host in ("localhost:9000", "127.0.0.1", "evil.example:8765")]
    [True, True, False]
    """
    return len(hosts) == 1 and re.sub(r":\d+$", "", hosts[0].lower()) in _NAMES
