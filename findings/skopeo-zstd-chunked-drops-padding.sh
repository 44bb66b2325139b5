#!/usr/bin/env bash
# skopeo 1.9.3 changes the tar of a layer when it recompresses it to zstd:chunked, and keeps the old diff_id.
#
# Expected: recompressing a layer leaves its uncompressed bytes alone, so that the diff_id in the configuration still
#   holds (image-spec, config.md: "rootfs.diff_ids").
# Happens: a tar that ends in more than two blocks of zeros, which is what GNU tar writes (it pads to 10 KiB), comes out
#   with just two. The blob decodes to another digest than the configuration says.
# Version: skopeo 1.9.3+ds1-1 (Debian 12).
# Matters: a reader that verifies diff_ids must refuse such images, and so do containerd and peelfs; podman, which does
#   not compare here, takes them. The image is wrong, not the reader.
source "$(dirname "${BASH_SOURCE[0]}")/harness.sh"
needs tar zstd python3

deb skopeo=1.9.3+ds1-1+b10 libgpgme11 libdevmapper1.02.1 libassuan0
expected 'the decoded layer has the diff_id of the configuration'

mkdir in
printf 'hello\n' >in/file
tar --sort=name --mtime=@0 --owner=0 --group=0 --numeric-owner -cf layer.tar in/file
python3 - <<'PY'
import hashlib, json, os
os.makedirs("layout/blobs/sha256")
def put(data):
    name = hashlib.sha256(data).hexdigest()
    open(f"layout/blobs/sha256/{name}", "wb").write(data)
    return {"digest": f"sha256:{name}", "size": len(data)}
tar = put(open("layer.tar", "rb").read())
oci = "application/vnd.oci.image."
config = put(json.dumps({"architecture": "amd64", "os": "linux", "config": {},
                         "rootfs": {"type": "layers", "diff_ids": [tar["digest"]]}}).encode())
manifest = put(json.dumps({"schemaVersion": 2, "mediaType": oci + "manifest.v1+json",
                           "config": {"mediaType": oci + "config.v1+json", **config},
                           "layers": [{"mediaType": oci + "layer.v1.tar", **tar}]}).encode())
json.dump({"schemaVersion": 2, "manifests": [{"mediaType": oci + "manifest.v1+json", **manifest,
           "annotations": {"org.opencontainers.image.ref.name": "a"}}]}, open("layout/index.json", "w"))
open("layout/oci-layout", "w").write('{"imageLayoutVersion":"1.0.0"}')
PY
echo '{"default":[{"type":"insecureAcceptAnything"}]}' >policy.json
skopeo --policy policy.json copy -q --dest-compress-format zstd:chunked oci:layout:a oci:out:a

blobs=out/blobs/sha256
manifest=$blobs/$(python3 -c 'import json; print(json.load(open("out/index.json"))["manifests"][0]["digest"][7:])')
field() { python3 -c 'import json, sys; print(eval(sys.argv[2], json.load(open(sys.argv[1]))))' "$@"; }
layer=$blobs/$(field "$manifest" 'layers[0]["digest"][7:]')
config=$blobs/$(field "$manifest" 'config["digest"][7:]')
zstd -dqc <"$layer" >out.tar
said=$(field "$config" 'rootfs["diff_ids"][0][7:]')
is=$(sha256sum <out.tar | cut -d' ' -f1)

seen 'bytes of the layer before and after' '10240 2048' "$(stat -c %s layer.tar) $(stat -c %s out.tar)"
seen 'what is missing is zeros at the end' yes "$(cmp -s <(head -c 2048 layer.tar) out.tar && echo yes || echo no)"
seen 'diff_id in the configuration is still that of the padded tar' yes \
  "$([ "$said" = "$(sha256sum <layer.tar | cut -d' ' -f1)" ] && echo yes || echo no)"
seen 'diff_id in the configuration is that of the layer' no "$([ "$said" = "$is" ] && echo yes || echo no)"
finish
