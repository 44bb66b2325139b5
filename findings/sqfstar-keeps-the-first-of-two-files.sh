#!/usr/bin/env bash
# A name that stands twice in a tar is the second file to GNU tar and umoci, the first to sqfstar, and an error to two others.
#
# Expected: the last entry of a name counts: `tar --append` and `--update` exist to put a newer file after an older one, and
#   readers extract one over the other (GNU tar manual, "Multiple Members with the Same Name").
# Happens: sqfstar says "ignoring" and keeps the first, with exit code 0, so the squashfs has the old content and mode.
#   tar2sqfs, of the other squashfs tools, refuses the archive, and podman refuses it as a layer
#   ("duplicates of file paths not supported"), with each storage driver. umoci and GNU tar have the new file.
# Version: squashfs-tools 1:4.5.1-1, squashfs-tools-ng 1.2.0-1, tar 1.34+dfsg-1.2+deb12u1, umoci 0.4.7+ds-3+b7,
#   podman 4.3.1+ds1-8+deb12u1 (Debian 12).
# Matters: image-spec does not forbid such layers, and converters of layers to squashfs change what is in them silently. A
#   reader that goes by "the last wins" agrees with the tools that unpack, not with an image made by sqfstar.
source "$(dirname "${BASH_SOURCE[0]}")/harness.sh"
needs python3 unshare
needs_root

deb tar=1.34+dfsg-1.2+deb12u1 libacl1 libselinux1 squashfs-tools=1:4.5.1-1 liblzo2-2 squashfs-tools-ng=1.2.0-1 libsquashfs1 \
  umoci=0.4.7+ds-3+b7 podman=4.3.1+ds1-8+deb12u1+b3 libgpgme11 libassuan0 libdevmapper1.02.1 libseccomp2 libsubid4
expected 'new 600 from every reader'

echo old >file
chmod 644 file
tar -cf layer.tar file
echo new >file
chmod 600 file
tar --append -f layer.tar file
describe() { echo "$(cat "$1") $(stat -c %a "$1")"; }

mkdir gnu
tar -C gnu -xf layer.tar
umoci init --layout layout >/dev/null 2>&1
umoci new --image layout:a >/dev/null 2>&1
umoci raw add-layer --image layout:a layer.tar >/dev/null 2>&1 || cannot 'umoci raw add-layer failed'
umoci unpack --image layout:a bundle >/dev/null 2>&1 || cannot 'umoci unpack failed'
sqfstar -quiet -no-progress image.squashfs <layer.tar >sqfstar.log 2>&1 && code=0 || code=$?
unsquashfs -quiet -no-progress -dest squashfs image.squashfs >unsquashfs.log 2>&1 || cannot "unsquashfs: $(tail -1 unsquashfs.log)"
by_tar2sqfs=$(tar2sqfs --quiet other.squashfs <layer.tar 2>&1 || true)
echo '{"default":[{"type":"insecureAcceptAnything"}]}' >policy.json
cat >inside.sh <<'EOI'
for driver in vfs overlay; do
  podman --root "$PWD/store-$driver" --runroot "$PWD/run-$driver" --storage-driver $driver pull --quiet \
    --signature-policy policy.json oci:layout:a 2>&1 | grep -o 'duplicates of file paths not supported' | head -1
done
EOI
mapfile -t by_podman < <(unshare --mount --propagation private sh inside.sh)

seen 'GNU tar extracts' 'new 600' "$(describe gnu/file)"
seen 'umoci unpacks' 'new 600' "$(describe bundle/rootfs/file)"
seen 'sqfstar, exit code' 0 "$code"
seen 'sqfstar packs' 'old 644' "$(describe squashfs/file)"
seen 'tar2sqfs' 'file: File exists' "$by_tar2sqfs"
seen 'podman pull, vfs' 'duplicates of file paths not supported' "${by_podman[0]:-}"
seen 'podman pull, overlay' 'duplicates of file paths not supported' "${by_podman[1]:-}"
finish
