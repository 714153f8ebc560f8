#!/bin/bash
# Installs those of the packages named that are missing, asking nothing. Debian and Ubuntu.
set -euo pipefail

missing=()
for package in "$@"; do
  status=$(dpkg-query --show --showformat='${db:Status-Status}' "$package" 2>/dev/null || true)
  [[ $status == installed ]] || missing+=("$package")
done
((${#missing[@]})) || exit 0

root=()
if ((EUID != 0)); then
  root=(sudo -n)
  "${root[@]}" true || { echo "Needed: root, or sudo without a password, to install ${missing[*]}" >&2; exit 1; }
fi
echo "installing ${missing[*]}"
export DEBIAN_FRONTEND=noninteractive
"${root[@]}" apt-get -qq -o DPkg::Lock::Timeout=300 update
"${root[@]}" apt-get -qq -y -o DPkg::Lock::Timeout=300 install --no-install-recommends "${missing[@]}"
