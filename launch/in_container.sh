#!/usr/bin/env bash
# The entry of the image that launch/Dockerfile makes: the flags of the chip, then the
# command. MULTISTEP_CHIP names a file of launch/xla_flags; without it there are none.
#   bash launch/in_container.sh [--dry-run] COMMAND [options of COMMAND]
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source launch/xla_flags.sh

dry_run=no
if [[ ${1:-} == --dry-run ]]; then
  dry_run=yes
  shift
fi
if [[ -n ${MULTISTEP_CHIP:-} ]]; then
  read_xla_flags "$MULTISTEP_CHIP"
  export XLA_FLAGS=$xla_flags LIBTPU_INIT_ARGS=$libtpu_flags
fi
if [[ $dry_run == yes ]]; then
  show env "XLA_FLAGS=${XLA_FLAGS:-}" "LIBTPU_INIT_ARGS=${LIBTPU_INIT_ARGS:-}" \
    python -m multistep_cm "$@"
  exit
fi
# exec: the signal that ends a pod must reach Python.
exec python -m multistep_cm "$@"
