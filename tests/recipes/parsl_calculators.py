"""What tests of the Parsl loop run in other processes, which import it by name."""

import os
import signal
import time
from hashlib import blake2b
from pathlib import Path

from ase.calculators.calculator import CalculationFailed
from ase.calculators.emt import EMT


class Faulty(EMT):
    """EMT that fails for some structures, whichever worker has them.

    Of 16 hashes of positions 0 has no convergence, 1 raises, 2 ends its worker on every try, 3
    sleeps beyond any timeout; 4 to 9 end their worker on the first try, if `killed` is a directory
    in which to note that.
    """

    def __init__(self, killed=None):
        super().__init__()
        self.killed = killed

    def calculate(self, atoms=None, *rest):
        digest = blake2b(atoms.positions.tobytes(), digest_size=8).digest()
        kind = digest[0] % 16
        if kind == 0:
            raise CalculationFailed("no SCF")
        if kind == 1:
            raise ZeroDivisionError("a fault of the calculator")
        if kind == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        if kind == 3:
            while True:
                time.sleep(0.05)
        if 4 <= kind < 10 and self.killed is not None:
            note = Path(self.killed) / digest.hex()
            if not note.exists():
                note.touch()
                os.kill(os.getpid(), signal.SIGKILL)
        super().calculate(atoms, *rest)


class NotConverging(EMT):
    """EMT that never converges."""

    def calculate(self, atoms=None, *rest):
        raise CalculationFailed("no SCF")


def wait_for_item(items, taken):
    """Take one item of a queue and hand it on."""
    taken.put(items.get())
