# shellcheck shell=bash disable=SC2034,SC2154 # variables are shared with run.sh
# Taking one measurement: time, counters, a clean place and a cold cache. Sourced by run.sh.

# Below this much free disk, what earlier measurements left behind is removed.
ROOM_KIB=$((12 << 20))
SHORT_RUNS_AT_LEAST=5

# sample CASE SUBJECT UNIT VALUE: one measurement
sample() {
  jq -nc --arg case "$1" --arg subject "$2" --arg unit "$3" --argjson value "$4" \
    '{case: $case, subject: $subject, unit: $unit, value: $value}' | tee -a "$samples" >&2
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

# calculated EXPRESSION: what awk makes of it
calculated() { awk "BEGIN { printf \"%.6f\", $1 }"; }

# short_runs: how often a measurement of less than a second is taken
short_runs() { echo $((runs < SHORT_RUNS_AT_LEAST && runs > 1 ? SHORT_RUNS_AT_LEAST : runs)); }

# In turn: `peelfs podman` in one run, `podman peelfs` in the next.
in_turn() {
  local run=$1
  shift
  if [ $((run % 2)) = 0 ]; then printf '%s\n' "$@" | tac; else printf '%s\n' "$@"; fi
}

# fresh: a directory that nothing has used, in $dir. Earlier ones stay while there is room, since ext4
# creates files more slowly for a while after many were removed.
fresh() {
  if [ "$(df --output=avail "$work" | tail -n 1)" -lt $ROOM_KIB ]; then
    say "making room"
    unmount_below "$work/done"
    rm -rf --one-file-system "$work/done"
    sync
  fi
  serial=$((${serial:-0} + 1))
  dir=$work/done/$serial
  mkdir -p "$dir/mnt"
}

# Empties the page cache, but for what is not being measured: the registry's files and the programs.
cold() {
  drop_caches
  cat "$work"/registry/docker/registry/v2/blobs/*/*/*/data > /dev/null
  local program
  for program in "$peelfs" podman skopeo umoci; do "$program" --version > /dev/null; done
}
drop_caches() {
  sync
  echo 3 > /proc/sys/vm/drop_caches 2> /dev/null || say "cannot drop the page cache; not as cold as it should be"
}

# unmount_below DIR: everything that was mounted below it, topmost first
unmount_below() {
  local at
  findmnt -rno TARGET | grep "^$1/" | sort -r | while IFS= read -r at; do umount -l "$at"; done || true
}

# end PID: ends a child that was not waited for yet, so that the number still is its own
end() {
  kill "$1"
  wait "$1"
} 2> /dev/null

# memory_of FIELD PID: of /proc/PID/status or smaps_rollup, in MiB
memory_of() {
  local file=status
  [ "$1" != Pss ] || file=smaps_rollup
  awk -v name="$1:" '$1 == name { printf "%.1f", $2 / 1024 }' "/proc/$2/$file"
}

# cpu_seconds PID: user and system time of all its threads so far
cpu_seconds() {
  sed 's/.*) //' "/proc/$1/stat" | awk -v hz="$(getconf CLK_TCK)" '{ printf "%.3f", ($12 + $13) / hz }'
}
