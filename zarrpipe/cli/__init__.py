"""The command line ``zarrpipe``, built on typer and rich (``pip install 'zarrpipe[cli]'``).

A command is a function in the module of its group, and a line in `app.COMMANDS`::

    def count(store: Store, *, as_json: Json = False) -> int:
        \"\"\"Count the samples of a store.\"\"\"
        from zarrpipe.dataset.zarr_dataset import ZarrDataset

        number = len(ZarrDataset(store))
        show({"store": store, "samples": number}, f"{store}: {number:,} samples", as_json=as_json)
        return GOOD

- Its name is that of the command (``import_`` is ``import``), its docstring the help, and its
  parameters the arguments and options. Those that several commands share are in `options`.
- It imports what it needs in its body, so that ``zarrpipe --help`` imports neither torch nor zarr.
- It prints through `output`: tables with colours on a terminal, aligned text in a pipe, and JSON.
- It returns an exit code of `exit_codes`, and raises for all else. What it raises becomes a line on
  standard error and exit code 2.
"""

import sys
from collections.abc import Sequence

from zarrpipe.cli.exit_codes import UNUSABLE

__all__ = ["main"]


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command with `argv`, by default the arguments of the process; return the exit code.

    Raises SystemExit with code 2 for arguments that no command has.
    """
    try:
        try:
            import rich  # noqa: F401
            import typer  # noqa: F401
        except ImportError as error:
            print(
                f"zarrpipe: the command line needs typer and rich, and {error}: install them with "
                "pip install 'zarrpipe[cli]'",
                file=sys.stderr,
            )
            return UNUSABLE
        from zarrpipe.cli.app import run

        return run(sys.argv[1:] if argv is None else argv)
    except KeyboardInterrupt:
        print("zarrpipe: interrupted", file=sys.stderr)
        return UNUSABLE
