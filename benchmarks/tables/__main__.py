"""`python -m benchmarks.tables`."""

import sys

from benchmarks.tables.run import main

if __name__ == "__main__":
    sys.exit(main())
