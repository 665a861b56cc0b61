"""The faults stand in a module of their own, which the tests beside it import."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
