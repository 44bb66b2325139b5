# shellcheck shell=bash
# Sourced by the scripts beside it: a temporary folder that goes at the end, pinned packages in it, comparisons.
# Exit codes: 0 everything was seen as described, 1 something else was seen, 2 it cannot run here.
set -euo pipefail
export LC_ALL=C TZ=UTC

work=$(mktemp -d)
cd "$work"
mkdir root debs python
export PATH=$work/root/usr/sbin:$work/root/usr/bin:$work/root/sbin:$work/root/bin:$PATH
LD_LIBRARY_PATH=$work/root/usr/lib/$(uname -m)-linux-gnu:$work/root/lib/$(uname -m)-linux-gnu
export LD_LIBRARY_PATH
export PYTHONPATH=$work/python
changed=0

# What a script wants done before the folder is removed, as unmounting.
at_end() { :; }
trap 'at_end; cd /; rm -rf --one-file-system "$work"' EXIT

cannot() { printf 'cannot run here: %s\n' "$*" >&2; exit 2; }

needs() {
  local tool
  for tool; do
    command -v "$tool" >/dev/null || cannot "$tool is not installed"
  done
}

needs_root() { [ "$(id -u)" = 0 ] || cannot 'only root may mount'; }

# deb PACKAGE=VERSION... LIBRARY...: unpacks Debian packages below $work/root; libraries they need have no version.
deb() {
  needs apt-get dpkg-deb
  local one
  (cd debs && apt-get download -q "$@" >log 2>&1) || cannot "apt-get download $*: $(tail -1 debs/log)"
  for one in debs/*.deb; do
    dpkg-deb -x "$one" root
    printf 'package   %s %s\n' "$(dpkg-deb -f "$one" Package)" "$(dpkg-deb -f "$one" Version)"
    rm "$one"
  done
}

# pypi PACKAGE==VERSION...: installs Python packages below $work/python.
pypi() {
  needs python3
  python3 -m pip install --quiet --disable-pip-version-check --no-cache-dir --target python "$@" >pip.log 2>&1 ||
    cannot "pip install $*: $(tail -1 pip.log)"
  printf 'package   %s\n' "$@"
}

# crate NAME VERSION: a Rust program in ./program that uses it; its source is standard input. `./program` is built.
crate() {
  needs cargo cc
  mkdir -p cargo/src
  printf '[package]\nname = "finding"\nversion = "0.0.0"\nedition = "2021"\n[dependencies]\n%s = "=%s"\n' "$1" "$2" >cargo/Cargo.toml
  cat >cargo/src/main.rs
  (unset LD_LIBRARY_PATH CARGO_TARGET_DIR && cd cargo && cargo build --quiet >../cargo.log 2>&1) || cannot "cargo build: $(tail -1 cargo.log)"
  cp cargo/target/debug/finding program
  printf 'package   %s %s\n' "$1" "$2"
}

expected() { printf 'expected  %s\n' "$*"; }

# seen WHAT DESCRIBED SEEN: compares with what the header of the script describes.
seen() {
  printf 'seen      %s: %s\n' "$1" "$3"
  [ "$2" = "$3" ] && return
  printf 'CHANGED   %s was: %s\n' "$1" "$2"
  changed=1
}

finish() {
  [ "$changed" = 0 ] && echo 'as described'
  exit "$changed"
}
