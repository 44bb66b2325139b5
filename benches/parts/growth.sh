# shellcheck shell=bash disable=SC2034,SC2154 # variables are shared with run.sh
# What grows with the image, and with the number of mounts. Sourced by run.sh.

GROWTH_ENTRIES="10000 100000 1000000"
GROWTH_LAYERS="5 50 500"
FEW_ENTRIES=10000
FEW_LAYERS=5
LOOKUPS=1000
MANY_MOUNTS=100

# Mounts from cached indexes: time, memory, and what it takes to ask for names spread over the tree.
measure_growth() {
  local entries layers
  for entries in $GROWTH_ENTRIES; do measure_size "$entries entries" "$entries" $FEW_LAYERS; done
  for layers in $GROWTH_LAYERS; do measure_size "$layers layers" $FEW_ENTRIES "$layers"; done
  measure_many_mounts
}

# measure_size NAME ENTRIES LAYERS
measure_size() {
  local run name=$1 entries=$2 pid
  fresh
  "$bin/growth_image" --entries "$entries" --layers "$3" "$dir/layout"
  mount_peelfs "oci:$dir/layout:latest" --wait
  umount_peelfs
  for ((run = 1; run <= $(short_runs); run++)); do
    timed mount_peelfs "oci:$dir/layout:latest" --offline
    pid=$(server_pid)
    sample "growth, $name, mount" peelfs s "$took"
    sample "growth, $name, memory after the mount" peelfs MiB "$(memory_of VmRSS "$pid")"
    timed_silently stat_spread "$entries"
    sample "growth, $name, $LOOKUPS lookups" peelfs s "$took"
    sample "growth, $name, memory after the lookups" peelfs MiB "$(memory_of VmRSS "$pid")"
    umount_peelfs
  done
  measure_kernel_mount "$name" "$entries"
}

# measure_kernel_mount NAME ENTRIES: of what was just measured by FUSE
measure_kernel_mount() {
  local run image
  # All content is verified at the first one.
  mount_by_kernel
  umount_peelfs
  rm -r "$dir/cache/erofs-v1"
  sample "growth, $1, memory for the image" peelfs MiB "$(python3 - "$peelfs" mount --kernel always --allow-other \
    --offline --cache-dir "$dir/cache" "oci:$dir/layout:latest" "$dir/mnt" <<- 'PYTHON'
	import resource, subprocess, sys
	subprocess.run(sys.argv[1:], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
	print(round(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024, 1))
	PYTHON
  )"
  umount_peelfs
  for ((run = 1; run <= $(short_runs); run++)); do
    rm -r "$dir/cache/erofs-v1"
    timed mount_by_kernel
    umount_peelfs
    sample "growth, $1, mount by the kernel, image made" peelfs s "$took"
    timed mount_by_kernel
    umount_peelfs
    sample "growth, $1, mount by the kernel" peelfs s "$took"
  done
  image=$(find "$dir/cache/erofs-v1" -type f ! -name '*.seal')
  sample "growth, $1, image, an entry" peelfs bytes "$(calculated "$(stat -c %s "$image") / $2")"
}
mount_by_kernel() { mount_peelfs "oci:$dir/layout:latest" --offline --kernel always; }

# stat_spread ENTRIES: as benches/tools/src/bin/growth_image.rs names them
stat_spread() {
  awk -v entries="$1" -v count=$LOOKUPS -v at="$dir/mnt" 'BEGIN {
    for (i = 0; i < count; i++) {
      n = int(i * entries / count)
      printf "%s/d%d/d%d/f%d\n", at, int(n / 10000), int(n / 100) % 100, n % 100
    }
  }' | xargs stat -c %s
}

# Many mounts of one image in one process: what it takes, beside what it takes for one of them.
measure_many_mounts() {
  local number first
  fresh
  mount_peelfs "$registry/python:latest" --wait
  umount_peelfs
  for ((number = 1; number <= MANY_MOUNTS; number++)); do
    mkdir "$dir/mnt$number"
    timed "$peelfs" mount --share --cache-dir "$dir/cache" "$registry/python:latest" "$dir/mnt$number"
    ls -l "$dir/mnt$number/usr/bin" > /dev/null
    [ "$number" != 1 ] || first=$(memory_of_mounts)
  done
  sample "growth, $MANY_MOUNTS mounts, the last mount" peelfs s "$took"
  sample "growth, $MANY_MOUNTS mounts, memory of one" peelfs MiB "$first"
  sample "growth, $MANY_MOUNTS mounts, memory" peelfs MiB "$(memory_of_mounts)"
  sample "growth, $MANY_MOUNTS mounts, memory" "1.5 x one + 1 MiB each" MiB "$(calculated "1.5 * $first + $MANY_MOUNTS")"
  for ((number = 1; number <= MANY_MOUNTS; number++)); do "$peelfs" umount "$dir/mnt$number"; done >> "$work/log" 2>&1
}
# memory_of_mounts: of all processes that serve one, each once
memory_of_mounts() {
  local pid
  jq -r .pid "$XDG_RUNTIME_DIR"/peelfs/*.json | sort -u | while IFS= read -r pid; do memory_of Pss "$pid"; echo; done |
    awk '{ sum += $1 } END { printf "%.1f", sum }'
}

# Resident memory after the whole tree was looked at, and what the index takes on disk.
measure_memory() {
  local run image cost pid
  for image in node python; do
    for ((run = 1; run <= runs; run++)); do
      fresh
      timed mount_peelfs "$registry/$image:latest"
      timed_silently ls -lR "$dir/mnt"
      pid=$(server_pid)
      sample "memory, $image, after ls -lR" peelfs MiB "$(memory_of VmRSS "$pid")"
      sample "memory, $image, at most" peelfs MiB "$(memory_of VmHWM "$pid")"
      umount_peelfs
    done
    cost=$("$bin/index_cost" "$dir"/cache/index-v*/*/*)
    sample "index, $image, an entry" peelfs bytes "$(jq .tree_bytes_per_entry <<< "$cost")"
    sample "index, $image, checkpoints of decoded size" peelfs % "$(jq .checkpoint_percent <<< "$cost")"
  done
}
