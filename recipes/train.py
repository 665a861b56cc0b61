"""Train a force field from a store: LightningCLI over `ForceField` and `zarrpipe.ZarrDataModule`.

    python recipes/make_ethanol.py --frames 1000
    python recipes/train.py fit --config configs/schnet.yaml

Takes one to two minutes and reaches a force MAE of 35 meV/Angstrom on the test part. Any argument
of the config can be given on the command line (``--data.batch_size 32``); ``test`` and ``predict``
take a checkpoint:

    python recipes/train.py test --config configs/schnet.yaml --ckpt_path runs/schnet/best.ckpt
    python recipes/train.py predict --config configs/schnet.yaml --ckpt_path runs/schnet/last.ckpt

``predict`` leaves ``predictions.pt`` in the trainer's ``default_root_dir``: a list with a mapping
for each batch, of energies, forces and stress.
"""

import warnings
from pathlib import Path

import torch
from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI

import zarrpipe as zp
from zarrpipe.ml import ForceField


class TrainCLI(LightningCLI):
    """Lightning's command line with a number of threads, that keeps what ``predict`` found."""

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add ``--threads``."""
        parser.add_argument(
            "--threads", type=int | None, default=None, help="threads of torch on the CPU"
        )

    def before_instantiate_classes(self) -> None:
        """Set the number of threads."""
        threads = self.config[self.subcommand].threads
        if threads is not None:
            torch.set_num_threads(threads)

    def after_predict(self) -> None:
        """Save the predictions."""
        path = Path(self.trainer.default_root_dir) / "predictions.pt"
        path.parent.mkdir(parents=True, exist_ok=True)
        found = [one._asdict() for one in self.trainer.predict_loop.predictions]
        torch.save(found, path)
        print(f"wrote {path}")


def main(args: ArgsType = None) -> LightningCLI:
    """Run the command line, or the arguments in `args`."""
    warnings.filterwarnings("ignore", ".*LeafSpec.*")  # Lightning 2.6 with torch 2.13
    return TrainCLI(ForceField, zp.ZarrDataModule, seed_everything_default=0, args=args)


if __name__ == "__main__":
    main()
