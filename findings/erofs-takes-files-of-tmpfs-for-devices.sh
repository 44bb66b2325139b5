#!/usr/bin/env bash
# An EROFS image in a file mounts from ext4, and not from tmpfs or a container's own file system, with an error that means something else.
#
# Expected: since Linux 6.12 EROFS mounts a regular file by its path, with no loop device. Where the kernel was built without
#   that, the error is ENOTBLK ("Block device required"); any other obstacle has an error of its own.
# Happens: when the file lies on tmpfs or on overlayfs the same kernel answers ENOTBLK, too: EROFS takes files only of file
#   systems that read through the page cache in the usual way, and takes all others for device nodes that are none.
# Version: erofs-utils 1.5-1 (Debian 12), seen with Linux 6.18.
# Matters: a program that asks whether the kernel can mount files, by trying it on a file of its own in /tmp or in a container,
#   is told that it cannot. Try on the file system that will hold the images, and name that file system in the error.
source "$(dirname "${BASH_SOURCE[0]}")/harness.sh"
needs python3 unshare
needs_root

deb erofs-utils=1.5-1 liblz4-1 libuuid1 libselinux1
printf 'kernel    %s\n' "$(uname -r)"
[ "$(stat -f -c %T .)" = ext2/ext3 ] || cannot "$work is not on ext4"
expected 'the image mounts from all file systems'

mkdir content && echo readable >content/file
mkfs.erofs image content >/dev/null 2>&1 || cannot 'mkfs.erofs failed'
cat >mount.py <<'PY'
# Mounts argv[1] by the kernel's mount API (fsopen and its kin), which Python has no functions for.
import ctypes, errno, os, platform, sys
if platform.machine() != "x86_64":
    sys.exit("knows the numbers of x86_64 only")
call = ctypes.CDLL(None, use_errno=True).syscall
FSOPEN, FSCONFIG, FSMOUNT, SET_STRING, CREATE, ATTR_RDONLY = 430, 431, 432, 1, 6, 1
context = call(FSOPEN, b"erofs", 0)
if context < 0:
    print(errno.errorcode[ctypes.get_errno()], "(no EROFS)")
    sys.exit()
call(FSCONFIG, context, SET_STRING, b"source", sys.argv[1].encode(), 0)
if call(FSCONFIG, context, CREATE, None, None, 0) < 0:
    print(errno.errorcode[ctypes.get_errno()])
    sys.exit()
mount = call(FSMOUNT, context, 0, ATTR_RDONLY)
print(open(os.open("file", os.O_RDONLY, dir_fd=mount)).read().strip())
PY
cat >inside.sh <<'EOS'
set -eu
mkdir plain lower upper-fs both
mount -t tmpfs tmpfs plain
mount -t tmpfs tmpfs upper-fs
mkdir upper-fs/upper upper-fs/work
mount -t overlay overlay -o lowerdir=lower,upperdir=upper-fs/upper,workdir=upper-fs/work both
for place in . plain both; do
  [ -f $place/image ] || cp image $place/image
  python3 mount.py $place/image
done
EOS
unshare --mount --propagation private sh inside.sh >results 2>inside.log || cannot "$(tail -1 inside.log)"
mapfile -t results <results

seen 'from ext4' readable "${results[0]}"
seen 'from tmpfs' ENOTBLK "${results[1]}"
seen 'from overlayfs' ENOTBLK "${results[2]}"
finish
