#!/bin/bash
# Whether kernel mounts use fs-verity, on a kernel and a file system that have it: verity_check.sh PROGRAM
#
# Debian's kernel is booted in a virtual machine, again and again, with two disks: `verity` has an ext4 with fs-verity,
# `plain` one without. While the machine is off, bytes of cached files are damaged on the disks. verity_check_inside.sh
# is what runs there. Everything is in a temporary directory, the kernel as well. VERITY_CHECK_KERNEL names a package
# (linux-image-….deb) to be used instead of the newest one of Debian's backports.
set -euo pipefail
export PATH=$PATH:/usr/sbin:/sbin
program=$(realpath "$1")
here=$(realpath "$(dirname "$0")")

skip() {
    echo "skipped: $*" >&2
    exit 0
}
fail() {
    echo "error: $*" >&2
    exit 1
}
[ "$(uname -m)" = x86_64 ] || skip 'the virtual machine is an x86_64 one'
"$here/need.sh" qemu-system-x86_64:qemu-system-x86 mkfs.ext4:e2fsprogs debugfs:e2fsprogs busybox:busybox cpio:cpio \
    umoci:umoci modinfo:kmod xz:xz-utils fusermount3:fuse3

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
trap 'exit 1' INT TERM
cd "$work"

# The kernel: with lists of apt's own, so that the system's stay as they are.
kernel_package() {
    local suite apt meta
    suite=$(. /etc/os-release && echo "${VERSION_CODENAME:-}")
    if [ -z "$suite" ] || ! command -v apt-get > /dev/null; then
        skip 'no apt to get a kernel with; set VERITY_CHECK_KERNEL'
    fi
    mkdir -p apt/lists/partial apt/cache/archives/partial
    for name in "$suite" "$suite-backports"; do
        echo "deb http://deb.debian.org/debian $name main"
    done > apt/sources.list
    apt=(-q -o "Dir::Etc::SourceList=$work/apt/sources.list" -o Dir::Etc::SourceParts=/dev/null
        -o "Dir::State::Lists=$work/apt/lists" -o "Dir::Cache=$work/apt/cache" -o APT::Sandbox::User=root
        -t "$suite-backports")
    apt-get "${apt[@]}" update > apt/log 2>&1 || { cat apt/log >&2; skip 'no lists of Debian packages'; }
    apt-get "${apt[@]}" download linux-image-cloud-amd64 >> apt/log 2>&1 || { cat apt/log >&2; skip 'no kernel to be had'; }
    meta=$(dpkg-deb -f linux-image-cloud-amd64_*.deb Depends | cut -d ' ' -f 1)
    rm linux-image-cloud-amd64_*.deb
    apt-get "${apt[@]}" download "$meta" >> apt/log 2>&1 || { cat apt/log >&2; skip 'no kernel to be had'; }
    realpath "$meta"_*.deb
}
package=${VERITY_CHECK_KERNEL:-$(kernel_package)}
[ -f "$package" ] || exit 0
dpkg-deb -x "$package" kernel
modules=(kernel/lib/modules/*)
[ -d "${modules[0]}" ] || modules=(kernel/usr/lib/modules/*)
release=$(basename "${modules[0]}")
base=$(dirname "$(dirname "$(dirname "${modules[0]}")")")
grep -q CONFIG_FS_VERITY=y "kernel/boot/config-$release" || skip "Linux $release has no fs-verity"
grep -q CONFIG_EROFS_FS_BACKED_BY_FILE=y "kernel/boot/config-$release" || skip "Linux $release has no EROFS from files"
echo "Linux $release"

# What the machine boots from: busybox, the programs with their libraries, and modules.
mkdir -p root/{bin,dev,proc,sys,run,mnt,fuse,verity,plain,etc,modules}
put() {
    local file
    for file in "$@"; do
        install -D "$file" "root$file"
        { ldd "$file" 2> /dev/null || true; } | grep -o '/[^ ]*' | while read -r library; do
            [ -e "root$library" ] || install -D "$library" "root$library"
        done
    done
}
busybox=$(command -v busybox)
put "$busybox" "$(command -v lsattr)" "$(command -v fusermount3)"
ln -s "$busybox" root/bin/sh
ldd "$program" 2> /dev/null | grep -o '/[^ ]*' | while read -r library; do
    [ -e "root$library" ] || install -D "$library" "root$library"
done
strip -o root/bin/peelfs "$program" 2> /dev/null || install "$program" root/bin/peelfs
install "$here/verity_check_inside.sh" root/init
echo 'root:x:0:0::/:/bin/sh' > root/etc/passwd
depmod -b "$base" "$release"
for name in virtio_pci virtio_blk ext4 crc32c_generic erofs fuse overlay; do
    modprobe -d "$base" -S "$release" --show-depends "$name" 2> /dev/null |
        sed -n 's/^insmod \([^ ]*\).*/\1/p'
done | awk '!seen[$0]++' | while read -r module; do
    name=$(basename "$module")
    case $name in
        *.xz) xz -dc "$module" > "root/modules/${name%.xz}" ;;
        *.zst) zstd -qdc "$module" > "root/modules/${name%.zst}" ;;
        *) cp "$module" "root/modules/$name" ;;
    esac
    name=${name%.xz}
    echo "${name%.zst}"
done > modules.order
cp modules.order root/modules/order
(cd root && find . | cpio --quiet -o -H newc | gzip -1) > initrd

# An image whose files are found on a disk: the layer itself is compressed.
mkdir -p files/d
head -c 24M /dev/urandom > files/large
awk 'BEGIN { for (n = 0; n < 40000; n++) printf "line %06d of the text\n", n }' > files/text
echo 'the small file' > files/small
(cd files && sha256sum large text small) > sums
cp sums root/sums
(cd root && find sums | cpio --quiet -o -H newc | gzip -1) >> initrd
mkdir disk
umoci init --layout disk/layout > /dev/null
umoci new --image disk/layout:app > /dev/null
umoci insert --rootless --image disk/layout:app files / > /dev/null 2>&1
for name in verity plain; do
    features=
    [ $name = plain ] || features='-O verity'
    # shellcheck disable=SC2086 # one word an option
    mkfs.ext4 -q -b 4096 -E root_owner=0:0 $features -d disk -L $name $name.img 1G > /dev/null
done

# Runs the machine for a step: machine STEP SECONDS OPTION...
machine() {
    local step=$1 patience=$2
    shift 2
    timeout "$patience" qemu-system-x86_64 "$@" -m 2048 -smp 2 -nographic -no-reboot -nodefaults -serial stdio \
        -kernel "kernel/boot/vmlinuz-$release" -initrd initrd -append "console=ttyS0 loglevel=1 panic=-1 step=$step" \
        -drive file=verity.img,if=virtio,format=raw -drive file=plain.img,if=virtio,format=raw \
        < /dev/null > "$step.log" 2>&1 && grep -q 'check: all of it' "$step.log"
}
# Boots it, and shows what was said there.
boot() {
    echo "== $1"
    machine "$1" 900 "${accel[@]}" || { tr -d '\r' < "$1.log" | grep -av '^fs-verity' | tail -n 60 >&2; fail "step $1 failed"; }
    tr -d '\r' < "$1.log" | sed -n 's/^.*check: /   /p'
}
# The processor's own virtualisation, if a machine boots by it: some hosts, virtual ones themselves, have it in part.
accel=(-accel kvm -cpu host)
if ! { [ -w /dev/kvm ] && machine nothing 60 "${accel[@]}"; }; then
    echo 'without KVM: no access to it, or no machine boots by it; this takes minutes'
    accel=(-accel 'tcg,thread=multi' -cpu max)
fi

# Changes a byte of a line of `text` wherever the disks have it.
damage_text() {
    local disk at
    for disk in verity plain; do
        for at in $(grep -abo "line $1 of the text" $disk.img | cut -d : -f 1); do
            printf X | dd of=$disk.img bs=1 seek=$((at + 16)) conv=notrunc status=none
            echo "   damaged byte $((at + 16)) of the disk \`$disk\`"
        done
    done
}

# Changes the superblock of the image that the kernel mounts.
damage_image() {
    local name block
    name=$(debugfs -R 'ls -p /cache/erofs-v1/sha256' verity.img 2> /dev/null | cut -d / -f 6 | grep -x '[0-9a-f]*' | head -n 1)
    block=$(debugfs -R "blocks /cache/erofs-v1/sha256/$name" verity.img 2> /dev/null | tr ' ' '\n' | grep -m 1 '[0-9]')
    printf X | dd of=verity.img bs=1 seek=$((block * 4096 + 1024)) conv=notrunc status=none
    echo "   damaged byte $((block * 4096 + 1024)) of the disk \`verity\`, of the image"
}

boot first
boot again
damage_text 020000
boot damaged
damage_text 030000
damage_image
boot verified
echo 'fs-verity: the kernel verifies what it reads, and what was verified before is not read again'
