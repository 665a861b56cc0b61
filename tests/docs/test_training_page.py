"""The code and the configuration of docs/guides/training.md run."""

import re
from pathlib import Path

import pytest
import yaml
from lightning.pytorch import LightningModule
from lightning.pytorch.cli import LightningCLI

import zarrpipe as zp

PAGE = Path(__file__).parents[2] / "docs" / "guides" / "training.md"


def blocks(language):
    found = re.findall(rf"^```{language}\n(.*?)^```$", PAGE.read_text(), re.DOTALL | re.MULTILINE)
    assert found
    return found


@pytest.mark.filterwarnings("ignore:The number of training batches")
@pytest.mark.filterwarnings("ignore:.*does not have many workers")
@pytest.mark.filterwarnings("ignore:You passed in a `val_dataloader`")
@pytest.mark.filterwarnings("ignore:LightningCLI's args parameter is intended:UserWarning")
@pytest.mark.filterwarnings("ignore::jsonargparse._deprecated.JsonargparseDeprecationWarning")
def test_code_of_the_page_runs_in_order(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, object] = {"__name__": "training"}
    for place, block in enumerate(blocks("python")):
        exec(compile(block, f"{PAGE.name} block {place}", "exec"), namespace)
    (config,) = blocks("yaml")
    settings = yaml.safe_load(config)
    settings["trainer"] = {"accelerator": "cpu", "logger": False}
    cli = LightningCLI(
        LightningModule,
        zp.ZarrDataModule,
        run=False,
        args=settings,
        save_config_callback=None,
        seed_everything_default=0,
    )
    cli.datamodule.setup("fit")
    batches = list(cli.datamodule.train_dataloader())
    assert max(batch.num_nodes for batch in batches) <= 512
    assert sum(batch.num_graphs for batch in batches) == len(cli.datamodule.train_dataset)
