#!/usr/bin/env bash
# Train on a Cloud TPU slice, and go on by itself after a preemption.
#   bash launch/tpu_pod.sh --name=NAME --zone=ZONE --type=v5litepod-64 \
#       --setup='COMMAND' -- train --config=configs/imagenet64.py --workdir=SHARED/run
# Asks for the slice (a queued resource) unless it exists, waits for it, copies this
# commit to all its hosts, installs it, starts the command on every host and shows what
# host 0 says. Ctrl-C leaves it running; the same line shows it again. When the slice is
# preempted it is deleted and asked for again, and the command goes on from its last
# checkpoint.
#   --setup='COMMAND'  for bash on every host before the run, such as the mount of the
#                      folder that all hosts share: the workdir must be in one
#   --project=ID       default: gcloud's own
#   --version=NAME     software of the hosts; default: by --type
#   --spot             cheaper, and preempted at any time; --reserved: from a reservation
#   --chip=NAME        a file of launch/xla_flags; default: by --type
#   --restarts=N       give up after N preemptions or failures (default 20)
#   --delete           delete the slice when the run has ended
#   --dry-run          print every command, run none
# gcloud must be logged in; no secret is read or written here.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source launch/environment.sh
source launch/xla_flags.sh

name="" zone="" type="" project="" version="" chip="" setup=true restarts=20
dry_run=no delete=no kind=()
while (($#)); do
  case $1 in
    --name=*) name=${1#*=} ;;
    --zone=*) zone=${1#*=} ;;
    --type=*) type=${1#*=} ;;
    --setup=*) setup=${1#*=} ;;
    --project=*) project=${1#*=} ;;
    --version=*) version=${1#*=} ;;
    --chip=*) chip=${1#*=} ;;
    --restarts=*) restarts=${1#*=} ;;
    --spot | --reserved) kind+=("$1") ;;
    --delete) delete=yes ;;
    --dry-run) dry_run=yes ;;
    --)
      shift
      break
      ;;
    *) fail "launch/tpu_pod.sh does not know $1: the command to run stands after --." ;;
  esac
  shift
done
for needed in name zone type; do
  [[ -n ${!needed} ]] || fail "launch/tpu_pod.sh needs --$needed=..: see its first lines."
done
(($#)) || fail "launch/tpu_pod.sh needs a command after --, such as: -- train --config=.. --workdir=.."
[[ $restarts =~ ^[0-9]+$ ]] || fail "--restarts is $restarts, expected a number."

case $type in
  v4-*) by_type=(v4 tpu-ubuntu2204-base) ;;
  v5litepod-*) by_type=(v5e v2-alpha-tpuv5-lite) ;;
  v5p-*) by_type=(v5p v2-alpha-tpuv5) ;;
  v6e-*) by_type=(v6e v2-alpha-tpuv6e) ;;
  *) by_type=("" "") ;;
esac
chip=${chip:-${by_type[0]}}
version=${version:-${by_type[1]}}
[[ -n $chip && -n $version ]] ||
  fail "--type=$type is not known here: name --chip (a file of launch/xla_flags) and --version (gcloud compute tpus tpu-vm versions list) too."
read_xla_flags "$chip"

where=(--zone="$zone")
[[ -z $project ]] || where+=(--project="$project")
request=$name-request

do_it() {
  if [[ $dry_run == yes ]]; then show "$@"; else "$@"; fi
}

state() {
  gcloud compute tpus queued-resources describe "$request" "${where[@]}" \
    --format='value(state.state)' 2>/dev/null || printf 'NONE'
}

# On every host, or on those that $1 names; what follows is a script for bash.
on_hosts() {
  do_it gcloud compute tpus tpu-vm ssh "$name" "${where[@]}" --worker="$1" \
    --command="$2"
}

delete_slice() {
  do_it gcloud compute tpus queued-resources delete "$request" "${where[@]}" \
    --force --quiet
}

wait_for_slice() {
  local now
  if [[ $dry_run == yes ]]; then
    printf '# unless the slice exists:\n'
  else
    now=$(state)
    case $now in
      SUSPENDED | SUSPENDING | FAILED)
        printf 'The slice is %s: deleting it.\n' "$now"
        delete_slice
        now=NONE
        ;;
    esac
    [[ $now == NONE ]] || printf 'Using the slice %s (%s).\n' "$name" "$now"
  fi
  if [[ $dry_run == yes || $now == NONE ]]; then
    do_it gcloud compute tpus queued-resources create "$request" "${where[@]}" \
      --node-id="$name" --accelerator-type="$type" --runtime-version="$version" \
      ${kind[@]+"${kind[@]}"}
  fi
  if [[ $dry_run == yes ]]; then
    printf '# wait until it is ACTIVE\n'
    return
  fi
  while now=$(state) && [[ $now != ACTIVE ]]; do
    [[ $now != FAILED ]] || fail "The slice $name cannot be had: gcloud compute tpus queued-resources describe $request says why."
    printf 'Waiting for the slice: %s.\n' "$now"
    sleep 60
  done
}

# What the hosts are given: the commit that is checked out, nothing else.
copy_to_hosts() {
  local archive=.cache/tpu_pod.tar.gz
  do_it mkdir -p .cache
  do_it git archive --format=tar.gz --output="$archive" HEAD
  do_it gcloud compute tpus tpu-vm scp "$archive" "$name:multistep_cm.tar.gz" \
    "${where[@]}" --worker=all
}

# The scripts for the hosts. The run is detached: it outlives this connection.
run=$(show env PYTHONUNBUFFERED=1 "XLA_FLAGS=$xla_flags" \
  "LIBTPU_INIT_ARGS=$libtpu_flags" .venv/bin/python -m multistep_cm "$@")
detached=$(show "$run; echo \$? >run.status")
start="mkdir -p multistep_cm && cd multistep_cm
if [ -e run.pid ] && kill -0 \"\$(cat run.pid)\" 2>/dev/null; then exit 0; fi
{ $setup
} || exit
tar -xzf ../multistep_cm.tar.gz || exit
command -v python3.11 >/dev/null || { sudo apt-get -qq update &&
  sudo apt-get -qq install -y python3.11 python3.11-venv; } || exit
PYTHON=python3.11 bash -c 'source launch/environment.sh && prepare_environment tpu' || exit
rm -f run.status
setsid nohup bash -c $detached >run.log 2>&1 </dev/null &
echo \$! >run.pid"
follow="cd multistep_cm && tail -n +1 -f --pid=\"\$(cat run.pid)\" run.log
exit \"\$(cat run.status || echo 1)\""

for ((attempt = 0; ; attempt++)); do
  wait_for_slice
  status=0
  { copy_to_hosts && on_hosts all "$start" && on_hosts 0 "$follow"; } || status=$?
  if [[ $dry_run == yes ]]; then
    printf '# preempted or failed: the same again, at most %s times\n' "$restarts"
    break
  fi
  ((status != 0)) || break
  # 2 is bad input, said in a sentence: the same would come again.
  ((status != 2)) || exit 2
  ((attempt < restarts)) || fail "Given up after $restarts restarts."
  printf 'The run ended with %s (slice: %s): again from its last checkpoint.\n' \
    "$status" "$(state)"
  sleep 10
done
[[ $delete == no ]] || delete_slice
