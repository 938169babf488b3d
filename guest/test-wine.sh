#!/usr/bin/env bash
# Runs the real lamina-guest.exe under wine: every place that wine can show, the window, installation, service and steps.
#
#   guest/test-wine.sh [name of a test …]      all tests, or those whose name has one of the words
#   guest/test-wine.sh --picture               makes docs/findings.png anew
#
# On Debian, as root, it installs what it needs; elsewhere it says what is missing. The program is built if need be (guest/build.sh).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

readonly debian=(wine wine64 fonts-wine xvfb xauth imagemagick gcc-mingw-w64-x86-64)
readonly needed=(wine wineserver xvfb-run import x86_64-w64-mingw32-gcc)

say() { printf 'wine: %s\n' "$*" >&2; }
die() { say "$@"; exit 1; }

missing() {
  local program
  for program in "${needed[@]}"; do
    command -v "$program" >/dev/null || printf '%s ' "$program"
  done
}

if [[ -n $(missing) ]]; then
  how="apt-get install --no-install-recommends ${debian[*]}"
  command -v apt-get >/dev/null || die "needed: $(missing)"
  [[ $EUID == 0 ]] || die "needed, as root: $how"
  say "installing ${debian[*]}"
  { apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends "${debian[@]}"; } >&2 ||
    die "'$how' failed, see above"
fi

LAMINA_EXE=$(bash guest/build.sh)
cache=$(cd "${LAMINA_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/lamina}" && pwd)
# Neither .NET nor a browser is looked for, and what wine lacks is no news.
export LAMINA_EXE WINEARCH=win64 WINEDEBUG=-all WINEDLLOVERRIDES='mscoree,mshtml='

# A prefix as wine makes it, once for each wine; the tests work on copies.
export LAMINA_WINE=$cache/wine-$(wine --version | sha256sum | cut -c1-16)
if [[ ! -e $LAMINA_WINE/template ]]; then
  say "making a Windows in $LAMINA_WINE"
  rm -rf "$LAMINA_WINE" && mkdir -p "$LAMINA_WINE"
  WINEPREFIX=$LAMINA_WINE/making xvfb-run -a wine wineboot --init >&2
  WINEPREFIX=$LAMINA_WINE/making wineserver -w
  # Without it the window's frame has letters for buttons: wine does not look where Debian puts it.
  cp /usr/share/wine/fonts/marlett.ttf "$LAMINA_WINE/making/drive_c/windows/Fonts/" 2>/dev/null ||
    say "no marlett.ttf: the picture of the window will lack its buttons"
  mv "$LAMINA_WINE/making" "$LAMINA_WINE/template"
fi
# Left by runs that were killed.
find "$LAMINA_WINE" -maxdepth 1 -name 'run-*' -mmin +120 -exec rm -rf {} +
x86_64-w64-mingw32-gcc -O1 -Wall -Werror -s -o "$LAMINA_WINE/helper.exe" guest/tests/wine/helper.c

if [[ ${1:-} == --picture ]]; then
  LAMINA_PICTURE=$PWD/docs/findings.png
  export LAMINA_PICTURE
  set -- the_window
fi
say "running $LAMINA_EXE under $(wine --version)"
exec xvfb-run -a -s '-screen 0 1024x768x24' cargo test --locked -p lamina-guest --test wine -- --ignored --test-threads 2 "$@"
