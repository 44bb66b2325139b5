# shellcheck shell=bash disable=SC2034,SC2154 # variables are shared with run.sh
# Layers that were prepared beforehand, indexes from a registry, zstd frames, artifacts. Sourced by run.sh.

FORMATS_LINK=200:20

measure_formats() {
  local image
  for image in python node; do
    prepare_formats "$image"
    measure_prepared "$image"
    # Before there are indexes of our own beside the image, which would be used.
    measure_soci "$image"
    measure_pushed "$image"
  done
  measure_frames
  measure_artifact
}

# prepare_formats IMAGE: by the field's tools, as tags of the same repository
prepare_formats() {
  local image=$1
  for_tool skopeo chunked "$image" --dest-compress-format zstd:chunked
  for_tool skopeo zstd-3 "$image" --dest-compress-format zstd --dest-compress-level 3
  for_tool skopeo zstd-19 "$image" --dest-compress-format zstd --dest-compress-level 19
  if ! command -v ctr-remote > /dev/null; then
    say "there is no eStargz without ctr-remote (stargz-snapshotter)"
    return 0
  fi
  fresh
  start_containerd
  {
    ctr_here images pull --plain-http "$registry/$image:latest"
    ctr-remote --address "$dir/containerd.sock" images convert --oci --estargz "$registry/$image:latest" "$registry/$image:estargz"
    ctr_here images push --plain-http "$registry/$image:estargz"
  } >> "$work/log" 2>&1
  end "$containerd_pid" || true
  containerd_pid=''
}
# for_tool skopeo TAG IMAGE OPTION...
for_tool() {
  local tag=$2 image=$3
  shift 3
  # By a layout: to a registry that has the layers in another repository, skopeo sends nothing and compresses nothing.
  skopeo copy -q "$@" "oci:$layouts/$image:latest" "oci:$work/layout-$image-$tag:latest" >> "$work/log" 2>&1
  push "$work/layout-$image-$tag" "$image-$tag"
  rm -r "$work/layout-$image-$tag"
}

# repository FORMAT IMAGE: where prepare_formats has put it
repository() { case $1 in estargz) echo "$2:estargz" ;; *) echo "$2-$1:latest" ;; esac; }
# compressed REFERENCE: bytes of its layers
compressed() {
  skopeo inspect --raw --tls-verify=false "docker://$registry/$1" | jq '[.layers[].size] | add'
}
# beside REFERENCE: bytes that the link has passed last of blobs that are neither its layers nor its configuration
beside() {
  skopeo inspect --raw --tls-verify=false "docker://$registry/$1" |
    jq --argjson passed "$passed" '[.layers[].digest, .config.digest] as $own | $passed.by_blob | delpaths([$own[] | [.]]) | add // 0'
}
share() { calculated "$1 * 100 / $2"; }

# Until the start command has run; all names; one file. Beside podman, which pulls the ordinary image.
measure_prepared() {
  local run image=$1 format subject spec=$FORMATS_LINK what all passed file
  what="prepared, $image, $(link_name $spec)"
  for ((run = 1; run <= runs; run++)); do
    fresh
    measure_start "$image" podman $spec "$what"
    for format in estargz chunked; do
      [ "$format" != estargz ] || command -v ctr-remote > /dev/null || continue
      fresh
      at=$(repository $format "$image") measure_start "$image" "peelfs-$format" $spec "$what"
    done
  done
  for format in estargz chunked; do
    [ "$format" != estargz ] || command -v ctr-remote > /dev/null || continue
    all=$(compressed "$(repository $format "$image")")
    fresh
    start_link "${spec%:*}" "${spec#*:}"
    mount_peelfs "$link/$(repository $format "$image")" --prefetch none
    timed_silently ls -lR "$dir/mnt"
    passed=$(counted)
    sample "listing, $image, of the layers' bytes" "peelfs-$format" % "$(share "$(jq .bytes <<< "$passed")" "$all")"
    # A small file in a large layer.
    case $image in python) file=usr/local/lib/python3.11/dist-packages/flask/app.py ;; node) file=srv/app/node_modules/express/lib/express.js ;; esac
    timed_silently cat "$dir/mnt/$file"
    passed=$(counted)
    sample "one file, $image, requests" "peelfs-$format" requests "$(jq .requests <<< "$passed")"
    sample "one file, $image, received" "peelfs-$format" KiB "$(jq '.bytes / 1024 * 10 | round / 10' <<< "$passed")"
    umount_peelfs
    end_link
  done
}

# Beside an index that is known. Until the start command has run, blobs that are none of the image's have taken this share of
# the layers' bytes on the wire: indexes and windows.
measure_pushed() {
  local run image=$1 spec=$FORMATS_LINK what
  what="pushed index, $image, $(link_name $spec)"
  indexed "$image"
  # Without a profile: nothing has been started from this cache.
  "$peelfs" index push --cache-dir "$dir/cache" "$registry/$image:latest" >> "$work/log" 2>&1
  for ((run = 1; run <= runs; run++)); do
    indexed "$image"
    measure_start "$image" peelfs-known $spec "$what"
    fresh
    measure_start "$image" peelfs-pushed $spec "$what" --index-from referrers
    sample "pushed index, $image, of the layers' bytes" peelfs % "$(share "$(beside "$image:latest")" "$(compressed "$image:latest")")"
  done
  indexed "$image"
  measure_start "$image" peelfs-demand $spec "$what, with a profile" --prefetch none
  drop_content
  "$peelfs" index push --cache-dir "$dir/cache" "$registry/$image:latest" >> "$work/log" 2>&1
  for ((run = 1; run <= runs; run++)); do
    fresh
    measure_start "$image" peelfs-pushed $spec "$what, with a profile" --index-from referrers
    sample "pushed index with a profile, $image, of the layers' bytes" peelfs % "$(share "$(beside "$image:latest")" "$(compressed "$image:latest")")"
  done
}

# SOCI indexes of the layers as they are, beside an index of our own.
measure_soci() {
  local run image=$1 spec=$FORMATS_LINK what
  what="SOCI, $image, $(link_name $spec)"
  fresh
  "$peelfs" index push --as soci --cache-dir "$dir/cache" "$registry/$image:latest" >> "$work/log" 2>&1
  for ((run = 1; run <= runs; run++)); do
    indexed "$image"
    measure_start "$image" peelfs-known $spec "$what"
    fresh
    measure_start "$image" peelfs-soci $spec "$what" --verify vouched
  done
}

# One zstd frame a layer: as skopeo writes it.
measure_frames() {
  local run image=python level spec=$FORMATS_LINK what file size passed cost
  what="frames, $image, $(link_name $spec)"
  unpacked $image
  file=$(find "$merged" -type f -size +10M -printf '%s %P\n' | sort -n | tail -n 1 | cut -d ' ' -f 2-)
  size=$(stat -c %s "$merged/$file")
  for level in 3 19; do
    fresh
    mount_peelfs "$registry/$image-zstd-$level:latest" --wait
    umount_peelfs
    cost=$("$bin/index_cost" "$dir"/cache/index-v2/sha256/*)
    sample "frames, $image, index of the decoded bytes" "peelfs-zstd-$level" % "$(jq '.index_bytes * 100 / .decoded_bytes' <<< "$cost")"
    drop_content
    start_link "${spec%:*}" "${spec#*:}"
    mount_peelfs "$link/$image-zstd-$level:latest" --prefetch none
    stat "$dir/mnt/$file" > /dev/null
    counted > /dev/null
    timed_silently dd if="$dir/mnt/$file" bs=4096 count=1 skip=$((size / 8192))
    passed=$(counted)
    sample "frames, $image, 4 KiB in the middle, received" "peelfs-zstd-$level" MiB "$(jq '.blob_bytes / 1048576 * 100 | round / 100' <<< "$passed")"
    umount_peelfs
    end_link
  done
  for ((run = 1; run <= runs; run++)); do
    indexed $image
    measure_start $image peelfs-gzip $spec "$what"
    for level in 3 19; do
      fresh
      mount_peelfs "$registry/$image-zstd-$level:latest" --wait
      umount_peelfs
      drop_content
      at="$image-zstd-$level:latest" measure_start $image "peelfs-zstd-$level" $spec "$what"
    done
  done
}

# A file of 2 GiB as ORAS stores it: its first 8 KiB, all of it, and all of it again.
measure_artifact() {
  local run spec=1000:1 what layout=$work/layout-artifact size=$((2 << 30)) file=model.safetensors begun
  what="artifact of 2 GiB, $(link_name $spec)"
  mkdir -p "$layout/blobs/sha256"
  # A header as safetensors has it, and bytes that nothing compresses.
  python3 - "$layout/model" "$size" <<- 'PY'
	import json, os, struct, sys
	path, size = sys.argv[1], int(sys.argv[2])
	header = json.dumps({"weights": {"dtype": "U8", "shape": [size - 4096], "data_offsets": [0, size - 4096]}}).encode()
	with open(path, "wb") as file:
	    file.write(struct.pack("<Q", 4088) + header.ljust(4088))
	    for _ in range((size - 4096) >> 20): file.write(os.urandom(1 << 20))
	    file.write(os.urandom(size - file.tell()))
	PY
  push_artifact "$layout" "$file"
  for ((run = 1; run <= runs; run++)); do
    fresh
    drop_caches
    cat "$work"/registry/docker/registry/v2/blobs/*/*/*/data > /dev/null
    start_link "${spec%:*}" "${spec#*:}"
    timed mount_peelfs "$link/artifact:latest" --verify=behind --passthrough=auto
    sample "$what, mounted" peelfs s "$took"
    timed_silently head -c 8192 "$dir/mnt/$file"
    sample "$what, first 8 KiB" peelfs s "$took"
    sample "$what, first 8 KiB, requests since the mount was asked for" peelfs requests "$(counted | jq .requests)"
    timed_silently cat "$dir/mnt/$file"
    sample "$what" line s "$(line_seconds "$size" $spec)"
    sample "$what" peelfs s "$took"
    umount_peelfs
    end_link
    mount_peelfs "$registry/artifact:latest" --passthrough=auto
    cp "$layout/copy" "$dir/copy"
    for begun in 0 1 2; do
      timed_silently cat "$dir/mnt/$file"
      [ $begun = 0 ] || sample "artifact of 2 GiB, again" peelfs s "$took"
      timed_silently cat "$dir/copy"
      [ $begun = 0 ] || sample "artifact of 2 GiB, again" ext4 s "$took"
    done
    umount_peelfs
    rm "$dir/copy"
  done
}
# push_artifact LAYOUT NAME: LAYOUT/model as an OCI artifact of one file
push_artifact() {
  local config blob manifest
  config=$(keep_document "$1" <<< '{}')
  cp "$1/model" "$1/copy"
  blob=$(keep_document "$1" < "$1/model")
  rm "$1/model"
  manifest=$(keep_document "$1" < <(jq -nc --argjson config "$config" --argjson blob "$blob" --arg name "$2" '{schemaVersion: 2,
    mediaType: "application/vnd.oci.image.manifest.v1+json", artifactType: "application/vnd.example.model",
    config: ({mediaType: "application/vnd.oci.empty.v1+json"} + $config),
    layers: [{mediaType: "application/octet-stream", annotations: {"org.opencontainers.image.title": $name}} + $blob]}'))
  push_new "$1" "$manifest" artifact
}
