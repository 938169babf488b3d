#!/usr/bin/env bash
# Prints one line: the directory that holds etcd, kube-apiserver and kube-controller-manager. Everything else goes to stderr.
#
# That is KUBEBUILDER_ASSETS where it has all three, else a build of this Go module, made once and kept in the cache. Tests and the
# demo call this every time, so a hit must cost nothing: no Go is needed, or run, once the cache is filled.
set -euo pipefail

readonly programs=(etcd kube-apiserver kube-controller-manager)
readonly here=$PWD
cd "$(dirname "${BASH_SOURCE[0]}")"

say() { printf 'controlplane: %s\n' "$*" >&2; }
die() { say "$@"; exit 1; }

main() {
  if [[ -n ${KUBEBUILDER_ASSETS:-} ]]; then
    local assets missing
    assets=$(absolute "$KUBEBUILDER_ASSETS")
    missing=$(missing_from "$assets")
    if [[ -z $missing ]]; then
      printf '%s\n' "$assets"
      return
    fi
    # Our own three rather than theirs plus one of ours: a controller manager newer than its API server is not supported.
    [[ $missing != kube-controller-manager ]] || missing+=" (envtest ships none)"
    say "KUBEBUILDER_ASSETS=$assets lacks $missing; using our own build of all three"
  fi

  local cache dir
  cache=$(absolute "${LAMINA_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/lamina}")
  dir=$cache/controlplane-$(cat go.mod go.sum main.go build.sh | sha256 | cut -c1-16)
  if [[ -n $(missing_from "$dir") ]]; then
    build_once "$cache" "$dir"
  fi
  printf '%s\n' "$dir"
}

# As the caller wrote it, not relative to this script.
absolute() {
  if [[ $1 == /* ]]; then printf '%s' "$1"; else printf '%s' "$here/$1"; fi
}

missing_from() {
  local program missing=()
  for program in "${programs[@]}"; do
    [[ -x $1/$program ]] || missing+=("$program")
  done
  printf "%s" "${missing[*]-}"
}

sha256() {
  if command -v sha256sum >/dev/null; then sha256sum; else shasum -a 256; fi
}

build_once() {
  local cache=$1 dir=$2
  require_go
  mkdir -p "$cache"
  # The rename below is what makes this safe; the lock only spares the second caller seven minutes (and is no part of macOS).
  if command -v flock >/dev/null; then
    exec 9>"$dir.lock"
    flock -n 9 || { say "another build is under way, waiting for it"; flock 9; }
    [[ -n $(missing_from "$dir") ]] || return 0
  fi

  local work
  work=$(mktemp -d "$cache/building.XXXXXX")
  # shellcheck disable=SC2064  # $work is local: it has to be expanded now
  trap "rm -rf '$work'" EXIT
  build "$work/controlplane"
  local program
  for program in "${programs[@]}"; do
    ln -s controlplane "$work/$program"
  done
  chmod 755 "$work"
  rm -rf "$dir" # there only if someone emptied it by half
  mv "$work" "$dir"
}

require_go() {
  local need have
  need=$(sed -n 's/^go //p' go.mod)
  command -v go >/dev/null || die "Go $need or newer is needed to build the local control plane; there is no 'go' on PATH." \
    "Install it (https://go.dev/dl), or set KUBEBUILDER_ASSETS to a directory with ${programs[*]}."
  have=$(run_go env GOVERSION) || die "'go env' failed, see above"
  have=${have#go}
  if [[ $(printf '%s\n' "$need" "$have" | sort -V | head -n1) != "$need" ]]; then
    die "Go $need or newer is needed to build the local control plane, and $(command -v go) is $have." \
      "Install a newer one (https://go.dev/dl), allow Go to fetch it (GOTOOLCHAIN=auto)," \
      "or set KUBEBUILDER_ASSETS to a directory with ${programs[*]}."
  fi
}

# No C compiler, no workspace of the caller's, and not our lock: what outlives us must not keep it.
run_go() {
  CGO_ENABLED=0 GOWORK=off go "$@" 9>&-
}

build() {
  local binary=$1 version total
  version=$(run_go list -m -f '{{.Version}}' k8s.io/kubernetes)
  say "building Kubernetes $version with etcd $(run_go list -m -f '{{.Version}}' go.etcd.io/etcd/server/v3), once, into $binary"
  say "fetching modules"
  run_go list -deps . >/dev/null
  # Only what is still to be compiled, so that the count is right with a warm Go build cache too.
  total=$(run_go list -deps -f '{{if .Stale}}{{.ImportPath}}{{end}}' . | wc -l)
  say "packages to compile: $total, then one link"
  run_go build -v -buildvcs=false -ldflags "$(linker_flags "$version")" -o "$binary" . 2>&1 | show_progress "$total"
  say "built $(du -h "$binary" | cut -f1) in $(elapsed)"
}

# Go modules carry no version inside; without these /version says v0.0.0-master+$Format:%H$, which kubectl and Helm cannot parse.
# The commit is not known from a module, so its tag stands in; the date is the release's, not today's, so that the same pins give the same
# bytes. -s -w: nobody debugs these.
linker_flags() {
  local version=$1 major minor key flags="-s -w"
  IFS=. read -r major minor _ <<<"${version#v}"
  local values=(
    "gitVersion=$version" "gitMajor=$major" "gitMinor=$minor" "gitTreeState=clean" "gitCommit=$version"
    "buildDate=$(run_go list -m -f '{{.Time.Format "2006-01-02T15:04:05Z07:00"}}' k8s.io/kubernetes)"
  )
  for key in "${values[@]}"; do
    flags+=" -X k8s.io/component-base/version.$key -X k8s.io/client-go/pkg/version.$key"
  done
  printf '%s' "$flags"
}

# Reads 'go build -v': an import path as each package's turn comes, and anything else (errors, downloads) in lines with blanks.
show_progress() {
  local total=$1 done=0 shown=-10 line
  while IFS= read -r line; do
    if [[ $line == *[[:blank:]]* ]]; then
      [[ ! -t 2 ]] || printf '\r\e[K' >&2
      printf '%s\n' "$line" >&2
      continue
    fi
    done=$((done + 1))
    if [[ -t 2 ]]; then
      printf '\r\e[Kcontrolplane: %d/%d %s %.60s' "$done" "$total" "$(elapsed)" "$line" >&2
    elif ((SECONDS - shown >= 10)); then
      shown=$SECONDS
      say "$done/$total $(elapsed) $line"
    fi
  done
  [[ ! -t 2 ]] || printf '\n' >&2
}

elapsed() {
  printf '%d:%02d' $((SECONDS / 60)) $((SECONDS % 60))
}

main
