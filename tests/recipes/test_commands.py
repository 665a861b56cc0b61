"""The short forms of the command line, as what they mean to Lightning."""

import re
import shlex
from pathlib import Path

import pytest

from commands import PLOT_HELP, OneLineParser, add_options, expanded
from zarrpipe.errors import ArgumentError


@pytest.fixture(autouse=True)
def _run(tmp_path, monkeypatch):
    """A trained run in runs/a, and one that was not validated in runs/b."""
    monkeypatch.chdir(tmp_path)
    for name in ("a", "b"):
        Path("runs", name, "checkpoints").mkdir(parents=True)
        Path("runs", name, "config.yaml").write_text("seed_everything: 0\n")
    for name in ("best", "last"):
        Path("runs/a/checkpoints", f"{name}.ckpt").write_text("")


def test_what_is_whole_stays_as_it_is():
    for given in (["fit", "--config=a.yaml", "--out", "x"], ["--help"], [], ["test", "--help"]):
        assert expanded(given) == given


def test_a_run_means_its_config_its_directory_and_its_best_checkpoint():
    found = expanded(["test", "--run", "runs/a", "--data.batch_size=2"])
    assert found[:4] == [
        "test",
        "--config=runs/a/config.yaml",
        "--out=runs/a",
        "--ckpt_path=runs/a/checkpoints/best.ckpt",
    ]
    assert found[-3:] == ["--run", "runs/a", "--data.batch_size=2"]
    assert {"--trainer.callbacks=null", "--trainer.logger=false", "--trainer.devices=1"} < {*found}
    assert not any(word.startswith("--data.split") for word in found)


@pytest.mark.parametrize(
    "given", [["--run=runs/a"], ["--ckpt_path", "runs/a/checkpoints/last.ckpt"]]
)
def test_a_fit_goes_on_from_the_last_checkpoint_in_the_directory(given):
    found = expanded(["fit", *given, "--trainer.max_steps=9"])
    assert found[:3] == ["fit", "--config=runs/a/config.yaml", "--out=runs/a"]
    text = " ".join(found).replace("=", " ")
    assert "--ckpt_path runs/a/checkpoints/last.ckpt" in text
    assert found[-1] == "--trainer.max_steps=9"
    assert "--trainer.callbacks=null" not in found


@pytest.mark.parametrize(
    ("command", "split"), [("test", "[0,0,1]"), ("validate", "[0,1,0]"), ("predict", "[0,0,1]")]
)
def test_a_store_is_used_whole_unless_more_is_said(command, split):
    given = [command, "--config", "b.yaml", "--ckpt_path=runs/a/checkpoints/best.ckpt"]
    found = expanded([*given, "--store", "new.zarr", "--data.where=has(energy)"])
    place = found.index("b.yaml")
    assert found[1] == "--config=runs/a/config.yaml"
    for word in ("--data.store=new.zarr", f"--data.split={split}", "--data.where=null"):
        assert found.index(word) > place
    assert found.index("--data.where=has(energy)") > found.index("--data.where=null")


def test_a_committee_takes_the_config_of_its_first_run():
    found = expanded(["predict", "--committee", "runs/a", "runs/b", "--to", "x.zarr"])
    assert found[1] == "--config=runs/a/config.yaml"


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (["test"], "test needs.*--run"),
        (["fit", "--run", "runs/none"], "no training run in runs/none"),
        (["test", "--run", "runs/b"], "runs/b/checkpoints has no best.ckpt and no last.ckpt"),
        (["fit", "--run", "runs/b"], "runs/b/checkpoints has no last.ckpt"),
        (["fit", "--ckpt_path", "none.ckpt"], "no checkpoint none.ckpt"),
    ],
)
def test_what_is_not_there_is_named(given, words):
    with pytest.raises(ArgumentError, match=words):
        expanded(given)


def test_a_command_has_its_own_name_in_errors():
    with pytest.raises(ArgumentError, match="plot needs"):
        expanded(["test"], "plot")


def test_the_page_on_recipes_has_commands_and_options_that_there_are():
    page = (Path(__file__).parents[2] / "docs" / "guides" / "recipes.md").read_text()
    block = re.findall(r"^```\n(.*?)^```$", page, re.DOTALL | re.MULTILINE)[0]
    lines = [shlex.split(line, comments=True) for line in block.splitlines()]
    recipe = [words[2:] for words in lines if words[:2] == ["python", "recipes/train.py"]]
    assert [words[0] for words in recipe] == [
        "fit",
        "plot",
        "test",
        "validate",
        "predict",
        "predict",
        "fit",
    ]
    for command, *words in recipe:
        options = {word for word in words if word.startswith("--")}
        if command == "plot":
            assert all(option in PLOT_HELP for option in options)
            continue
        parser = OneLineParser()
        add_options(command, parser)
        known = parser.format_help()
        lightning = {"--config", "--data.store"}
        assert [one for one in options - lightning if one not in known] == []
