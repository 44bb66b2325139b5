#!/usr/bin/env bash
# Measures peelfs against the tools people use and against kernel overlayfs; prints medians, ratios and
# targets, and draws charts.
#
#     benches/run.sh [--runs N] [--only PART,...] [--images NAME,...] [--links MBIT:RTT,...]
#                    [--layouts DIR] [--bin DIR] [--out DIR] [--docs] [--keep]
#
#   --runs N       measurements of each kind, alternating; the median counts (3; short ones five, unless N is 1)
#   --only PART    some of: never, base, pass, seen, cold, large, warm, fresh, uncached, memory, growth,
#                  containers, formats, data (all), and runs, a part of containers
#   --images NAME  the images of never, pass and cold (python,node,server,ml); other parts use python and node
#   --links LINK   the links of never and cold, megabits a second and a round trip in ms (1000:1,200:20,50:80)
#   --layouts DIR  OCI layouts DIR/NAME, tag `latest` ($PEELFS_BENCH_DIR, built if missing)
#   --bin DIR      where peelfs and the programs of benches/tools are, instead of building them
#   --out DIR      samples.jsonl (one measurement a line), report.md and the charts ($PEELFS_BENCH_DIR/out)
#   --docs         puts the tables and the charts into docs/ as well
#   --keep         leave what was measured in place
#
# $PEELFS_BENCH_DIR (target/bench) holds everything it writes; it should be on a disk, as ext4, with 30 GiB
# free. Needs root, /dev/fuse, and what `scripts/need.sh` is asked for in the Makefile; containerd is measured
# where it is installed. It starts a registry and shaped links of its own on free loopback ports, and ends and
# unmounts what it started, whichever way it ends. docs/benchmarks.md says what is measured.
# shellcheck disable=SC2034 # variables are shared with parts
set -euo pipefail

PARTS=never,base,pass,seen,cold,large,warm,fresh,uncached,memory,growth,containers,formats,data

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
bench=${PEELFS_BENCH_DIR:-$here/../target/bench}
runs=3 only=$PARTS images=python,node,server,ml links=1000:1,200:20,50:80
layouts='' bin='' out='' docs=no keep=no

say() { printf 'bench: %s\n' "$*" >&2; }
die() { say "$*"; exit 1; }

while [ $# -gt 0 ]; do
  case $1 in
    --runs) runs=$2; shift ;;
    --only) only=$2; shift ;;
    --images) images=$2; shift ;;
    --links) links=$2; shift ;;
    --layouts) layouts=$2; shift ;;
    --bin) bin=$2; shift ;;
    --out) out=$2; shift ;;
    --docs) docs=yes ;;
    --keep) keep=yes ;;
    *) sed -n '2,/^# shellcheck /{/^# shellcheck /d;s/^# \{0,1\}//p}' "$0" >&2; exit 2 ;;
  esac
  shift
done
images=${images//,/ } links=${links//,/ }
# shellcheck disable=SC2086 # one word an image
needed=$(printf '%s\n' python node $images | sort -u)

# --------------------------------------------------------------------------- beginning and ending

for part in ${only//,/ }; do
  case ,$PARTS,runs, in *",$part,"*) ;; *) die "there is no part $part" ;; esac
done
[ "$(id -u)" = 0 ] || die "mounting and unpacking with owners needs root"
[ -c /dev/fuse ] || die "there is no /dev/fuse"
for tool in podman skopeo umoci docker-registry curl jq python3 setfattr; do
  command -v "$tool" > /dev/null || die "$tool is missing"
done
mkdir -p "$bench"
bench=$(cd "$bench" && pwd)
out=${out:-$bench/out}
mkdir -p "$out"
out=$(cd "$out" && pwd)
if [ -z "$layouts" ]; then
  layouts=$bench
  # shellcheck disable=SC2086
  "$here/corpus.sh" "$bench" $needed
fi
layouts=$(cd "$layouts" && pwd)
if [ -z "$bin" ]; then
  cargo build --release --locked --manifest-path "$here/../Cargo.toml" \
    -p peelfs-cli -p peelfs-bench-tools --bins
  bin=$(cargo metadata --format-version 1 --no-deps --manifest-path "$here/../Cargo.toml" | jq -r .target_directory)/release
fi
bin=$(cd "$bin" && pwd)
peelfs=$bin/peelfs

work=$(mktemp -d "$bench/run.XXXXXX")
registry_pid='' link_pid='' containerd_pid='' snapshotter_pid='' empty_pid='' nginx_pid_file=''
finish() {
  local status=$? pid
  trap - EXIT
  set +e
  end_server
  unmount_below "$work"
  for pid in $link_pid $containerd_pid $snapshotter_pid $empty_pid $registry_pid; do end "$pid"; done
  if [ $status -ne 0 ]; then
    tail -n 3 "$work/log" "$work"/*.err >&2 2> /dev/null
    say "stopped in the middle ($status)"
  fi
  # Last: ext4 is slow to create files for a while after many were removed.
  if [ $keep = yes ]; then say "left in $work"; else rm -rf --one-file-system "$work"; fi
  exit $status
}

for file in "$here"/parts/*.sh; do
  # shellcheck source=/dev/null
  . "$file"
done
trap finish EXIT
trap 'exit 130' INT TERM
# Where mounts tell of themselves: not where the user's other mounts do.
export XDG_RUNTIME_DIR=$work/run
mkdir -m 700 "$XDG_RUNTIME_DIR"
samples=$out/samples.jsonl
: > "$samples"
: > "$work/log"

say "in $work, $(nproc) CPUs, Linux $(uname -r), $(stat -f -c %T "$work"); $(podman --version); $(skopeo --version); umoci $(umoci --version | sed -n 's/.*version //p')"
start_registry
for part in ${only//,/ }; do
  begun=$SECONDS
  say "$part"
  "measure_$part"
  say "$part took $((SECONDS - begun)) s"
done
"$here/report.py" "$samples" > "$out/report.md"
cat "$out/report.md"
# Not those of an earlier run of other parts.
rm -f "$out"/*.svg
if command -v gnuplot > /dev/null; then
  "$here/charts.py" "$samples" "$out"
else
  say "no charts without gnuplot"
fi
if [ $docs = yes ]; then
  mkdir -p "$here/../docs/img"
  cp "$out"/*.svg "$here/../docs/img/"
  "$here/report.py" --into "$here/../docs/benchmarks.md" "$samples"
fi
