#!/usr/bin/env bash
# A global PAX header changes owner and time of all files for GNU tar, of none for podman, and umoci refuses the layer.
#
# Expected: the records of a global header (type `g`) are those of every file after it, until a file's own header says
#   otherwise (POSIX, pax, "pax Header Block"). `tar --pax-option=KEYWORD=VALUE` writes one; `git archive` does, too.
# Happens: Go's archive/tar hands the header out as an entry and applies nothing of it. containers/storage leaves that entry
#   out, and umoci fails at it as an unknown type, also where it has only a comment, as git's.
# Version: tar 1.34+dfsg-1.2+deb12u1, podman 4.3.1+ds1-8+deb12u1, umoci 0.4.7+ds-3+b7 (Debian 12).
# Matters: one diff_id has two trees, and `git archive` makes a layer that not every tool unpacks. An image reader shows what
#   engines show, so it has to ignore these records, against POSIX; and a time clamped by such an option is not clamped.
source "$(dirname "${BASH_SOURCE[0]}")/harness.sh"
needs python3 unshare
needs_root

deb tar=1.34+dfsg-1.2+deb12u1 libacl1 libselinux1 umoci=0.4.7+ds-3+b7 \
  podman=4.3.1+ds1-8+deb12u1+b3 libgpgme11 libassuan0 libdevmapper1.02.1 libseccomp2 libsubid4
expected 'every tool says: 1000, owner 65534'

touch -d @2000 file
tar --format=pax --pax-option='mtime=1000,uid=65534' --owner=0 --group=0 -cf layer.tar file
tar --format=pax --pax-option=comment=0123456789 -cf comment.tar file   # as by `git archive`: a header, and nothing to apply
umoci init --layout layout >/dev/null 2>&1
for layer in layer comment; do
  umoci new --image "layout:$layer" >/dev/null 2>&1
  umoci raw add-layer --image "layout:$layer" "$layer.tar" >/dev/null 2>&1 || cannot 'umoci raw add-layer failed'
done
echo '{"default":[{"type":"insecureAcceptAnything"}]}' >policy.json
mkdir gnu
tar -C gnu -xf layer.tar
cat >inside.sh <<'EOS'
set -eu
engine() { podman --root "$PWD/store" --runroot "$PWD/run" --storage-driver vfs "$@"; }
id=$(engine pull --quiet --signature-policy policy.json oci:layout:layer)
stat -c '%Y, owner %u' "$(engine image mount "$id")/file"
EOS
by_podman=$(unshare --mount --propagation private sh inside.sh 2>inside.log) || cannot "$(tail -1 inside.log)"
by_umoci() { umoci unpack --image "layout:$1" "bundle-$1" 2>&1 | grep -o 'unknown typeflag.*' | head -1 || true; }

seen 'GNU tar extracts' '1000, owner 65534' "$(stat -c '%Y, owner %u' gnu/file)"
seen 'Python reads' '1000, owner 65534' \
  "$(python3 -c 'import tarfile; file = tarfile.open("layer.tar").next(); print(f"{int(file.mtime)}, owner {file.uid}")')"
seen 'podman shows' '2000, owner 0' "$by_podman"
seen 'umoci unpack' "unknown typeflag '\x67'" "$(by_umoci layer)"
seen 'umoci unpack, only a comment in it' "unknown typeflag '\x67'" "$(by_umoci comment)"
finish
