"""Parsl on one machine: a pool of workers that sample and label, and one worker that trains."""

import sys
from pathlib import Path

from parsl.config import Config
from parsl.executors import HighThroughputExecutor
from parsl.executors.high_throughput.executor import DEFAULT_LAUNCH_CMD
from parsl.providers import LocalProvider

RECIPES = Path(__file__).resolve().parents[2] / "recipes"
"""Workers import the functions of the tasks from here."""

INTERCHANGE = """
import os, runpy, threading, time
parent = os.getppid()
def watch():
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)
threading.Thread(target=watch, daemon=True).start()
runpy.run_module("parsl.executors.high_throughput.interchange", run_name="__main__")
"""
"""Parsl's interchange, which outlives a main process that is killed unless something ends it."""

POOL = DEFAULT_LAUNCH_CMD.replace(
    "process_worker_pool.py", f"{sys.executable} -c 'import parsl_pool; parsl_pool.start()'"
)
"""Parsl's pool of workers, which none of them leaves locked where it is killed."""


def config(run_dir: Path, workers: int, *, heartbeat: int = 2, patience: int = 120) -> Config:
    """Config of a local run.

    Parameters
    ----------
    run_dir
        Directory of Parsl's own files.
    workers
        Number of workers that sample and label.
    heartbeat
        Seconds between two looks at the workers: one that died is replaced at the next.
    patience
        Seconds without a heartbeat after which a pool counts as lost, and a pool ends that hears
        nothing from the main process. A busy machine needs a minute or more.
    """
    return Config(
        executors=[
            _pool("work", workers, heartbeat, patience),
            _pool("train", 1, heartbeat, patience),
        ],
        run_dir=str(run_dir),
        strategy="none",
        usage_tracking=0,
        initialize_logging=False,
    )


def _pool(label: str, workers: int, heartbeat: int, patience: int) -> HighThroughputExecutor:
    """Pool of workers on this machine."""
    return HighThroughputExecutor(
        label=label,
        address="127.0.0.1",
        max_workers_per_node=workers,
        cores_per_worker=1e-6,  # a worker that waits needs no core
        heartbeat_period=heartbeat,
        heartbeat_threshold=patience,
        encrypted=False,  # nothing leaves the machine
        launch_cmd=POOL,
        interchange_launch_cmd=[sys.executable, "-c", INTERCHANGE],
        provider=LocalProvider(
            init_blocks=1, min_blocks=1, max_blocks=1, worker_init=environment()
        ),
    )


def environment() -> str:
    """Lines of shell that a pool starts with: this Python, the tasks' module, one thread."""
    return "\n".join(
        [
            f'export PATH="{Path(sys.executable).parent}:$PATH"',
            f'export PYTHONPATH="{RECIPES}:$PYTHONPATH"',
            "export OMP_NUM_THREADS=1",
        ]
    )
