"""Two hosts with networks of their own train over TCP, from parts in one S3 server."""

import json
import os
import shutil
import subprocess
import sys
from collections import Counter
from contextlib import ExitStack
from pathlib import Path

import pytest

from reliability.object_server import object_server

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("ip") is None, reason="there is no command ip"),
]
SCRIPT = Path(__file__).with_name("rank_of_two_hosts.py")
RANKS, SAMPLES = 2, 20


def ip(*words):
    return subprocess.run(["ip", *words], check=True, timeout=60, capture_output=True, text=True)


def inside(name):
    """Command that runs another one in a network namespace."""
    return ["ip", "netns", "exec", name]


@pytest.fixture
def networks():
    """Names of network namespaces: of a server at 10.0.0.1, and of hosts at 10.0.0.2 and .3."""
    names = [f"zarrpipe-{os.getpid()}-{number}" for number in range(RANKS + 1)]
    with ExitStack() as stack:
        for number, name in enumerate(names):
            try:
                ip("netns", "add", name)
            except subprocess.CalledProcessError as error:
                pytest.skip(f"network namespaces are not permitted: {error.stderr.strip()}")
            stack.callback(ip, "netns", "del", name)
            ip("-n", name, "link", "set", "lo", "up")
            if number:
                cable = ["link", "add", f"to{number}", "type", "veth", "peer", "name", "wire"]
                ip("-n", names[0], *cable, "netns", name)
        ip("-n", names[0], "link", "add", "wire", "type", "bridge")
        for number, name in enumerate(names):
            if number:
                ip("-n", names[0], "link", "set", f"to{number}", "master", "wire", "up")
            ip("-n", name, "address", "add", f"10.0.0.{number + 1}/24", "dev", "wire")
            ip("-n", name, "link", "set", "wire", "up")
        yield names


def started(name, number, url, variables):
    """One host: a torchrun that meets the others at the first host."""
    command = [*inside(name), sys.executable, "-m", "torch.distributed.run"]
    command += [f"--nnodes={RANKS}", f"--node-rank={number}", "--nproc-per-node=1"]
    command += ["--master-addr=10.0.0.2", "--master-port=29400", str(SCRIPT), url, str(RANKS)]
    settings = {"GLOO_SOCKET_IFNAME": "wire", "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **variables, **settings},
    )


def test_two_hosts_write_parts_and_train_on_the_union(networks):
    with object_server("10.0.0.1", inside(networks[0])) as server:
        url, hosts = server.url("run.zarr"), []
        try:
            for number, name in enumerate(networks[1:]):
                hosts.append(started(name, number, url, server.environment))
            said = [host.communicate(timeout=900) for host in hosts]
        finally:
            for host in hosts:
                host.kill()
        assert [host.returncode for host in hosts] == [0] * RANKS, said
        ranks = [json.loads(out.splitlines()[-1]) for out, _ in said]
    assert len({rank["network"] for rank in ranks}) == RANKS
    assert len({rank["weight"] for rank in ranks}) == 1
    every = Counter(range(1, 1 + RANKS * SAMPLES))
    for epoch in range(2):
        seen = [
            Counter(number for when, *batch in rank["seen"] if when == epoch for number in batch)
            for rank in ranks
        ]
        assert sum(seen, Counter()) == every
        assert [one.total() for one in seen] == [SAMPLES] * RANKS
