#!/usr/bin/env bash
# restic stores the old content of a file after the image that holds it was exchanged, and says nothing.
#
# Expected: restic skips a file only if size, modification time, change time and inode number are all as they were (its
#   documentation, "File change detection"). The change time cannot be set by programs, so it tells two files of equal
#   size and modification time apart, as it does when an archive is unpacked over another.
# Happens: a file system in an image has no change time of its own. EROFS and squashfs show the modification time twice,
#   and inode numbers that follow from the order of files. Two reproducible builds, whose modification times are all
#   clamped to one date, give a changed file of equal size all four values. The second backup has the first one's bytes.
# Version: restic 0.14.0-1+b5, erofs-utils 1.5-1 (Debian 12), seen with Linux 6.18.
# Matters: any file system over an image that has to make up a change time does this, unless the time or the inode number
#   depends on the layer's digest. Backups of mounted images need `--force`.
source "$(dirname "${BASH_SOURCE[0]}")/harness.sh"
needs unshare mount
needs_root

deb restic=0.14.0-1+b5 erofs-utils=1.5-1 liblz4-1 libuuid1 libselinux1
printf 'kernel    %s\n' "$(uname -r)"
expected 'each backup has the content of its time'

for build in 1 2; do
  mkdir "tree-$build"
  echo "setting = $build" >"tree-$build/settings"
  touch -d @1700000000 "tree-$build/settings" "tree-$build"
  mkfs.erofs -U 00000000-0000-0000-0000-000000000000 "image-$build" "tree-$build" >/dev/null 2>&1 || cannot 'mkfs.erofs failed'
done
cat >inside.sh <<'EOS'
set -eu
export RESTIC_PASSWORD=finding
mkdir data
restic() { command restic --no-cache --quiet --repo "$repository" "$@"; }
stored() { restic backup "$@" data && restic dump latest /data/settings; }

repository=of-images
restic init
for build in 1 2; do
  mount -t erofs -o loop,ro image-$build data
  stat -c '%s %Y %Z %i' data/settings
  stored
  [ $build = 1 ] || stored --force
  umount data
done

repository=of-a-directory
restic init
for build in 1 2; do
  cp -p tree-$build/settings data/settings
  stored
done
EOS
unshare --mount --propagation private sh inside.sh >results 2>inside.log || cannot "$(tail -1 inside.log)"
mapfile -t results <results

seen 'size, times and inode number differ' no "$([ "${results[0]}" = "${results[2]}" ] && echo no || echo yes)"
seen 'stored of the first image' 'setting = 1' "${results[1]}"
seen 'stored of the second image' 'setting = 1' "${results[3]}"
seen 'stored of the second image with --force' 'setting = 2' "${results[4]}"
seen 'stored of a directory after cp -p of the second' 'setting = 2' "${results[6]}"
finish
