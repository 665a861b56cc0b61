"""Lightning runs in processes of their own, as jobs say, which may say too when they are killed.

Run by the fixture `training`: a line of JSON on standard input is a job (see training_jobs.py), and
the line that answers it has the exit code of each rank. Every rank is a fork of this process, so
that importing Lightning, which takes seconds, is paid for once. Ranks find each other as under
torchrun, at a store of this process, whose port nobody else can take in between.
"""

import contextlib
import importlib
import json
import multiprocessing
import os
import signal
import sys
import time
import traceback
from multiprocessing import forkserver
from pathlib import Path

_SECONDS = 600.0


def child(train, job, rank, meeting):
    """What a fork does: it never comes back."""
    code = 1
    try:
        output = os.open(Path(job["output"]) / f"rank{rank}.txt", os.O_WRONLY | os.O_CREAT)
        for number, source in ((0, os.open(os.devnull, os.O_RDONLY)), (1, output), (2, output)):
            os.dup2(source, number)
        if "world" in job:
            where = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": meeting.port}
            who = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": job["world"], "GROUP_RANK": 0}
            how = {"RUN_ID": "test", "USE_AGENT_STORE": True, "RESTART_COUNT": 0}
            told = {**where, **who, **{f"TORCHELASTIC_{name}": how[name] for name in how}}
            os.environ.update({name: str(value) for name, value in told.items()})
        train(job, rank)
        code = 0
    except BaseException:  # noqa: BLE001  the parent reads the exit code, a person the text
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def meeting_place():
    """A store at a free port, which ranks find each other by."""
    distributed = importlib.import_module("torch.distributed")
    return distributed.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)


def run(train, job):
    """Exit code of each rank; a signal's is negative."""
    meeting = meeting_place() if "world" in job else None
    ranks = []
    for rank in range(job.get("world", 1)):
        pid = os.fork()
        if pid == 0:
            child(train, job, rank, meeting)
        ranks.append(pid)
    codes, deadline = {}, time.monotonic() + _SECONDS
    while len(codes) < len(ranks):
        for pid in ranks:
            if pid not in codes and (status := os.waitpid(pid, os.WNOHANG))[0]:
                codes[pid] = os.waitstatus_to_exitcode(status[1])
                # A rank that failed leaves the others waiting for it.
                deadline = min(deadline, time.monotonic() + (60.0 if codes[pid] else _SECONDS))
        for pid in ranks:
            if time.monotonic() > deadline and pid not in codes:
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.01)
    return [codes[pid] for pid in ranks]


def share_a_fork_server() -> None:
    """Start the server that starts workers, once for all runs."""
    multiprocessing.set_forkserver_preload(
        ["zarrpipe.training.workers.worker_main", "zarrpipe.store.read.kernels"]
    )
    forkserver.ensure_running()
    server, wait = forkserver._forkserver._forkserver_pid, os.waitpid

    def waitpid(pid, options):
        """Runs are no parents of the server, and need not look whether it is there."""
        return (0, 0) if pid == server else wait(pid, options)

    os.waitpid = waitpid


def main() -> None:
    train = importlib.import_module("training_jobs").train  # workers import this script without it
    share_a_fork_server()
    answers = os.fdopen(os.dup(1), "w")
    for line in sys.stdin:
        print(json.dumps(run(train, json.loads(line))), file=answers, flush=True)


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        main()
