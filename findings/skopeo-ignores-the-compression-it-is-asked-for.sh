#!/usr/bin/env bash
# skopeo copy --dest-compress-format zstd pushes gzip, without a word, if the registry has that layer as gzip.
#
# Expected: who names a format gets it; or an error, or a warning.
# Happens: if skopeo knows a gzip blob of the same layer in that registry, in whatever repository, it is used again or
#   mounted. The manifest says gzip, the exit code is 0, and nothing is printed. To a registry without that blob the same
#   command pushes zstd. The option `--dest-force-compress-format`, which asks for what the first promises, came later (1.13).
# Version: skopeo 1.9.3+ds1-1+b10, docker-registry 2.8.2+ds1-1 (Debian 12).
# Matters: an image that was converted for a lazy reader, as to zstd:chunked, is the ordinary one; who measures or relies on
#   the form has to look at the manifest.
source "$(dirname "${BASH_SOURCE[0]}")/harness.sh"
needs tar gzip python3

deb skopeo=1.9.3+ds1-1+b10 docker-registry=2.8.2+ds1-1 libgpgme11 libdevmapper1.02.1 libassuan0
expected 'zstd, wherever it is pushed'

port=$(python3 -c 'import socket; free = socket.socket(); free.bind(("127.0.0.1", 0)); print(free.getsockname()[1])')
cat >config.yml <<YML
version: 0.1
log: {level: error, accesslog: {disabled: true}}
storage: {filesystem: {rootdirectory: $work/data}}
http: {addr: 127.0.0.1:$port}
YML
docker-registry serve config.yml >registry.log 2>&1 &
registry=$!
# shellcheck disable=SC2317 # the harness calls it
at_end() { kill "$registry" 2>/dev/null || true; wait; }
python3 - "$port" <<'PY' || cannot 'the registry does not answer'
import http.client, sys, time
for _ in range(100):
    try:
        connection = http.client.HTTPConnection("127.0.0.1", int(sys.argv[1]), timeout=5)
        connection.request("GET", "/v2/")
        sys.exit(connection.getresponse().status != 200)
    except ConnectionRefusedError:
        time.sleep(0.1)
sys.exit(1)
PY

seq 100000 >file
tar --sort=name --mtime=@0 --owner=0 --group=0 --numeric-owner -cf layer.tar file
gzip -nk layer.tar
python3 - <<'PY'
import hashlib, json, os
os.makedirs("layout/blobs/sha256")
def put(data):
    name = hashlib.sha256(data).hexdigest()
    open(f"layout/blobs/sha256/{name}", "wb").write(data)
    return {"digest": f"sha256:{name}", "size": len(data)}
diff_id = "sha256:" + hashlib.sha256(open("layer.tar", "rb").read()).hexdigest()
oci = "application/vnd.oci.image."
layer = put(open("layer.tar.gz", "rb").read())
config = put(json.dumps({"architecture": "amd64", "os": "linux", "config": {},
                         "rootfs": {"type": "layers", "diff_ids": [diff_id]}}).encode())
manifest = put(json.dumps({"schemaVersion": 2, "mediaType": oci + "manifest.v1+json",
                           "config": {"mediaType": oci + "config.v1+json", **config},
                           "layers": [{"mediaType": oci + "layer.v1.tar+gzip", **layer}]}).encode())
json.dump({"schemaVersion": 2, "manifests": [{"mediaType": oci + "manifest.v1+json", **manifest,
           "annotations": {"org.opencontainers.image.ref.name": "a"}}]}, open("layout/index.json", "w"))
open("layout/oci-layout", "w").write('{"imageLayoutVersion":"1.0.0"}')
PY
echo '{"default":[{"type":"insecureAcceptAnything"}]}' >policy.json
push() { skopeo --policy policy.json copy -q --dest-tls-verify=false "$@" >>said 2>&1 || cannot "skopeo: $(tail -1 said)"; }
form() {
  skopeo --policy policy.json inspect --tls-verify=false --raw "docker://127.0.0.1:$port/$1" |
    python3 -c 'import json, sys; print(json.load(sys.stdin)["layers"][0]["mediaType"].rsplit("+")[-1])'
}
push --dest-compress-format zstd oci:layout:a "docker://127.0.0.1:$port/first:zstd"
seen 'format of the layer in a registry without it' zstd "$(form first:zstd)"
push oci:layout:a "docker://127.0.0.1:$port/known:gzip"
push --dest-compress-format zstd oci:layout:a "docker://127.0.0.1:$port/known:zstd"
seen 'format of the layer where its gzip blob is' gzip "$(form known:zstd)"
push --dest-compress-format zstd oci:layout:a "docker://127.0.0.1:$port/other:zstd"
seen 'format of the layer in another repository of that registry' gzip "$(form other:zstd)"
seen 'bytes that skopeo printed' 0 "$(stat -c %s said)"
finish
