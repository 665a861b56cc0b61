"""Pictures of training: the way of a batch, epochs, splits."""

from drawing import BLUE, GRAY, GREEN, MUTED, ORANGE, PALE, VIOLET, Drawing

ORDER = tuple("4627359081")
"""Order of 10 samples in epoch 0 with seed 0, which a test compares with the sampler's."""


def batch() -> Drawing:
    """What happens to the samples of one batch, and at the same time."""
    d = Drawing(800, 470, "The way of a batch from the simulation to the GPU")
    stations = (
        (BLUE, "Simulation", "makes systems"),
        (BLUE, "Sink", "appends"),
        (GREEN, "Store", "arrays on disk"),
        (GREEN, "Gather", "copies rows"),
        (ORANGE, "Batch", "one buffer"),
        (ORANGE, "GPU", "trains"),
    )
    for number, (color, title, line) in enumerate(stations):
        x = 18 + 130 * number
        d.box((x, 24, 114, 62), color, title, [line], size=14)
        if number < 5:
            d.arrow((x + 115, 55), (x + 128, 55), color=GRAY)
    d.text(18, 122, "At the same time", anchor="start", size=14, bold=True)
    d.text(772, 122, "time", anchor="end", color=MUTED)
    d.arrow((176, 117), (736, 117), color=GRAY, width=1.5)
    lanes = ("simulation", "store", "reader", "GPU")
    for number, name in enumerate(lanes):
        y = 136 + 56 * number
        d.rect((150, y, 626, 44), PALE[GRAY], radius=4)
        d.text(138, y + 27, name, anchor="end", bold=True)
    for step in range(4):
        x = 156 + 155 * step
        d.rect((x, 142, 118, 32), PALE[BLUE], BLUE, radius=4)
        d.text(x + 59, 163, f"step {step + 1}", size=12)
        d.arrow((x + 122, 160), (x + 136, 160), (x + 136, 196), color=BLUE, width=1.6)
        d.rect((x + 122, 198, 28, 32), PALE[GREEN], GREEN, radius=4)
    for step in range(5):
        x = 156 + 123 * step
        d.rect((x, 254, 60, 32), PALE[GREEN], GREEN, radius=4)
        d.text(x + 30, 275, f"read {step + 1}", size=12)
        if step < 4:
            d.arrow((x + 60, 286), (x + 68, 308), color=ORANGE, width=1.6)
            d.rect((x + 68, 310, 118, 32), PALE[ORANGE], ORANGE, radius=4)
            d.text(x + 127, 331, f"train on batch {step + 1}", size=12)
    d.text(176, 218, "appends", size=12, anchor="start", color=GREEN)
    notes = (
        "The simulation waits only for its own append.",
        "The next batch is read while the GPU works on the last one.",
        "Readers take no lock: an epoch keeps the samples that it began with,",
        "and the next epoch has those that were appended meanwhile.",
    )
    for number, line in enumerate(notes):
        d.text(400, 384 + 21 * number, line, color=MUTED)
    return d


def epoch() -> Drawing:
    """An epoch as a function of five inputs, dealt out to ranks."""
    d = Drawing(800, 330, "An epoch is a function of seed, number, samples, sizes and settings")
    inputs = ("seed", "epoch number", "N samples", "their sizes", "settings")
    for number, name in enumerate(inputs):
        y = 26 + 40 * number
        d.rect((24, y, 136, 32), PALE[GRAY], GRAY)
        d.text(92, y + 21, name)
        d.arrow((162, y + 16), (200, 122), color=GRAY, width=1.5)
    d.rect((204, 92, 92, 60), PALE[VIOLET], VIOLET)
    d.text(250, 118, "function", size=14, bold=True, color=VIOLET)
    d.text(250, 137, "no state", size=12)
    d.arrow((298, 122), (328, 122), color=GRAY)
    d.text(446, 50, "order of the samples", bold=True)
    d.cells(336, 60, [GREEN] * 10, labels=ORDER, w=22)
    d.text(446, 112, "cut into batches", bold=True)
    for number in range(5):
        d.cells(
            334 + 46 * number, 122, [ORANGE] * 2, labels=ORDER[2 * number : 2 * number + 2], w=20
        )
    d.text(446, 174, "batches go round the ranks", bold=True)
    for rank in range(2):
        y = 186 + 30 * rank
        d.text(372, y + 15, f"rank {rank}", size=12, anchor="end")
        for place, number in enumerate(range(rank, 4, 2)):
            labels = ORDER[2 * number : 2 * number + 2]
            d.cells(382 + 50 * place, y, [ORANGE] * 2, labels=labels, w=20)
    d.cells(490, 186, [ORANGE], labels=ORDER[8:9], w=20)
    d.cells(490, 216, [ORANGE], labels=ORDER[9:10], w=20)
    d.rect((592, 48, 184, 176), PALE[BLUE], BLUE)
    d.text(684, 74, "a checkpoint has", size=14, bold=True, color=BLUE)
    for number, line in enumerate(("the five inputs", "and one position:", "4 samples are used")):
        d.text(684, 100 + 20 * number, line)
    d.text(684, 176, "The rest, 3 5 9 0 8 1,", size=12.5)
    d.text(684, 194, "follows from the function,", size=12.5)
    d.text(684, 212, "for any number of ranks.", size=12.5)
    d.text(
        400,
        264,
        "Nothing is stored of the order, and nobody has to agree on it: each rank",
        color=MUTED,
    )
    d.text(400, 284, "computes it, and a run that was killed computes it again.", color=MUTED)
    d.text(400, 308, "Each sample is in exactly one batch of one rank.", bold=True)
    return d


def splits() -> Drawing:
    """A split follows from the hash of a structure, so that growth moves no sample."""
    d = Drawing(800, 236, "Splits cut the interval of hashes, so that growth moves no sample")
    d.text(
        24,
        38,
        "each structure has a place between 0 and 1, which is a hash of itself",
        anchor="start",
        bold=True,
    )
    parts = (
        (0.8, GREEN, "training 0.8"),
        (0.1, ORANGE, "validation 0.1"),
        (0.1, VIOLET, "test 0.1"),
    )
    places = (
        (0.05, 0.17, 0.31, 0.44, 0.58, 0.71, 0.86, 0.94),
        (0.11, 0.25, 0.38, 0.66, 0.83, 0.97),
    )
    for row, label in enumerate(("N = 8", "N = 14")):
        x, y = 96.0, 62 + 64 * row
        d.text(84, y + 26, label, anchor="end", mono=True, size=12)
        for share, color, name in parts:
            w = 680 * share
            d.rect((x, y, w, 42), PALE[color], color, radius=0)
            if row == 0:
                d.text(
                    x + w / 2, y - 6, name if share > 0.5 else name.split()[0], size=12, color=color
                )
            x += w
        for place in places[0] + (places[1] if row else ()):
            color = BLUE if place in places[1] else GRAY
            d.rect((96 + 680 * place - 4, y + 15, 8, 12), color, radius=4)
    d.text(
        400,
        208,
        "New samples (blue) get places of their own. The others keep theirs, also after a merge,",
        color=MUTED,
    )
    d.text(400, 226, "a deletion or a rewrite too.", color=MUTED)
    return d
