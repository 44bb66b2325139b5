# shellcheck shell=bash disable=SC2034,SC2154 # variables are shared with run.sh
# Indexes that are known, of layers whose content is not here. Sourced by run.sh.

drop_content() { "$peelfs" cache drop --content --all --cache-dir "$dir/cache" >> "$work/log" 2>&1; }

# indexed IMAGE: a fresh $dir whose cache knows the image's layers and has none of their content
indexed() {
  fresh
  mount_peelfs "$registry/$1:latest" --wait
  umount_peelfs
  drop_content
}

# Until the start command has run: with nothing but the indexes, then with the profile that run left behind;
# and once without fetching ahead, which shows how many bytes the command itself needs.
measure_cold() {
  local run image link spec
  for spec in $links; do
    for image in $images; do
      measure_native "$image"
      sample "index known, $image, $(link_name "$spec")" native s "${native[$image]}"
      indexed "$image"
      measure_start "$image" peelfs-demand "$spec" "index known, $image, $(link_name "$spec")" --prefetch none
      for ((run = 1; run <= runs; run++)); do
        indexed "$image"
        measure_start "$image" peelfs "$spec" "index known, $image, $(link_name "$spec")"
        drop_content
        measure_start "$image" peelfs-profile "$spec" "index known, $image, $(link_name "$spec")"
      done
    done
  done
}

# One file of some 35 MB: its first byte, and all of it beside what it takes compressed at line rate.
measure_large() {
  local run link spec file size packed task
  unpacked python
  # Of those between 30 and 40 MiB the largest; what its spans take is what gzip makes of it.
  file=$(find "$merged" -type f -size +30M -size -40M -printf '%s %P\n' | sort -n | tail -n 1 | cut -d ' ' -f 2-)
  [ -n "$file" ] || die "python has no file of 30 to 40 MiB"
  size=$(stat -c %s "$merged/$file")
  packed=$(gzip -6 < "$merged/$file" | wc -c)
  say "/$file, $size bytes, $packed compressed"
  for spec in 200:20 50:80; do
    sample "large file, $(link_name "$spec"), all of it" line s \
      "$(calculated "$(line_seconds "$packed" "$spec") + ${spec#*:} / 1000")"
    # A span is a MiB decoded; compressed no larger.
    sample "large file, $(link_name "$spec"), first byte" "2 round trips + 1 MiB" s \
      "$(calculated "$(line_seconds 1048576 "$spec") + 2 * ${spec#*:} / 1000")"
    for ((run = 1; run <= runs; run++)); do
      for task in "first byte" "all of it"; do
        indexed python
        cold
        start_link "${spec%:*}" "${spec#*:}"
        mount_peelfs "$link/python:latest"
        # The names on the way are not what is measured.
        stat "$dir/mnt/$file" > /dev/null
        case $task in
          first*) timed_silently head -c 1 "$dir/mnt/$file" ;;
          all*) timed_silently cat "$dir/mnt/$file" ;;
        esac
        sample "large file, $(link_name "$spec"), $task" peelfs s "$took"
        sample "large file, $(link_name "$spec"), $task, received" peelfs MiB "$(counted | jq '.blob_bytes / 1048576 * 10 | round / 10')"
        umount_peelfs
        end_link
      done
    done
  done
}
