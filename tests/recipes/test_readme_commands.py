"""The commands of the README, from a file to a trained model, as they stand there."""

import re
import shlex
from pathlib import Path

import pytest

import zarrpipe as zp
from stores import write_once
from train import main as train
from xtb import trajectory
from zarrpipe.cli import main as zarrpipe

ROOT = Path(__file__).parents[2]

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*LeafSpec.*"),
    pytest.mark.filterwarnings("ignore:validation has . sample"),
    pytest.mark.filterwarnings("ignore:LightningCLI's args parameter is intended:UserWarning"),
    pytest.mark.filterwarnings("ignore::jsonargparse._deprecated.JsonargparseDeprecationWarning"),
]


def commands():
    """Lines of the first block of the README that imports a file."""
    text = (ROOT / "README.md").read_text()
    blocks = re.findall(r"^```\w*\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    (block,) = [block for block in blocks if block.startswith("zarrpipe import")]
    return [shlex.split(line) for line in block.splitlines()]


def test_from_a_file_to_a_trained_model(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write_once(tmp_path / "source.zarr", 20, lambda: trajectory(500.0, 20, 0, 2, 5))
    zp.write_out("source.zarr", "frames.xyz")
    first, second, third = commands()
    assert first[0] == second[0] == "zarrpipe"
    assert third[:2] == ["python", "recipes/train.py"]
    assert zarrpipe(first[1:]) == 0
    imported, source = zp.ZarrDataset("frames.zarr"), zp.ZarrDataset("source.zarr")
    assert imported.read([19]).energy.item() == source.read([19]).energy.item()
    assert zarrpipe(second[1:]) == 0
    assert "20 (0 deleted)" in capsys.readouterr().out
    options = [str(ROOT / word) if word.startswith("configs/") else word for word in third[2:]]
    quick = {"max_steps": 2, "val_check_interval": 2, "callbacks": "null", "logger": False}
    quick |= {"enable_progress_bar": False, "enable_checkpointing": False}
    cli = train([*options, *(f"--trainer.{name}={value}" for name, value in quick.items())])
    assert cli.trainer.global_step == 2
    assert len(cli.datamodule.train_dataset) + len(cli.datamodule.val_dataset) > 15
