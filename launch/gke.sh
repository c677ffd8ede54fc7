#!/usr/bin/env bash
# Train on GKE: launch/gke.yaml with its blanks filled in, handed to kubectl.
#   bash launch/gke.sh --image=IMAGE --bucket=BUCKET [--name=NAME] [--dry-run] \
#       -- train --config=configs/imagenet64.py --workdir=/shared/run
# The bucket is the folder /shared of all hosts: data and workdirs are in it.
# Another slice: edit topology, parallelism and completions (hosts) in launch/gke.yaml.
# kubectl must be logged in; no secret is read or written here.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source launch/environment.sh
source launch/xla_flags.sh

image="" bucket="" name=multistep-cm dry_run=no
while (($#)); do
  case $1 in
    --image=*) image=${1#*=} ;;
    --bucket=*) bucket=${1#*=} ;;
    --name=*) name=${1#*=} ;;
    --dry-run) dry_run=yes ;;
    --)
      shift
      break
      ;;
    *) fail "launch/gke.sh does not know $1: the command to run stands after --." ;;
  esac
  shift
done
[[ -n $image ]] || fail "launch/gke.sh needs --image=IMAGE, made with launch/Dockerfile."
[[ $bucket =~ ^[a-z0-9][-a-z0-9_.]+$ ]] ||
  fail "--bucket is '$bucket', expected the name of a bucket, without gs://."
[[ $name =~ ^[a-z]([-a-z0-9]*[a-z0-9])?$ ]] ||
  fail "--name is $name, expected lower-case letters, digits and dashes."
(($#)) || fail "launch/gke.sh needs a command after --, such as: -- train --config=.. --workdir=/shared/.."

# A word as a string of JSON, which is YAML too.
quoted() {
  local word=$1
  word=${word//\\/\\\\}
  word=${word//\"/\\\"}
  word=${word//$'\n'/\\n}
  word=${word//$'\r'/\\r}
  printf '"%s"' "${word//$'\t'/\\t}"
}

arguments=""
# Kubernetes reads $(NAME) in arguments as a variable, and $$ as a dollar.
for word in "$@"; do
  arguments+="${arguments:+, }$(quoted "${word//\$/\$\$}")"
done
manifest=$(<launch/gke.yaml)
# Quoted, or bash 5.2 would read & in them as what was matched.
manifest=${manifest//__NAME__/"$name"}
manifest=${manifest//__BUCKET__/"$(quoted "$bucket")"}
manifest=${manifest//__IMAGE__/"$(quoted "$image")"}
manifest=${manifest//__ARGUMENTS__/"[$arguments]"}

follow=(kubectl logs --follow "--selector=jobset.sigs.k8s.io/jobset-name=$name,batch.kubernetes.io/job-completion-index=0")
if [[ $dry_run == yes ]]; then
  printf '# kubectl apply --filename=- with:\n%s\n# then, to see what process 0 says:\n' "$manifest"
  show "${follow[@]}"
  exit
fi
printf '%s\n' "$manifest" | kubectl apply --filename=-
printf 'To see what process 0 says:\n'
show "${follow[@]}"
