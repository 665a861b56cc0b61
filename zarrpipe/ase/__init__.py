"""What ASE computes, written into a sink while it is computed; and `Atoms` to and from batches.

`Observer` is attached to molecular dynamics or an optimiser and writes its frames.
`RecordingCalculator` stands in place of a calculator and writes what it calculates. Both hand each
frame to ``sink.write`` at once. A sink with a buffer, ``ZarrData(store, buffer=1000)``, gathers
frames and appends them together; what a kill then loses is said there.
"""

from zarrpipe.adapters.ase import from_ase, to_ase
from zarrpipe.ase.observer import Observer
from zarrpipe.ase.recording_calculator import RecordingCalculator

__all__ = ["Observer", "RecordingCalculator", "from_ase", "to_ase"]
