#!/usr/bin/env bash
# GNU cpio keeps 32 bits of an inode number, and so merges unrelated files of an overlayfs with `xino=on`.
#
# Expected: an archive of an overlayfs mount holds every file with its own content. Hard links are files of equal device
#   and inode number, and `xino=on` exists to make these pairs unique over all layers.
# Happens: `xino=on` puts the number of the layer into the highest bits. The formats of cpio (newc: 8 hex digits) keep the
#   low 32 bits, so that two pairs of hard links of two layers with equal numbers are one file in the archive. cpio
#   writes and extracts it without a word, with exit code 0, and two names have another file's content.
# Version: cpio 2.13+dfsg-7.1 (Debian 12); seen with Linux 6.18.
# Matters: every file system that builds inode numbers of a layer in the high bits and an entry in the low ones has this,
#   FUSE ones included; initramfs builders use cpio. Numbers should be unique in their low 32 bits.
source "$(dirname "${BASH_SOURCE[0]}")/harness.sh"
needs unshare
needs_root

deb cpio=2.13+dfsg-7.1
printf 'kernel    %s\n' "$(uname -r)"
expected 'the extracted files have the content of the mounted ones'

cat >inside.sh <<'EOS'
set -eu
mkdir low high both
mount -t tmpfs tmpfs low
mount -t tmpfs tmpfs high
for layer in low high; do   # the same calls in both: equal inode numbers
  echo "$layer" >"$layer/$layer-a"
  ln "$layer/$layer-a" "$layer/$layer-b"
done
mount -t overlay overlay -o xino=on,lowerdir=high:low both
stat -c %i both/low-a both/high-a >numbers
(cd both && find . -type f | sort | cpio --quiet -o -H newc) >archive
mkdir out
(cd out && cpio --quiet -i) <archive 2>said
cat both/*-* >mounted
cat out/*-* >extracted
EOS
unshare --mount --propagation private sh inside.sh 2>inside.log || cannot "$(tail -1 inside.log)"
mapfile -t numbers <numbers

seen 'inode numbers differ' yes "$([ "${numbers[0]}" != "${numbers[1]}" ] && echo yes || echo no)"
seen 'their low 32 bits differ' no "$([ $((numbers[0] & 0xffffffff)) != $((numbers[1] & 0xffffffff)) ] && echo yes || echo no)"
seen 'mounted (high-a high-b low-a low-b)' 'high high low low' "$(xargs <mounted)"
seen 'extracted' 'high high high high' "$(xargs <extracted)"
seen 'cpio said' '' "$(cat said)"
finish
