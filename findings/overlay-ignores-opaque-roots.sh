#!/usr/bin/env bash
# A layer whose root is opaque hides nothing under podman, and a whiteout in a new directory becomes a name that cannot be read.
#
# Expected: image-spec (layer.md, "Opaque Whiteout") says that `.wh..wh..opq` hides all of its directory in the lower
#   layers and excepts no directory; a whiteout of a name that no lower layer has does nothing.
# Happens: containers/storage turns markers into those of overlayfs entry by entry. overlayfs does not look at the opaque
#   mark of a lower directory's own root, so everything below stays; and in a directory that only one layer has it lists
#   whiteouts (character devices 0:0) as names, which then do not exist. umoci applies both as the specification says.
# Version: podman 4.3.1+ds1-8+deb12u1, umoci 0.4.7+ds-3+b7 (Debian 12), seen with Linux 6.18; overlayfs alone does the same.
# Matters: layers stacked by the kernel are not the merged image. A program that shows single layers to an engine must write an
#   opaque root as whiteouts of each name below, and must know the layers below before showing a whiteout.
source "$(dirname "${BASH_SOURCE[0]}")/harness.sh"
needs python3 unshare
needs_root

deb podman=4.3.1+ds1-8+deb12u1+b3 libgpgme11 libassuan0 libdevmapper1.02.1 libseccomp2 libsubid4 umoci=0.4.7+ds-3+b7
printf 'kernel    %s\n' "$(uname -r)"
expected 'every tool shows b, d and d/y; neither a nor d/x'

python3 - <<'PY'
import hashlib, io, json, os, tarfile
os.makedirs("layout/blobs/sha256")
oci = "application/vnd.oci.image."
def put(data):
    name = hashlib.sha256(data).hexdigest()
    open(f"layout/blobs/sha256/{name}", "wb").write(data)
    return {"digest": f"sha256:{name}", "size": len(data)}
def layer(*names):
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for name in names:
            entry = tarfile.TarInfo(name)
            if name.endswith("/"):
                entry.type, entry.mode = tarfile.DIRTYPE, 0o755
            tar.addfile(entry)
    return put(out.getvalue())
layers = [layer("a"), layer(".wh..wh..opq", "b", "d/", "d/.wh.x", "d/y")]
config = put(json.dumps({"architecture": "amd64", "os": "linux", "config": {}, "rootfs": {
    "type": "layers", "diff_ids": [one["digest"] for one in layers]}}).encode())
manifest = put(json.dumps({"schemaVersion": 2, "mediaType": oci + "manifest.v1+json",
                           "config": {"mediaType": oci + "config.v1+json", **config},
                           "layers": [{"mediaType": oci + "layer.v1.tar", **one} for one in layers]}).encode())
json.dump({"schemaVersion": 2, "manifests": [{"mediaType": oci + "manifest.v1+json", **manifest,
           "annotations": {"org.opencontainers.image.ref.name": "a"}}]}, open("layout/index.json", "w"))
open("layout/oci-layout", "w").write('{"imageLayoutVersion":"1.0.0"}')
PY
echo '{"default":[{"type":"insecureAcceptAnything"}]}' >policy.json
cat >names.py <<'PY'
import os, sys
for folder in (".", "d"):
    for name in sorted(os.listdir(os.path.join(sys.argv[1], folder))):
        try:
            os.lstat(os.path.join(sys.argv[1], folder, name))
            print(name, end=" ")
        except FileNotFoundError:
            print(f"{name}(unreadable)", end=" ")
print()
PY
cat >inside.sh <<'EOS'
set -eu
engine() { podman --root "$PWD/store" --runroot "$PWD/run" --storage-driver overlay "$@"; }
id=$(engine pull --quiet --signature-policy policy.json oci:layout:a)
python3 names.py "$(engine image mount "$id")" >&3
engine image umount "$id" >/dev/null
mkdir -p lower upper/d both
touch lower/a upper/b upper/d/y
mknod upper/d/x c 0 0
python3 -c 'import os; os.setxattr("upper", "trusted.overlay.opaque", b"y")'
mount -t overlay overlay -o lowerdir=upper:lower both
python3 names.py both >&3
EOS
unshare --mount --propagation private sh inside.sh 3>results >inside.log 2>&1 || cannot "$(tail -1 inside.log)"
mapfile -t results <results
umoci unpack --rootless --image layout:a bundle >/dev/null 2>&1 || cannot 'umoci unpack failed'

seen 'umoci unpack' 'b d y ' "$(python3 names.py bundle/rootfs)"
seen 'podman' 'a b d x(unreadable) y ' "${results[0]}"
seen 'overlayfs alone' 'a b d x(unreadable) y ' "${results[1]}"
finish
