#!/usr/bin/env bash
# igzip -0 writes a whole stream as one deflate block, so that there is no border of blocks where decoding can resume.
#
# Expected: a compressor ends a deflate block every few ten or hundred kilobytes, if only to adapt its codes: gzip and
#   pigz do about every 100 KB of output. Indexes for random access (zran, gztool, SOCI, nydus) rest on that, since a
#   decoder's state can be kept at the border of two blocks.
# Happens: igzip -0 never ends its block. Of 16 MiB, gztool makes 15 index points for gzip -6 and igzip -1, and two for
#   igzip -0: the beginning and the end. So each read from the middle decodes, and fetches, all bytes before it.
# Version: isal 2.30.0-5, gztool 1.5.1-1 (Debian 12).
# Matters: "any gzip layer is random-access once it is indexed" is not true of these by borders of blocks; a lazy mount has
#   to keep what it decoded, or to resume inside a block, which needs its code tables: peelfs has them in its index.
source "$(dirname "${BASH_SOURCE[0]}")/harness.sh"
needs python3 gzip

deb isal=2.30.0-5 libisal2 gztool=1.5.1-1
expected 'about one index point a MiB, of every compressor'

python3 -c '
import random
random.seed(1)
words = [bytes(random.choices(range(97, 123), k=random.randint(2, 9))) for _ in range(5000)]
with open("text", "wb") as out:
    while out.tell() < 16 << 20:
        out.write(b" ".join(random.choices(words, k=1000)) + b"\n")
'
points() {
  rm -f index
  gztool -v 0 -s 1 -I index -i "$1" >gztool.log 2>&1 || cannot "gztool: $(tail -1 gztool.log)"
  gztool -ll -I index 2>&1 | sed -n 's/.*Number of index points *: //p'
}
gzip -6 -c text >by-gzip.gz
igzip -0 -c text >by-igzip-0.gz 2>/dev/null
igzip -1 -c text >by-igzip-1.gz 2>/dev/null

seen 'igzip -0 decodes to the same 16 MiB' yes "$(gzip -dc by-igzip-0.gz | cmp -s - text && echo yes || echo no)"
seen 'index points, one a MiB: gzip -6' 15 "$(points by-gzip.gz)"
seen 'index points, one a MiB: igzip -1' 15 "$(points by-igzip-1.gz)"
seen 'index points, one a MiB: igzip -0' 2 "$(points by-igzip-0.gz)"
seen 'the second of these is at byte' "$(stat -c %s text)" "$(gztool -ll -I index 2>&1 | sed -n 's|.*#2: @ [0-9]* / \([0-9]*\).*|\1|p')"
finish
