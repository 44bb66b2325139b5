#!/usr/bin/env bash
# An overlay without an upper directory, mounted over a FUSE file system that was not looked at yet, forbids everything.
#
# Expected: an overlay has the permissions of its lower directory. When `stat` says that its root is 0755, every user may
#   pass through it.
# Happens: a FUSE mount begins with a root of mode 0, until the kernel first asks its server. overlayfs copies that when
#   it is mounted, and never again: `stat` of the overlay's root, which asks the server, says 0755, yet every process
#   without CAP_DAC_OVERRIDE gets EACCES for whatever is below. One `stat` of the FUSE root before the overlay is mounted
#   makes the difference.
# Version: bindfs 1.14.7-1 (Debian 12), seen with Linux 6.18.
# Matters: a container's root that is an overlay over a lazy image fails with "permission denied" for its first program,
#   unless the program that mounts both looks at the lower one first. By hand it cannot be found: each look mends it.
source "$(dirname "${BASH_SOURCE[0]}")/harness.sh"
needs unshare setpriv fusermount3
needs_root
[ -c /dev/fuse ] || cannot 'there is no /dev/fuse'

deb bindfs=1.14.7-1 libfuse2
printf 'kernel    %s\n' "$(uname -r)"
expected 'the file can be read through both overlays'

cat >inside.sh <<'EOS'
set -eu
mkdir source fuse overlay second
chmod 755 . source second
echo readable >source/file
read_as_another_user() {
  mount -t overlay overlay -o ro,lowerdir=fuse:second overlay
  printf '%s, %s\n' "$(stat -c %a overlay)" "$(setpriv --reuid 65534 --regid 65534 --clear-groups cat overlay/file 2>/dev/null || echo denied)"
  umount overlay
}
bindfs -o allow_other,default_permissions source fuse
read_as_another_user
stat fuse >/dev/null
read_as_another_user
umount fuse
EOS
chmod 755 .
unshare --mount --propagation private sh inside.sh >results 2>inside.log || cannot "$(tail -1 inside.log)"
mapfile -t results <results

seen 'nothing looked at the FUSE root before' '755, denied' "${results[0]}"
seen 'after a stat of the FUSE root' '755, readable' "${results[1]}"
finish
