#!/usr/bin/env bash
# Style, types and tests, in an environment made when it is absent.
#   bash launch/test.sh [--slow] [pytest arguments]
# --slow also runs the tests marked slow, and compiles all with the optimisations that
# the fast tests alone go without. Without other arguments the tests run in two
# processes. PYTHON=/path/to/python names the Python to make .venv with.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# Small programs are kept too: each process would compile the same ones again.
export JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS="${JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS:-0}"
source launch/environment.sh

export JAX_PLATFORMS="${JAX_PLATFORMS:-cpu}"
export MPLBACKEND=Agg

slow=no
arguments=()
for argument in "$@"; do
  if [[ $argument == --slow ]]; then slow=yes; else arguments+=("$argument"); fi
done
# In two halves, not in turns: a fixture of a file is then made by one process.
((${#arguments[@]})) || arguments=(-n 2 --dist=worksteal)
[[ $slow == no ]] || arguments+=(-m "")

prepare_environment test,dev

failed=""
check() {
  local name=$1
  shift
  printf '\n%s\n' "$name"
  "$@" || failed+="${failed:+, }$name"
}
check "ruff check" "$python" -m ruff check .
check "ruff format" "$python" -m ruff format --check .
check "mypy" "$python" -m mypy
check "pytest" "$python" -m pytest "${arguments[@]}"
[[ -z $failed ]] || fail "Not passed: $failed."
