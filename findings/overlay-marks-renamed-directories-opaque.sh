#!/usr/bin/env bash
# overlayfs marks a directory opaque when it is renamed into a lower one, also where there is nothing to hide.
#
# Expected: an opaque directory is a rare thing: one that was deleted and made anew over a lower one. So an opaque marker in
#   a layer is rare, and says that something below is hidden.
# Happens: a new directory that is renamed inside a directory of a lower layer becomes opaque, though no lower layer has
#   its new name; one that is made under its name does not, nor one that is renamed inside a new directory. dpkg makes
#   directories as `NAME.dpkg-new` and renames them, so layers of `apt-get install`, as docker's overlay2 driver writes
#   them, are full of `.wh..wh..opq` that hide nothing.
# Version: seen with Linux 6.18; it needs no package.
# Matters: a reader that takes an opaque directory for the exception, as by waiting for all layers below or giving up
#   laziness, does so all the time. One layer of the images in benches/corpus.sh has 577 of them.
source "$(dirname "${BASH_SOURCE[0]}")/harness.sh"
needs unshare python3
needs_root

printf 'kernel    %s\n' "$(uname -r)"
expected 'three new directories, none of them opaque'

cat >inside.sh <<'EOS'
set -eu
mkdir -p lower/etc upper-fs both
mount -t tmpfs tmpfs upper-fs
mkdir upper-fs/upper upper-fs/work
mount -t overlay overlay -o lowerdir=lower,upperdir=upper-fs/upper,workdir=upper-fs/work both
mkdir both/etc/made
mkdir both/etc/renamed.new
mv both/etc/renamed.new both/etc/renamed
mkdir both/new both/new/renamed.new
mv both/new/renamed.new both/new/renamed
cd upper-fs/upper
for directory in etc/made etc/renamed new/renamed; do
  python3 -c 'import os, sys; print("opaque" if "trusted.overlay.opaque" in os.listxattr(sys.argv[1]) else "plain")' $directory
done
EOS
unshare --mount --propagation private sh inside.sh >results 2>inside.log || cannot "$(tail -1 inside.log)"
mapfile -t results <results

seen 'made in a lower directory' plain "${results[0]}"
seen 'renamed in a lower directory' opaque "${results[1]}"
seen 'renamed in a new directory' plain "${results[2]}"
finish
