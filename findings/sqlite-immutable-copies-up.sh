#!/usr/bin/env bash
# SQLite opens a database for writing even when it is told that the file is immutable, so an overlay copies all of it.
#
# Expected: `file:DB?immutable=1` (sqlite.org, "URI filenames") says that the file cannot change, "even by another process
#   with higher privileges": locks and change detection are skipped, and nothing suggests that it is opened for writing.
# Happens: SQLite opens it O_RDWR|O_CREAT, as without the parameter, and only falls back to reading when that fails. On an
#   overlay, as in every container, an open for writing copies the file to the upper directory: one SELECT of one row
#   reads and writes the whole database. `mode=ro` does not, and may be combined with it.
# Version: SQLite 3.46.1 as built into apsw 3.46.1.0 (PyPI); kernel overlayfs.
# Matters: a database in an image is fetched as a whole for a query that needs three pages; no lower file system can help it.
source "$(dirname "${BASH_SOURCE[0]}")/harness.sh"
needs unshare python3
needs_root

pypi apsw==3.46.1.0
printf 'kernel    %s\n' "$(uname -r)"
expected 'a query of an immutable database copies nothing up'

mkdir lower
python3 - <<'PY'
import apsw
db = apsw.Connection("lower/db")
db.execute("create table t (id integer primary key, text)")
with db:
    db.executemany("insert into t values (?, ?)", ((n, "x" * 1000) for n in range(10000)))
print("SQLite   ", apsw.sqlite_lib_version())
PY
cat >query.py <<'PY'
import apsw, sys
# As sqlite3_open() and the usual bindings do, with URIs switched on.
flags = apsw.SQLITE_OPEN_URI | apsw.SQLITE_OPEN_READWRITE | apsw.SQLITE_OPEN_CREATE
db = apsw.Connection("file:both/db?" + sys.argv[1], flags=flags)
print(next(db.execute("select length(text) from t where id = 5000"))[0])
PY
cat >inside.sh <<'EOS'
set -eu
mkdir upper-fs both
mount -t tmpfs tmpfs upper-fs
for how in immutable=1 mode=ro 'mode=ro&immutable=1'; do
  mkdir upper-fs/upper upper-fs/work
  mount -t overlay overlay -o lowerdir=lower,upperdir=upper-fs/upper,workdir=upper-fs/work both
  answer=$(python3 query.py "$how")
  if [ -e upper-fs/upper/db ]; then copied=$(stat -c %s upper-fs/upper/db); else copied=0; fi
  echo "$answer $((copied >> 20))"
  umount both
  rm -rf upper-fs/upper upper-fs/work
done
EOS
unshare --mount --propagation private sh inside.sh >results 2>inside.log || cannot "$(tail -1 inside.log)"
mapfile -t results <results

size=$(($(stat -c %s lower/db) >> 20))
seen 'size of the database, MiB' 9 "$size"
seen 'immutable=1: answer, MiB copied' '1000 9' "${results[0]}"
seen 'mode=ro: answer, MiB copied' '1000 0' "${results[1]}"
seen 'mode=ro&immutable=1: answer, MiB copied' '1000 0' "${results[2]}"
finish
