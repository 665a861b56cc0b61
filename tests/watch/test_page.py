"""The page: what is answered to whom, and what a browser makes of it."""

import base64
import hashlib
import http.client
import json
import re
import socket
from pathlib import Path

import pytest

import zarrpipe as zp
from zarrpipe.errors import ArgumentError
from zarrpipe.testing import numbered_batch
from zarrpipe.watch.page import PageServer
from zarrpipe.watch.watcher import Watcher

CHROMIUM = Path("/usr/bin/chromium")
HOSTILE = "<img src=x onerror=document.title='hacked'>"


@pytest.fixture
def server():
    with PageServer(0) as server:
        yield server


def ask(server, path="/", **headers):
    """Status, headers and content of an answer."""
    port = int(re.search(r":(\d+)/$", server.url).group(1))
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    connection.request("GET", path, headers=headers)
    answer = connection.getresponse()
    content = answer.read()
    connection.close()
    return answer.status, dict(answer.getheaders()), content


def test_the_page_and_the_facts(server):
    assert ask(server, "/facts.json")[2] == b"null"
    server.show({"stores": [1, 2]})
    status, headers, content = ask(server, "/facts.json?x=1")
    assert (status, json.loads(content)) == (200, {"stores": [1, 2]})
    assert headers["Content-Type"] == "application/json"
    assert headers["Cache-Control"] == "no-store"
    assert "Access-Control-Allow-Origin" not in headers
    status, headers, content = ask(server)
    assert status == 200
    assert b"<title>zarrpipe watch</title>" in content
    assert ask(server, "/etc/passwd")[0] == ask(server, "/../facts.json")[0] == 404


def test_only_the_script_of_the_page_may_run_and_nothing_is_fetched_from_elsewhere(server):
    _, headers, content = ask(server)
    policy = headers["Content-Security-Policy"]
    script = re.search(rb"<script>(.*)</script>", content, re.DOTALL).group(1)
    digest = base64.b64encode(hashlib.sha256(script).digest()).decode()
    assert f"script-src 'sha256-{digest}';" in policy
    assert policy.startswith("default-src 'none'")
    assert "unsafe" not in policy
    assert not re.search(rb"https?://(?!www\.w3\.org/2000/svg)", content)
    assert b"innerHTML" not in content


def test_other_names_of_this_machine_are_refused(server):
    server.show({"secret": "samples"})
    for host in ("evil.example", "evil.example:8765", "127.0.0.1.evil.example", "", "localhost@x"):
        for path in ("/", "/facts.json"):
            status, _, content = ask(server, path, Host=host)
            assert status == 421
            assert b"secret" not in content
    for host in ("localhost", "LOCALHOST:9000", "127.0.0.1:1", "[::1]:80"):
        assert ask(server, "/facts.json", Host=host)[0] == 200


def test_only_reading_is_answered(server):
    port = int(re.search(r":(\d+)/$", server.url).group(1))
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    connection.request("POST", "/facts.json", body=b"{}")
    assert connection.getresponse().status == 501
    connection.close()


def test_it_listens_on_this_machine_only(server):
    assert server._server.server_address[0] == "127.0.0.1"


def test_a_port_that_is_taken():
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(ArgumentError, match=f"port {port} .*is taken: give another one by"):
            PageServer(port)


def test_the_port_is_free_afterwards():
    with PageServer(0) as server:
        port = int(re.search(r":(\d+)/$", server.url).group(1))
    with PageServer(port) as server:
        assert ask(server)[0] == 200


@pytest.mark.skipif(not CHROMIUM.exists(), reason="there is no chromium")
def test_a_browser_shows_the_facts_as_text(server, tmp_path):
    playwright = pytest.importorskip("playwright.sync_api")
    run = tmp_path / HOSTILE.replace("/", "")
    run.mkdir()
    log = (
        "epoch,step,data/num_samples,val/forces_mae_meV_A,val/energy_mae_meV_atom\n"
        "0,9,95,400.5,50.5\n1,19,95,300.25,1.5\n"
    )
    (run / "metrics.csv").write_text(log)
    with zp.ZarrData(run / "run.zarr") as sink:
        sink.write(numbered_batch(range(12)))
        watcher = Watcher([str(tmp_path)])
        watcher.look()
        server.show({**watcher.look().to_dict(curves=True), "interval": 0.1})
        with playwright.sync_playwright() as start:
            browser = start.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
            page = browser.new_page()
            asked, wrong = [], []
            page.on("request", lambda one: asked.append(one.url))
            page.on("pageerror", lambda one: wrong.append(str(one)))
            page.on("console", lambda one: wrong.append(one.text))
            page.goto(server.url)
            page.wait_for_selector("article svg")
            shown = page.inner_text("main")
            title, images = page.title(), page.locator("main img").count()
            curves = page.locator("polyline").evaluate_all(
                "all => all.map(one => one.getAttribute('points').split(' ').length)"
            )
            ticks = page.locator("svg").nth(1).locator("text").all_text_contents()
            wide = page.locator("article.wide").count()
            sink.write(numbered_batch(range(12, 15)))
            server.show({**watcher.look().to_dict(curves=True), "interval": 0.1})
            page.locator("dd").get_by_text("15", exact=True).wait_for()
            assert wrong == []
            server.close()
            page.get_by_text("does not answer").wait_for()
            browser.close()
    assert (title, images) == ("zarrpipe watch", 0)
    assert run.name in shown
    assert {one.partition("/")[0] for one in asked} == {"http:"}
    assert all(one.startswith(server.url) for one in asked)
    assert "samples\n12" in shown
    assert "N of the epoch\n95" in shown
    assert "forces MAE: 300.3 meV/Å, best 300.3" in shown
    assert "energy MAE: 1.5 meV/atom, best 1.5 (logarithmic axis)" in shown
    assert ticks[:4] == ["2", "5", "10", "20"]
    assert curves == [2, 2, 2]
    assert wide == 2  # the only run and the only store
