"""Active learning of ethanol: simulate, sink, label, train, simulate again.

    python recipes/closed_loop.py --out runs/ethanol --seed 0

Takes 5 minutes on two idle cores (both arms, 300 labels each) and prints a line per arm and round.
At 300 labels both arms reach a force MAE of 26 to 33 meV/Angstrom on the 500 K test set. ``<out>``
then holds ``metrics.csv``, ``learning_curve.png``, ``parity.png`` and, for each arm, the stores
``candidates.zarr`` and ``labelled.zarr`` and the committee's checkpoints. The same command goes on
where a killed run was.

A round: walkers at 500 to 800 K move on the committee's mean forces; frames whose deviation lies
between two trust levels go into `candidates`; some of them, drawn at random, are labelled by
GFN2-xTB in parallel processes and appended to `labelled`; each member of the committee is trained
on from where it was. The random arm differs in one thing: it has no lower trust level.

What is on disk is the only state. The length of `labelled` says how many labels there are; a row
in the arm's ``metrics.csv`` says that a round is finished. Exploration is a function of the seed
and of what the round before left, so a stage that was cut off is done again and gives the same
frames.
"""

import sys
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from multiprocessing.queues import Queue
from queue import Empty
from typing import Any

from records import HEADER, Row, format_row, read_rows, write_rows
from settings import TEST_TEMPERATURES, Settings
from xtb import start_worker, trajectory

# ruff: noqa: PLC0415  every worker process imports this module: it imports torch where it is used

SPAWN = get_context("spawn")


def main(settings: Settings) -> None:
    """Make the test set, run the arms, and draw the figures."""
    from figures import learning_curve, parity

    make_test_set(settings)
    table = settings.out / "metrics.csv"
    print(HEADER)
    rows = [row for name in settings.names for row in read_rows(settings.out / name / table.name)]
    for row in rows:
        print(format_row(row))
    for row in run_arms(settings, done=len(rows)):
        rows.append(row)
        write_rows(table, sorted(rows, key=lambda row: (row.arm, row.round)))
    learning_curve(rows, settings.out / "learning_curve.png")
    parity({name: settings.out / name for name in settings.names}, settings.out / "parity.png")
    print(f"wrote {table}, learning_curve.png and parity.png")


def make_test_set(settings: Settings) -> None:
    """Run the two test trajectories, one per process, unless they are on disk."""
    from stores import write_once

    with ProcessPoolExecutor(2, SPAWN, initializer=start_worker) as pool:
        frames = settings.test_frames
        futures = {
            kelvin: pool.submit(trajectory, kelvin, frames, settings.test_seed * 1000 + kelvin)
            for kelvin in TEST_TEMPERATURES
            if not settings.test_store(kelvin).exists()
        }
        for kelvin, future in futures.items():
            write_once(settings.test_store(kelvin), frames, future.result)


def run_arms(settings: Settings, done: int) -> Iterator[Row]:
    """Run each arm in a process and yield the rows as they come, under a progress bar.

    Parameters
    ----------
    done
        Number of rounds that are on disk already.
    """
    from tqdm import tqdm

    stages = settings.members + 3
    total = len(settings.names) * len(settings.labels)
    events: Queue[tuple[str, Any]] = SPAWN.Queue()
    arms = [SPAWN.Process(target=run_arm, args=(settings, name, events)) for name in settings.names]
    for arm in arms:
        arm.start()
    with tqdm(total=total * stages, initial=done * stages, unit="stage", leave=False) as bar:
        while done < total:
            try:
                name, event = events.get(timeout=1.0)
            except Empty:
                if any(arm.exitcode for arm in arms):
                    for arm in arms:
                        arm.terminate()
                    sys.exit("an arm has failed, see above; the same command goes on from there")
                continue
            if isinstance(event, Row):
                done += 1
                bar.update(done * stages - bar.n)
                bar.write(format_row(event))
                yield event
            else:
                bar.set_postfix_str(f"{name}: {event}")
                bar.update()
    for arm in arms:
        arm.join()


def run_arm(settings: Settings, name: str, events: "Queue[tuple[str, Any]]") -> None:
    """Run one arm, in its process."""
    start_worker()
    from rounds import open_arm

    def tell(event: Row | str) -> None:
        events.put((name, event))

    with (
        ProcessPoolExecutor(2, SPAWN, initializer=start_worker) as oracle,
        open_arm(settings, name, oracle, tell) as arm,
    ):
        arm.run(tell)


def read_settings(args: list[str] | None = None) -> Settings:
    """Settings from the command line, or from `args`."""
    from jsonargparse import ArgumentParser

    parser = ArgumentParser(description="Active learning of ethanol, from one command.")
    parser.add_class_arguments(Settings)
    return Settings(**parser.parse_args(args).as_dict())


if __name__ == "__main__":
    main(read_settings())
