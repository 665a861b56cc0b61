"""The tables of docs/reference/cli.md are those of the code."""

import dataclasses
import json
import re
from pathlib import Path

import pytest

import zarrpipe as zp
from zarrpipe.cli import app, main
from zarrpipe.cli.exit_codes import MEANINGS
from zarrpipe.training.statistics import Statistics

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "cli.md"


def test_exit_codes_and_commands_are_those_of_the_help():
    text = PAGE.read_text()
    for code, meaning in MEANINGS.items():
        assert f"\n| {code} | {meaning} |\n" in text
    table = text[text.index("| command | |") : text.index("`zarrpipe COMMAND --help`")]
    for command in app.COMMANDS:
        assert f"`{command.__name__.rstrip('_')} " in table


def test_keys_of_json_are_those_that_are_printed(run_page, capsys):
    pytest.importorskip("ase")
    run_page("docs/reference/cli.md")
    text = PAGE.read_text()
    lines = text[text.index("## Keys of --json") :].splitlines()
    listed = {
        command: re.findall(r"`(\w+)`", re.sub(r"\([^)]*\)", "", line.split("|")[2]))
        for line in lines
        if line.startswith("| `")
        for command in re.findall(r"`(\w+)`", line.split("|")[1])
    }
    commands = {
        "export": ["run.zarr", "out.xyz"],
        "import": ["out.xyz", "read.zarr"],
        "info": ["run.zarr"],
        "stats": ["run.zarr"],
        "head": ["run.zarr"],
        "show": ["run.zarr"],
        "report": ["run.zarr"],
        "split": ["run.zarr", "-o", "other"],
        "merge": ["run.zarr", "new.zarr"],
        "compact": ["run.zarr"],
        "copy": ["run.zarr", "copied.zarr"],
        "bench": ["run.zarr", "--workers", "0", "--seconds", "0.2", "--repeats", "1"],
        "watch": ["run.zarr", "--once", "--interval", "0.1"],
        "check": ["run.zarr"],
        "adopt": ["run.zarr"],
    }
    assert listed.keys() == commands.keys()
    for command, arguments in commands.items():
        assert main([command, *arguments, "--json"]) == 0
        keys = [*json.loads(capsys.readouterr().out)]
        assert [key for key in listed[command] if key != "StoreInfo"] == keys, command
    assert {item.name for item in dataclasses.fields(zp.StoreInfo)} <= {*listed["info"]}
    assert {item.name for item in dataclasses.fields(Statistics)} <= {*listed["stats"]}
