"""Options that several commands share."""

from typing import Annotated

import typer

Store = Annotated[
    str, typer.Argument(metavar="STORE", help="Path or URL of the store.", show_default=False)
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")]
