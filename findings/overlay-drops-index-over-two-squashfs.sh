#!/usr/bin/env bash
# overlayfs honours `index=on` over one squashfs and drops it over two, without an error, so that hard links come apart.
#
# Expected: with `index=on` the hard links of a lower layer stay links when one of them is written to (the kernel's
#   overlayfs.rst, "Non-standard behavior"), over two images as over one; else the mount fails.
# Happens: squashfs has no UUID. overlayfs takes a lower file system without one if it is the only lower. With a second one,
#   of whatever kind, it switches the index off, says so in the kernel's log only, and mounts. Then a write through one
#   name of a file leaves the old content under the other. EROFS has a UUID, and over two of them the index stays.
# Version: squashfs-tools 1:4.5.1-1, erofs-utils 1.5-1 (Debian 12), seen with Linux 6.18.
# Matters: a FUSE file system has no UUID either. Over one merged mount hard links hold; over a mount a layer, or with any
#   directory beside it, they do not, and only /proc/mounts shows it.
source "$(dirname "${BASH_SOURCE[0]}")/harness.sh"
needs unshare mount
needs_root

deb squashfs-tools=1:4.5.1-1 liblzo2-2 erofs-utils=1.5-1 liblz4-1 libuuid1 libselinux1
printf 'kernel    %s\n' "$(uname -r)"
expected 'each time: on, and the other name has the new content'

mkdir links other
echo old >links/a
ln links/a links/b
echo else >other/c
for tree in links other; do
  mksquashfs $tree $tree.squashfs -quiet -no-progress >/dev/null 2>&1 || cannot 'mksquashfs failed'
  mkfs.erofs $tree.erofs $tree >/dev/null 2>&1 || cannot 'mkfs.erofs failed'
done
cat >inside.sh <<'EOI'
set -eu
mkdir upper-fs both plain
mount -t tmpfs tmpfs upper-fs
try() {
  mkdir upper-fs/upper upper-fs/work
  mount -t overlay overlay -o index=on,lowerdir=$1,upperdir=upper-fs/upper,workdir=upper-fs/work both
  echo new >both/a
  if grep -q " $PWD/both overlay .*index=on" /proc/self/mounts; then index=on; else index=off; fi
  echo "$index, $(cat both/b)"
  umount both
  rm -rf upper-fs/upper upper-fs/work
}
for kind in squashfs erofs; do
  for tree in links other; do
    mkdir $tree-$kind
    mount -t $kind -o loop,ro $tree.$kind $tree-$kind
  done
  try links-$kind
  try other-$kind:links-$kind
  try plain:links-$kind
done
EOI
unshare --mount --propagation private sh inside.sh >results 2>inside.log || cannot "$(tail -1 inside.log)"
mapfile -t results <results

seen 'over one squashfs, the other name' 'on, new' "${results[0]}"
seen 'over two squashfs' 'off, old' "${results[1]}"
seen 'over a directory and a squashfs' 'off, old' "${results[2]}"
seen 'over one EROFS' 'on, new' "${results[3]}"
seen 'over two EROFS' 'on, new' "${results[4]}"
seen 'over a directory and an EROFS' 'on, new' "${results[5]}"
finish
