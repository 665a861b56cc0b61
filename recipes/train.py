"""Train a force field from a store: LightningCLI over `ForceField` and `zarrpipe.ZarrDataModule`.

    python recipes/make_ethanol.py --frames 1000
    python recipes/train.py fit --config configs/schnet.yaml
    python recipes/train.py test --run runs/ethanol-schnet
    python recipes/train.py plot --run runs/ethanol-schnet

A run has a directory of its own, ``runs/ethanol-schnet`` or what ``--out`` says; see ``runs.py``.
Any argument of the config can be given on the command line (``--data.batch_size 32``). What a run
has trained is used, and gone on with, by its directory:

    python recipes/train.py fit --run runs/ethanol-schnet --trainer.max_steps 6000
    python recipes/train.py test --run runs/ethanol-schnet --store other.zarr
    python recipes/train.py predict --run runs/ethanol-schnet --store other.zarr
    python recipes/train.py plot --run runs/ethanol-schnet --store other.zarr

``predict`` writes a store of the structures, their labels and what was predicted, with the
deviation of a committee by ``--committee runs/b runs/c``.
"""

import json
import sys
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.utilities import rank_zero_info
from lightning.pytorch.utilities.exceptions import MisconfigurationException

import plots
import runs
import zarrpipe as zp
from commands import PLOT_HELP, OneLineParser, add_options, expanded
from zarrpipe.errors import ArgumentError, ZarrPipeError
from zarrpipe.ml import CommitteePredictor, ForceField, PredictionWriter, load
from zarrpipe.ml.labels import gives

DESCRIPTION = "Train force fields from stores and use them; 'plot --run RUN' draws a run's figures."

SMALL_SPLITS = ((400, (0.8, 0.2, 0.0)), (1000, (0.8, 0.1, 0.1)))
"""Shares of training, validation and test for fewer samples than so many."""

SPLIT = (0.9, 0.05, 0.05)


class TrainCLI(LightningCLI):
    """Lightning's command line with run directories, and results that are kept in them."""

    directory: Path | None = None
    """Directory of the run that is trained or used."""

    _claim: runs.Claim | None = None

    def __init__(self, args: list[str]) -> None:
        try:
            super().__init__(
                ForceField,
                zp.ZarrDataModule,
                runs.RunFiles,
                seed_everything_default=0,
                parser_kwargs={"description": DESCRIPTION},
                parser_class=OneLineParser,
                args=args,
            )
        except BaseException:
            if self._claim is not None:
                self._claim.release()
            raise

    def setup_parser(self, *args: Any) -> None:
        """Add the options of each command."""
        super().setup_parser(*args)
        for command, parser in self._subcommand_parsers.items():
            add_options(command, parser)

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add ``--threads``; a split that is not given follows from the number of samples."""
        parser.add_argument(
            "--threads", type=int | None, default=None, help="threads of torch on the CPU"
        )
        parser.set_defaults({"data.split": None})

    @property
    def options(self) -> Any:
        """The parsed arguments of the command."""
        return self.config[self.subcommand]

    def before_instantiate_classes(self) -> None:
        """Set the number of threads, choose a split, and take a directory before a fit."""
        if self.options.threads is not None:
            torch.set_num_threads(self.options.threads)
        if self.options.data.split is None:
            self.options.data.split = _chosen_split(self.options.data)
        run = runs.of_checkpoint(self.options.ckpt_path)
        if self.subcommand != "fit":
            self.directory = None if run is None else run.directory
            return
        out = self.options.out
        if run is not None and (out is None or Path(out).resolve() == run.directory.resolve()):
            self.directory = run.directory
        elif not self.options.trainer.fast_dev_run:
            data, model = self.options.data, self.options.model
            self._claim = runs.claim(out, data.store, model.potential)
            self.directory = self._claim.directory
        if self.directory is not None:
            self.options.out = str(self.directory)
            rank_zero_info(f"run directory: {self.directory}")

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Make the trainer of a fit log into the run's directory."""
        if self.subcommand == "fit" and self.directory is not None:
            given = self.config_init.fit.trainer.logger
            kwargs["default_root_dir"] = self.directory
            if given is not False:
                several = given if isinstance(given, list) else [given]
                own = [one for one in several if one not in (None, True)]
                kwargs["logger"] = [*runs.loggers(self.directory), *own]
        return super().instantiate_trainer(**kwargs)

    def before_fit(self) -> None:
        """Refuse callbacks that wait for the errors of a label that no sample has."""
        schema = zp.ZarrDataset(self.options.data.store).schema
        for callback in self.trainer.callbacks:
            monitor = getattr(callback, "monitor", None) or ""
            label = monitor.rpartition("/")[2].partition("_")[0]
            if label in plots.LABELS and not gives(schema, label):
                raise ArgumentError(
                    f"{type(callback).__name__} monitors {monitor}, and no sample of "
                    f"{self.options.data.store} has {label}: name the error of another label in "
                    "the config, such as val/energy_mae_meV_atom"
                )

    def test(self, model: ForceField, datamodule: zp.ZarrDataModule, **given: Any) -> None:
        """Print the errors of the test samples and keep them in the run's directory."""
        _check_samples(datamodule, "test", "another --store, or validate")
        self.trainer.test(model, datamodule=datamodule, **{**given, "verbose": False})
        self._keep_errors("test", len(datamodule.test_dataset))

    def validate(self, model: ForceField, datamodule: zp.ZarrDataModule, **given: Any) -> None:
        """Print the errors of the validation samples and keep them in the run's directory."""
        _check_samples(datamodule, "val", "another --store")
        self.trainer.validate(model, datamodule=datamodule, **{**given, "verbose": False})
        self._keep_errors("val", len(datamodule.val_dataset))

    def _keep_errors(self, part: str, count: int) -> None:
        """Print a table of errors, and write them into the run's directory."""
        if not self.trainer.is_global_zero:
            return
        errors = {key: float(value) for key, value in self.trainer.callback_metrics.items()}
        print(f"{count} samples of {self.options.data.store}, {self.options.ckpt_path}")
        print(error_table(errors, part))
        if self.directory is None:
            return
        store, command = self.options.store, self.subcommand
        name = command if store is None else f"{command}-{runs.stem(store)}"
        found = {
            "store": str(self.options.data.store),
            "checkpoint": str(self.options.ckpt_path),
            "samples": count,
            **errors,
        }
        path = self.directory / f"{name}.json"
        path.write_text(json.dumps(found, indent=2) + "\n")
        print(f"wrote {path}")

    def predict(self, model: ForceField, datamodule: zp.ZarrDataModule, **given: Any) -> None:
        """Write a store of structures, labels and predictions, batch by batch."""
        path = self._predictions()
        self.trainer.callbacks.append(PredictionWriter(path))
        predictor: LightningModule = model
        if self.options.committee:
            members = dict.fromkeys(runs.find(one).checkpoint() for one in self._members())
            predictor = CommitteePredictor(load(list(members)))
            given["ckpt_path"] = None
        given["return_predictions"] = False
        self.trainer.predict(predictor, datamodule=datamodule, **given)
        print(f"wrote {path}")

    def _members(self) -> list[str]:
        """Runs of a committee."""
        own = [] if self.options.run is None else [self.options.run]
        return [*own, *self.options.committee]

    def _predictions(self) -> Path:
        """Where predictions are written."""
        if self.options.to is not None:
            return Path(self.options.to)
        if self.directory is None:
            raise ArgumentError(
                "predict was given no run and no place to write: expected --to with the path of a "
                "new store"
            )
        return self.directory / f"predictions-{runs.stem(self.options.data.store)}.zarr"


class PlotCLI(TrainCLI):
    """Draws figures of a run where `test` would print errors."""

    def test(self, model: ForceField, datamodule: zp.ZarrDataModule, **given: Any) -> None:
        """Draw learning curves, and predictions against the labels of the test samples."""
        run, store = runs.find(self.directory or Path()), self.options.store
        curves = run.directory / "learning_curves.png"
        plots.learning_curves(run.metrics, curves)
        datamodule.setup("test")
        validation = not len(datamodule.test_dataset)
        loader = datamodule.val_dataloader() if validation else datamodule.test_dataloader()
        device = self.trainer.strategy.root_device
        found = plots.compare(
            (batch.to(device) for batch in loader), load(self.options.ckpt_path, device)
        )
        part = "all" if store else "validation" if validation else "test"
        title = f"{part} samples of {self.options.data.store}"
        name = "parity" if store is None else f"parity-{runs.stem(store)}"
        plots.parity(found, run.directory / f"{name}.png", title)
        print(f"wrote {curves} and {run.directory / name}.png")


def _check_samples(datamodule: zp.ZarrDataModule, part: str, expected: str) -> None:
    """Refuse a part without samples, which Lightning would skip."""
    datamodule.setup("test")
    if not len(getattr(datamodule, f"{part}_dataset")):
        raise ArgumentError(
            f"none of {len(datamodule.dataset)} samples of {datamodule} is in the {part} split: "
            f"expected {expected}"
        )


def error_table(errors: Mapping[str, float], part: str) -> str:
    """Errors by label as lines of text."""
    lines = [f"{'':8}{'MAE':>10}{'RMSE':>10}{'largest':>10}"]
    for name, label in plots.LABELS.items():
        keys = [f"{part}/{name}_{kind}_{label.metric}" for kind in ("mae", "rmse", "max")]
        if keys[0] in errors:
            values = "".join(f"{errors[key]:10.4g}" for key in keys)
            lines.append(f"{name:8}{values}  {label.error_unit}")
    return "\n".join(lines)


def split_of(count: int) -> list[float]:
    """Split that suits a number of samples."""
    return list(next((few for most, few in SMALL_SPLITS if count < most), SPLIT))


def _chosen_split(data: Any) -> list[float]:
    """Split for a data module's arguments, which is said."""
    count = len(zp.ZarrDataset(data.store, where=data.where))
    split = split_of(count)
    rank_zero_info(
        f"{count} samples are split {' / '.join(f'{one:g}' for one in split)} into training, "
        "validation and test; data.split says otherwise"
    )
    return split


def main(args: list[str] | None = None) -> LightningCLI:
    """Run the command line, or the arguments in `args`."""
    warnings.filterwarnings("ignore", ".*LeafSpec.*")  # Lightning 2.6 with torch 2.13
    for harmless in (
        "LightningCLI's args parameter",
        "You're using the WeightAveraging callback with a model that overrides",  # not sharded
        "When using the `ThroughputMonitor`, you need to define a `flops_per_batch`",
        "Be aware that when using `ckpt_path`, callbacks used",  # an evaluation needs none
        "The TorchScript type system doesn't support",  # e3nn, while MACE is built
        "Checkpoint directory .* exists and is not empty",  # of a run that goes on
    ):
        warnings.filterwarnings("ignore", harmless)
    argv = sys.argv[1:] if args is None else args
    if argv[:1] == ["plot"]:
        if {"-h", "--help"} & {*argv}:
            print(PLOT_HELP)
            sys.exit()
        return PlotCLI(expanded(["test", *argv[1:]], "plot"))
    return TrainCLI(expanded(argv))


def script() -> None:
    """Run the command line; what is wrong is one line on standard error."""
    try:
        main()
    except (ZarrPipeError, MisconfigurationException) as error:
        text = " ".join("; ".join([str(error), *getattr(error, "__notes__", ())]).split())
        sys.exit(f"train.py: {text}")


if __name__ == "__main__":
    script()
