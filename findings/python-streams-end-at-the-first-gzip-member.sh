#!/usr/bin/env bash
# Python's tarfile reads all of a gzip with several members from a file, and only the first member from a stream.
#
# Expected: a gzip file is "a series of members" (RFC 1952, 2.2) and decodes to all of them. tarfile's modes `r:gz` and `r|gz`
#   differ in seeking (docs, tarfile.open): the second is for pipes and sockets. Both list the same names.
# Happens: `r|gz` does not look for another member. What follows the first one is read and dropped. If it ended inside a
#   file, the error is "unexpected end of data"; if it ended between two files, there is none, and the archive is short.
# Version: python3.11 3.11.2-6+deb12u9, tar 1.34+dfsg-1.2+deb12u1 (Debian 12).
# Matters: layers with many members are usual: eStargz has one a file. A program that unpacks a layer as it comes from the
#   registry fails at such a layer or, worse, does not; the digest is right, so no other check notices.
source "$(dirname "${BASH_SOURCE[0]}")/harness.sh"
needs gzip split

deb python3.11=3.11.2-6+deb12u9 python3.11-minimal=3.11.2-6+deb12u9 libpython3.11-stdlib libpython3.11-minimal tar=1.34+dfsg-1.2+deb12u1
expected 'a b c, however the archive is read'

for name in a b c; do printf '%512s' "content of $name" >"$name"; done
tar -cf plain.tar a b c
split -b 1024 --filter='gzip -c' plain.tar >between.tar.gz   # a member an entry: header and content have 512 bytes each
split -b 700 --filter='gzip -c' plain.tar >inside.tar.gz
cat >names.py <<'PY'
import sys, tarfile
try:
    print(*tarfile.open(sys.argv[1], sys.argv[2]).getnames())
except tarfile.ReadError as error:
    print(error)
PY

seen 'both decode to the archive' yes \
  "$(gzip -dc between.tar.gz | cmp -s - plain.tar && gzip -dc inside.tar.gz | cmp -s - plain.tar && echo yes || echo no)"
seen 'GNU tar' 'a b c' "$(tar -tzf between.tar.gz | xargs)"
seen 'tarfile r:gz' 'a b c' "$(python3.11 names.py between.tar.gz 'r:gz')"
seen 'tarfile r|gz, members end between files' a "$(python3.11 names.py between.tar.gz 'r|gz')"
seen 'tarfile r|*, the same' a "$(python3.11 names.py between.tar.gz 'r|*')"
seen 'tarfile r|gz, members end inside files' 'unexpected end of data' "$(python3.11 names.py inside.tar.gz 'r|gz')"
finish
