# bash completion for modelctl; modelctl itself says what fits.
_modelctl() {
  local line=${COMP_LINE:0:COMP_POINT} found words current
  read -r -a words <<<"$line"
  [[ $line == *[[:space:]] ]] && words+=("")
  current=${words[-1]}
  mapfile -t found < <(modelctl __complete "${words[@]:1}" 2>/dev/null)
  COMPREPLY=()
  if [[ ${found[0]:-} == :files ]]; then
    compopt -o filenames 2>/dev/null
    mapfile -t COMPREPLY < <(compgen -f -- "$current")
    return
  fi
  COMPREPLY=("${found[@]}")
  # bash takes a colon for the start of a new word and replaces only what follows it.
  if [[ $current == *:* && $COMP_WORDBREAKS == *:* ]]; then
    COMPREPLY=("${COMPREPLY[@]#"${current%:*}:"}")
  fi
}
complete -F _modelctl modelctl
