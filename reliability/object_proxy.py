"""The process of `object_server`: moto's S3 server, and the proxy before it.

It prints the proxy's port, and ends when its standard input is closed.
"""

import asyncio
import logging
import random
import sys
from dataclasses import asdict
from threading import Thread
from typing import Any

from aiohttp import ClientSession, ClientTimeout, DummyCookieJar, TCPConnector, web
from moto.server import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import make_server
from yarl import URL

from reliability.object_server import BUCKET, CONTROL, Behaviour, Traffic

_UNCONDITIONAL = ("if-match", "if-none-match")
_OF_ONE_HOP = ("connection", "content-length", "keep-alive", "transfer-encoding")


class _Proxy:
    """Hands requests on to moto's server."""

    def __init__(self, server: str, session: Any) -> None:
        self._server, self._session = server, session
        self._behaviour, self._traffic = Behaviour(), Traffic()
        self._random = random.Random(0)
        self._locks: dict[str, asyncio.Lock] = {}

    async def answer(self, request: Any) -> Any:
        """Answer one request."""
        if request.path == CONTROL:
            return web.json_response(await self._controlled(request))
        body, behaviour = await request.content.read(), self._behaviour
        requests = self._traffic.requests
        requests[request.method] = requests.get(request.method, 0) + 1
        self._traffic.sent += len(body)
        fails, drops, full = (self._random.random() for _ in range(3))
        if behaviour.delay:
            await asyncio.sleep(behaviour.delay)
        if fails < behaviour.fail:
            return web.Response(status=503 if full < 0.5 else 500)
        headers = {
            name: value
            for name, value in request.headers.items()
            if name.lower() not in _OF_ONE_HOP
            and (behaviour.conditional or name.lower() not in _UNCONDITIONAL)
        }
        # moto's conditions are not atomic, so requests on a key run one at a time.
        async with self._locks.setdefault(request.path, asyncio.Lock()):
            status, found, content = await self._handed_on(request, headers, body)
        if drops < behaviour.drop:
            if request.transport is not None:  # a client that was killed is gone
                request.transport.close()
            return web.Response(status=500)
        self._traffic.received += len(content)
        kept = {name: value for name, value in found.items() if name.lower() not in _OF_ONE_HOP}
        if request.method == "HEAD" and "Content-Length" in found:
            kept["Content-Length"] = found["Content-Length"]
        return web.Response(status=status, headers=kept, body=content)

    async def _handed_on(self, request: Any, headers: Any, body: bytes) -> tuple[int, Any, bytes]:
        url = URL(self._server + request.raw_path, encoded=True)
        async with self._session.request(
            request.method, url, headers=headers, data=body, allow_redirects=False
        ) as answer:
            return answer.status, answer.headers.copy(), await answer.read()

    async def _controlled(self, request: Any) -> dict[str, Any]:
        if request.method == "POST":
            self._behaviour, self._traffic = Behaviour(**await request.json()), Traffic()
            self._random = random.Random(self._behaviour.seed)
        return asdict(self._traffic)


async def _serve(server: str, address: str) -> None:
    options: dict[str, Any] = {
        "connector": TCPConnector(limit=64),
        "timeout": ClientTimeout(total=600),
        "auto_decompress": False,
        "cookie_jar": DummyCookieJar(),
    }
    async with ClientSession(**options) as session:
        async with session.put(f"{server}/{BUCKET}"):
            pass
        runner = web.ServerRunner(web.Server(_Proxy(server, session).answer), access_log=None)
        await runner.setup()
        site = web.TCPSite(runner, address, 0)
        await site.start()
        print(runner.addresses[0][1], flush=True)
        await asyncio.to_thread(sys.stdin.read)  # until the process that started this one ends
        await runner.cleanup()


def _main() -> None:
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    application = DomainDispatcherApplication(create_backend_app)
    moto = make_server("127.0.0.1", 0, application, threaded=True)
    Thread(target=moto.serve_forever, daemon=True).start()
    asyncio.run(_serve(f"http://127.0.0.1:{moto.server_port}", sys.argv[1]))


if __name__ == "__main__":
    _main()
