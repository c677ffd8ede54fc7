"""`python -m multistep_cm COMMAND`, the same as `multistep-cm COMMAND`."""

import sys

from multistep_cm.commands.main import program

sys.exit(program())
