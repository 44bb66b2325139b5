# shellcheck shell=bash disable=SC2034,SC2154 # variables are shared with run.sh
# Images that this machine has not seen, or not all of, or seen before. Sourced by run.sh.

# On each link, from nothing until the image's start command has run.
measure_never() {
  local run link image subject subjects spec
  for image in $images; do measure_native "$image"; done
  for spec in $links; do
    for image in $images; do
      sample "never seen, $image, $(link_name "$spec")" line s "$(line_seconds "$(layer_bytes "$image")" "$spec")"
      sample "never seen, $image, $(link_name "$spec")" "line + native" s \
        "$(calculated "$(line_seconds "$(layer_bytes "$image")" "$spec") + ${native[$image]}")"
      subjects=(peelfs podman)
      [ "$image" != python ] || subjects+=(peelfs-behind)
      ! command -v containerd > /dev/null || subjects+=(containerd)
      for ((run = 1; run <= runs; run++)); do
        for subject in $(in_turn "$run" "${subjects[@]}"); do
          fresh
          measure_start "$image" "$subject" "$spec" "never seen, $image, $(link_name "$spec")"
        done
      done
    done
  done
}

# measure_native IMAGE: its start command on kernel overlayfs, everything in the page cache; ${native[IMAGE]}
declare -A native
measure_native() {
  [ -z "${native[$1]:-}" ] || return 0
  local run times=() merged
  unpacked "$1"
  # Round 0 warms up.
  for ((run = 0; run <= runs; run++)); do
    timed start "$1" "$merged"
    started "$1" "$merged"
    [ "$run" = 0 ] || { times+=("$took"); sample "native, $1" overlayfs s "$took"; }
  done
  native[$1]=$(printf '%s\n' "${times[@]}" | sort -g | sed -n "$(((${#times[@]} + 1) / 2))p")
}

# measure_start IMAGE SUBJECT LINK CASE [OPTION...]: time and bytes until its command has run, from what is in $dir;
# of the reference $at, if that is set, instead of IMAGE:latest
measure_start() {
  local image=$1 subject=$2 spec=$3 what=$4 root=$dir/mnt
  shift 4
  [ "$subject" != containerd ] || start_containerd
  cold
  start_link "${spec%:*}" "${spec#*:}"
  timed bring_and_start "$image" "$subject" "$@"
  sample "$what" "$subject" s "$took"
  passed=$(counted)
  sample "$what, received" "$subject" MiB "$(jq '.bytes / 1048576 * 10 | round / 10' <<< "$passed")"
  started "$image" "$root"
  case $subject in
    podman) podman_here image umount -a >> "$work/log" ;;
    containerd) end_containerd ;;
    *) umount_peelfs ;;
  esac
  end_link
}
bring_and_start() {
  local image=$1 subject=$2
  shift 2
  case $subject in
    peelfs-behind) mount_peelfs "$link/$image:latest" --verify=behind ;;
    peelfs*) mount_peelfs "$link/${at:-$image:latest}" "$@" ;;
    podman)
      pull_podman "$link/$image:latest"
      root=$(podman_here image mount "$link/$image:latest")
      ;;
    containerd) mount_containerd "$link/$image:latest" ;;
  esac
  start "$image" "$root"
}

# python after an image with its two lowest layers, beside python after nothing.
measure_base() {
  local run subject spec=200:20
  push_lowest 2 python python-base
  for ((run = 1; run <= runs; run++)); do
    for subject in $(in_turn "$run" peelfs peelfs-nothing-known); do
      fresh
      if [ "$subject" = peelfs ]; then
        mount_peelfs "$registry/python-base:latest" --wait
        umount_peelfs
      fi
      measure_start python "$subject" $spec "base layers known, python, $(link_name $spec)"
    done
  done
}

# No bound on the link: every byte received, decoded, verified and stored.
measure_pass() {
  local run image subject cpu served pid
  for image in $images; do
    for ((run = 1; run <= runs; run++)); do
      for subject in $(in_turn "$run" peelfs podman umoci); do
        fresh
        cold
        case $subject in
          peelfs)
            served=$(cpu_seconds "$registry_pid")
            timed mount_peelfs "$registry/$image:latest" --wait
            pid=$(server_pid)
            cpu=$(cpu_seconds "$pid")
            served=$(calculated "$(cpu_seconds "$registry_pid") - $served")
            sample "pass, $image, memory at most" peelfs MiB "$(memory_of VmHWM "$pid")"
            umount_peelfs
            sample "pass, $image" "CPU / cores" s "$(calculated "$cpu / $(nproc)")"
            sample "pass, $image" "CPU with the registry's / cores" s "$(calculated "($cpu + $served) / $(nproc)")"
            ;;
          podman) timed pull_podman "$registry/$image:latest" ;;
          umoci) timed unpack_umoci "$registry/$image:latest" ;;
        esac
        sample "pass, $image" "$subject" s "$took"
      done
    done
  done
}

# The second mount of a tag, beside one HEAD request over the same link.
measure_seen() {
  local run image passed link
  start_link 0 20
  for image in python node; do
    fresh
    mount_peelfs "$link/$image:latest" --wait
    umount_peelfs
    for ((run = 1; run <= $(short_runs); run++)); do
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
