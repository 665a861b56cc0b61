"""``python -m zarrpipe``: the command line."""

import sys

from zarrpipe.cli import main

if __name__ == "__main__":
    sys.exit(main())
