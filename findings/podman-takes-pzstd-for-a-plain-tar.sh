#!/usr/bin/env bash
# podman does not recognise a zstd layer that begins with a skippable frame, as pzstd writes them.
#
# Expected: the media type `application/vnd.oci.image.layer.v1.tar+zstd` says how the layer is compressed, and skippable
#   frames are skipped wherever they stand (RFC 8878, 3.1.2); `zstd -d` does.
# Happens: podman goes by the first bytes and knows the magic number of data frames only. It takes the layer for an
#   uncompressed tar, and fails with "invalid tar header". The same tar compressed by zstd works.
# Version: podman 4.3.1+ds1-8+deb12u1 and zstd 1.5.4 (Debian 12).
# Matters: pzstd's frames are what makes a zstd layer random-access without an index, so it is what an advice for lazy
#   mounts would be; such images cannot be given to all tools. A reader should know all 17 magic numbers.
source "$(dirname "${BASH_SOURCE[0]}")/harness.sh"
needs python3 tar
needs_root

deb podman=4.3.1+ds1-8+deb12u1+b3 libgpgme11 libassuan0 libdevmapper1.02.1 libseccomp2 libsubid4 zstd=1.5.4+dfsg2-5
expected 'podman pulls both layers'

mkdir in
head -c 3000000 /dev/urandom >in/file
tar --sort=name --mtime=@0 --owner=0 --group=0 --numeric-owner -cf layer.tar in/file
zstd -q layer.tar -o layer.zstd
pzstd -q layer.tar -o layer.pzstd
python3 - <<'PY'
import hashlib, json, os
oci = "application/vnd.oci.image."
def put(to, data):
    name = hashlib.sha256(data).hexdigest()
    open(f"{to}/blobs/sha256/{name}", "wb").write(data)
    return {"digest": f"sha256:{name}", "size": len(data)}
for writer in ("zstd", "pzstd"):
    to = f"from-{writer}"
    os.makedirs(f"{to}/blobs/sha256")
    diff_id = "sha256:" + hashlib.sha256(open("layer.tar", "rb").read()).hexdigest()
    layer = put(to, open(f"layer.{writer}", "rb").read())
    config = put(to, json.dumps({"architecture": "amd64", "os": "linux", "config": {},
                                 "rootfs": {"type": "layers", "diff_ids": [diff_id]}}).encode())
    manifest = put(to, json.dumps({"schemaVersion": 2, "mediaType": oci + "manifest.v1+json",
                                   "config": {"mediaType": oci + "config.v1+json", **config},
                                   "layers": [{"mediaType": oci + "layer.v1.tar+zstd", **layer}]}).encode())
    json.dump({"schemaVersion": 2, "manifests": [{"mediaType": oci + "manifest.v1+json", **manifest,
               "annotations": {"org.opencontainers.image.ref.name": "a"}}]}, open(f"{to}/index.json", "w"))
    open(f"{to}/oci-layout", "w").write('{"imageLayoutVersion":"1.0.0"}')
PY
echo '{"default":[{"type":"insecureAcceptAnything"}]}' >policy.json
pull() {
  if podman --root store --runroot run --storage-driver vfs pull --quiet --signature-policy policy.json "oci:$1:a" >out 2>&1; then
    echo pulled
  else
    grep -o 'archive/tar: invalid tar header' out | head -1
  fi
}
magic() { head -c 4 "$1" | od -An -tx1 | tr -d ' '; }

seen 'zstd -d of both is the tar' yes \
  "$(cmp -s <(zstd -dqc layer.zstd) layer.tar && cmp -s <(zstd -dqc layer.pzstd) layer.tar && echo yes || echo no)"
seen 'first bytes' '28b52ffd 502a4d18' "$(magic layer.zstd) $(magic layer.pzstd)"
seen 'podman pull, by zstd' pulled "$(pull from-zstd)"
seen 'podman pull, by pzstd' 'archive/tar: invalid tar header' "$(pull from-pzstd)"
finish
