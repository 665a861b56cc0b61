"""Commands that say what is in a store: ``info``."""

from zarrpipe.cli.exit_codes import GOOD
from zarrpipe.cli.options import Json, Store
from zarrpipe.cli.output import show


def info(store: Store, as_json: Json = False) -> int:
    """Say what a store has.

    Fields with levels, units and presence, sizes, elements, ranges of labels, rounds, strings,
    chunks, bytes, and who writes it. It takes about a second for a million samples; the ranges of
    labels are those of a sample then, and the column "of" says so.
    """
    from zarrpipe.dataset.info import info as examined

    facts = examined(store)
    show(facts.to_dict(), facts.tables(), as_json=as_json)
    return GOOD
