"""Memory: what many epochs leave behind, and what one more worker takes."""

from benchmarks.engines.ours import ENGINES, STORE
from benchmarks.keeping import kept_samples, samples_of
from benchmarks.machine import every_core, on_cores
from benchmarks.probe import ask
from benchmarks.rows import Row
from benchmarks.settings import Settings

SUITE = "memory"
BATCH_SIZE = 64
FEW, MANY = 1, 3


def run(settings: Settings) -> list[Row]:
    """MB, each in a fresh process."""
    samples = samples_of(settings, "molecules")
    store = str(kept_samples(settings, "molecules", ENGINES[0], samples) / STORE)
    epochs = settings.size.epochs
    grown = ask("growth", store=store, epochs=epochs, batch_size=BATCH_SIZE)
    case = f"growth over {epochs} epochs after the first"
    rows = [
        Row.single(SUITE, case, "resident", grown["resident"], "MB"),
        Row.single(SUITE, case, "private", grown["private"], "MB"),
    ]
    with on_cores(None if settings.core is None else every_core()):
        few, many = (
            ask("workers", store=store, count=count, batch_size=BATCH_SIZE) for count in (FEW, MANY)
        )
    each = (many["private"] - few["private"]) / (MANY - FEW)
    case = "worker processes"
    first = few["private"]
    rows.append(Row.single(SUITE, case, "private, each further worker", each, "MB"))
    rows.append(Row.single(SUITE, case, "private, the first and its server", first, "MB"))
    return rows
