"""The short forms of the recipe's command line, as the options of Lightning's that they mean."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import runs
from lightning.pytorch.cli import LightningArgumentParser

from zarrpipe.errors import ArgumentError

EVALUATE = ("validate", "test", "predict")

PLOT_HELP = """usage: train.py plot --run RUN [--store STORE]

Draw learning_curves.png of a run and parity.png, its predictions against the labels of the test
samples (of the validation samples, where there are no others), in the run's directory.

  --run RUN      directory of the run that trained
  --store STORE  compare with all samples of this store, in parity-<store>.png
"""

_PLACES = ("best", "last", "hpc", "registry")
"""Checkpoints that Lightning finds by itself."""

_ALONE = {
    "trainer.callbacks": "null",
    "trainer.logger": "false",
    "trainer.enable_checkpointing": "false",
    "trainer.devices": "1",
    "trainer.num_nodes": "1",
    "trainer.strategy": "auto",
}
"""An evaluation needs nothing of what a run had around its training."""

_WHOLE = {
    "data.val_store": "null",
    "data.test_store": "null",
    "data.split_by": "id",
    "data.where": "null",
    "data.weights": "null",
    "data.samples_per_epoch": "null",
}
"""Every sample of a store is used."""

_SPLITS = {"validate": "[0,1,0]", "test": "[0,0,1]", "predict": "[0,0,1]"}


class OneLineParser(LightningArgumentParser):
    """Lightning's parser, whose errors are one line in place of all that it knows."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """End with code 2."""
        if not self.exit_on_error:
            super().error(message, ex)
        parser = getattr(ex, "subcommand_parser", None) or self
        command = parser.prog.replace(" [options]", "").replace("[-c CONFIG] ", "")
        text = " ".join(message.split()).rstrip(".")
        self.exit(2, f"train.py: {text}; {command} --help says more\n")


def add_options(command: str, parser: LightningArgumentParser) -> None:
    """Add the options of a command."""

    def option(name: str, text: str, kind: Any = str | None, **more: Any) -> None:
        parser.add_argument(f"--{name}", type=kind, default=None, help=text, **more)

    if command == "fit":
        option("run", "directory of a run to go on with")
        option("out", "directory of a new run; by default runs/<store>-<potential>")
        return
    option("run", "directory of the run that trained; its config and best checkpoint are used")
    option("out", argparse.SUPPRESS)  # as it stands in a run's config.yaml
    option("store", "store to use, all of it, in place of what the run used")
    if command == "predict":
        option("to", "store to write; by default predictions-<store>.zarr in the run's directory")
        option("committee", "runs that predict together", str, nargs="+")


def expanded(argv: Sequence[str], called: str | None = None) -> list[str]:
    """Arguments with ``--run``, ``--store`` and ``--committee`` as Lightning knows them.

    What is given beside them comes later, so that it counts. `called` is the command's own name.
    """
    command, rest = argv[0] if argv else "", list(argv[1:])
    if command not in ("fit", *EVALUATE) or {"-h", "--help"} & {*rest}:
        return list(argv)
    given = _short_forms(rest)
    if given.ckpt_path not in (None, *_PLACES) and not Path(given.ckpt_path).is_file():
        raise ArgumentError(
            f"there is no checkpoint {given.ckpt_path}: expected a file such as "
            "runs/ethanol-schnet/checkpoints/last.ckpt"
        )
    named = given.run or (given.committee or [None])[0]
    run = runs.of_checkpoint(given.ckpt_path) if named is None else runs.find(named)
    if run is None and command != "fit" and given.ckpt_path is None:
        raise ArgumentError(
            f"{called or command} needs something that was trained: expected --run with the "
            "directory of a run, or --ckpt_path with a checkpoint and --config with its config"
        )
    end = _end_of_configs(rest)
    configs, options = rest[:end], {}
    if run is not None:
        configs = [f"--config={run.config}", *configs]
        options["out"] = run.directory
        if given.ckpt_path is None:
            options["ckpt_path"] = run.last() if command == "fit" else run.checkpoint()
        if command != "fit":
            options |= _ALONE
    if given.store is not None:
        options |= {"data.store": given.store, "data.split": _SPLITS[command], **_WHOLE}
    return [command, *configs, *(f"--{key}={value}" for key, value in options.items()), *rest[end:]]


def _short_forms(argv: Sequence[str]) -> argparse.Namespace:
    """The short forms among arguments, and the checkpoint."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    for name in ("--run", "--store", "--ckpt_path"):
        parser.add_argument(name)
    parser.add_argument("--committee", nargs="+")
    return parser.parse_known_args(argv)[0]


def _end_of_configs(argv: Sequence[str]) -> int:
    """Place behind the last config file among arguments."""
    end = 0
    for place, word in enumerate(argv):
        if word in ("-c", "--config"):
            end = place + 2
        elif word.startswith(("--config=", "-c=")):
            end = place + 1
    return end
