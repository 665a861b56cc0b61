"""Pictures of the store: the whole, an append, growth, emptying and swap."""

from drawing import BLUE, GRAY, GREEN, MUTED, ORANGE, PALE, RED, VIOLET, Drawing


def overview() -> Drawing:
    """A simulation writes one store that a training run reads at the same time."""
    d = Drawing(800, 292, "A simulation appends to a Zarr store while a training run reads it")
    d.box((24, 52, 196, 108), BLUE, "Simulation", ["ASE, torch-sim, nvalchemi,", "your own loop"])
    d.text(122, 180, "sink.write(batch, mask)", size=12, mono=True, color=BLUE)
    d.box(
        (580, 52, 196, 108), ORANGE, "Training", ["Lightning, MACE, NequIP, ...,", "your own loop"]
    )
    d.text(678, 180, 'ZarrDataModule("run.zarr")', size=12, mono=True, color=ORANGE)
    d.rect((300, 24, 200, 160), PALE[GREEN], GREEN)
    d.text(400, 48, "one Zarr store", size=15, bold=True, color=GREEN)
    for row, name in enumerate(("positions", "forces", "energy")):
        d.text(374, 77 + 25 * row, name, size=12, anchor="end")
        d.cells(382, 62 + 25 * row, [GREEN] * 3 + [BLUE], w=24)
        d.rect((454, 62 + 25 * row, 22, 20), PALE[BLUE], BLUE, radius=3, width=1.2)
    d.text(374, 164, "pointers", size=12, anchor="end", color=VIOLET)
    d.cells(382, 149, [VIOLET] * 3 + [None], w=24)
    d.arrow((226, 106), (292, 106), color=BLUE, width=3)
    d.text(258, 94, "appends", color=BLUE, bold=True)
    d.arrow((506, 106), (572, 106), color=ORANGE, width=3)
    d.text(540, 94, "batches", color=ORANGE, bold=True)
    d.text(122, 40, "writes while it runs", color=MUTED)
    d.text(678, 40, "reads at the same time", color=MUTED)
    d.text(400, 207, "A sample is there once its pointer is, which is written last:", color=MUTED)
    d.text(400, 226, "a kill at any moment leaves whole samples.", color=MUTED)
    d.arrow((678, 192), (678, 262), (122, 262), (122, 192), color=GRAY, dash="7 5")
    d.text(400, 256, "a better potential", color=GRAY, bold=True)
    return d


def append() -> Drawing:
    """The steps of an append, and what a reader sees after a kill at each of them."""
    d = Drawing(800, 384, "An append of two samples writes rows first and pointers last")
    names = ("positions, forces, ...", "presence, ids", "mask, other pointers", "pointers to atoms")
    for row, name in enumerate(names):
        d.text(168, 99 + 46 * row, name, anchor="end", bold=row == 3)
    titles = ("before", "1  rows", "2  mask, pointers", "3  commit")
    for column, title in enumerate(titles):
        x = 186 + 152 * column
        d.text(x + 62, 40, title, size=14, bold=True, color=VIOLET if column == 3 else GREEN)
        for row in range(4):
            done = (column >= 1 and row < 2) or (column >= 2 and row == 2) or column == 3
            new = (VIOLET if row == 3 else BLUE) if done else None
            old = VIOLET if row == 3 else GREEN
            labels = ("3", "5", "9", "12" if done else "0", "14" if done else "0")
            d.cells(
                x, 84 + 46 * row, [old] * 3 + [new] * 2, w=25, labels=labels if row == 3 else ()
            )
        if column < 3:
            d.line((x + 138, 58), (x + 138, 262), RED, "4 4")
            d.kill(x + 138, 270)
        n = 5 if column == 3 else 3
        d.text(x + 62, 308, f"a reader sees {n}", bold=True, color=VIOLET if n == 5 else GREEN)
    d.text(
        400,
        342,
        "Killed at any cross, the store has its 3 samples. What was written behind them",
        color=MUTED,
    )
    d.text(
        400, 362, "has no pointer: nobody reads it, and the next append overwrites it.", color=MUTED
    )
    return d


def growth() -> Drawing:
    """A store grows under a reader; each epoch keeps the samples that it began with."""
    d = Drawing(800, 300, "A store grows while epochs of a training run read it")
    d.text(96, 64, "store", anchor="end", bold=True, color=GREEN)
    d.text(96, 176, "training", anchor="end", bold=True, color=ORANGE)
    for number, n in enumerate((3, 5, 6, 9)):
        x = 112 + 168 * number
        d.cells(x, 50, [GREEN] * n + [None] * (9 - n), w=17, h=20)
        d.text(x + 75, 40, f"N = {n}", size=12, mono=True)
        if number < 3:
            d.text(x + 159, 66, "+", size=15, color=BLUE, bold=True)
    epochs = ((112, 270, 3, 0), (390, 214, 6, 2), (612, 164, 9, 3))
    for number, (x, w, n, column) in enumerate(epochs):
        d.rect((x, 150, w, 50), PALE[ORANGE], ORANGE)
        d.text(x + w / 2, 171, f"epoch {number}", bold=True, color=ORANGE)
        d.text(x + w / 2, 190, f"{n} samples, each once", size=12)
        d.arrow((112 + 168 * column + 75, 76), (x + 26, 144), color=GREEN, width=1.6, dash="5 4")
    d.arrow((112, 224), (776, 224), color=GRAY, width=1.5)
    d.text(776, 242, "time", anchor="end", color=MUTED)
    d.text(400, 262, "An epoch looks once, when it begins, and keeps what it found.", color=MUTED)
    d.text(
        400,
        281,
        "Samples never move or change, so what it reads later is what it saw.",
        color=MUTED,
    )
    return d


def emptying() -> Drawing:
    """How a store is emptied, and how it is replaced by a rewritten one."""
    d = Drawing(800, 420, "Emptying a store and swapping in a rewritten one")
    d.text(24, 36, "Emptying: one step decides", anchor="start", size=15, bold=True)
    states = (
        ("full", [VIOLET] * 4, [GREEN] * 4, "A", "all samples"),
        ("first pointers go", [None] * 2 + [VIOLET] * 2, [GREEN] * 4, "A", "no samples"),
        ("new name", [None] * 2 + [VIOLET] * 2, [GREEN] * 4, "B", "no samples"),
        ("rest is removed", [None] * 4, [None] * 4, "B", "no samples"),
    )
    for number, (title, pointers, rows, name, seen) in enumerate(states):
        x = 24 + 194 * number
        d.rect((x, 50, 170, 122), PALE[GRAY], GRAY)
        d.text(x + 85, 72, title, bold=True)
        d.text(x + 62, 99, "pointers", size=12, anchor="end")
        d.cells(x + 68, 84, pointers, w=23)
        d.text(x + 62, 125, "rows", size=12, anchor="end")
        d.cells(x + 68, 110, rows, w=23)
        d.text(x + 85, 158, f"generation {name}", size=12, mono=True)
        d.text(x + 85, 192, f"readers find {seen}", size=12, color=MUTED)
        if number < 3:
            d.arrow((x + 171, 111), (x + 192, 111), color=GRAY)
    d.text(
        24,
        234,
        "Swap: a rewritten store is whole before it is there",
        anchor="start",
        size=15,
        bold=True,
    )
    steps = (
        ("written beside", ("run.zarr", GREEN, "A"), (".run.zarr.rewrite-...", None, "B")),
        ("complete, synced", ("run.zarr", GREEN, "A"), (".run.zarr.rewrite-...", VIOLET, "B")),
        ("names exchanged", ("run.zarr", VIOLET, "B"), (".run.zarr.rewrite-...", GREEN, "A")),
        ("old one removed", ("run.zarr", VIOLET, "B"), None),
    )
    for number, (title, first, second) in enumerate(steps):
        x = 24 + 194 * number
        d.text(x + 85, 260, title, bold=True)
        for row, item in enumerate((first, second)):
            if item is None:
                continue
            name, color, generation = item
            y = 270 + 44 * row
            if color is None:
                d.rect((x, y, 170, 38), "none", GRAY, dash="4 4")
            else:
                d.rect((x, y, 170, 38), PALE[color], color)
            d.text(x + 10, y + 24, name, size=11, anchor="start", mono=True)
            d.text(x + 164, y + 24, generation, size=12, anchor="end", mono=True)
        if number < 3:
            d.arrow((x + 171, 311), (x + 192, 311), color=GRAY)
    d.text(
        400,
        382,
        "A reader compares the generation before it uses what it read. Another generation means",
        color=MUTED,
    )
    d.text(
        400,
        401,
        "other samples: it raises, and reads the new ones when it is opened again.",
        color=MUTED,
    )
    return d
