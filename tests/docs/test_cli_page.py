"""The commands of docs/reference/cli.md print what it shows; its tables are those of the code."""

import dataclasses
import json
import re
import shlex
from pathlib import Path

import pytest

import zarrpipe as zp
from zarrpipe.cli import app, main
from zarrpipe.cli.exit_codes import MEANINGS
from zarrpipe.training.statistics import Statistics

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "cli.md"
BLOCK = re.compile(r"^```(python|console)\n(.*?)^```$", re.DOTALL | re.MULTILINE)


def settled(text):
    """Text without what differs from store to store and from disk to disk."""
    text = re.sub(r"[0-9a-f]{32}", "<generation>", text)
    text = re.sub(r"[\d,]+ bytes", "<bytes>", text)
    lines = [" ".join(line.split()) for line in text.splitlines()]
    return [re.sub(r" [\d,]+$", " <bytes>", line) if " - " in line else line for line in lines]


@pytest.fixture
def page(tmp_path, monkeypatch):
    """The blocks of the page, in a directory with its store."""
    pytest.importorskip("ase")
    monkeypatch.chdir(tmp_path)
    (kind, code), *blocks = BLOCK.findall(PAGE.read_text())
    assert kind == "python"
    exec(compile(code, f"{PAGE.name} block 0", "exec"), {})
    assert [kind for kind, _ in blocks] == ["console"] * 7
    return [block for _, block in blocks]


def test_the_page_shows_what_is_printed(page, tmp_path, capsys):
    commands = 0
    for block in page:
        for command, shown in re.findall(r"^\$ zarrpipe (.*)\n((?:(?!\$ ).*\n)*)", block, re.M):
            code, printed = main(shlex.split(command)), capsys.readouterr()
            assert code == (2 if printed.err else 0)
            text = (printed.out + printed.err).replace(f"{tmp_path}/", "")
            assert settled(text) == settled(shown), command
            commands += 1
    assert commands == 14


def test_exit_codes_and_commands_are_those_of_the_help():
    text = PAGE.read_text()
    for code, meaning in MEANINGS.items():
        assert f"\n| {code} | {meaning} |\n" in text
    table = text[text.index("| command | |") : text.index("`zarrpipe COMMAND --help`")]
    for command in app.COMMANDS:
        assert f"`{command.__name__.rstrip('_')} " in table


def test_keys_of_json_are_those_that_are_printed(page, capsys):
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
        "split": ["run.zarr", "-o", "splits"],
        "merge": ["run.zarr", "new.zarr"],
        "compact": ["run.zarr"],
        "copy": ["run.zarr", "copied.zarr"],
        "bench": ["run.zarr", "--workers", "0", "--seconds", "0.2", "--repeats", "1"],
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
