"""Two hosts, each a network of its own, write and train over TCP from one S3 server."""

import json
import os
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from reliability.object_server import object_server

ROOT = Path(__file__).parents[2]
SCRIPT = Path(__file__).with_name("rank_of_two_hosts.py")
NETWORK = f"10.77.{os.getpid() % 250}"
SERVER, HOSTS = f"{NETWORK}.254", (f"{NETWORK}.1", f"{NETWORK}.2")
PORT = "29577"


def ip(*words):
    subprocess.run(["ip", *words], check=True, capture_output=True, text=True, timeout=60)


@pytest.fixture
def hosts():
    """Names of two network namespaces on one bridge, with which this process is connected."""
    if not sys.platform.startswith("linux") or shutil.which("ip") is None or os.geteuid() != 0:
        pytest.skip("network namespaces need Linux, iproute2 and root")
    own = str(os.getpid() % 100_000)
    bridge, names = f"zpb{own}", [f"zph{own}-{number}" for number in range(2)]
    try:
        try:
            ip("link", "add", bridge, "type", "bridge")
            ip("addr", "add", f"{SERVER}/24", "dev", bridge)
            ip("link", "set", bridge, "up")
            for number, name in enumerate(names):
                outer, inner = f"zpo{own}-{number}", f"zpi{own}-{number}"
                ip("netns", "add", name)
                ip("link", "add", outer, "type", "veth", "peer", "name", inner, "netns", name)
                ip("link", "set", outer, "master", bridge, "up")
                for words in (
                    ("link", "set", "lo", "up"),
                    ("link", "set", inner, "name", "eth0", "up"),
                    ("addr", "add", f"{HOSTS[number]}/24", "dev", "eth0"),
                ):
                    ip("-n", name, *words)
        except subprocess.CalledProcessError as error:
            pytest.skip(f"no network namespaces here: {error.stderr.strip()}")
        yield names
    finally:
        for words in (*(("netns", "del", name) for name in names), ("link", "del", bridge)):
            subprocess.run(["ip", *words], check=False, capture_output=True, timeout=60)


def test_two_hosts_train_from_one_server(hosts, tmp_path):
    """Each writes its part; each epoch has every sample of both once, on one of the ranks."""
    with object_server(SERVER) as server:
        running = []
        for rank, host in enumerate(hosts):
            out = tmp_path / host
            out.mkdir()
            variables = {
                **os.environ,
                **server.environment,
                "PYTHONPATH": str(ROOT),
                "XDG_CACHE_HOME": str(out),
                "OMP_NUM_THREADS": "1",
                "MASTER_ADDR": HOSTS[0],
                "MASTER_PORT": PORT,
                "RANK": str(rank),
                "GROUP_RANK": str(rank),
                "LOCAL_RANK": "0",
                "LOCAL_WORLD_SIZE": "1",
                "WORLD_SIZE": "2",
                "TORCHELASTIC_RUN_ID": "two-hosts",
                "GLOO_SOCKET_IFNAME": "eth0",
            }
            command = ["ip", "netns", "exec", host, sys.executable, str(SCRIPT)]
            running.append(
                subprocess.Popen(
                    [*command, server.url("two-hosts/run.zarr"), str(out)],
                    env=variables,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.STDOUT,
                    text=True,
                )
            )
        try:
            said = [one.communicate(timeout=600)[0] for one in running]
        finally:
            for one in running:
                one.kill()
        assert [one.returncode for one in running] == [0, 0], "\n".join(said)
    told = [
        json.loads((tmp_path / host / f"rank-{n}.json").read_text()) for n, host in enumerate(hosts)
    ]
    assert told[0]["network"] != told[1]["network"]
    assert told[0]["weights"] == told[1]["weights"]
    everything = Counter([*range(24), *range(100, 124)])
    for epoch in (0, 1):
        seen = [
            Counter(number for when, numbers in rank["seen"] if when == epoch for number in numbers)
            for rank in told
        ]
        assert seen[0] + seen[1] == everything
        assert sum(seen[0].values()) == sum(seen[1].values()) == 24
        assert any(number >= 100 for number in seen[0])
        assert any(number < 100 for number in seen[1])
