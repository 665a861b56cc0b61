"""Train a force field from a store: LightningCLI over `ForceField` and `zarrpipe.ZarrDataModule`.

    python recipes/make_ethanol.py --frames 1000
    python recipes/train.py fit --config configs/schnet.yaml

Takes TODO and reaches a force MAE of TODO meV/Angstrom on the validation part. Any argument of the
config can be given on the command line (``--data.batch_size 32``); ``test`` and ``predict`` take a
checkpoint:

    python recipes/train.py predict --config configs/schnet.yaml --ckpt_path runs/schnet/last.ckpt
"""

from lightning.pytorch.cli import ArgsType, LightningCLI
from potentials import ForceField

import zarrpipe as zp


def main(args: ArgsType = None) -> LightningCLI:
    """Run the command line, or the arguments in `args`."""
    return LightningCLI(ForceField, zp.ZarrDataModule, seed_everything_default=0, args=args)


if __name__ == "__main__":
    main()
