"""`python -m benchmarks.scenes`."""

import sys

from benchmarks.scenes.run import main

if __name__ == "__main__":
    sys.exit(main())
