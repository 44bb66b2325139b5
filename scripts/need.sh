#!/bin/sh
# Makes sure that tools are there, installing what is missing with apt, or with cargo what Debian lacks:
# need.sh TOOL:PACKAGE... [rust] [rustfmt] [clippy] [cargo-deb]
# A tool is a command, or the path of a file.
# Says nothing when nothing is missing. Without apt, or without the right to use it, says what to install.
set -eu

# The oldest Rust that builds peelfs; Cargo.toml says so too (`rust-version`).
RUST=1.89

fail() {
    printf 'error: %s\nhint: %s\n' "$1" "$2" >&2
    exit 1
}

as_root() {
    if [ "$(id -u)" = 0 ]; then "$@"; else sudo "$@"; fi
}

may_install() {
    command -v apt-get >/dev/null || return 1
    [ "$(id -u)" = 0 ] || command -v sudo >/dev/null
}

# Installs packages; never removes one.
install() {
    may_install || fail "these are missing here: $*" "install them with your package manager and run this again"
    echo "installing: $*" >&2
    # The package lists of a fresh machine are empty or old; a failure to refresh shows in the next line.
    as_root env DEBIAN_FRONTEND=noninteractive apt-get update -qq >&2 || true
    as_root env DEBIAN_FRONTEND=noninteractive \
        apt-get install -y -qq --no-remove --no-install-recommends "$@" >/dev/null ||
        fail "apt-get could not install: $*" "see its messages above; install them by hand and run this again"
}

# /usr/sbin and /usr/bin both count: some packages put their program where only root's PATH looks.
have() {
    case $1 in
        /*) [ -e "$1" ] ;;
        *) command -v "$1" >/dev/null || [ -x "/usr/sbin/$1" ] ;;
    esac
}

rust_is_new_enough() {
    found=$(cargo --version 2>/dev/null | cut -d ' ' -f 2) || return 1
    [ -n "$found" ] && [ "$(printf '%s\n%s\n' "$RUST" "$found" | sort -V | head -n 1)" = "$RUST" ]
}

missing=
rust=
components=
crates=
for need in "$@"; do
    case $need in
        rust) rust=yes ;;
        rustfmt | clippy) components="$components $need" ;;
        cargo-deb) have "$need" || crates="$crates $need" ;;
        *) have "${need%%:*}" || missing="$missing ${need#*:}" ;;
    esac
done
# shellcheck disable=SC2086 # one word a package
[ -z "$missing" ] || install $missing

hint="get Rust from https://rustup.rs and run this again"
if [ -n "$rust" ] && ! rust_is_new_enough; then
    if ! command -v rustup >/dev/null; then
        may_install && apt-cache show rustup >/dev/null 2>&1 ||
            fail "Rust $RUST or newer is needed; here is: ${found:-none}" "$hint"
        install rustup ca-certificates
    fi
    echo "installing the stable Rust toolchain" >&2
    rustup toolchain install stable --profile minimal >&2 && rustup default stable >&2 || fail "rustup failed" "$hint"
    rust_is_new_enough || fail "Rust $RUST or newer is needed; here is: ${found:-none}" "$hint"
fi
for component in $components; do
    case $component in rustfmt) tool=fmt ;; *) tool=$component ;; esac
    cargo "$tool" --version >/dev/null 2>&1 && continue
    command -v rustup >/dev/null || fail "\`cargo $tool\` is missing" "$hint"
    rustup component add "$component" >&2
done
for crate in $crates; do
    echo "building $crate" >&2
    # Without its own compressor: it takes xz.
    cargo install --quiet --locked --no-default-features --version '^3' "$crate" >&2 || fail "cargo could not install $crate" "see above"
done
