#!/usr/bin/env bash
# Pins another Kubernetes: ./pin.sh 1.37.2 rewrites go.mod and go.sum, and nothing else. Run by a person, then reviewed and committed.
#
# k8s.io/kubernetes requires its staging modules at v0.0.0 and finds them by relative replaces, which hold in its own tree only. So
# each one is replaced here by its published v0.x of the same release. etcd is the version that Kubernetes release was tested with.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

version=${1:?usage: pin.sh <kubernetes version without the v>}
staging=v0.${version#1.}
# From outside this module: its own go.mod is what is about to be replaced, and may be what is broken.
upstream=$(cd / && GOWORK=off go mod download -json "k8s.io/kubernetes@v$version" | sed -n 's/^\t"GoMod": "\(.*\)",$/\1/p')
etcd=$(sed -n 's|^\tgo.etcd.io/etcd/server/v3 \(v[^ ]*\).*|\1|p' "$upstream")

{
  printf 'module lamina.dev/controlplane\n\ngo %s\n\n' "$(sed -n 's/^go //p' "$upstream")"
  printf 'require (\n\tgo.etcd.io/etcd/server/v3 %s\n\tk8s.io/component-base %s\n\tk8s.io/kubernetes v%s\n)\n\n' \
    "$etcd" "$staging" "$version"
  printf '// Written by pin.sh, which says why.\nreplace (\n'
  sed -n "s|^\t\(k8s.io/[^ ]*\) => ./staging/.*|\t\1 => \1 $staging|p" "$upstream"
  printf ')\n'
} >go.mod
GOWORK=off go mod tidy
