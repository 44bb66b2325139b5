# shellcheck shell=bash disable=SC2034,SC2154 # variables are shared with run.sh
# What stands between the images and who wants them: a registry, and links to it. Sourced by run.sh.

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
  local tries image
  for ((tries = 0; tries < 100; tries++)); do
    registry=$(sed -n 's/.*listening on \(127\.0\.0\.1:[0-9]*\).*/\1/p' "$work/registry.err" | head -n 1)
    [ -z "$registry" ] || break
    sleep 0.1
  done
  [ -n "$registry" ] || die "the registry does not start"
  for image in $needed; do push "$layouts/$image" "$image"; done
}

# push LAYOUT NAME: its `latest` as NAME:latest
push() {
  skopeo copy -q --preserve-digests --dest-tls-verify=false "oci:$1:latest" "docker://$registry/$2:latest"
}

# blob IMAGE DIGEST: the file of one
blob() { echo "$layouts/$1/blobs/${2/://}"; }
manifest_of() { blob "$1" "$(jq -r '.manifests[0].digest' "$layouts/$1/index.json")"; }

# layer_files IMAGE: its layers' blobs, bottom first
layer_files() {
  local digest
  jq -r '.layers[].digest' "$(manifest_of "$1")" | while IFS= read -r digest; do blob "$1" "$digest"; done
}

# layer_bytes IMAGE: their sizes' sum
layer_bytes() { layer_files "$1" | xargs stat -Lc %s | awk '{ sum += $1 } END { printf "%d", sum }'; }

# push_lowest COUNT IMAGE NAME: an image of nothing but the lowest layers of another
push_lowest() {
  local new=$work/layout-$3 config manifest
  mkdir -p "$new/blobs/sha256"
  layer_files "$2" | head -n "$1" | xargs -I {} ln -s {} "$new/blobs/sha256/"
  config=$(keep_document "$new" < <(jq -c --argjson n "$1" 'del(.history) | .rootfs.diff_ids |= .[:$n]' \
    "$(blob "$2" "$(jq -r .config.digest "$(manifest_of "$2")")")"))
  manifest=$(keep_document "$new" < <(jq -c --argjson n "$1" --argjson config "$config" \
    '.config += $config | .layers |= .[:$n]' "$(manifest_of "$2")"))
  push_new "$new" "$manifest" "$3"
}
# push_new LAYOUT MANIFEST NAME: makes it a layout of this manifest, a digest and a size, and pushes that as NAME:latest
push_new() {
  jq -n --argjson manifest "$2" '{schemaVersion: 2, manifests: [$manifest + {
    mediaType: "application/vnd.oci.image.manifest.v1+json",
    annotations: {"org.opencontainers.image.ref.name": "latest"}}]}' > "$1/index.json"
  echo '{"imageLayoutVersion":"1.0.0"}' > "$1/oci-layout"
  push "$1" "$3"
}
# keep_document LAYOUT: adds what it reads as a blob; its digest and size
keep_document() {
  local digest
  cat > "$1/document"
  digest=$(sha256sum < "$1/document" | cut -d ' ' -f 1)
  mv "$1/document" "$1/blobs/sha256/$digest"
  printf '{"digest":"sha256:%s","size":%s}' "$digest" "$(stat -c %s "$1/blobs/sha256/$digest")"
}

# start_link MBIT RTT_MS: a link to the registry; its address is in $link
start_link() {
  local name=$work/link$((link_number = ${link_number:-0} + 1))
  mkfifo "$name.in" "$name.out"
  "$bin/link_shaper" --upstream "$registry" --mbit "$1" --rtt-ms "$2" < "$name.in" > "$name.out" 2> "$name.err" &
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

# link_name LINK: `200:20` as people say it
link_name() { echo "${1%:*} Mbit/s + ${1#*:} ms"; }
# line_seconds BYTES LINK: how long they take on it at least
line_seconds() { calculated "$1 * 8 / ${2%:*} / 1e6"; }
