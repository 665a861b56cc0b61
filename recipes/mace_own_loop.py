"""Train or fine-tune MACE from a store, by MACE's own loop and with the options of mace_run_train.

    python recipes/mace_own_loop.py --name ethanol --train_file runs/ethanol.zarr --r_max 4.5 \
        --num_channels 16 --max_L 1 --max_num_epochs 20 --work_dir runs/mace_own

``mace_run_train`` opens only files of its own formats, so this does what it does after that: the
same options (``--config`` too), model, loss, optimizer, schedule, checkpoints, log. A store takes
the place of ``--train_file`` and ``--valid_file``; elements, average E0s, neighbours and scale come
from its statistics. The model is written to ``<work_dir>/<name>.model``, which MACE's calculator
opens, and from which the next call goes on with ``--foundation_model``. One head and one device;
see ``zarrpipe.mace`` for what more a script of one's own needs.
"""

import logging
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from mace import tools
from mace.tools import scripts_utils
from mace.tools.model_script_utils import configure_model
from mace.tools.tables_utils import create_error_table
from torch_ema import ExponentialMovingAverage

import zarrpipe as zp
from zarrpipe.errors import NonFiniteLossError
from zarrpipe.mace import MACEDataModule

ISOLATED = "config_type == 'IsolatedAtom'"
NOT_READ = ("heads", "pt_train_file", "lora", "lbfgs", "enable_cueq", "enable_oeq", "distributed")
NOT_READ += ("wandb", "statistics_file", "test_dir", "pseudolabel_replay")
LABELS = ("energy", "forces", "stress", "virials")


def main(arguments: Sequence[str] | None = None) -> Path:
    """Run the command line, or the arguments that are given; returns the path of the model."""
    parser = tools.build_default_arg_parser()
    args = parser.parse_args(arguments)
    if args.train_file is None:
        parser.error("--train_file is needed: the store to train on")
    for name in NOT_READ:
        if getattr(args, name) != parser.get_default(name):
            parser.error(f"--{name} is an option of mace_run_train that this recipe does not have")
    return run(args)


def run(args: Namespace) -> Path:
    """Train as the options of mace_run_train say; returns the path of the model."""
    args, messages = tools.check_args(args)
    tag = tools.get_tag(name=args.name, seed=args.seed)
    tools.set_seeds(args.seed)
    tools.setup_logger(level=args.log_level, tag=tag, directory=args.log_dir)
    for message, level in messages:
        logging.log(level, message)
    tools.set_default_dtype(args.default_dtype)
    device = tools.init_device(args.device)

    foundation = None
    if args.foundation_model is not None:  # a whole model: load files of people you trust
        foundation = torch.load(args.foundation_model, map_location=device, weights_only=False)
        args.r_max = foundation.r_max.item()
    data = dataset(args)
    model, output = build(args, data, foundation)
    fit(args, data, model.to(device), output, tag)
    path = Path(args.model_dir) / f"{args.name}.model"
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(model.cpu() if args.save_cpu else model, path)
    logging.info(f"Saved the model of the best epoch as {path}")
    return path


def dataset(args: Namespace) -> MACEDataModule:
    """Batches of the stores; isolated atoms are not among them, but give reference energies."""
    isolated = isolated_energies(args.train_file)
    data = MACEDataModule(
        args.train_file,
        args.r_max,
        atomic_energies=isolated or given_energies(args),
        batch_size=args.batch_size,
        split=(1 - args.valid_fraction, args.valid_fraction, 0.0),
        val_store=args.valid_file,
        test_store=args.test_file,
        where=f"not has(config_type) or not ({ISOLATED})" if isolated else None,
        num_workers=args.num_workers,
        config_type_weights=scripts_utils.get_config_type_weights(args.config_type_weights),
        device=args.device,
        seed=args.seed,
    )
    data.setup("fit")
    logging.info(f"Training on {len(data.train_dataset)} structures, {data}")
    return data


def isolated_energies(store: str) -> dict[int, float]:
    """Energies of the samples that are isolated atoms, by their ``config_type`` as in MACE."""
    if "config_type" not in zp.ZarrDataset(store).schema:
        return {}
    atoms = zp.ZarrDataset(store, where=f"{ISOLATED} and has(energy)")
    if not len(atoms):
        return {}
    batch = atoms.read(range(len(atoms)))
    return dict(zip(batch.atomic_numbers.tolist(), batch.energy.flatten().tolist(), strict=True))


def given_energies(args: Namespace) -> dict[int, float] | None:
    """Energies of isolated atoms that ``--E0s`` gives; None for the average."""
    if args.E0s is None or args.E0s.lower() == "average":
        return None
    return scripts_utils.get_atomic_energies(args.E0s, None, None)


def build(
    args: Namespace, data: MACEDataModule, foundation: torch.nn.Module | None
) -> tuple[torch.nn.Module, dict[str, bool]]:
    """The model, and what it is to compute."""
    start = data.model_arguments()
    logging.info(f"From the statistics of the training samples: {start}")
    args.avg_num_neighbors = start["avg_num_neighbors"]
    if data.atomic_energies is None:
        args.mean, args.std = data.statistics.energy_per_atom_mean, start["atomic_inter_scale"]
    elif args.model == "MACE":  # has no shift; for the others MACE computes it from the batches
        args.mean, args.std = 0.0, start["atomic_inter_scale"]
    args.compute_energy, args.compute_dipole, args.compute_polarizability = True, False, False
    return configure_model(
        args,
        data.loop_arguments()["train_loader"],
        start["atomic_energies"][None],
        foundation,
        heads=list(data.heads),
        z_table=tools.AtomicNumberTable(start["atomic_numbers"]),
    )


def fit(
    args: Namespace,
    data: MACEDataModule,
    model: torch.nn.Module,
    output: dict[str, bool],
    tag: str,
) -> None:
    """Run MACE's loop; the model has the weights of its best epoch then."""
    loss = Finite(scripts_utils.get_loss_fn(args, dipole_only=False, compute_dipole=False))
    optimizer = scripts_utils.get_optimizer(args, scripts_utils.get_params_options(args, model))
    schedule = scripts_utils.LRScheduler(optimizer, args)
    state = tools.CheckpointState(model, optimizer, schedule)
    swa = scripts_utils.get_swa(args, model, optimizer, [False])[0] if args.swa else None
    if swa is not None:
        swa.loss_fn = Finite(swa.loss_fn)
    checkpoints = tools.CheckpointHandler(
        args.checkpoints_dir, tag=tag, keep=args.keep_checkpoints, swa_start=args.start_swa
    )
    start = checkpoints.load_latest(state, device=args.device) if args.restart_latest else None
    loop = data.loop_arguments()
    loop["train_loader"].set_epoch(start or 0)
    tools.train(
        model=model,
        loss_fn=loss,
        **loop,
        optimizer=optimizer,
        lr_scheduler=schedule,
        checkpoint_handler=checkpoints,
        logger=tools.MetricsLogger(directory=args.results_dir, tag=tag + "_train"),
        start_epoch=start or 0,
        max_num_epochs=args.max_num_epochs,
        patience=args.patience,
        eval_interval=args.eval_interval,
        output_args=output,
        device=torch.device(args.device),
        log_errors=args.error_table,
        max_grad_norm=args.clip_grad,
        ema=ExponentialMovingAverage(model.parameters(), args.ema_decay) if args.ema else None,
        swa=swa,
    )
    checkpoints.load_latest(state, swa=swa is not None, device=args.device)
    logging.info(f"Waited {loop['train_loader'].waited:.1f} s for batches")
    table = create_error_table(
        table_type=args.error_table,
        all_data_loaders={
            "train": loop["train_loader"],
            "valid": loop["valid_loaders"]["Default"],
            **({} if args.test_file is None else {"test": data.test_dataloader()}),
        },
        model=model,
        loss_fn=loss,
        output_args=output,
        log_wandb=False,
        device=torch.device(args.device),
    )
    logging.info(f"Errors of the model of the best epoch:\n{table}")
    data.teardown("fit")


class Finite(torch.nn.Module):
    """A loss of MACE that stops the run where it is not finite; MACE's loop would go on."""

    def __init__(self, loss: torch.nn.Module) -> None:
        super().__init__()
        self.loss = loss

    def forward(self, pred: dict[str, Any], ref: Any, ddp: bool | None = None) -> torch.Tensor:
        """Loss of a batch."""
        loss = self.loss(pred=pred, ref=ref, ddp=ddp)
        if not bool(loss.isfinite()):
            wrong = [name for name in LABELS if not bool(ref[name].isfinite().all())]
            where = f"labels {wrong} are not finite" if wrong else "the model has diverged"
            raise NonFiniteLossError(
                f"the loss is {float(loss)}: {where}; the batch has systems of "
                f"{ref.ptr.diff().tolist()} atoms with energies {ref.energy.tolist()}. Check the "
                "store with 'zarrpipe check', or take a smaller --lr"
            )
        return loss


if __name__ == "__main__":
    main()
