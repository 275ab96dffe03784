#!/usr/bin/env bash
# Puts ONNX Runtime's C header into a folder: from Debian's newer release, by apt with private lists, so that nothing on
# the machine changes. usage: onnxruntime_header.sh FOLDER; the header is then in FOLDER/usr/include/onnxruntime.
set -euo pipefail
folder=$(mkdir -p "$1" && cd "$1" && pwd)
[[ -e $folder/usr/include/onnxruntime/onnxruntime_c_api.h ]] && exit 0
suite=trixie
private=$(mktemp -d)
trap 'rm -rf "$private"' EXIT
mkdir -p "$private"/{parts,lists/partial,archives/partial}
# The machine's own mirror of Debian, with another suite.
mirror=$({ cat /etc/apt/sources.list /etc/apt/sources.list.d/* 2>/dev/null || true; } |
    sed -nE 's/^URIs: *([^ ]+).*/\1/p; s/^deb +(\[[^]]*\] +)?([^ ]+) .*/\2/p' | grep debian | grep -v security | head -n 1 || true)
keys=/usr/share/keyrings/debian-archive-keyring.gpg
echo "deb [signed-by=$keys] ${mirror:-http://deb.debian.org/debian} $suite main" >"$private/parts/$suite.list"
options=(-o Dir::Etc::sourcelist=/dev/null -o Dir::Etc::sourceparts="$private/parts" -o Dir::State::lists="$private/lists"
    -o Dir::Cache::archives="$private/archives" -o Dir::Cache::pkgcache= -o Dir::Cache::srcpkgcache=
    -o APT::Sandbox::User=root)
apt-get -qq "${options[@]}" update
cd "$private"
apt-get -qq "${options[@]}" download libonnxruntime-dev
dpkg-deb -x libonnxruntime-dev_*.deb "$folder"
