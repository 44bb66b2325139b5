# Run by deb_check.sh in a chroot: /tmp/peelfs.deb is installed, used and purged.
files() {
    # What dpkg, ldconfig and man-db keep for themselves changes with every package.
    find /etc /opt /srv /usr /var -xdev ! -path '/var/lib/dpkg/*' ! -path '/var/log/*' ! -path '/var/cache/*' \
        ! -path '/var/lib/systemd/*' ! -path /etc/ld.so.cache ! -path '/var/lib/apt/*' | sort
}
fail() {
    echo "error: $*" >&2
    exit 1
}
there() { [ -e "$1" ] || fail "$1 is missing"; }

cd /tmp
mkdir state
# A system may have it already.
dpkg --purge peelfs > /dev/null 2>&1 || true
files > state/before
if [ -n "${CLEAN:-}" ]; then apt-get install -y -qq --no-install-recommends ./peelfs.deb > state/log 2>&1 || { cat state/log; exit 1; }
else dpkg -i peelfs.deb > state/log 2>&1 || { cat state/log; exit 1; }; fi

[ "$(command -v peelfs)" = /usr/bin/peelfs ] || fail 'the program is not in PATH'
peelfs version | head -n 2
there /usr/share/man/man1/peelfs.1.gz
there /usr/share/man/man1/peelfs-mount.1.gz
there /usr/share/doc/peelfs/copyright
there /usr/share/doc/peelfs/CHANGELOG.md.gz
there /usr/share/zsh/vendor-completions/_peelfs
there /usr/share/fish/vendor_completions.d/peelfs.fish
there /sbin/mount.peelfs
there /usr/lib/systemd/system/peelfs-snapshotter.service
dpkg -s peelfs | grep -q '^Depends:.*fuse3' || fail 'it does not depend on fuse3'
[ -z "$(dpkg --verify peelfs)" ] || fail 'files differ from the package'

# An image of one file, made with what every system has.
digest() { sha256sum "$1" | cut -d ' ' -f 1; }
blob() {
    name=$(digest "$1")
    mv "$1" "layout/blobs/sha256/$name"
    echo "$name"
}
size() { stat -c %s "layout/blobs/sha256/$1"; }
mkdir -p layout/blobs/sha256 rootfs/etc at
echo 'from the package' > rootfs/etc/motd
tar --sort=name --owner=0 --group=0 --numeric-owner -C rootfs -cf layer .
layer=$(blob layer)
architecture=$(dpkg --print-architecture)
printf '{"architecture":"%s","os":"linux","rootfs":{"type":"layers","diff_ids":["sha256:%s"]}}' "$architecture" "$layer" > config
config=$(blob config)
printf '{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json","config":{"mediaType":"application/vnd.oci.image.config.v1+json","digest":"sha256:%s","size":%s},"layers":[{"mediaType":"application/vnd.oci.image.layer.v1.tar","digest":"sha256:%s","size":%s}]}' \
    "$config" "$(size "$config")" "$layer" "$(size "$layer")" > manifest
manifest=$(blob manifest)
printf '{"schemaVersion":2,"manifests":[{"mediaType":"application/vnd.oci.image.manifest.v1+json","digest":"sha256:%s","size":%s,"annotations":{"org.opencontainers.image.ref.name":"1"}}]}' \
    "$manifest" "$(size "$manifest")" > layout/index.json
echo '{"imageLayoutVersion":"1.0.0"}' > layout/oci-layout

[ "$(peelfs cat oci:layout:1 /etc/motd)" = 'from the package' ] || fail 'peelfs cat'
if [ -w /dev/fuse ]; then
    for how in 'peelfs mount oci:layout:1 at' 'mount -t peelfs oci:/tmp/layout:1 at'; do
        $how
        [ "$(cat at/etc/motd)" = 'from the package' ] || fail "$how"
        # As bash does it at the prompt.
        completed=$(bash -c '
            source /usr/share/bash-completion/completions/peelfs
            COMP_WORDS=(peelfs umount "") COMP_CWORD=2
            _clap_complete_peelfs peelfs "" umount
            printf "%s\n" "${COMPREPLY[@]}"')
        echo "$completed" | grep -qx at || fail "bash completes \`peelfs umount\` with: $completed"
        peelfs umount at
    done
    peelfs doctor > state/log || { cat state/log; fail 'peelfs doctor'; }
else
    echo 'skipped: no mount, as there is no /dev/fuse' >&2
fi

dpkg --purge peelfs > state/log 2>&1 || { cat state/log; exit 1; }
[ ! -e /usr/bin/peelfs ] || fail 'the program is left'
files > state/after
diff state/before state/after || fail 'files are left, or missing'
echo 'installed, used and purged: nothing is left'
