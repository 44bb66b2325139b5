#!/usr/bin/env bash
# An extended attribute with an empty value is kept by some readers of a layer and dropped by those that are written in Go.
#
# Expected: a PAX record `SCHILY.xattr.NAME=` is an attribute NAME with an empty value: the kernel has such attributes
#   (setxattr(2) with size 0), GNU tar writes them so, and reads them back.
# Happens: PAX says that a record with an empty value deletes an earlier one of that keyword, and Go's archive/tar goes by
#   that for all keywords. So umoci unpacks a file without the attribute, and GNU tar and bsdtar with it.
# Version: umoci 0.4.7+ds-3+b7, tar 1.34+dfsg-1.2+deb12u1, libarchive-tools 3.6.2-1+deb12u5 (Debian 12).
# Matters: two trees from one diff_id: a file whose attribute is a mere flag has it in one engine and not in another. A reader has
#   to choose one and say so.
source "$(dirname "${BASH_SOURCE[0]}")/harness.sh"
needs python3
needs_root

deb umoci=0.4.7+ds-3+b7 tar=1.34+dfsg-1.2+deb12u1 libacl1 libselinux1 libarchive-tools=3.6.2-1+deb12u5 libarchive13
expected 'three trees with the attribute user.flag'

python3 - <<'PY'
import io, tarfile
with tarfile.open("layer.tar", "w", format=tarfile.PAX_FORMAT) as tar:
    entry = tarfile.TarInfo("file")
    entry.pax_headers = {"SCHILY.xattr.user.flag": "", "SCHILY.xattr.user.text": "kept"}
    tar.addfile(entry, io.BytesIO())
PY
mkdir gnu bsd written
attributes() { python3 -c 'import os, sys; print(*sorted(os.listxattr(sys.argv[1])))' "$1"; }
touch written/file
python3 -c 'import os; os.setxattr("written/file", "user.flag", b"")' || cannot 'this file system has no user attributes'
tar --xattrs -C written -cf written.tar file

tar --xattrs -C gnu -xf layer.tar
bsdtar --xattrs -C bsd -xf layer.tar
umoci init --layout layout >/dev/null 2>&1
umoci new --image layout:a >/dev/null 2>&1
umoci raw add-layer --image layout:a layer.tar >/dev/null 2>&1 || cannot 'umoci raw add-layer failed'
umoci unpack --image layout:a bundle >/dev/null 2>&1 || cannot 'umoci unpack failed'

seen 'GNU tar writes' 'SCHILY.xattr.user.flag=' "$(grep -ao 'SCHILY.xattr.user.flag=.*' written.tar | head -1)"
seen 'GNU tar extracts' 'user.flag user.text' "$(attributes gnu/file)"
seen 'bsdtar extracts' 'user.flag user.text' "$(attributes bsd/file)"
seen 'umoci unpacks' 'user.text' "$(attributes bundle/rootfs/file)"
finish
