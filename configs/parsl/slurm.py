"""Parsl on a SLURM cluster: jobs of CPU nodes sample and label, one job with a GPU trains.

The main process runs on a login node or in a small job of its own, and asks for the jobs. A copy
of this file with the names of your partitions and account is where to begin.
"""

import sys
from pathlib import Path
from runpy import run_path

from parsl.addresses import address_by_interface
from parsl.config import Config
from parsl.executors import HighThroughputExecutor
from parsl.launchers import SrunLauncher
from parsl.providers import SlurmProvider

LOCAL = run_path(str(Path(__file__).with_name("local.py")))


def config(
    run_dir: Path,
    workers: int,
    *,
    partition: str = "cpu",
    gpu_partition: str = "gpu",
    account: str | None = None,
    nodes: int = 1,
    jobs: int = 4,
    walltime: str = "04:00:00",
    interface: str | None = None,
    setup: str = "",
) -> Config:
    """Config of a run on a cluster.

    Parameters
    ----------
    run_dir
        Directory of Parsl's own files, on a file system that the nodes see.
    workers
        Number of workers of a node.
    partition, gpu_partition, account
        Of the jobs that sample and label, and of the one that trains.
    nodes, jobs
        Nodes of a job, and most jobs at a time.
    walltime
        Of a job. Parsl starts a new one when it ends; its tasks are done again.
    interface
        Network interface by which nodes reach the main process, such as "ib0"; by default Parsl
        tries all.
    setup
        Shell commands before the workers start, such as ``module load``.
    """
    address = {} if interface is None else {"address": address_by_interface(interface)}

    def pool(label: str, count: int, provider: SlurmProvider) -> HighThroughputExecutor:
        return HighThroughputExecutor(
            label=label,
            max_workers_per_node=count,
            heartbeat_period=15,
            heartbeat_threshold=120,
            encrypted=True,
            launch_cmd=LOCAL["POOL"],
            interchange_launch_cmd=[sys.executable, "-c", LOCAL["INTERCHANGE"]],
            provider=provider,
            **address,
        )

    common = {
        "account": account,
        "walltime": walltime,
        "worker_init": f"{setup}\n{LOCAL['environment']()}",
        "launcher": SrunLauncher(),
        "init_blocks": 1,
        "min_blocks": 0,
        "exclusive": False,
    }
    work = SlurmProvider(
        partition, nodes_per_block=nodes, max_blocks=jobs, cores_per_node=workers, **common
    )
    train = SlurmProvider(
        gpu_partition,
        nodes_per_block=1,
        max_blocks=1,
        scheduler_options="#SBATCH --gpus=1",
        **common,
    )
    return Config(
        executors=[pool("work", workers, work), pool("train", 1, train)],
        run_dir=str(run_dir),
        strategy="simple",
        usage_tracking=0,
        initialize_logging=False,
    )
