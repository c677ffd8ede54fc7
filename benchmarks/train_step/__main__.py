"""`python -m benchmarks.train_step`."""

import sys

from benchmarks.train_step.run import main

if __name__ == "__main__":
    sys.exit(main())
