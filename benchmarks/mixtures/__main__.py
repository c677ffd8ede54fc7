"""`python -m benchmarks.mixtures`."""

import sys

from benchmarks.mixtures.run import main

if __name__ == "__main__":
    sys.exit(main())
