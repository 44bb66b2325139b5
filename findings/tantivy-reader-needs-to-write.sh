#!/usr/bin/env bash
# tantivy cannot search an index on a read-only file system.
#
# Expected: opening an index to search it reads files; locks are for writers (there is a writer lock of its own).
# Happens: each reader first creates `.tantivy-meta.lock` beside the index and locks it, to keep garbage collection of a
#   writer away. Where the directory is read-only, opening the index fails, though no writer can be there.
# Version: tantivy 0.27.0 (PyPI).
# Matters: search indexes are shipped in images and artifacts; on a read-only mount they need an overlay on top, or a
#   tmpfs at the lock's place.
source "$(dirname "${BASH_SOURCE[0]}")/harness.sh"
needs unshare python3
needs_root

pypi tantivy==0.27.0
expected 'a search works on a read-only file system as on a writable one'

mkdir index
python3 - <<'PY'
import tantivy
schema = tantivy.SchemaBuilder().add_text_field("text", stored=True).build()
index = tantivy.Index(schema, path="index")
writer = index.writer(heap_size=20_000_000, num_threads=1)
writer.add_document(tantivy.Document(text="hello world"))
writer.commit()
writer.wait_merging_threads()
PY
cat >search.py <<'PY'
import sys, tantivy
try:
    index = tantivy.Index.open(sys.argv[1])
    query = index.parse_query("hello", ["text"])
    print(len(index.searcher().search(query).hits), "found")
except Exception as error:
    print(error)
PY
cat >inside.sh <<'EOS'
set -eu
rm -f index/.tantivy-*
python3 search.py index >writable
ls -A index | grep '^\.tantivy' | xargs >made
rm -f index/.tantivy-*
mount --bind index index
mount -o remount,ro,bind index
python3 search.py index >readonly
EOS
unshare --mount --propagation private sh inside.sh 2>inside.log || cannot "$(tail -1 inside.log)"

seen 'on a writable file system' '1 found' "$(cat writable)"
seen 'files that the search made' '.tantivy-meta.lock' "$(cat made)"
seen 'on a read-only file system' 'Failed to acquire Lockfile' "$(grep -o 'Failed to acquire Lockfile' readonly)"
finish
