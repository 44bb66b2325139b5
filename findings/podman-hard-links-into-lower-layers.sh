#!/usr/bin/env bash
# Whether podman takes a hard link to a lower layer's file depends on its storage driver.
#
# Expected: a layer may link to a file of a layer below: image-spec (layer.md, "Hardlinks") says that a changeset is
#   applied on top of its parents, where the target is. Whether an image can be pulled does not depend on the machine.
# Happens: with the driver `vfs` podman pulls the image. With `overlay`, its default, each layer is unpacked into a
#   directory of its own, where the target is not, and the pull fails. umoci unpacks the image.
# Version: podman 4.3.1+ds1-8+deb12u1, umoci 0.4.7+ds-3+b7 (Debian 12).
# Matters: such layers exist (a builder that links into its base image writes them) and tools disagree: a reader that
#   merges layers must resolve these links in the merged view, not within the layer.
source "$(dirname "${BASH_SOURCE[0]}")/harness.sh"
needs python3
needs_root

deb podman=4.3.1+ds1-8+deb12u1+b3 libgpgme11 libassuan0 libdevmapper1.02.1 libseccomp2 libsubid4 umoci=0.4.7+ds-3+b7
expected 'the image is pulled by both drivers'

python3 - <<'PY'
import hashlib, io, json, os, tarfile
os.makedirs("layout/blobs/sha256")
oci = "application/vnd.oci.image."
def put(data):
    name = hashlib.sha256(data).hexdigest()
    open(f"layout/blobs/sha256/{name}", "wb").write(data)
    return {"digest": f"sha256:{name}", "size": len(data)}
def layer(entry, data=b""):
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as tar:
        entry.size = len(data)
        tar.addfile(entry, io.BytesIO(data))
    return put(out.getvalue())
base = layer(tarfile.TarInfo("target"), b"hello\n")
link = tarfile.TarInfo("link")
link.type, link.linkname = tarfile.LNKTYPE, "target"
layers = [base, layer(link)]
config = put(json.dumps({"architecture": "amd64", "os": "linux", "config": {}, "rootfs": {
    "type": "layers", "diff_ids": [one["digest"] for one in layers]}}).encode())
manifest = put(json.dumps({"schemaVersion": 2, "mediaType": oci + "manifest.v1+json",
                           "config": {"mediaType": oci + "config.v1+json", **config},
                           "layers": [{"mediaType": oci + "layer.v1.tar", **one} for one in layers]}).encode())
json.dump({"schemaVersion": 2, "manifests": [{"mediaType": oci + "manifest.v1+json", **manifest,
           "annotations": {"org.opencontainers.image.ref.name": "a"}}]}, open("layout/index.json", "w"))
open("layout/oci-layout", "w").write('{"imageLayoutVersion":"1.0.0"}')
PY
# The driver `overlay` mounts its directory on itself.
# shellcheck disable=SC2317 # the harness calls it
at_end() { umount store-overlay/overlay 2>/dev/null || true; }
echo '{"default":[{"type":"insecureAcceptAnything"}]}' >policy.json
pull() {
  if podman --root "store-$1" --runroot "run-$1" --storage-driver "$1" pull --quiet --signature-policy policy.json oci:layout:a >out 2>&1; then
    echo pulled
  else
    grep -o 'no such file or directory' out | head -1
  fi
}
if umoci unpack --rootless --image layout:a bundle >/dev/null 2>&1; then
  unpacked="$(cat bundle/rootfs/link), $(stat -c %h bundle/rootfs/link) links"
else
  unpacked=failed
fi

seen 'umoci unpack, the link' 'hello, 2 links' "$unpacked"
seen 'podman pull, vfs' pulled "$(pull vfs)"
seen 'podman pull, overlay' 'no such file or directory' "$(pull overlay)"
finish
