#!/usr/bin/env bash
# The table of contents of zstd:chunked gives two files of a layer the same name.
#
# Expected: a table of contents that is to replace reading the tar lists the tar's names; the digests in it prove every
#   byte, so a reader that has verified the table has the layer.
# Happens: names are bytes in a tar and text in the table (JSON), and Go's encoder writes U+FFFD for each byte that is not
#   UTF-8. Names in Latin-1 are renamed, the same for targets of symbolic links, and two names that differ in such bytes only become
#   one. The table's checksum is right, and nothing says that it departs from the tar.
# Version: skopeo 1.9.3+ds1-1 (Debian 12); the annotations it writes begin with io.containers, later releases of
#   containers/storage read and write io.github.containers.
# Matters: a lazy reader that shows what the table says shows other names than an unpacked image, and loses a file. It has
#   to see U+FFFD in a table as a reason to read the tar.
source "$(dirname "${BASH_SOURCE[0]}")/harness.sh"
needs tar zstd python3

deb skopeo=1.9.3+ds1-1+b10 libgpgme11 libdevmapper1.02.1 libassuan0
expected 'the table of contents has the names of the tar'

python3 - <<'PY'
import hashlib, io, json, os, tarfile
tar = io.BytesIO()
with tarfile.open(fileobj=tar, mode="w", format=tarfile.GNU_FORMAT, encoding="latin-1") as out:
    for name, content in [("caf\xe9", b"one"), ("caf\xe8", b"two")]:
        entry = tarfile.TarInfo(name)
        entry.size = len(content)
        out.addfile(entry, io.BytesIO(content))
    link = tarfile.TarInfo("link")
    link.type, link.linkname = tarfile.SYMTYPE, "caf\xe9"
    out.addfile(link)
# Two blocks of zeros end a tar; more are left out by this version of skopeo.
tar = tar.getvalue().rstrip(b"\0")
tar = tar.ljust(-(-len(tar) // 512) * 512 + 1024, b"\0")
os.makedirs("layout/blobs/sha256")
def put(data):
    name = hashlib.sha256(data).hexdigest()
    open(f"layout/blobs/sha256/{name}", "wb").write(data)
    return {"digest": f"sha256:{name}", "size": len(data)}
layer = put(tar)
oci = "application/vnd.oci.image."
config = put(json.dumps({"architecture": "amd64", "os": "linux", "config": {},
                         "rootfs": {"type": "layers", "diff_ids": [layer["digest"]]}}).encode())
manifest = put(json.dumps({"schemaVersion": 2, "mediaType": oci + "manifest.v1+json",
                           "config": {"mediaType": oci + "config.v1+json", **config},
                           "layers": [{"mediaType": oci + "layer.v1.tar", **layer}]}).encode())
json.dump({"schemaVersion": 2, "manifests": [{"mediaType": oci + "manifest.v1+json", **manifest,
           "annotations": {"org.opencontainers.image.ref.name": "a"}}]}, open("layout/index.json", "w"))
open("layout/oci-layout", "w").write('{"imageLayoutVersion":"1.0.0"}')
PY
echo '{"default":[{"type":"insecureAcceptAnything"}]}' >policy.json
skopeo --policy policy.json copy -q --dest-compress-format zstd:chunked oci:layout:a oci:out:a

cat >table.py <<'PY'
import hashlib, json, subprocess, sys
blob = lambda digest: open("out/blobs/sha256/" + digest[7:], "rb").read()
index = json.load(open("out/index.json"))
layer = json.loads(blob(index["manifests"][0]["digest"]))["layers"][0]
notes = layer["annotations"]
position = next(value for key, value in notes.items() if key.endswith(".manifest-position"))
checksum = next(value for key, value in notes.items() if key.endswith(".manifest-checksum"))
offset, length = map(int, position.split(":")[:2])
packed = blob(layer["digest"])
table = packed[offset:offset + length]
right = "sha256:" + hashlib.sha256(table).hexdigest() == checksum
table = json.loads(subprocess.run(["zstd", "-dqc"], input=table, stdout=subprocess.PIPE, check=True).stdout)
tar = subprocess.run(["zstd", "-dqc"], input=packed[:offset], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL).stdout
if sys.argv[1] == "keys":
    print(*sorted({key.rsplit(".zstd-chunked.", 1)[0] for key in notes if ".zstd-chunked." in key}))
elif sys.argv[1] == "checksum":
    print("right" if right else "wrong")
elif sys.argv[1] == "names":
    print(*[ascii(entry["name"]) for entry in table["entries"] if entry["type"] == "reg"])
elif sys.argv[1] == "target":
    print(*[ascii(entry["linkName"]) for entry in table["entries"] if entry["type"] == "symlink"])
elif sys.argv[1] == "tar":
    print(*sorted(ascii(name) for name in (b"caf\xe9", b"caf\xe8") if name + b"\0" in tar))
PY
seen 'names of files in the tar' "b'caf\\xe8' b'caf\\xe9'" "$(python3 table.py tar)"
seen 'names of files in the table' "'caf\\ufffd' 'caf\\ufffd'" "$(python3 table.py names)"
seen 'target of the symbolic link in the table' "'caf\\ufffd'" "$(python3 table.py target)"
seen 'checksum of the table' right "$(python3 table.py checksum)"
seen 'annotations begin with' io.containers "$(python3 table.py keys)"
finish
