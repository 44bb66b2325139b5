# shellcheck shell=bash disable=SC2034,SC2154 # variables are shared with run.sh
# Data files, read as the libraries of their formats read them. Sourced by run.sh.

DATA_LINK=200:20
# What is made, how its layer is packed, and what is read of it.
DATA_TASKS=(
  'sqlite gzip 20 lookups'
  'sqlite gzip 100 lookups'
  'lmdb gzip 20 lookups'
  'lmdb gzip everything'
  'rocksdb gzip 20 lookups'
  'lance gzip 50 rows'
  'git gzip everything'
  'scattered stored everything'
)

measure_data() {
  local run spec=$DATA_LINK kind packing task what subject line policy
  local python=$work/data-libraries/bin/python3
  python3 -m venv "$work/data-libraries"
  "$python" -m pip install -q --disable-pip-version-check lmdb pylance rocksdict >> "$work/log" 2>&1 \
    || say "not all libraries of data files can be installed"
  for line in "${DATA_TASKS[@]}"; do
    read -r kind packing task <<< "$line"
    what="data, $kind, $task"
    make_data "$kind" "$packing" || { say "$kind is left out"; continue; }
    sample "$what" line s "$(line_seconds "$(stat -c %s "$work/data-$kind.layer")" $spec)"
    sample "$what, received" layer MiB "$(calculated "$(stat -c %s "$work/data-$kind.layer") / 1048576")"
    for ((run = 1; run <= runs; run++)); do
      for subject in $(in_turn "$run" peelfs peelfs-none peelfs-all); do
        case $subject in *-*) policy="--prefetch ${subject#*-}" ;; *) policy='' ;; esac
        # RocksDB's library writes a file beside the data when it opens them.
        [ "$kind" != rocksdb ] || policy+=' --ephemeral'
        # shellcheck disable=SC2086 # words
        read_data "$kind" "$task" "$subject" "$what" $spec $policy
      done
    done
  done
}

# make_data KIND PACKING: as the image data-KIND, once
make_data() {
  local kind=$1 at=$work/data-$1 config layer diff_id manifest
  [ ! -d "$at" ] || return 0
  mkdir -p "$at/tree/data" "$at/blobs/sha256"
  "$python" "$here/support/data_files.py" make "$kind" "$at/tree/data" >> "$work/log" 2>&1 || { rm -r "$at"; return 1; }
  tar -C "$at/tree" --numeric-owner --owner 0 --group 0 -cf "$at.tar" data
  diff_id=sha256:$(sha256sum < "$at.tar" | cut -d ' ' -f 1)
  case $2 in
    gzip) gzip -6 < "$at.tar" > "$at.layer" && rm "$at.tar" ;;
    stored) mv "$at.tar" "$at.layer" ;;
  esac
  config=$(keep_document "$at" < <(jq -nc --arg id "$diff_id" \
    '{architecture: "amd64", os: "linux", config: {}, rootfs: {type: "layers", diff_ids: [$id]}}'))
  layer=$(keep_document "$at" < "$at.layer")
  manifest=$(keep_document "$at" < <(jq -nc --argjson config "$config" --argjson layer "$layer" --arg packing "$2" '{
    schemaVersion: 2, mediaType: "application/vnd.oci.image.manifest.v1+json",
    config: ({mediaType: "application/vnd.oci.image.config.v1+json"} + $config),
    layers: [{mediaType: ("application/vnd.oci.image.layer.v1.tar" + if $packing == "gzip" then "+gzip" else "" end)} + $layer]}'))
  push_new "$at" "$manifest" "data-$kind"
}

# read_data KIND TASK SUBJECT CASE LINK [OPTION...]: with the index known, and no content
read_data() {
  local kind=$1 task=$2 subject=$3 what=$4 spec=$5 seconds answer expected
  shift 5
  expected=$("$python" "$here/support/data_files.py" read "$kind" "$work/data-$kind/tree/data" "$task" 2>> "$work/log")
  indexed "data-$kind"
  cold
  # The libraries are not what is measured.
  "$python" "$here/support/data_files.py" read "$kind" "$work/data-$kind/tree/data" "$task" > /dev/null 2>> "$work/log"
  start_link "${spec%:*}" "${spec#*:}"
  mount_peelfs "$link/data-$kind:latest" "$@"
  read -r seconds answer < <("$python" "$here/support/data_files.py" read "$kind" "$dir/mnt/data" "$task" 2>> "$work/log")
  [ "$answer" = "${expected#* }" ] || die "$what, $subject: other answers than from the files themselves"
  sample "$what" "$subject" s "$seconds"
  sample "$what, received" "$subject" MiB "$(counted | tee "$work/first" | jq '.bytes / 1048576 * 100 | round / 100')"
  if [ "$subject" = peelfs-all ]; then
    # Whatever is not there yet.
    find "$dir/mnt/data" -type f -exec cat {} + > /dev/null
    sample "$what, received in the end" "$subject" MiB \
      "$(counted | jq -s '(.[0].bytes + .[1].bytes) / 1048576 * 100 | round / 100' "$work/first" -)"
  fi
  umount_peelfs
  end_link
}
