#!/usr/bin/env bash
# Builds lamina-guest.exe for Windows 7 and later, and prints one line: its path. Everything else goes to stderr.
#
#   guest/build.sh             the program
#   guest/build.sh --lint      no program: what the compiler and clippy have against its code for Windows, which nothing else lints
#
# Made once for each state of the sources and kept in the cache, so that a second call costs nothing. On Debian, as root, it installs
# the compilers that it needs; elsewhere it says what is missing. The network is used for Debian's packages and crates.io only.
#
# The target is win7: std's other Windows targets load DLLs at the start that Windows 7 and wine lack. Nobody ships std for it, so it is
# built from source, which takes a compiler with its sources: a rustup toolchain that has `rust-src`, or Debian's.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

readonly target=x86_64-win7-windows-gnu
readonly debian=(rustc-web rust-web-src gcc-mingw-w64-x86-64)
# What Windows 7 has in every copy. A program that asks for another DLL does not start there, and says so in a box that nobody sees.
readonly dlls='advapi32|comctl32|gdi32|kernel32|msvcrt|ntdll|ole32|oleaut32|rpcrt4|setupapi|shell32|user32|userenv|ws2_32'

say() { printf 'guest: %s\n' "$*" >&2; }
die() { say "$@"; exit 1; }

main() {
  local cache dir rustc
  cache=${LAMINA_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/lamina}
  mkdir -p "$cache"
  cache=$(cd "$cache" && pwd)
  rustc=$(compiler) || { install_debian "${debian[@]}"; rustc=$(compiler) || die "the packages ${debian[*]} brought no compiler with its sources"; }
  command -v x86_64-w64-mingw32-gcc >/dev/null || install_debian "${debian[@]}"
  command -v cargo >/dev/null || die "needed: rustup's cargo (https://rustup.rs)"
  if [[ ${1:-} == --lint ]]; then
    lint "$rustc" "$cache"
    return
  fi
  dir=$cache/guest-$(key "$rustc")
  if [[ ! -s $dir/lamina-guest.exe ]]; then
    # What another call is building is not built twice.
    lock "$cache"
    [[ -s $dir/lamina-guest.exe ]] || build "$rustc" "$cache" "$dir"
  fi
  printf '%s\n' "$dir/lamina-guest.exe"
}

# A compiler whose standard library can be built: RUSTC, the one on PATH, or Debian's.
compiler() {
  local rustc
  for rustc in "${RUSTC:-}" rustc /usr/bin/rustc; do
    if [[ -n $rustc ]] && [[ -d $("$rustc" --print sysroot 2>/dev/null)/lib/rustlib/src/rust/library ]]; then
      printf '%s' "$rustc"
      return
    fi
  done
  return 1
}

install_debian() {
  local how="apt-get install --no-install-recommends $*"
  command -v apt-get >/dev/null || die "needed: mingw-w64's gcc, and 'rustup component add rust-src' (see guest/README.md)"
  [[ $EUID == 0 ]] || die "needed, as root: $how"
  say "installing $*"
  { apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends "$@"; } >&2 ||
    die "'$how' failed, see above"
}

# All that the program is made of.
key() {
  { "$1" -vV; cat Cargo.lock guest/build.sh; find guest/Cargo.toml guest/src -type f | LC_ALL=C sort |
    xargs sha256sum; } | sha256sum | cut -c1-16
}

# cargo's own lock would wait without a word.
lock() {
  exec 9>"$1/guest.lock"
  flock -n 9 || { say "another build is under way, waiting for it"; flock 9; }
}

# cargo, or a program that calls it, for this target. Through the environment, so that the controller's own release build stays as it is. Small,
# and without unwinding: the program lives on a disk of some MiB, and a panic has nowhere to go.
for_windows() {
  local rustc=$1 cache=$2
  shift 2
  RUSTC=$rustc RUSTC_BOOTSTRAP=1 CARGO_TARGET_X86_64_WIN7_WINDOWS_GNU_LINKER=x86_64-w64-mingw32-gcc \
    CARGO_PROFILE_RELEASE_OPT_LEVEL=s CARGO_PROFILE_RELEASE_LTO=thin CARGO_PROFILE_RELEASE_PANIC=abort \
    CARGO_PROFILE_RELEASE_STRIP=true CARGO_TARGET_DIR=$cache/guest-target \
    "$@" 9>&- >&2
}
readonly package=(--locked --release -Zbuild-std=std,panic_abort --target $target -p lamina-guest -j2)

# With the clippy that belongs to the compiler: another one's cannot read what it compiled.
lint() {
  local rustc=$1 cache=$2 clippy
  clippy=$(dirname "$(command -v "$rustc")")/cargo-clippy
  [[ -x $clippy ]] || install_debian rust-web-clippy
  [[ -x $clippy ]] || die "needed: $clippy, from the same place as $rustc"
  lock "$cache"
  say "linting lamina-guest for Windows with $("$clippy" --version)"
  for_windows "$rustc" "$cache" "$clippy" clippy "${package[@]}" --lib --bins -- \
    -D warnings -D clippy::undocumented_unsafe_blocks
}

build() {
  local rustc=$1 cache=$2 dir=$3 foreign
  say "building lamina-guest.exe with $("$rustc" --version) (the first time: some three minutes)"
  for_windows "$rustc" "$cache" cargo build "${package[@]}" --bin lamina-guest
  foreign=$(x86_64-w64-mingw32-objdump -p "$cache/guest-target/$target/release/lamina-guest.exe" |
    sed -n 's/.*DLL Name: \(.*\)\.[dD][lL][lL]$/\1/p' | grep -viE "^($dlls)\$" || true)
  [[ -z $foreign ]] || die "the program asks for DLLs that Windows 7 may lack:" $foreign
  mkdir -p "$dir"
  cp "$cache/guest-target/$target/release/lamina-guest.exe" "$dir/.new" && mv "$dir/.new" "$dir/lamina-guest.exe"
  say "built $(du -h "$dir/lamina-guest.exe" | cut -f1)"
}

main "$@"
