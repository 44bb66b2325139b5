#!/usr/bin/env bash
# podman exports, mounts and copies from an empty directory when a container was made with `--rootfs` and does not run.
#
# Expected: `podman export` writes the file system of a container, running or not, and a container that was made with
#   `--rootfs DIR` has DIR for its root, or with `DIR:O` an overlay on it.
# Happens: podman makes a layer for every container, also for one with a root of its own, where that layer stays empty.
#   Unless the container runs, export packs the layer: an archive without a single name, exit code 0. `podman mount`
#   prints the layer's path, and `podman cp` does not find the files.
# Version: podman 4.3.1+ds1-8+deb12u1 (Debian 12).
# Matters: `--rootfs MOUNT:O` is how podman runs a container on a lazy mount. Its export after `podman stop` is empty and no step
#   fails, though the changes are all there when it starts again. Export such a container while it runs.
source "$(dirname "${BASH_SOURCE[0]}")/harness.sh"
needs tar unshare
needs_root

deb podman=4.3.1+ds1-8+deb12u1+b3 libgpgme11 libassuan0 libdevmapper1.02.1 libseccomp2 libsubid4
expected 'export and mount show etc, cp copies etc/settings'

mkdir -p tree/etc
echo readable >tree/etc/settings
cat >inside.sh <<'EOI'
set -eu
engine() { podman --root "$PWD/store" --runroot "$PWD/run" --storage-driver vfs "$@"; }
for root in "$PWD/tree" "$PWD/tree:O"; do
  id=$(engine create --network none --rootfs "$root" program)
  if engine export --output "$id.tar" "$id"; then code=0; else code=$?; fi
  echo "$code, $(stat -c %s "$id.tar") bytes, $(tar -tf "$id.tar" | wc -l) names"
  echo "$(ls "$(engine mount "$id")" | wc -l) names"
  if engine cp "$id:/etc/settings" "$id.settings"; then cat "$id.settings"; else echo failed; fi
done
EOI
unshare --mount --propagation private sh inside.sh >results 2>inside.log || cannot "$(tail -1 inside.log)"
mapfile -t results <results

seen 'export, --rootfs DIR' '0, 1024 bytes, 0 names' "${results[0]}"
seen 'mount, --rootfs DIR' '0 names' "${results[1]}"
seen 'cp, --rootfs DIR' failed "${results[2]}"
seen 'export, --rootfs DIR:O' '0, 1024 bytes, 0 names' "${results[3]}"
seen 'mount, --rootfs DIR:O' '0 names' "${results[4]}"
seen 'cp, --rootfs DIR:O' failed "${results[5]}"
finish
