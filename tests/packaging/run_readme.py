"""Runs the README with the zarrpipe that is installed, in a folder of its own: `make wheel`.

`python tests/packaging/run_readme.py alone` executes the Python block of the page on installing,
for which zarrpipe alone is enough. With the extras import and train, `... code` executes those of
the README, and `... commands SDIST` runs the block of commands that turns a file into a trained
model, where the recipes of an unpacked source distribution are.
"""

import os
import re
import shlex
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

import torch

import zarrpipe as zp

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
INSTALL = (ROOT / "docs" / "getting_started" / "install.md").read_text()
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
BRIEF = [
    "--trainer.max_steps=2",
    "--trainer.val_check_interval=2",
    "--trainer.callbacks=null",
    "--trainer.logger=false",
    "--trainer.enable_progress_bar=false",
    "--trainer.enable_checkpointing=false",
]


def run_code(page: str) -> None:
    """Execute all Python blocks of a page, one after the other."""
    blocks = [text for language, text in BLOCK.findall(page) if language == "python"]
    namespace: dict[str, object] = {"__name__": "readme"}
    for number, block in enumerate(blocks):
        exec(compile(block, f"block {number}", "exec"), namespace)
    print(f"{len(blocks)} Python blocks ran")


def run_commands(sdist: Path) -> None:
    """Run the commands that import a file and train from it, briefly."""
    with tarfile.open(sdist) as archive:
        archive.extractall(filter="data")
    (source,) = Path().glob("zarrpipe-*")
    for folder in ("recipes", "configs"):
        (source / folder).rename(folder)
    molecules = [
        zp.AtomicData(
            positions=torch.tensor([[0.0, 0, 0], [0.96 + 0.01 * i, 0, 0], [-0.24, 0.93, 0]]),
            atomic_numbers=[8, 1, 1],
            energy=0.1 * i,
            forces=torch.full((3, 3), 0.01 * i),
        )
        for i in range(40)
    ]
    with zp.ZarrData("source.zarr") as sink:
        sink.write(zp.Batch.from_data_list(molecules))
    zp.write_out("source.zarr", "frames.xyz")
    (block,) = [text for _, text in BLOCK.findall(README) if text.startswith("zarrpipe import")]
    for line in [*block.splitlines(), "zarrpipe check frames.zarr"]:
        words = shlex.split(line, comments=True)
        words[0] = str(Path(sys.executable).with_name(words[0]))
        print("$", line, flush=True)
        subprocess.run([*words, *(BRIEF if "fit" in words else [])], check=True)
    assert zp.ZarrDataset("frames.zarr").read([39]).energy.item() == molecules[39].energy.item()


def main() -> None:
    """Check where zarrpipe comes from, then run a part of the README in an empty folder."""
    part, sdist = sys.argv[1], Path(sys.argv[-1]).resolve()
    where = Path(zp.__file__).resolve()
    assert where.is_relative_to(Path(sys.prefix).resolve()), f"{where} is not in {sys.prefix}"
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        if part == "commands":
            run_commands(sdist)
        else:
            run_code(INSTALL if part == "alone" else README)
        os.chdir("/")
    print(f"{part} of the README: Python {sys.version.split()[0]}, zarrpipe of {where.parent}")


if __name__ == "__main__":
    main()
