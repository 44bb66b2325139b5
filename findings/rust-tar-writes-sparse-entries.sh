#!/usr/bin/env bash
# Rust's tar crate writes files with holes as old GNU sparse entries, which umoci refuses in a layer.
#
# Expected: `tar::Builder::append_path_with_name`, the plain way to put a file into a tar, writes a regular entry (type
#   `0`), as Go's and Python's writers do, and an OCI tool unpacks what the crate packed.
# Happens: if the file has a hole on the disk at hand, the entry has type `S`. The same program and the same bytes make
#   another tar on a file system without holes, so also another digest; and umoci refuses the layer.
# Version: crate tar 0.4.44; umoci 0.4.7+ds-3+b7 (Debian 12).
# Matters: layers made by Rust programs may carry sparse entries that their authors never asked for. image-spec does not
#   list type `S`, so a reader has to choose between reading it (peelfs does) and refusing images of real tools.
source "$(dirname "${BASH_SOURCE[0]}")/harness.sh"
needs python3

crate tar 0.4.44 <<'RS'
fn main() {
    let mut tar = tar::Builder::new(std::fs::File::create("layer.tar").unwrap());
    tar.mode(tar::HeaderMode::Deterministic);
    tar.append_path_with_name("with-hole", "file").unwrap();
    tar.append_path_with_name("without-hole", "copy").unwrap();
    tar.finish().unwrap();
}
RS
deb umoci=0.4.7+ds-3+b7
expected 'two regular entries of the same bytes, which unpack'

truncate -s 4M with-hole
printf end >>with-hole
cat with-hole >without-hole
[ "$(stat -c %b with-hole)" -lt 100 ] || cannot 'this file system keeps no holes'
./program

kinds=$(python3 - <<'PY'
import tarfile
print(" ".join(f"{entry.name}={entry.type.decode()}" for entry in tarfile.open("layer.tar")))
PY
)
seen 'types of the entries' 'file=S copy=0' "$kinds"

umoci init --layout layout >/dev/null 2>&1
umoci new --image layout:a >/dev/null 2>&1
umoci raw add-layer --image layout:a layer.tar >/dev/null 2>&1 || cannot 'umoci raw add-layer failed'
said=$(umoci unpack --rootless --image layout:a bundle 2>&1 | grep -o 'unknown typeflag.*' | head -1 || true)
seen 'umoci unpack' "unknown typeflag '\x53'" "$said"
finish
