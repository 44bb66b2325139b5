#!/usr/bin/env bash
# Measures the start of a program on a mount whose layers are known and whose content is not here.
#
#     benches/cold.sh --registry HOST:PORT [--runs N] [--bin DIR] [--images python,node]
#
#   --registry     a registry on loopback that serves the images of benches/corpus.sh, tag `latest`
#   --runs N       measurements of each kind; the median counts (3)
#   --bin DIR      where peelfs and examples/link_shaper are (target/release)
#
# Prints one line a measurement: image, link, what was prefetched, seconds, requests, MiB received, and
# the seconds of the same with everything here, which say how busy the machine was. Needs root, /dev/fuse,
# curl and jq. Everything it writes is in a directory of its own, which it removes.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
registry='' runs=3 bin=$here/../target/release images=python,node
while [ $# -gt 0 ]; do
  case $1 in
    --registry) registry=$2 ;;
    --runs) runs=$2 ;;
    --bin) bin=$2 ;;
    --images) images=$2 ;;
    *) sed -n '2,/^set /{/^set /d;s/^# \{0,1\}//p}' "$0" >&2; exit 2 ;;
  esac
  shift 2
done
[ -n "$registry" ] || { echo "cold: --registry is missing" >&2; exit 2; }

work=$(mktemp -d) link_pid=''
export XDG_RUNTIME_DIR=$work/run
mkdir -m 700 "$XDG_RUNTIME_DIR"
mkdir "$work/mnt"
finish() {
  local status=$?
  trap - EXIT
  set +e
  ! mountpoint -q "$work/mnt" || umount -l "$work/mnt"
  [ -z "$link_pid" ] || { kill "$link_pid"; wait "$link_pid"; } 2> /dev/null
  rm -rf --one-file-system "$work"
  exit $status
}
trap finish EXIT
trap 'exit 130' INT TERM

# link MBIT RTT_MS: its address is in $link, what passes it is told by `counted`
link() {
  if [ -n "$link_pid" ]; then
    exec {link_in}>&- {link_out}<&-
    wait "$link_pid" || true
  fi
  rm -f "$work/in" "$work/out"
  mkfifo "$work/in" "$work/out"
  "$bin/examples/link_shaper" --upstream "$registry" --mbit "$1" --rtt-ms "$2" < "$work/in" > "$work/out" &
  link_pid=$!
  exec {link_in}> "$work/in" {link_out}< "$work/out"
  read -r -u "$link_out" link
}
counted() {
  echo >&"$link_in"
  local line
  read -r -u "$link_out" line
  echo "$line"
}

start() {
  case $1 in
    python) chroot "$work/mnt" /usr/bin/env -i PATH=/usr/bin:/bin /usr/bin/python3 -c 'import numpy, pandas' ;;
    node) chroot "$work/mnt" /usr/bin/env -i PATH=/usr/local/bin:/usr/bin:/bin \
      /bin/sh -c 'cd /srv/app && node -e "require(\"webpack\")"' ;;
  esac
}

# once IMAGE [OPTION...]: mounts, starts, unmounts; $took and $passed
once() {
  local image=$1 begun now
  shift
  counted > /dev/null
  begun=$EPOCHREALTIME
  "$bin/peelfs" mount --cache-dir "$work/cache" "$@" "$link/$image:latest" "$work/mnt"
  start "$image"
  now=$EPOCHREALTIME
  passed=$(counted)
  "$bin/peelfs" umount "$work/mnt"
  took=$(awk -v us=$((${now/[.,]/} - ${begun/[.,]/})) 'BEGIN { printf "%.2f", us / 1e6 }')
}
drop() { "$bin/peelfs" cache drop --content --all --cache-dir "$work/cache" > /dev/null; }

for image in ${images//,/ }; do
  link 0 0
  "$bin/peelfs" mount --wait --cache-dir "$work/cache" "$link/$image:latest" "$work/mnt"
  "$bin/peelfs" umount "$work/mnt"
  for line in '200 20' '50 80'; do
    # shellcheck disable=SC2086
    link $line
    for what in none guess profile; do
      for ((run = 0; run < runs; run++)); do
        [ $what = profile ] || rm -rf "$work"/cache/profile-v*
        drop
        option=--prefetch=profile
        [ $what != none ] || option=--prefetch=none
        once "$image" "$option"
        cold=$took received=$passed
        once "$image"
        echo "$image, ${line/ / Mbit/s + } ms, $what: $cold s, $(jq -r \
          '"\(.requests) requests, \(.bytes / 1048576 * 10 | round / 10) MiB"' <<< "$received"); all here: $took s"
      done
    done
  done
done
