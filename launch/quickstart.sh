#!/usr/bin/env bash
# From a fresh clone to few-step samples of real images.
#   bash launch/quickstart.sh [arguments of benchmarks.quickstart]
# Needs Python 3.11 or newer (PYTHON=/path/to/python names one). Safe to run twice.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source launch/environment.sh

prepare_environment ""
exec "$python" -m benchmarks.quickstart "$@"
