#!/usr/bin/env bash
# podman gives files of a layer access lists that stand in no header: those that their directory's default list makes.
#
# Expected: a file has the mode and the attributes of its header. A default list (`system.posix_acl_default`) of a directory is
#   for files that are made there later; GNU tar and umoci unpack such a layer so.
# Happens: containers/storage sets a directory's attributes before it makes the directory's files, so the kernel gives
#   each of them an access list, and each directory below the default list, too. They are not taken away again. With
#   the directory's header after its files, the same entries make the other tree.
# Version: podman 4.3.1+ds1-8+deb12u1, umoci 0.4.7+ds-3+b7, tar 1.34+dfsg-1.2+deb12u1 (Debian 12).
# Matters: one diff_id has two trees, and what is committed from podman's has more lists than any layer below. A mount that shows what
#   the headers say differs from `podman run` there; umoci is the one to compare with.
source "$(dirname "${BASH_SOURCE[0]}")/harness.sh"
needs python3 unshare
needs_root

deb tar=1.34+dfsg-1.2+deb12u1 libacl1 libselinux1 umoci=0.4.7+ds-3+b7 \
  podman=4.3.1+ds1-8+deb12u1+b3 libgpgme11 libassuan0 libdevmapper1.02.1 libseccomp2 libsubid4
expected 'd has a default list; d/file and d/sub have none'

cat >lists.py <<'PY'
import os, sys
names = {"system.posix_acl_access": "access", "system.posix_acl_default": "default"}
print("; ".join(f"{path}: " + (" ".join(sorted(names[one] for one in os.listxattr(os.path.join(sys.argv[1], path)) if one in names)) or "none")
                for path in ("d", "d/file", "d/sub")))
PY
mkdir -p tree/d/sub gnu
echo content >tree/d/file
chmod 644 tree/d/file
python3 - <<'PY' || cannot 'this file system has no access lists'
import os, struct
# user::rwx user:1234:rwx group::r-x mask::rwx other::r-x, as the kernel takes it (acl(5), linux/posix_acl_xattr.h)
entries = [(1, 7, 0xFFFFFFFF), (2, 7, 1234), (4, 5, 0xFFFFFFFF), (16, 7, 0xFFFFFFFF), (32, 5, 0xFFFFFFFF)]
os.setxattr("tree/d", "system.posix_acl_default", struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *one) for one in entries))
PY
pack() { tar --xattrs --xattrs-include='*' --no-recursion -C tree -cf "$@"; }
pack first.tar d d/file d/sub
pack last.tar d/file d/sub d
tar --xattrs --xattrs-include='*' -C gnu -xf first.tar
umoci init --layout layout >/dev/null 2>&1
for layer in first last; do
  umoci new --image "layout:$layer" >/dev/null 2>&1
  umoci raw add-layer --image "layout:$layer" "$layer.tar" >/dev/null 2>&1 || cannot 'umoci raw add-layer failed'
done
umoci unpack --image layout:first bundle >/dev/null 2>&1 || cannot 'umoci unpack failed'
echo '{"default":[{"type":"insecureAcceptAnything"}]}' >policy.json
cat >inside.sh <<'EOI'
set -eu
engine() { podman --root "$PWD/store" --runroot "$PWD/run" --storage-driver vfs "$@"; }
for layer in first last; do
  id=$(engine pull --quiet --signature-policy policy.json oci:layout:$layer)
  python3 lists.py "$(engine image mount "$id")"
done
EOI
unshare --mount --propagation private sh inside.sh >results 2>inside.log || cannot "$(tail -1 inside.log)"
mapfile -t results <results

seen 'packed' 'd: default; d/file: none; d/sub: none' "$(python3 lists.py tree)"
seen 'GNU tar extracts' 'd: default; d/file: none; d/sub: none' "$(python3 lists.py gnu)"
seen 'umoci unpacks' 'd: default; d/file: none; d/sub: none' "$(python3 lists.py bundle/rootfs)"
seen 'podman shows' 'd: default; d/file: access; d/sub: access default' "${results[0]}"
seen 'podman, header of d last' 'd: default; d/file: none; d/sub: none' "${results[1]}"
finish
