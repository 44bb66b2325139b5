#!/usr/bin/env bash
# Builds the images that the benchmarks mount, out of Debian, PyPI and npm packages.
#
#     benches/corpus.sh DIR [IMAGE...]          IMAGE: base, python, node, server, ml; all when none is named
#
# Each becomes an OCI layout DIR/IMAGE with the tag `latest`; one that is there already is left alone,
# and so is a finished layer in DIR/.layers. Layers are what layers in the wild are: the upper directory
# of a kernel overlay mount in which a command ran, as one gzip member of level 6.
#
# Needs root, a network, and: mmdebstrap jq gzip tar getfattr setfattr python3 with pip, npm. About twenty minutes.
set -euo pipefail

PYTHON_PACKAGES=(numpy==1.26.4 scipy==1.13.1 pandas==2.2.2 requests==2.32.3 flask==3.0.3)
NODE_PACKAGES=(
  typescript@5.5.4 webpack@5.93.0 webpack-cli@5.1.4 eslint@8.57.0 jest@29.7.0 lodash@4.17.21 rxjs@7.8.1
  react@18.3.1 react-dom@18.3.1 date-fns@3.6.0 express@4.19.2 @babel/core@7.25.2 @babel/preset-env@7.25.3
  @mui/material@5.16.7 @mui/icons-material@5.16.7 @emotion/react@11.13.0 @emotion/styled@11.13.0
)
SERVER_PACKAGES=(nginx-light redis-server postgresql locales-all)
ML_PACKAGES=(
  tensorflow-cpu==2.21.0 scikit-learn==1.5.1 pyarrow==17.0.0 onnxruntime==1.19.2
  opencv-python-headless==4.10.0.84
)
SUITE=bookworm
EPOCH=1735689600
CREATED=2025-01-01T00:00:00Z
SEARCH_PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin

out=${1:?usage: corpus.sh DIR [IMAGE...]}
shift
[ $# -gt 0 ] || set -- base python node server ml
mkdir -p "$out/.layers"
out=$(cd "$out" && pwd)
layers=$out/.layers
shared=$layers/.shared   # what the roots see as /run/host: package sources and downloads

say() { printf 'corpus: %s\n' "$*" >&2; }

mounts=()
unmount_all() {
  local i
  for ((i = ${#mounts[@]} - 1; i >= 0; i--)); do umount -l "${mounts[i]}" || true; done
  mounts=()
}
trap unmount_all EXIT

# mounted ARGUMENT... DIR: mount, remembered for the end
mounted() {
  mount "$@"
  mounts+=("${!#}")
}

# ------------------------------------------------------------------------------------------ layers

# layer NAME "PARENT..." COMMAND...: what COMMAND changes in $root, the parents (topmost first) merged
layer() {
  local name=$1 parents=$2 dir=$layers/$1 lower='' parent
  shift 2
  [ ! -e "$dir/diff_id" ] || return 0
  say "layer $name"
  rm -rf "$dir"
  mkdir -p "$dir/upper" "$dir/work" "$dir/root"
  for parent in $parents; do lower+=${lower:+:}$layers/$parent/upper; done
  root=$dir/root
  mounted -t overlay -o "lowerdir=$lower,upperdir=$dir/upper,workdir=$dir/work,redirect_dir=off,metacopy=off,index=off" overlay "$root"
  mounted -t proc proc "$root/proc"
  mounted --bind /dev "$root/dev"
  mounted -t tmpfs tmpfs "$root/run"
  mkdir "$root/run/host" "$root/run/lock"
  mounted --bind "$shared" "$root/run/host"
  mounted --bind "$(readlink -f /etc/resolv.conf)" "$root/etc/resolv.conf"
  # Not in a condition: there `set -e` would not stop it at the first failure.
  trap 'tail -n 20 "$dir/log" >&2; unmount_all' EXIT
  "$@" > "$dir/log" 2>&1
  trap unmount_all EXIT
  unmount_all
  rm -rf "$dir/work"
  rmdir "$dir/root"
  pack "$dir"
}

# pack DIR: DIR/upper as DIR/layer.tar.gz and DIR/diff_id
pack() {
  local dir=$1 stage=$1/stage path
  rm -rf "$stage"
  cp -al "$dir/upper" "$stage"
  # Overlay marks a removed name by a device 0:0 and a replaced directory by an attribute.
  while IFS= read -r -d '' path; do
    [ "$(stat -c %t:%T "$path")" = 0:0 ] || continue
    rm "$path"
    : > "${path%/*}/.wh.${path##*/}"
  done < <(find "$stage" -type c -print0)
  while IFS= read -r path; do
    : > "$stage${path#"$dir/upper"}/.wh..wh..opq"
  done < <(opaque_directories "$dir/upper")
  find "$stage" -name '.wh.*' -printf '%h\0' | sort -zu | while IFS= read -r -d '' path; do
    touch -r "$dir/upper${path#"$stage"}" "$path"
  done
  # Whole seconds, as Docker writes them, but no other times: Python compiles anew what is not as old as
  # its compiled form says.
  (
    cd "$stage"
    shopt -s dotglob nullglob
    tar --create --file ../layer.tar --format=pax --pax-option=delete=atime,delete=ctime,delete=mtime \
      --sort=name --numeric-owner \
      --xattrs --xattrs-include='user.*' --xattrs-include='security.capability' -- *
  )
  gzip -6 -n < "$dir/layer.tar" > "$dir/layer.tar.gz"
  sha256 "$dir/layer.tar" > "$dir/diff_id.new"
  rm -rf "$stage" "$dir/layer.tar"
  mv "$dir/diff_id.new" "$dir/diff_id"
}

opaque_directories() {
  { getfattr --recursive --physical --absolute-names --name=trusted.overlay.opaque "$1" 2> /dev/null || true; } |
    sed -n 's/^# file: //p'
}

sha256() { sha256sum < "$1" | cut -d ' ' -f 1; }

# --------------------------------------------------------------------------------- what layers hold

# The machine's own package sources and proxy, whichever they are.
prepare_sources() {
  mkdir -p "$shared/sources.list.d" "$shared/lists/partial" "$shared/wheels"
  local file
  if [ -s /etc/apt/sources.list ]; then cp /etc/apt/sources.list "$shared/sources.list.d/host.list"; fi
  for file in /etc/apt/sources.list.d/*.{sources,list}; do
    if [ -e "$file" ] && grep -q debian-archive-keyring "$file"; then cp "$file" "$shared/sources.list.d/"; fi
  done
  {
    apt-config dump | grep -E '^Acquire::(Check|http|https)' || true
    cat <<- 'CONF'
	Dir::Etc::sourcelist "/dev/null";
	Dir::Etc::sourceparts "/run/host/sources.list.d";
	Dir::State::lists "/run/host/lists";
	APT::Install-Recommends "false";
	APT::Keep-Downloaded-Packages "true";
	Binary::apt-get::APT::Keep-Downloaded-Packages "true";
	APT::Sandbox::User "root";
	CONF
  } > "$shared/apt.conf"
}

in_root() {
  chroot "$root" /usr/bin/env -i PATH=$SEARCH_PATH HOME=/root LC_ALL=C DEBIAN_FRONTEND=noninteractive \
    APT_CONFIG=/run/host/apt.conf "$@"
}

install_debian() {
  in_root apt-get update -q
  printf '#!/bin/sh\nexit 101\n' > "$root/usr/sbin/policy-rc.d"
  chmod +x "$root/usr/sbin/policy-rc.d"
  in_root apt-get install -y -q "$@"
  rm "$root/usr/sbin/policy-rc.d"
}

layer_base() {
  local dir=$layers/base
  [ ! -e "$dir/diff_id" ] || return 0
  say "layer base"
  rm -rf "$dir"
  mkdir -p "$dir/upper"
  SOURCE_DATE_EPOCH=$EPOCH mmdebstrap --quiet --mode=root --variant=minbase --include=ca-certificates,tzdata \
    --customize-hook='rm -rf "$1"/etc/apt/sources.list*; : > "$1"/etc/resolv.conf; echo box > "$1"/etc/hostname' \
    $SUITE "$dir/base.tar" "$shared"/sources.list.d/*
  tar -C "$dir/upper" --exclude='./dev/*' --xattrs --xattrs-include='*' --numeric-owner -xpf "$dir/base.tar"
  rm "$dir/base.tar"
  pack "$dir"
}

python_debian() { install_debian python3 python3-pip python3-venv; }

install_wheels() {
  local tag platforms=()
  for tag in manylinux_2_28 manylinux_2_27 manylinux_2_17 manylinux2014 manylinux_2_5 manylinux1; do
    platforms+=(--platform "${tag}_$(uname -m)")
  done
  python3 -m pip download -q -d "$shared/wheels" --only-binary=:all: --implementation cp --python-version 311 \
    "${platforms[@]}" "$@"
  in_root python3 -m pip install -q --break-system-packages --root-user-action=ignore --no-index \
    --find-links=/run/host/wheels "$@"
}

python_packages() {
  install_wheels "${PYTHON_PACKAGES[@]}"
  mkdir -p "$root/opt/data/old"
  seq 1 2000 > "$root/opt/data/old/list"
}

# Whiteouts of files and of a directory, and one directory that is replaced.
python_cleanup() {
  rm -rf "$root"/var/cache/apt/archives/*.deb "$root"/var/cache/apt/*.bin "$root"/usr/share/doc/python3* "$root"/root/.cache
  rm -rf "$root/opt/data"
  mkdir "$root/opt/data"
  echo fresh > "$root/opt/data/fresh"
}

python_app() {
  in_root useradd -u 1000 -m app
  mkdir -p "$root/app/static"
  cat > "$root/app/app.py" <<- 'PY'
	import numpy, pandas
	print(pandas.DataFrame({"x": numpy.arange(4)}).to_json())
	PY
  ln -s app.py "$root/app/main.py"
  setfattr -n user.note -v peel "$root/app/app.py"
  printf '%s\n' "${PYTHON_PACKAGES[@]}" > "$root/app/requirements.txt"
  ln "$root/app/requirements.txt" "$root/app/constraints.txt"
  head -c 3000000 /dev/zero > "$root/app/static/pad.bin"
  chown -R 1000:1000 "$root/app"
}

node_debian() {
  install_debian nodejs
  rm -rf "$root"/var/cache/apt/archives/*.deb
}

node_packages() {
  mkdir -p "$root/srv/app"
  echo '{"name":"app","version":"1.0.0","private":true}' > "$root/srv/app/package.json"
  (cd "$root/srv/app" && npm install --ignore-scripts --no-audit --no-fund --loglevel=error \
    --cache "$shared/npm" "${NODE_PACKAGES[@]}")
}

node_app() {
  mkdir -p "$root/srv/app/src"
  echo 'module.exports = require("lodash").chunk([1, 2, 3, 4], 2);' > "$root/srv/app/src/index.js"
  rm -rf "$root/srv/app/node_modules/date-fns/docs"
}

server_debian() { install_debian "${SERVER_PACKAGES[@]}"; }

server_cleanup() {
  rm -rf "$root"/var/cache/apt/archives/*.deb "$root"/var/lib/postgresql/*/main "$root"/usr/share/doc/* "$root"/usr/share/man/*
}

server_app() {
  mkdir -p "$root/srv/www"
  echo '<h1>peel</h1>' > "$root/srv/www/index.html"
}

ml_packages() { install_wheels "${ML_PACKAGES[@]}"; }

ml_app() {
  mkdir -p "$root/app"
  echo 'import tensorflow as tf; print(tf.reduce_sum(tf.ones((8, 8))).numpy())' > "$root/app/run.py"
}

# ------------------------------------------------------------------------------------------ images

# put LAYOUT FILE: adds a blob and prints its descriptor without a media type
put() {
  local digest
  digest=$(sha256 "$2")
  [ -e "$1/blobs/sha256/$digest" ] || ln "$2" "$1/blobs/sha256/$digest"
  printf '{"digest":"sha256:%s","size":%s}' "$digest" "$(stat -c %s "$2")"
}

# image NAME CONFIG LAYER...: an OCI layout; layers bottom first
image() {
  local name=$1 config=$2 new=$layers/$1.layout type=application/vnd.oci.image name_of
  shift 2
  say "image $name"
  rm -rf "$new"
  mkdir -p "$new/blobs/sha256"
  for name_of in "$@"; do
    put "$new" "$layers/$name_of/layer.tar.gz" | jq -c --arg type $type.layer.v1.tar+gzip '{mediaType: $type} + .'
  done > "$new/layers.json"
  for name_of in "$@"; do echo "sha256:$(< "$layers/$name_of/diff_id")"; done |
    jq -nRc --arg created $CREATED --argjson config "$config" --arg arch "$(dpkg --print-architecture)" '
      [inputs] as $ids | {created: $created, architecture: $arch, os: "linux", config: $config,
      rootfs: {type: "layers", diff_ids: $ids}, history: [$ids[] | {created: $created}]}' > "$new/config.json"
  put "$new" "$new/config.json" |
    jq -c --arg type $type --slurpfile layers "$new/layers.json" '{schemaVersion: 2,
      mediaType: ($type + ".manifest.v1+json"), config: ({mediaType: ($type + ".config.v1+json")} + .),
      layers: $layers}' > "$new/manifest.json"
  put "$new" "$new/manifest.json" |
    jq -c --arg type $type '{schemaVersion: 2, mediaType: ($type + ".index.v1+json"),
      manifests: [{mediaType: ($type + ".manifest.v1+json")} + . +
        {annotations: {"org.opencontainers.image.ref.name": "latest"}}]}' > "$new/index.json"
  echo '{"imageLayoutVersion":"1.0.0"}' > "$new/oci-layout"
  rm "$new"/{layers,config,manifest}.json
  rm -rf "${out:?}/$name"
  mv "$new" "$out/$name"
}

build() {
  local environment="\"Env\":[\"PATH=$SEARCH_PATH\"]"
  case $1 in
    base)
      image base "{$environment,\"Cmd\":[\"bash\"]}" base
      ;;
    python)
      layer python-debian base python_debian
      layer python-packages "python-debian base" python_packages
      layer python-cleanup "python-packages python-debian base" python_cleanup
      layer python-app "python-cleanup python-packages python-debian base" python_app
      image python "{$environment,\"Cmd\":[\"python3\",\"/app/app.py\"],\"User\":\"1000:1000\"}" \
        base python-debian python-packages python-cleanup python-app
      ;;
    node)
      layer node-debian base node_debian
      layer node-packages "node-debian base" node_packages
      layer node-app "node-packages node-debian base" node_app
      image node "{$environment,\"Cmd\":[\"node\",\"src/index.js\"],\"WorkingDir\":\"/srv/app\"}" \
        base node-debian node-packages node-app
      ;;
    server)
      layer server-debian base server_debian
      layer server-cleanup "server-debian base" server_cleanup
      layer server-app "server-cleanup server-debian base" server_app
      image server "{$environment,\"Cmd\":[\"nginx\",\"-g\",\"daemon off;\"]}" \
        base server-debian server-cleanup server-app
      ;;
    ml)
      layer python-debian base python_debian
      layer ml-packages "python-debian base" ml_packages
      layer ml-app "ml-packages python-debian base" ml_app
      image ml "{$environment,\"Cmd\":[\"python3\",\"/app/run.py\"]}" base python-debian ml-packages ml-app
      ;;
    *)
      say "there is no image $1"
      exit 2
      ;;
  esac
}

missing=()
for name in "$@"; do [ -e "$out/$name/index.json" ] || missing+=("$name"); done
[ ${#missing[@]} -gt 0 ] || exit 0
prepare_sources
layer_base
for name in "${missing[@]}"; do build "$name"; done
