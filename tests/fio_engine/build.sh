#!/usr/bin/env bash
# Compiles tiermem_fio.so for the fio that is installed: build.sh OUT_DIR. Needs Debian's apt-get, a C compiler, make
# and cargo; no root. Exits with 77, and a sentence, where the headers of the installed fio cannot be had.
set -euo pipefail
here="$(cd "$(dirname "$0")" && pwd)"
root="$(cd "$here/../.." && pwd)"
mkdir -p "$1"
out="$(cd "$1" && pwd)"
skip() { echo "no fio engine: $*" >&2; exit 77; }

command -v fio >/dev/null || skip "fio is not installed (Debian: apt-get install fio)"
version="$(fio --version)" # fio-3.33
package="$(dpkg-query --show --showformat='${source:Version}' fio 2>/dev/null)" ||
  skip "fio is not Debian's, so that its headers are not to be had by apt-get source"
dpkg-query --search "$(readlink -f "$(command -v fio)")" >/dev/null 2>&1 ||
  skip "the fio in PATH, $(command -v fio), is not the packaged one, so that its headers are not known"
source="$out/$package/$version"

if [ ! -e "$source/config-host.h" ]; then
  work="$out/$package"
  rm -rf "$work"
  mkdir -p "$work"/apt/{sources,lists/partial,cache/archives/partial}
  # The configured sources, asked for source packages; a list of our own leaves the machine's as it is.
  for file in /etc/apt/sources.list.d/*.sources; do
    [ ! -e "$file" ] || sed 's/^Types:.*/Types: deb-src/' "$file" >"$work/apt/sources/$(basename "$file")"
  done
  for file in /etc/apt/sources.list /etc/apt/sources.list.d/*.list; do
    [ ! -e "$file" ] || sed -n 's/^deb /deb-src /p' "$file" >"$work/apt/sources/$(basename "$file" .list).list"
  done
  options=(-qq -o "Dir::Etc::sourcelist=/dev/null" -o "Dir::Etc::sourceparts=$work/apt/sources"
    -o "Dir::State::lists=$work/apt/lists" -o "Dir::Cache=$work/apt/cache" -o "APT::Sandbox::User=")
  log="$work/apt.log"
  apt-get "${options[@]}" update >"$log" 2>&1 ||
    skip "apt-get update of the source packages failed: $(tail -n 1 "$log")"
  (cd "$work" && apt-get "${options[@]}" source --download-only "fio=$package") >"$log" 2>&1 ||
    skip "apt-get source fio=$package failed: $(tail -n 1 "$log")"
  mkdir "$source.new"
  tar -xf "$(ls "$work"/fio_*.orig.tar.* | grep -v '\.asc$')" -C "$source.new" --strip-components=1
  (cd "$source.new" && ./configure --disable-native >configure.log 2>&1) ||
    skip "fio's configure failed: $(tail -n 1 "$source.new/configure.log")"
  rm -rf "$work/apt"
  mv "$source.new" "$source"
fi

(cd "$root" && cargo build --release --locked --quiet -p tiermem-capi)
target="$(cd "$root" && cargo metadata --no-deps --format-version 1 | sed 's/.*"target_directory":"\([^"]*\)".*/\1/')"
"${CC:-cc}" -std=gnu11 -O2 -Wall -Wno-unused-parameter -shared -fPIC -D_GNU_SOURCE -DTIERMEM_FIO_VERSION="\"${version#fio-}\"" \
  -include "$source/config-host.h" -I "$source" -I "$root/rust_core/capi/include" \
  -o "$out/tiermem_fio.so.new" "$here/tiermem_fio.c" "$target/release/libtiermem_capi.a" -lpthread -ldl -lm
mv "$out/tiermem_fio.so.new" "$out/tiermem_fio.so"
echo "$out/tiermem_fio.so"
