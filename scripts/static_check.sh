#!/bin/sh
# Whether a program needs no shared library, and runs in an empty directory as root file system: static_check.sh PROGRAM
# With root it is run there, and resolves a name there by a server on loopback.
set -eu
program=$(realpath "$1")
fail() {
    echo "error: $*" >&2
    exit 1
}
if ldd "$program" 2>&1 | grep -q '=>'; then fail "$program needs shared libraries"; fi
"$program" version | grep -q static || fail "it does not say that it is static"
[ "$(id -u)" = 0 ] || { echo 'skipped: only root may make a chroot' >&2; exit 0; }
if [ -z "${STATIC_CHECK_WORK:-}" ]; then
    unshare --mount --pid --net --fork true 2> /dev/null || { echo 'skipped: cannot enter namespaces' >&2; exit 0; }
    STATIC_CHECK_WORK=$(mktemp -d) && export STATIC_CHECK_WORK
    trap 'rm -rf "$STATIC_CHECK_WORK"' EXIT
    unshare --mount --pid --fork --net --propagation private "$0" "$program"
    exit
fi
root=$STATIC_CHECK_WORK/root
mkdir -p "$root/proc" "$root/etc" "$root/dev"
cp "$program" "$root/peelfs"
mount -t proc proc "$root/proc"
mount --rbind /dev "$root/dev"
ip link set lo up
echo 'nameserver 127.0.0.1' > "$root/etc/resolv.conf"
echo '127.0.0.1 hosts.test' > "$root/etc/hosts"
# Answers a question for the IPv4 address of a registry with 127.0.0.1, and all others with nothing.
mkfifo "$STATIC_CHECK_WORK/ready"
python3 - "$STATIC_CHECK_WORK/ready" <<'END' &
import socket, struct, sys
server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
server.bind(("127.0.0.1", 53))
open(sys.argv[1], "w").close()
while True:
    question, client = server.recvfrom(512)
    end = question.index(b"\0", 12) + 5
    is_a = b"registry" in question and question[end - 4 : end - 2] == b"\0\1"
    answer = b"\xc0\x0c\0\1\0\1\0\0\0\0\0\4\x7f\0\0\1" if is_a else b""
    server.sendto(question[:2] + b"\x81\x80\0\1" + struct.pack(">H", is_a) + b"\0\0\0\0" + question[12:end] + answer, client)
END
dns=$!
trap 'kill $dns' EXIT
cat "$STATIC_CHECK_WORK/ready"
chroot=$(command -v chroot)
in_root() { env -i HOME=/ XDG_RUNTIME_DIR=/ PATH=/ "$chroot" "$root" /peelfs "$@"; }
in_root version > /dev/null || fail 'it does not run in an empty root file system'
# Nothing listens there; a name that is resolved is one that a connection is refused for.
for name in registry.test hosts.test; do
    said=$(in_root ls --insecure "$name:1/app" 2>&1) && fail 'it found an image'
    case $said in
        *'onnection refused'*) ;;
        *) fail "$name is not resolved in an empty root file system: $said" ;;
    esac
done
echo 'runs in an empty root file system, and resolves names there'
