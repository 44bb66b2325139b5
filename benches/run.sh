#!/usr/bin/env bash
# Measures peelfs against podman, skopeo + umoci and kernel overlayfs, and prints ratios.
#
#     benches/run.sh [--runs N] [--only PART,...] [--layouts DIR] [--bin DIR] [--out FILE] [--keep]
#
#   --runs N       measurements of each kind, alternating; the median counts (3; warm ones five, unless N is 1)
#   --only PART    some of: never, shaped, seen, warm, memory (all)
#   --layouts DIR  OCI layouts DIR/python and DIR/node, tag `latest` ($PEELFS_BENCH_DIR, built if missing)
#   --bin DIR      where peelfs and examples/ are, instead of building them
#   --out FILE     single measurements, one JSON object a line ($PEELFS_BENCH_DIR/samples.jsonl)
#   --keep         leave what was measured in place
#
# $PEELFS_BENCH_DIR (target/bench) holds everything it writes; it should be on a disk, as ext4, with
# 5 GiB free and 5 more for each run. Needs root, /dev/fuse, and: podman skopeo umoci docker-registry
# curl jq python3 setfattr. It starts a registry and shaped links of its own on free loopback ports, and ends
# and unmounts what it started, whichever way it ends. docs/benchmarks.md says what is measured.
set -euo pipefail

WARM_RUNS_AT_LEAST=5
MBIT=200
RTT_MS=20
IMPORT=(/usr/bin/env -i PATH=/usr/bin:/bin /usr/bin/python3 -c 'import numpy, pandas')
SMALL_FILE=65536

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
bench=${PEELFS_BENCH_DIR:-$here/../target/bench}
runs=3 only=never,shaped,seen,warm,memory layouts='' bin='' out='' keep=no

say() { printf 'bench: %s\n' "$*" >&2; }
die() { say "$*"; exit 1; }

while [ $# -gt 0 ]; do
  case $1 in
    --runs) runs=$2; shift ;;
    --only) only=$2; shift ;;
    --layouts) layouts=$2; shift ;;
    --bin) bin=$2; shift ;;
    --out) out=$2; shift ;;
    --keep) keep=yes ;;
    *) sed -n '2,/^set /{/^set /d;s/^# \{0,1\}//p}' "$0" >&2; exit 2 ;;
  esac
  shift
done

# --------------------------------------------------------------------------- beginning and ending

[ "$(id -u)" = 0 ] || die "mounting and unpacking with owners needs root"
[ -c /dev/fuse ] || die "there is no /dev/fuse"
for tool in podman skopeo umoci docker-registry curl jq python3 setfattr; do
  command -v "$tool" > /dev/null || die "$tool is missing"
done
mkdir -p "$bench"
bench=$(cd "$bench" && pwd)
out=${out:-$bench/samples.jsonl}
if [ -z "$layouts" ]; then
  layouts=$bench
  "$here/corpus.sh" "$bench" python node
fi
layouts=$(cd "$layouts" && pwd)
if [ -z "$bin" ]; then
  cargo build --release --manifest-path "$here/../Cargo.toml" \
    --bin peelfs --example link_shaper --example walk_bench --example index_cost
  bin=$(cargo metadata --format-version 1 --no-deps --manifest-path "$here/../Cargo.toml" | jq -r .target_directory)/release
fi
peelfs=$(cd "$bin" && pwd)/peelfs
examples=$(cd "$bin/examples" && pwd)

work=$(mktemp -d "$bench/run.XXXXXX")
registry_pid='' link_pid=''
finish() {
  local status=$? at pid
  trap - EXIT
  # Everything below the directory that this run made is this run's.
  set +e
  findmnt -rno TARGET | grep "^$work/" | sort -r | while IFS= read -r at; do umount -l "$at"; done
  for pid in $link_pid $registry_pid; do end "$pid"; done
  if [ $status -ne 0 ]; then
    tail -n 5 "$work/log" "$work"/*.err >&2 2> /dev/null
    say "stopped in the middle ($status)"
  fi
  # Last: ext4 is slow to create files for a while after many were removed.
  if [ $keep = yes ]; then say "left in $work"; else rm -rf --one-file-system "$work"; fi
  exit $status
}
# end PID: ends a child that nobody has waited for, so that the number still is its own
end() {
  kill "$1"
  wait "$1"
} 2> /dev/null
trap finish EXIT
trap 'exit 130' INT TERM
# Where mounts tell of themselves: not where the user's other mounts do.
export XDG_RUNTIME_DIR=$work/run
mkdir -m 700 "$XDG_RUNTIME_DIR"
: > "$out"
: > "$work/log"

# ------------------------------------------------------------------------------------- measuring

# sample CASE SUBJECT UNIT VALUE: one measurement
sample() {
  jq -nc --arg case "$1" --arg subject "$2" --arg unit "$3" --argjson value "$4" \
    '{case: $case, subject: $subject, unit: $unit, value: $value}' | tee -a "$out" >&2
}

# timed COMMAND...: runs it; $took is how many seconds it took
timed() {
  local begun=$EPOCHREALTIME
  "$@" >> "$work/log" 2>&1
  took=$(seconds_since "$begun")
}
# As timed, without keeping what it prints.
timed_silently() {
  local begun=$EPOCHREALTIME
  "$@" > /dev/null 2>> "$work/log"
  took=$(seconds_since "$begun")
}
seconds_since() {
  local now=$EPOCHREALTIME
  awk -v us=$((${now/[.,]/} - ${1/[.,]/})) 'BEGIN { printf "%.6f", us / 1e6 }'
}

# fresh: a directory that nothing has used, in $dir
fresh() {
  serial=$((${serial:-0} + 1))
  dir=$work/$serial
  mkdir -p "$dir/mnt"
}

# Empties the page cache, but for what is not being measured: the registry's files and the programs.
cold() {
  sync
  echo 3 > /proc/sys/vm/drop_caches 2> /dev/null || say "cannot drop the page cache; not as cold as it should be"
  cat "$work"/registry/docker/registry/v2/blobs/*/*/*/data > /dev/null
  local program
  for program in "$peelfs" podman skopeo umoci; do "$program" --version > /dev/null; done
}

# In turn: `peelfs podman` in one run, `podman peelfs` in the next.
in_turn() {
  local run=$1
  shift
  if [ $((run % 2)) = 0 ]; then printf '%s\n' "$@" | tac; else printf '%s\n' "$@"; fi
}

# -------------------------------------------------------------------------- registry, links, mounts

start_registry() {
  cat > "$work/registry.yml" <<- CONF
	version: 0.1
	storage: {filesystem: {rootdirectory: "$work/registry"}}
	http: {addr: "127.0.0.1:0"}
	log: {level: info, accesslog: {disabled: true}}
	CONF
  : > "$work/registry.err" # the first look may come before the registry has made it
  docker-registry serve "$work/registry.yml" > /dev/null 2> "$work/registry.err" &
  registry_pid=$!
  local tries
  for ((tries = 0; tries < 100; tries++)); do
    registry=$(sed -n 's/.*listening on \(127\.0\.0\.1:[0-9]*\).*/\1/p' "$work/registry.err" | head -n 1)
    [ -z "$registry" ] || break
    sleep 0.1
  done
  [ -n "$registry" ] || die "the registry does not start"
  local image
  for image in python node; do
    skopeo copy -q --preserve-digests --dest-tls-verify=false "oci:$layouts/$image:latest" "docker://$registry/$image:latest"
  done
}

# layer_files IMAGE: its layers' blobs, bottom first
layer_files() {
  local blobs=$layouts/$1/blobs manifest
  manifest=$(jq -r '.manifests[0].digest' "$layouts/$1/index.json")
  jq -r '.layers[].digest' "$blobs/${manifest/://}" | sed "s#:#/#;s#^#$blobs/#"
}

# link MBIT RTT_MS: a link to the registry; its address is in $link
link() {
  local name=$work/link$((links = ${links:-0} + 1))
  mkfifo "$name.in" "$name.out"
  "$examples/link_shaper" --upstream "$registry" --mbit "$1" --rtt-ms "$2" < "$name.in" > "$name.out" 2> "$name.err" &
  link_pid=$!
  exec {link_in}> "$name.in" {link_out}< "$name.out"
  read -r -u "$link_out" link
}
# counted: what passed the link since it was last asked, as JSON
counted() {
  echo >&"$link_in"
  local line
  read -r -u "$link_out" line
  echo "$line"
}
end_link() {
  exec {link_in}>&- {link_out}<&-
  end "$link_pid" || true
  link_pid=''
}

# mount_peelfs REFERENCE [OPTION...]: on $dir/mnt, with the cache in $dir/cache
mount_peelfs() {
  local image=$1
  shift
  "$peelfs" mount "$@" --cache-dir "$dir/cache" "$image" "$dir/mnt"
}
umount_peelfs() { "$peelfs" umount "$dir/mnt" >> "$work/log" 2>&1; }
server_pid() { jq -r --arg at "$dir/mnt" 'select(.at == $at).pid' "$XDG_RUNTIME_DIR"/peelfs/*.json; }

podman_here() { podman --root "$dir/root" --runroot "$dir/runroot" --storage-driver overlay "$@"; }
pull_podman() { podman_here pull -q --tls-verify=false "$1"; }
unpack_umoci() {
  skopeo copy -q --src-tls-verify=false "docker://$1" "oci:$dir/layout:latest"
  umoci unpack --image "$dir/layout:latest" "$dir/bundle"
}

# ------------------------------------------------------------------------------------- the parts

never_seen() {
  local run image subject
  for ((run = 1; run <= runs; run++)); do
    for image in python node; do
      for subject in $(in_turn "$run" peelfs podman umoci); do
        fresh
        cold
        case $subject in
          peelfs) timed mount_peelfs "$registry/$image:latest" --wait; umount_peelfs ;;
          podman) timed pull_podman "$registry/$image:latest" ;;
          umoci) timed unpack_umoci "$registry/$image:latest" ;;
        esac
        sample "never seen, $image" "$subject" s "$took"
      done
    done
  done
}

import_from_peelfs() {
  mount_peelfs "$link/python:latest" "$@"
  chroot "$dir/mnt" "${IMPORT[@]}"
}
import_from_podman() {
  pull_podman "$link/python:latest"
  chroot "$(podman_here image mount "$link/python:latest")" "${IMPORT[@]}"
}

shaped() {
  local run subject bytes
  bytes=$(layer_files python | xargs stat -c %s | paste -sd+)
  bytes=$((bytes))
  sample "shaped, python" line s "$(awk -v b="$bytes" -v m=$MBIT 'BEGIN { printf "%.3f", b * 8 / m / 1e6 }')"
  for ((run = 1; run <= runs; run++)); do
    for subject in $(in_turn "$run" peelfs peelfs-behind podman); do
      fresh
      cold
      link $MBIT $RTT_MS
      case $subject in
        peelfs) timed import_from_peelfs ;;
        peelfs-behind) timed import_from_peelfs --verify=behind ;;
        podman) timed import_from_podman ;;
      esac
      sample "shaped, python" "$subject" s "$took"
      sample "shaped, python, received" "$subject" MiB "$(counted | jq '.bytes / 1048576 * 10 | round / 10')"
      case $subject in
        podman) podman_here image umount -a >> "$work/log" ;;
        *) umount_peelfs ;;
      esac
      end_link
    done
  done
}

seen_before() {
  local run image passed
  link 0 $RTT_MS
  for image in python node; do
    fresh
    mount_peelfs "$link/$image:latest" --wait
    umount_peelfs
    for ((run = 1; run <= runs; run++)); do
      counted > /dev/null
      timed mount_peelfs "$link/$image:latest"
      passed=$(counted)
      umount_peelfs
      sample "seen before, $image" peelfs s "$took"
      sample "seen before, $image, requests" peelfs requests "$(jq .requests <<< "$passed")"
      sample "seen before, $image, HEAD requests" peelfs requests "$(jq .heads <<< "$passed")"
      sample "seen before, $image, of blobs" peelfs bytes "$(jq .blob_bytes <<< "$passed")"
      took=$(curl -sSfI -o /dev/null -w '%{time_total}' -H 'Accept: application/vnd.oci.image.manifest.v1+json' \
        "http://$link/v2/$image/manifests/latest")
      sample "seen before, $image" HEAD s "$took"
    done
  done
  end_link
}

# unpack_for_overlay IMAGE DIR: one directory for each layer, whiteouts as overlayfs has them
unpack_for_overlay() {
  local number=0 blob marker path
  while IFS= read -r blob; do
    path=$2/$((number += 1))
    mkdir -p "$path"
    tar -C "$path" --numeric-owner --xattrs --xattrs-include='*' -xpzf "$blob"
    find "$path" -name .wh..wh..opq -printf '%h\0' | xargs -0r setfattr -n trusted.overlay.opaque -v y
    find "$path" -name .wh..wh..opq -delete
    find "$path" -name '.wh.*' -print0 | while IFS= read -r -d '' marker; do
      rm "$marker"
      mknod "${marker%/*}/${marker##*/.wh.}" c 0 0
    done
    lower=$path${lower:+:}$lower
  done < <(layer_files "$1")
}

# one_task TASK DIR: $took
one_task() {
  case $1 in
    find) timed_silently find "$2" ;;
    stat) timed_silently find "$2" -newer / ;;
    open) took=$("$examples/walk_bench" --up-to $SMALL_FILE "$2" | jq .seconds) ;;
    import) timed chroot "$2" "${IMPORT[@]}" ;;
    ls-lR) timed_silently ls -lR "$2" ;;
  esac
}

warm() {
  local image subject task run count tasks lower
  declare -A at
  count=$((runs < WARM_RUNS_AT_LEAST && runs > 1 ? WARM_RUNS_AT_LEAST : runs))
  for image in node python; do
    fresh
    lower=''
    unpack_for_overlay "$image" "$dir/lower"
    mkdir "$dir/merged"
    mount -t overlay -o "ro,lowerdir=$lower" overlay "$dir/merged"
    timed mount_peelfs "$registry/$image:latest" --wait
    at=([peelfs]=$dir/mnt [overlayfs]=$dir/merged)
    tasks=(find stat open ls-lR)
    [ "$image" = node ] || tasks+=(import)
    same_names "$dir/mnt" "$dir/merged"
    # Round 0 warms up.
    for ((run = 0; run <= count; run++)); do
      for task in "${tasks[@]}"; do
        for subject in $(in_turn "$run" peelfs overlayfs); do
          one_task "$task" "${at[$subject]}"
          [ "$run" = 0 ] || sample "warm, $image, $task" "$subject" s "$took"
        done
      done
    done
    umount "$dir/merged"
    umount_peelfs
  done
}

# Two trees that are compared must be the same tree.
same_names() {
  cmp <(cd "$1" && find . -printf '%P %y %m %U:%G %l\n' | sort) <(cd "$2" && find . -printf '%P %y %m %U:%G %l\n' | sort) ||
    die "$1 and $2 do not show the same"
}

memory() {
  local run image cost pid
  for image in node python; do
    for ((run = 1; run <= runs; run++)); do
      fresh
      timed mount_peelfs "$registry/$image:latest"
      timed_silently ls -lR "$dir/mnt"
      pid=$(server_pid)
      sample "memory, $image, after ls -lR" peelfs MiB "$(in_mib VmRSS "$pid")"
      sample "memory, $image, at most" peelfs MiB "$(in_mib VmHWM "$pid")"
      umount_peelfs
    done
    cost=$("$examples/index_cost" "$dir"/cache/index-v*/*/*)
    sample "index, $image, an entry" peelfs bytes "$(jq .tree_bytes_per_entry <<< "$cost")"
    sample "index, $image, checkpoints of decoded size" peelfs % "$(jq .checkpoint_percent <<< "$cost")"
  done
}
in_mib() { awk -v name="$1:" '$1 == name { printf "%.1f", $2 / 1024 }' "/proc/$2/status"; }

say "in $work, $(nproc) CPUs, Linux $(uname -r), $(stat -f -c %T "$work"); $(podman --version); $(skopeo --version); umoci $(umoci --version | sed -n 's/.*version //p')"
start_registry
for part in ${only//,/ }; do
  say "$part"
  case $part in
    never) never_seen ;;
    shaped) shaped ;;
    seen) seen_before ;;
    warm) warm ;;
    memory) memory ;;
    *) die "there is no part $part" ;;
  esac
done
python3 "$here/report.py" "$out"
