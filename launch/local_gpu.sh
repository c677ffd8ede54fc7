#!/usr/bin/env bash
# One command on all GPUs of this machine: one process, which sees them all.
#   bash launch/local_gpu.sh [--dry-run] [--chip=NAME] COMMAND [options of COMMAND]
#   bash launch/local_gpu.sh train --config=configs/digits.py --workdir=runs/teacher
#   bash launch/local_gpu.sh --install              only makes .venv
# --chip names a file of launch/xla_flags (default gpu). Makes .venv with the extra
# cuda. CUDA_VISIBLE_DEVICES chooses GPUs. SIGTERM saves, the same line continues.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source launch/environment.sh
source launch/xla_flags.sh

dry_run=no
chip=gpu
while (($#)); do
  case $1 in
    --dry-run) dry_run=yes ;;
    --chip=*) chip=${1#*=} ;;
    --install)
      prepare_environment cuda
      exit
      ;;
    *) break ;;
  esac
  shift
done
(($#)) || fail "launch/local_gpu.sh needs a command: train, sample or evaluate, and its options."
read_xla_flags "$chip"

command=("$python" -m multistep_cm "$@")
if [[ $dry_run == yes ]]; then
  printf '# make .venv with multistep_cm[cuda]\n'
  show env "XLA_FLAGS=$xla_flags" "LIBTPU_INIT_ARGS=$libtpu_flags" "${command[@]}"
  exit
fi
quietly command -v nvidia-smi ||
  fail "There is no nvidia-smi, so no NVIDIA driver: install one, or train on the CPU with multistep-cm train."
prepare_environment cuda
export XLA_FLAGS=$xla_flags
exec "${command[@]}"
