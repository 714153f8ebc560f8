#compdef modelctl
# zsh completion for modelctl; modelctl itself says what fits.
_modelctl() {
  local -a found
  found=("${(@f)$(modelctl __complete "${(@)words[2,CURRENT]}" 2>/dev/null)}")
  if [[ ${found[1]} == :files ]]; then
    _files
  elif [[ -n ${found[1]} ]]; then
    compadd -- "${found[@]}"
  fi
}
if [[ ${funcstack[1]} == _modelctl ]]; then
  _modelctl "$@"
else
  compdef _modelctl modelctl
fi
