"""`python -m gptj.cli` is `gptj`."""

import sys

from gptj.cli import main

if __name__ == "__main__":
    sys.exit(main())
