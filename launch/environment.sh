# shellcheck shell=bash
# Sourced, from the root of the repository, by the scripts beside it.
#
# prepare_environment EXTRAS makes .venv hold multistep_cm[EXTRAS] and names its
# interpreter in $python. It does nothing when that is already so, starts again when
# an earlier installation was killed, and makes a second script wait for the first.

python="$PWD/.venv/bin/python"
is_new_enough='import sys; sys.exit(sys.version_info < (3, 11))'

# Compiled programs are kept between runs.
export JAX_COMPILATION_CACHE_DIR="${JAX_COMPILATION_CACHE_DIR:-$PWD/.cache/jax}"
export JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS="${JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS:-0.5}"

# Large pages where glibc has them: a train step on CPU maps and unmaps its buffers, and
# small pages cost up to a fifth of its time (docs/performance.md).
export GLIBC_TUNABLES="${GLIBC_TUNABLES:-glibc.malloc.hugetlb=1}"

fail() {
  printf '%s\n' "$1" >&2
  exit 1
}

quietly() {
  "$@" >/dev/null 2>&1
}

# Sets $base_python: a Python 3.11 or newer that can make virtual environments.
find_python() {
  local candidate candidates=(python3.13 python3.12 python3.11 python3) incomplete=""
  [[ -z ${PYTHON:-} ]] || candidates=("$PYTHON")
  for candidate in "${candidates[@]}"; do
    quietly "$candidate" -c "$is_new_enough" || continue
    base_python=$candidate
    quietly "$candidate" -c 'import ensurepip, venv' && return
    incomplete=$candidate
  done
  [[ -z $incomplete ]] ||
    fail "$incomplete lacks the modules venv and ensurepip, which make .venv with pip in it: install them (on Debian and Ubuntu: apt-get install python3-venv) and run this again."
  [[ -z ${PYTHON:-} ]] ||
    fail "PYTHON=$PYTHON does not run as Python 3.11 or newer: name one that does, or unset PYTHON to have one looked for."
  fail "multistep_cm needs Python 3.11 or newer and none was found as ${candidates[*]}: install one, or name it with PYTHON=/path/to/python."
}

prepare_environment() {
  local extras=$1 wanted stamp=.venv/.installed unfinished=.venv/.installing
  local log=.cache/install.log
  if ! quietly mkdir -p .cache || ! [[ -w . && -w .cache ]]; then
    fail "$PWD cannot be written to: run this from a copy that you own."
  fi
  exec 9>.cache/environment.lock
  if quietly command -v flock && ! flock -n 9; then
    printf 'Another script is making .venv: waiting for it.\n'
    flock 9 || true
  fi

  # The path is part of it because an editable installation points to the path.
  wanted="$(cksum <pyproject.toml) $(cksum <setup.py) $PWD"
  if [[ ! -e $unfinished ]] && quietly grep -Fx "$wanted [$extras]" "$stamp" &&
    quietly "$python" -c "$is_new_enough"; then
    exec 9>&-
    return
  fi

  if [[ -e $unfinished ]] || ! quietly "$python" -c "$is_new_enough" ||
    ! quietly "$python" -m pip --version; then
    find_python
    printf 'Making .venv with %s.\n' "$base_python"
    "$base_python" -m venv --clear .venv >"$log" 2>&1 ||
      fail "$base_python could not make .venv: $(tail -n 1 "$log")"
  fi
  printf 'Installing multistep_cm and what it needs into .venv: about 1 GB, once; progress in %s.\n' "$log"
  touch "$unfinished"
  if ! "$python" -m pip install --disable-pip-version-check -e ".${extras:+[$extras]}" \
    </dev/null >"$log" 2>&1; then
    rm -f "$unfinished"
    tail -n 5 "$log" >&2
    fail "pip could not install multistep_cm (its last lines are above, all of them are in $log): check the network and the free disk space, then run this again."
  fi
  printf '%s\n' "$wanted [$extras]" "$wanted []" >"$stamp"
  rm -f "$unfinished"
  exec 9>&-
}
