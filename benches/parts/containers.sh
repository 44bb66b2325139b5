# shellcheck shell=bash disable=SC2034,SC2154 # variables are shared with run.sh
# Containers: `peelfs run` beside `podman run`, and by containerd its own overlay snapshotter beside that of peelfs.
# Sourced by run.sh.

# What a container does, and what it is compared by.
containers=0
CONTAINER=(python3 -c 'import numpy, pandas')

# start_node: containerd in $dir, with both snapshotters; further lines for the configuration of peelfs' are on stdin
start_node() {
  cat > "$dir/snapshotter.toml"
  cat > "$dir/node.toml" <<- CONF
	version = 2
	root = "$dir/containerd"
	state = "$dir/state"
	disabled_plugins = ["io.containerd.grpc.v1.cri"]
	[grpc]
	  address = "$dir/containerd.sock"
	[ttrpc]
	  address = "$dir/ttrpc.sock"
	[proxy_plugins.peelfs]
	  type = "snapshot"
	  address = "$dir/peelfs.sock"
	CONF
  start_snapshotter
  containerd --config "$dir/node.toml" > /dev/null 2>> "$work/containerd.err" &
  containerd_pid=$!
  until_there ctr_here version
}
start_snapshotter() {
  "$peelfs" snapshotter --address "$dir/peelfs.sock" --root "$dir/snapshots" --config "$dir/snapshotter.toml" \
    2>> "$work/snapshotter.err" &
  snapshotter_pid=$!
  until_there test -S "$dir/peelfs.sock"
}
until_there() {
  local tries
  for ((tries = 0; tries < 300; tries++)); do
    ! "$@" > /dev/null 2>&1 || return 0
    sleep 0.1
  done
  die "$1 does not happen"
}
end_node() {
  end "$containerd_pid" || true
  end "$snapshotter_pid" || true
  containerd_pid='' snapshotter_pid=''
  unmount_below "$dir"
}

# pull_and_run SNAPSHOTTER REFERENCE: until the container's command has run
pull_and_run() {
  case $1 in
    peelfs) ctr-remote --address "$dir/containerd.sock" images rpull --plain-http --snapshotter peelfs "$2" ;;
    overlayfs) ctr_here images pull --plain-http --snapshotter overlayfs "$2" ;;
  esac
  run_container "$1" "$2" "${CONTAINER[@]}"
}
run_container() {
  local snapshotter=$1 image=$2
  shift 2
  ctr_here run --rm --snapshotter "$snapshotter" "$image" "c$((containers += 1))-$$" "$@"
}

end_container() {
  ctr_here task kill -s KILL "$1" >> "$work/log" 2>&1
  until_there ctr_here task rm "$1"
  ctr_here container rm "$1" >> "$work/log" 2>&1
}

# compare_trees SNAPSHOTTER REFERENCE: what is seen in a container, beside what umoci unpacks
compare_trees() {
  local inside name=t$((containers += 1))-$$ pid
  ctr_here run -d --snapshotter "$1" "$2" "$name" sleep 1000 >> "$work/log" 2>&1
  # As root of the machine: the image's own user may not read everything.
  pid=$(ctr_here task ls | awk -v name="$name" '$1 == name { print $2 }')
  inside=$(nsenter -t "$pid" -m -r python3 -c "$(cat "$here/support/tree_digest.py")" /)
  end_container "$name"
  unpack_to_compare
  [ "$inside" = "$unpacked_digest" ] || die "a container of $1 sees another tree: $inside, not $unpacked_digest"
}

# What containerd waits for, asked without it.
measure_requests() {
  local run what took
  for ((run = 1; run <= runs; run++)); do
    fresh
    : > "$dir/snapshotter.toml"
    start_snapshotter
    "$bin/snapshot_requests" "$dir/peelfs.sock" > "$dir/requests"
    while IFS=$'\t' read -r what took; do
      sample "snapshotter, $what" peelfs ms "$took"
    done < "$dir/requests"
    end "$snapshotter_pid" || true
    snapshotter_pid=''
    unmount_below "$dir"
  done
}

# unpack_to_compare: digests of what umoci unpacks, once a run of this script
unpack_to_compare() {
  [ -z "${unpacked_digest:-}" ] || return 0
  skopeo copy -q --src-tls-verify=false "docker://$registry/python:latest" "oci:$work/compared:latest"
  umoci unpack --image "$work/compared:latest" "$work/compared-bundle" >> "$work/log" 2>&1
  unpacked_digest=$(python3 "$here/support/tree_digest.py" "$work/compared-bundle/rootfs")
  unpacked_without_own=$(python3 "$here/support/tree_digest.py" "$work/compared-bundle/rootfs" "${OWN_FILES[@]}")
}

# What every machine grants: podman asks for more, also with `--ulimit host`, and fails without CAP_SYS_RESOURCE.
LIMITS=(--ulimit nofile=1024:1024 --ulimit nproc=4096:4096)
# run_by SUBJECT ARGUMENT...: a container that is gone when its command ends
run_by() {
  local subject=$1
  shift
  case $subject in
    peelfs*) "$peelfs" run --rm --runtime "$runtime" --cache-dir "$dir/cache" "$@" ;;
    podman) podman_here --runtime "$runtime" run --rm --network host "${LIMITS[@]}" --tls-verify=false -q "$@" ;;
  esac
}

# What is seen in such a container; engines mount some files of their own.
compare_run() {
  local inside subject=$1
  shift
  inside=$(run_by "$subject" -u 0 "$@" python3 -c "$(cat "$here/support/tree_digest.py")" / "${OWN_FILES[@]}")
  unpack_to_compare
  [ "$inside" = "$unpacked_without_own" ] || die "a container of $subject sees another tree: $inside, not $unpacked_without_own"
}
OWN_FILES=(etc/hosts etc/resolv.conf etc/hostname etc/mtab)

# Both by the same runtime, on the machine's network.
measure_runs() {
  local spec=200:20 run subject on runtime=crun
  on="python, $(link_name $spec)"
  # crun refuses to work where control groups of both versions are mounted.
  if [ -d /sys/fs/cgroup/unified ] || ! command -v crun > /dev/null; then runtime=runc; fi
  command -v "$runtime" > /dev/null || die "there is no crun or runc"
  for ((run = 1; run <= runs; run++)); do
    for subject in $(in_turn "$run" peelfs podman peelfs-behind); do
      fresh
      cold
      start_link "${spec%:*}" "${spec#*:}"
      timed run_by "$subject" $([ "$subject" != peelfs-behind ] || echo --verify=behind) \
        "$link/python:latest" "${CONTAINER[@]}"
      sample "run, never seen, $on" "$subject" s "$took"
      compare_run "$subject" "$link/python:latest"
      end_link
    done
    indexed python
    cold
    start_link "${spec%:*}" "${spec#*:}"
    timed run_by peelfs "$link/python:latest" "${CONTAINER[@]}"
    sample "run, index known, $on" peelfs s "$took"
    compare_run peelfs "$link/python:latest"
    end_link
  done
  fresh
  mount_peelfs "$registry/python:latest" --wait
  umount_peelfs
  pull_podman "$registry/python:latest"
  for ((run = 0; run <= $(short_runs); run++)); do
    for subject in $(in_turn "$run" peelfs podman); do
      timed run_by "$subject" "$registry/python:latest" true
      # The first is not as warm as the others.
      [ "$run" = 0 ] || sample "run, cached, python, true" "$subject" s "$took"
    done
  done
  compare_run peelfs "$registry/python:latest"
}

measure_containers() {
  measure_requests
  measure_runs
  if ! command -v ctr-remote > /dev/null || ! command -v containerd > /dev/null; then
    say "containers are not measured without containerd and ctr-remote (stargz-snapshotter)"
    return 0
  fi
  local spec=200:20 run subject on warm
  on="python, $(link_name $spec)"
  for ((run = 1; run <= runs; run++)); do
    for subject in $(in_turn "$run" peelfs overlayfs); do
      fresh
      start_node <<< "cache-dir = \"$dir/cache\""
      cold
      start_link "${spec%:*}" "${spec#*:}"
      timed pull_and_run "$subject" "$link/python:latest"
      sample "containerd, never seen, $on" "$subject" s "$took"
      end_link
      # Once the kernel shows the image, if it is to.
      [ "$subject" != peelfs ] || until_there findmnt -rn -t erofs -o TARGET --source "peelfs:$link/python:latest"
      for ((warm = 1; warm <= $(short_runs); warm++)); do
        timed run_container "$subject" "$link/python:latest" "${CONTAINER[@]}"
        sample "containerd, cached, python" "$subject" s "$took"
      done
      compare_trees "$subject" "$link/python:latest"
      end_node
    done
    indexed python
    start_node <<< "cache-dir = \"$dir/cache\""
    cold
    start_link "${spec%:*}" "${spec#*:}"
    timed pull_and_run peelfs "$link/python:latest"
    sample "containerd, index known, $on" peelfs s "$took"
    compare_trees peelfs "$link/python:latest"
    end_link
    end_node
  done
  measure_many_containers
}

# Twenty containers of one image: mounts, and the memory of what serves them.
measure_many_containers() {
  local number count=20 lowers server
  fresh
  start_node <<< "kernel = false"
  pull_and_run peelfs "$registry/python:latest" >> "$work/log" 2>&1
  for ((number = 1; number <= count; number++)); do
    ctr_here run -d --snapshotter peelfs "$registry/python:latest" "many-$number-$$" \
      python3 -c 'import numpy, pandas, time; time.sleep(1000)' >> "$work/log" 2>&1
  done
  lowers=$(findmnt -rn -t fuse.peelfs -o TARGET | grep -c "^$dir/snapshots/lowers/")
  sample "containerd, $count containers, mounts" peelfs mounts "$lowers"
  server=$(jq -r .pid "$XDG_RUNTIME_DIR"/peelfs/*.json | head -n 1)
  sample "containerd, $count containers, memory of the server" peelfs MiB "$(memory_of VmRSS "$server")"
  for ((number = 1; number <= count; number++)); do end_container "many-$number-$$"; done
  end_node
}
