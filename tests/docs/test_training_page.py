"""The configuration file of docs/guides/training.md is one of Lightning's command line."""

import re
from pathlib import Path

import pytest
import yaml
from lightning.pytorch import LightningModule
from lightning.pytorch.cli import LightningCLI

import zarrpipe as zp

PAGE = Path(__file__).parents[2] / "docs" / "guides" / "training.md"


@pytest.mark.filterwarnings("ignore:The number of training batches")
@pytest.mark.filterwarnings("ignore:.*does not have many workers")
@pytest.mark.filterwarnings("ignore:You passed in a `val_dataloader`")
@pytest.mark.filterwarnings("ignore:LightningCLI's args parameter is intended:UserWarning")
@pytest.mark.filterwarnings("ignore::jsonargparse._deprecated.JsonargparseDeprecationWarning")
def test_the_configuration_makes_a_data_module(run_page):
    run_page("docs/guides/training.md")
    (config,) = re.findall(r"^```yaml\n(.*?)^```$", PAGE.read_text(), re.DOTALL | re.MULTILINE)
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
