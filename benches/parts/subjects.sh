# shellcheck shell=bash disable=SC2034,SC2154 # variables are shared with run.sh
# What is compared: how each tool makes a root file system out of an image. Sourced by run.sh.

# mount_peelfs REFERENCE [OPTION...]: on $dir/mnt, with the cache in $dir/cache
mount_peelfs() {
  local image=$1
  shift
  # A container's processes have other users too.
  "$peelfs" mount --allow-other "$@" --cache-dir "$dir/cache" "$image" "$dir/mnt"
}
umount_peelfs() { "$peelfs" umount "$dir/mnt" >> "$work/log" 2>&1; }
# server_pid [DIR]: who serves the mount there
server_pid() { jq -r --arg at "${1:-$dir/mnt}" 'select(.at == $at).pid' "$XDG_RUNTIME_DIR"/peelfs/*.json; }

podman_here() { podman --root "$dir/root" --runroot "$dir/runroot" --storage-driver overlay "$@"; }
pull_podman() { podman_here pull -q --tls-verify=false "$1"; }

unpack_umoci() {
  skopeo copy -q --src-tls-verify=false "docker://$1" "oci:$dir/layout:latest"
  umoci unpack --image "$dir/layout:latest" "$dir/bundle"
}

# A daemon of our own for each measurement, since it keeps what it has pulled.
start_containerd() {
  cat > "$dir/containerd.toml" <<- CONF
	version = 2
	root = "$dir/containerd"
	state = "$dir/state"
	disabled_plugins = ["io.containerd.grpc.v1.cri"]
	[grpc]
	  address = "$dir/containerd.sock"
	CONF
  containerd --config "$dir/containerd.toml" > /dev/null 2> "$work/containerd.err" &
  containerd_pid=$!
  local tries
  for ((tries = 0; tries < 100; tries++)); do
    ! ctr_here version > /dev/null 2>&1 || return 0
    sleep 0.1
  done
  die "containerd does not start"
}
ctr_here() { ctr --address "$dir/containerd.sock" "$@"; }
mount_containerd() {
  ctr_here images pull --plain-http "$1"
  ctr_here images mount "$1" "$dir/mnt"
}
end_containerd() {
  umount "$dir/mnt"
  end "$containerd_pid" || true
  containerd_pid=''
}

# unpacked IMAGE: kernel overlayfs over its layers, one directory each; $merged is where, once a run of this script
unpacked() {
  local lower='' kept=$work/unpacked/$1
  merged=$kept/merged
  [ ! -d "$merged" ] || return 0
  say "unpacking $1"
  unpack_layers "$1" "$kept"
  mkdir -p "$merged"
  lowers[$1]=$lower
  mount_overlay "$1"
}
declare -A lowers
mount_overlay() { mount -t overlay -o "ro,lowerdir=${lowers[$1]}" overlay "$work/unpacked/$1/merged"; }
unpack_layers() {
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

# -------------------------------------------------------------------------------- what images do

# start IMAGE ROOT: the image's work from its root file system, until it is ready; then `started IMAGE ROOT`
start() {
  local root=$2
  mount -t tmpfs tmpfs "$root/tmp"
  mount -t tmpfs tmpfs "$root/run"
  mount -t proc proc "$root/proc"
  mount --bind /dev "$root/dev"
  case $1 in
    python) inside "$root" python3 -c 'import numpy, pandas' ;;
    node) inside "$root" node -e 'require("/srv/app/node_modules/webpack")' ;;
    server) start_server "$root" ;;
    ml) inside "$root" python3 /app/run.py ;;
    *) die "there is no command that starts $1" ;;
  esac
}
inside() {
  local root=$1
  shift
  chroot "$root" /usr/bin/env -i PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin LC_ALL=C.UTF-8 "$@"
}
started() {
  end_server
  umount "$2/dev" "$2/proc" "$2/run" "$2/tmp"
}

# A web server that has answered, and a database cluster that was made and asked.
start_server() {
  mkdir "$1/run/nginx"
  cat > "$1/run/nginx.conf" <<- 'CONF'
	user www-data;
	pid /run/nginx.pid;
	events {}
	http {
	  access_log off;
	  client_body_temp_path /run/nginx/body;
	  proxy_temp_path /run/nginx/proxy;
	  fastcgi_temp_path /run/nginx/fastcgi;
	  uwsgi_temp_path /run/nginx/uwsgi;
	  scgi_temp_path /run/nginx/scgi;
	  include /etc/nginx/mime.types;
	  server { listen unix:/run/nginx.sock; root /srv/www; }
	}
	CONF
  nginx_pid_file=$1/run/nginx.pid
  # Not standard error, which it would keep open after it has answered.
  inside "$1" nginx -e /run/nginx/error -c /run/nginx.conf
  # The paths of sockets are short.
  (cd "$1/run" && curl -sSf --unix-socket nginx.sock http://localhost/)
  inside "$1" sh -ec '
    install -d -o postgres -g postgres /run/cluster
    cd /run/cluster
    bin=$(echo /usr/lib/postgresql/*/bin)
    as="setpriv --reuid=postgres --regid=postgres --clear-groups"
    $as $bin/initdb --no-sync --locale=C.UTF-8 -D /run/cluster
    echo "select 1" | $as $bin/postgres --single -D /run/cluster postgres'
}
end_server() {
  local pid=''
  if [ -n "$nginx_pid_file" ] && [ -s "$nginx_pid_file" ]; then pid=$(< "$nginx_pid_file"); fi
  nginx_pid_file=''
  if [ -n "$pid" ]; then
    kill "$pid"
    # No child of this shell, so there is nothing to wait for.
    while kill -0 "$pid" 2> /dev/null; do sleep 0.02; done
  fi
}
