# shellcheck shell=bash disable=SC2034,SC2154 # variables are shared with run.sh
# Everything is on this machine: peelfs beside kernel overlayfs over the unpacked layers. Sourced by run.sh.

SMALL_FILE=65536
LARGE_FILE=1048576
RANDOM_READS=200000
REQUESTS=50000

# one_task TASK DIR: $took; `-kernel` and `-passthrough` say only how peelfs has mounted
one_task() {
  case ${1%-kernel} in
    find) timed_silently find "$2" ;;
    stat) timed_silently find "$2" -newer / ;;
    ls-lR) timed_silently ls -lR "$2" ;;
    small) took=$("$bin/walk_bench" --up-to $SMALL_FILE "$2" | jq .seconds) ;;
    random) took=$("$bin/walk_bench" --from $LARGE_FILE --random $RANDOM_READS "$2" | jq .seconds) ;;
    sequential | sequential-passthrough) took=$("$bin/walk_bench" --from $LARGE_FILE "$2" | jq .seconds) ;;
    # GNU tar reads no file when it sees that it writes to /dev/null.
    tar) timed_silently tar_to_nowhere "$2" ;;
    import) timed_silently inside "$2" python3 -c 'import numpy, pandas' ;;
  esac
}
tar_to_nowhere() { tar -C "$1" -cf - . | cat; }

# side_by_side PART IMAGE PREPARE TASK...: both mounted, each task in turn; PREPARE SUBJECT IMAGE comes before each.
# Options for peelfs are in $how.
how=()
side_by_side() {
  local part=$1 image=$2 prepare=$3 run task subject paged_in
  shift 3
  fresh
  unpacked "$image"
  mount_peelfs "$registry/$image:latest" --wait "${how[@]}"
  local -A at=([peelfs]=$dir/mnt [overlayfs]=$merged)
  same_names "$dir/mnt" "$merged"
  # Round 0 warms up.
  for ((run = 0; run <= $(short_runs); run++)); do
    for task in "$@"; do
      for subject in $(in_turn "$run" peelfs overlayfs); do
        "$prepare" "$subject" "$image"
        paged_in=$(paged_in)
        one_task "$task" "${at[$subject]}"
        paged_in=$(($(paged_in) - paged_in))
        [ "$run" != 0 ] || continue
        sample "$part, $image, $task" "$subject" s "$took"
        [ "$part" != uncached ] || sample "$part, $image, $task, from disk" "$subject" MiB $((paged_in >> 10))
      done
    done
  done
  umount_peelfs
}

# paged_in: KiB that have been read from disks so far
paged_in() { sed -n 's/^pgpgin //p' /proc/vmstat; }

# Two trees that are compared must be the same tree.
same_names() {
  cmp <(cd "$1" && find . -printf '%P %y %m %U:%G %l\n' | sort) <(cd "$2" && find . -printf '%P %y %m %U:%G %l\n' | sort) ||
    die "$1 and $2 do not show the same"
}

measure_warm() {
  side_by_side warm node : find stat ls-lR small
  # In node nearly every file is small.
  # The import is short, and what is asked for is a small difference: it has more rounds.
  side_by_side warm python : find stat ls-lR small random sequential import import import import
  how=(--passthrough)
  side_by_side warm python : sequential-passthrough
  how=(--kernel always)
  side_by_side warm node : find-kernel stat-kernel ls-lR-kernel small-kernel
  side_by_side warm python : find-kernel stat-kernel ls-lR-kernel small-kernel random-kernel sequential-kernel \
    import-kernel import-kernel import-kernel import-kernel
  how=()
}

# A mount that was not used yet, of content that is in the page cache: as kept by peelfs, as unpacked.
measure_fresh() {
  side_by_side fresh node mount_again small
  side_by_side fresh python mount_again small sequential import
  measure_empty_fuse
  measure_request
  how=(--passthrough)
  side_by_side fresh python mount_again sequential-passthrough
  how=(--kernel always)
  side_by_side fresh node mount_again find-kernel small-kernel
  side_by_side fresh python mount_again find-kernel small-kernel sequential-kernel import-kernel
  how=()
}
# What FUSE alone takes for the reads of sequential, with a server that neither reads nor verifies.
measure_empty_fuse() {
  local run
  for ((run = 0; run <= $(short_runs); run++)); do
    mkdir -p "$dir/empty"
    mkfifo "$dir/empty.said"
    "$bin/empty_fuse" --from $LARGE_FILE "$merged" "$dir/empty" > "$dir/empty.said" &
    empty_pid=$!
    grep -q mounted "$dir/empty.said" || die "empty_fuse does not mount"
    one_task sequential "$dir/empty"
    [ "$run" = 0 ] || sample_request "FUSE alone" "$dir/empty"
    umount -l "$dir/empty"
    wait "$empty_pid"
    empty_pid=''
    rm "$dir/empty.said"
    [ "$run" = 0 ] || sample "fresh, python, sequential" "FUSE alone" s "$took"
  done
}
# What one request takes, from the call to its answer.
measure_request() {
  local run
  fresh
  mount_peelfs "$registry/python:latest" --wait
  for ((run = 1; run <= $(short_runs); run++)); do sample_request peelfs "$dir/mnt"; done
  umount_peelfs
}
# sample_request SUBJECT MOUNT
sample_request() {
  took=$("$bin/walk_bench" --from $LARGE_FILE --stat $REQUESTS "$2" | jq .seconds)
  sample "a FUSE request" "$1" µs "$(calculated "$took / $REQUESTS * 1e6")"
}
mount_again() {
  case $1 in
    peelfs)
      umount_peelfs
      mount_peelfs "$registry/$2:latest" "${how[@]}"
      find "$dir/cache" -type f -exec cat {} + > /dev/null
      ;;
    overlayfs)
      umount "$merged"
      mount_overlay "$2"
      ;;
  esac
}

# The same, but nothing is in the page cache.
measure_uncached() {
  side_by_side uncached node forget find small tar
  side_by_side uncached python forget find small sequential tar import
  how=(--kernel always)
  side_by_side uncached node forget find-kernel small-kernel tar-kernel
  side_by_side uncached python forget find-kernel small-kernel sequential-kernel tar-kernel import-kernel
  how=()
}
forget() {
  mount_again "$@"
  drop_caches
  # Programs are not what is measured.
  cat "$bin/walk_bench" "$(command -v tar)" "$(command -v find)" > /dev/null
}
