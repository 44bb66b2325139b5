#!/usr/bin/env bash
# bsdtar writes a time before 1970 with a fraction as a number that other tars read as another time.
#
# Expected: PAX (POSIX, pax, "pax Extended Header") says that times are decimal numbers of seconds, so that the time 1.75
#   seconds before 1970 is written as `-1.75`, and every reader agrees on it.
# Happens: bsdtar writes `-2.25`: the second rounded down, and the fraction counted up from there, as the kernel keeps them,
#   but printed side by side. It reads its own number back as -1.75; Python, and GNU tar, read -2.25.
# Version: libarchive-tools 3.6.2-1+deb12u5 (Debian 12), GNU tar 1.34.
# Matters: one layer has two readings; the one by the specification is half a second off for files that bsdtar packed.
source "$(dirname "${BASH_SOURCE[0]}")/harness.sh"
needs python3

deb libarchive-tools=3.6.2-1+deb12u5 libarchive13 tar=1.34+dfsg-1.2+deb12u1
expected 'mtime=-1.75 in the archive, and the same from every reader'

touch -d '@-1.75' file
[ "$(stat -c %.2Y file)" = -1.75 ] || cannot "this file system has no such times: $(stat -c %.2Y file)"
bsdtar --format pax -cf archive.tar file
mkdir bsd gnu
bsdtar -C bsd -xf archive.tar
tar -C gnu -xf archive.tar 2>/dev/null

seen 'in the archive' 'mtime=-2.25' "$(grep -ao 'mtime=[-0-9.]*' archive.tar | head -1)"
seen 'bsdtar extracts' -1.75 "$(stat -c %.2Y bsd/file)"
seen 'GNU tar extracts' -2.25 "$(stat -c %.2Y gnu/file)"
seen 'Python reads' -2.25 "$(python3 -c 'import tarfile; print(tarfile.open("archive.tar").next().mtime)')"
finish
