#!/bin/sh
# Installs a package, uses what is in it, purges it, and looks for what is left: deb_check.sh [--clean] DEB
# In a copy-on-write view of this machine's root file system, which takes seconds and needs a Debian with fuse3; with
# --clean in a fresh Debian that mmdebstrap makes. Needs root, and /dev/fuse for its mounts.
set -eu
clean=
[ "${1:-}" != --clean ] || { clean=yes; shift; }
deb=$(realpath "$1")
[ "$(id -u)" = 0 ] || { echo 'skipped: only root may make a chroot' >&2; exit 0; }
if [ -z "${DEB_CHECK_WORK:-}" ]; then
    unshare --mount --pid --fork true 2> /dev/null || { echo 'skipped: cannot enter namespaces' >&2; exit 0; }
    # Mounts of this script end with it.
    DEB_CHECK_WORK=$(mktemp -d) && export DEB_CHECK_WORK
    trap 'rm -rf --one-file-system "$DEB_CHECK_WORK"' EXIT
    trap 'exit 1' INT TERM
    unshare --mount --pid --fork --propagation private "$0" ${clean:+--clean} "$deb"
    exit
fi

work=$DEB_CHECK_WORK root=$DEB_CHECK_WORK/root
mkdir "$root"
if [ -n "$clean" ]; then
    suite=$(. /etc/os-release && echo "$VERSION_CODENAME")
    echo "making a Debian $suite" >&2
    mmdebstrap --quiet --variant=apt --include=fuse3,mount,man-db,bash "$suite" "$root"
else
    mount -t tmpfs -o size=2g tmpfs "$work"
    mkdir "$root" "$work/upper" "$work/work"
    mount -t overlay -o "lowerdir=/,upperdir=$work/upper,workdir=$work/work" overlay "$root"
fi
mount -t proc proc "$root/proc"
mount --rbind /dev "$root/dev"
mount -t tmpfs tmpfs "$root/run"
mount -t tmpfs tmpfs "$root/tmp"
cp "$deb" "$root/tmp/peelfs.deb"
cp "$(dirname "$0")/deb_check_inside.sh" "$root/tmp/inside.sh"
env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root TERM=dumb DEBIAN_FRONTEND=noninteractive \
    ${clean:+CLEAN=yes} chroot "$root" sh -eu /tmp/inside.sh
