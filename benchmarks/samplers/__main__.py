"""`python -m benchmarks.samplers`."""

import sys

from benchmarks.samplers.run import main

if __name__ == "__main__":
    sys.exit(main())
