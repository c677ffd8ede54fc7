# shellcheck shell=bash
# Sourced, from the root of the repository, by the scripts beside it.
#
# read_xla_flags CHIP sets $xla_flags (for XLA_FLAGS) and $libtpu_flags (for
# LIBTPU_INIT_ARGS) from launch/xla_flags/CHIP.txt, with what these variables already
# hold last, so that it wins. show COMMAND.. prints a command as one can paste it.

read_xla_flags() {
  local file=launch/xla_flags/$1.txt line chips=(launch/xla_flags/*.txt)
  if [[ $1 == */* || ! -f $file ]]; then
    chips=("${chips[@]#launch/xla_flags/}")
    printf 'There are no flags for the chip %s: name one of %s.\n' \
      "$1" "${chips[*]%.txt}" >&2
    exit 1
  fi
  xla_flags=""
  libtpu_flags=""
  while read -r line; do
    case $line in
      "" | "#"*) ;;
      "libtpu "*) libtpu_flags+="${libtpu_flags:+ }${line#libtpu }" ;;
      *) xla_flags+="${xla_flags:+ }$line" ;;
    esac
  done <"$file"
  xla_flags+="${XLA_FLAGS:+${xla_flags:+ }$XLA_FLAGS}"
  libtpu_flags+="${LIBTPU_INIT_ARGS:+${libtpu_flags:+ }$LIBTPU_INIT_ARGS}"
}

show() {
  local words=()
  local word
  for word in "$@"; do words+=("$(printf '%q' "$word")"); done
  printf '%s\n' "${words[*]}"
}
