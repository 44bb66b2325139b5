#!/usr/bin/env bash
# umoci insert writes layers that are not whole tar files: no padding after the last file, and no end.
#
# Expected: a layer is a tar archive (image-spec, layer.md), so its size is a multiple of 512 and it ends in two blocks of
#   zeros; Go's archive/tar, with which umoci is written, sees to both when it is closed.
# Happens: the layer ends right after the last byte of the last file. umoci unpacks it; GNU tar and Python list
#   the names and then fail.
# Version: umoci 0.4.7+ds-3+b7 (Debian 12), GNU tar 1.34.
# Matters: the diff_id of such a layer is right, so the image is valid by digest: a reader that insists on an end of the
#   archive refuses images that other tools run, and one that does not cannot tell a layer's end from a cut.
source "$(dirname "${BASH_SOURCE[0]}")/harness.sh"
needs python3 gzip

deb umoci=0.4.7+ds-3+b7
expected 'a layer of whole blocks that ends in two blocks of zeros'

printf 'hello world\n' >file
umoci init --layout layout >/dev/null 2>&1
umoci new --image layout:a >/dev/null 2>&1
umoci insert --rootless --image layout:a file /file >insert.log 2>&1 || cannot "umoci insert: $(tail -1 insert.log)"
layer=$(python3 - <<'PY'
import json
def load(digest):
    return json.load(open("layout/blobs/sha256/" + digest[7:]))
manifest = load(json.load(open("layout/index.json"))["manifests"][0]["digest"])
print("layout/blobs/sha256/" + manifest["layers"][-1]["digest"][7:])
PY
)
gzip -dc "$layer" >layer.tar
umoci unpack --rootless --image layout:a bundle >/dev/null 2>&1 || true

seen 'bytes of the layer: one header and the file' 524 "$(stat -c %s layer.tar)"
seen 'its last bytes' 'hello world' "$(tail -c 12 layer.tar)"
seen 'umoci unpack' 'hello world' "$(cat bundle/rootfs/file 2>/dev/null || echo failed)"
seen 'GNU tar' 'Unexpected EOF in archive' "$(tar -tf layer.tar 2>&1 | grep -o 'Unexpected EOF in archive' | head -1)"
seen 'Python' 'unexpected end of data' \
  "$(python3 -c 'import tarfile; tarfile.open("layer.tar").getnames()' 2>&1 | grep -o 'unexpected end of data' | tail -1)"
finish
