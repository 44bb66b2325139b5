#!/bin/sh
# The first process of the virtual machine of verity_check.sh: a step, named on the kernel's command line.
for dir in /usr/bin /bin; do [ -x "$dir/busybox" ] && busybox=$dir/busybox; done
"$busybox" mkdir -p /applets
"$busybox" --install -s /applets
export PATH=/bin:/usr/bin:/usr/sbin:/applets HOME=/run XDG_RUNTIME_DIR=/run LD_LIBRARY_PATH=/lib/x86_64-linux-gnu:/usr/lib/x86_64-linux-gnu
mount -t devtmpfs dev /dev
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t tmpfs -o mode=700 tmpfs /run

say() { echo "check: $*"; }
die() {
    say "FAILED: $*"
    sync
    poweroff -f
}
while read -r module; do insmod "/modules/$module"; done < /modules/order
mount -t ext4 /dev/vda /verity || die 'no disk'
mount -t ext4 /dev/vdb /plain || die 'no disk'

# Mounts the image of a disk: mounts DISK [OPTION]...
mounts() {
    disk=$1
    shift
    peelfs mount --cache-dir "/$disk/cache" --allow-other "$@" "oci:/$disk/layout:app" /mnt > /run/said 2>&1 || {
        cat /run/said
        return 1
    }
}
kernel_mounts() {
    mounts "$1" --kernel always || die "cannot mount from the disk $1"
    [ "$(stat -f -c %t /mnt)" = e0f5e1e2 ] || die 'not mounted by the kernel'
}
unmounts() { peelfs umount /mnt || die 'cannot unmount'; }
verifies() { peelfs status /mnt | sed -n 's/^ *kernel  *//p'; }
# All files are as they should be.
right() { (cd /mnt && sha256sum -c /sums > /run/sums 2>&1) || { cat /run/sums; die "$1"; }; }
forget() { sync; echo 3 > /proc/sys/vm/drop_caches; }
kib_read() { awk '{ print int($3 / 2) }' "/sys/block/$1/stat"; }
device() { [ "$1" = verity ] && echo vda || echo vdb; }
# How many files of a cache have fs-verity, of those that the kernel is given.
with_verity() {
    for file in "/$1"/cache/content-v2/sha256/*.data "/$1"/cache/erofs-v1/sha256/*; do
        case $file in *.seal) ;; *) lsattr -l "$file" ;; esac
    done | grep -c Verity
}

first() {
    kernel_mounts verity
    right 'wrong at first'
    say "verity: $(verifies)"
    [ "$(with_verity verity)" = 2 ] || die "$(with_verity verity) files have fs-verity"
    grep -q '"verity":"sha256:' /verity/cache/content-v2/sha256/*.seal || die 'its digest is not in the seal'
    (echo x >> "$(echo /verity/cache/content-v2/sha256/*.data)") 2> /dev/null && die 'it can be written to'
    unmounts
    kernel_mounts plain
    right 'wrong at first'
    say "plain: $(verifies)"
    [ "$(with_verity plain)" = 0 ] || die 'no fs-verity was expected'
    unmounts
    # A server has the content open for writing: it is verified without the kernel, and with it once that is gone.
    peelfs mount --cache-dir /verity/busy --prefetch all "oci:/verity/layout:app" /fuse || die 'no FUSE'
    (cd /fuse && sha256sum -c /sums > /dev/null) || die 'wrong by FUSE'
    peelfs mount --cache-dir /verity/busy --allow-other --kernel always "oci:/verity/layout:app" /mnt || die 'busy'
    right 'wrong while it is served'
    say "served by FUSE as well: $(verifies)"
    unmounts
    peelfs umount /fuse || die 'cannot unmount'
    peelfs mount --cache-dir /verity/busy --allow-other --kernel always "oci:/verity/layout:app" /mnt || die 'busy'
    right 'wrong afterwards'
    say "and then: $(verifies)"
    [ "$(grep -c '"verity":"sha256:' /verity/busy/content-v2/sha256/*.seal)" = 1 ] || die 'its digest is not in the seal'
    unmounts
    peelfs cache prune --cache-dir /verity/busy --all > /run/said || die 'cannot be pruned'
    [ -z "$(find /verity/busy -name '*.data')" ] || die 'content is left'
    rm -r /verity/busy
}

# After a reboot.
again() {
    for disk in plain verity; do
        forget
        before=$(kib_read "$(device "$disk")") began=$(cut -d ' ' -f 1 /proc/uptime)
        kernel_mounts "$disk"
        after=$(kib_read "$(device "$disk")") ended=$(cut -d ' ' -f 1 /proc/uptime)
        took=$(awk "BEGIN { print $ended - $began }")
        say "$disk: the mount read $((after - before)) KiB of the disk, and took $took s"
        [ "$disk" = plain ] || [ $((after - before)) -lt 4096 ] || die 'the content was read'
        right "wrong from the disk $disk"
        unmounts
    done
}

# A byte of `text` was changed on both disks.
damaged() {
    kernel_mounts plain
    right 'damage is shown'
    say 'plain: the mount has compared all of the content, and fetched it again'
    unmounts
    kernel_mounts verity
    said=$(cat /mnt/text 2>&1 > /run/text) && die 'damage is not noticed'
    say "verity: ${said##*: } after $(stat -c %s /run/text) bytes"
    awk 'BEGIN { for (n = 0; n < 40000; n++) printf "line %06d of the text\n", n }' > /run/whole
    head -c "$(stat -c %s /run/text)" /run/whole | cmp - /run/text || die 'wrong bytes are shown'
    # Piece by piece: never a wrong one, and missing are those that the kernel reads at once.
    pieces=0 missing=0
    while [ $((pieces * 4096)) -lt "$(stat -c %s /run/whole)" ]; do
        if dd if=/mnt/text bs=4096 skip=$pieces count=1 of=/run/piece 2> /dev/null; then
            dd if=/run/whole bs=4096 skip=$pieces count=1 2> /dev/null | cmp - /run/piece || die 'a wrong piece'
        else
            missing=$((missing + 1))
        fi
        pieces=$((pieces + 1))
    done
    say "verity: $missing of $pieces pieces of 4 KiB cannot be read, the others are right"
    [ $missing -gt 0 ] && [ $missing -le 64 ] || die 'another number of pieces was expected'
    (cd /mnt && grep large /sums | sha256sum -c > /dev/null) || die 'other files cannot be read'
    unmounts
    mounts verity || die 'no FUSE'
    right 'wrong by FUSE'
    unmounts
    say 'verity: a mount by FUSE reads the same bytes, fetches what is damaged again, and is right'
    kernel_mounts verity
    right 'wrong afterwards'
    say "verity: the next mount is right, and $(verifies)"
    unmounts
}

# The same, and the image for the kernel was damaged as well.
verified() {
    kernel_mounts verity
    say 'verity: a damaged image for the kernel was made again'
    cat /mnt/text > /dev/null 2>&1 && die 'damage is not noticed'
    unmounts
    said=$(peelfs cache verify --cache-dir /verity/cache 2>&1)
    [ $? = 5 ] || die "cache verify: $said"
    say "verity: cache verify: $(echo "$said" | grep -m 1 damaged)"
    kernel_mounts verity
    right 'wrong after it was verified'
    say "verity: the next mount is right, and $(verifies)"
    for args in 'cache verify' 'cache prune' 'cache drop --content --all' 'cache prune --all'; do
        # shellcheck disable=SC2086 # one word an argument
        peelfs $args --cache-dir /verity/cache > /run/said 2>&1 || { cat /run/said; die "$args"; }
        forget
        right "wrong after $args"
    done
    [ -z "$(find /verity/cache -name '*.data')" ] || die 'content is left'
    unmounts
    kernel_mounts verity
    unmounts
    peelfs cache prune --cache-dir /verity/cache --cache-size 1MiB > /run/said 2>&1 || die 'cannot be pruned'
    [ -z "$(find /verity/cache -name '*.data')" ] || die 'content is left'
    say 'verity: what has fs-verity is pruned, dropped and evicted as any content, also under a mount'
}

nothing() { :; }

step=$(sed 's/.*step=\([a-z]*\).*/\1/' /proc/cmdline)
$step
umount /verity /plain || die 'a disk is in use'
say 'all of it'
sync
poweroff -f
