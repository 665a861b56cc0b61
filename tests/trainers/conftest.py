"""The benchmarks are a package beside zarrpipe that is run from the root of the checkout."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))
