"""Data files, made and read by the libraries of their formats.

    data_files.py make KIND DIR
    data_files.py read KIND DIR TASK   prints how many seconds the task took, imports apart, and a digest of its answers

Half of the bits of the values are random, all of them in Lance. What is not installed is told with exit status 3.
"""
import hashlib
import os
import random
import subprocess
import sys
import time

ROWS = 120_000


def values(number, size):
    """Half of it random, the same for the same number."""
    return random.Random(number).randbytes(size // 2).hex().encode()


def make_sqlite(at):
    import sqlite3

    base = sqlite3.connect(f"{at}/data")
    base.execute("create table t (id integer primary key, key text, value blob)")
    base.executemany("insert into t values (?, ?, ?)", ((n, f"key{n:08}", values(n, 500)) for n in range(ROWS)))
    base.execute("create index by_key on t (key)")
    base.commit()
    base.close()


def read_sqlite(at, task):
    import sqlite3

    chosen = random.Random(1).sample(range(ROWS), {"20 lookups": 20, "100 lookups": 100}[task])
    yield
    base = sqlite3.connect(f"file:{at}/data?mode=ro", uri=True)
    for number in chosen:
        yield base.execute("select value from t where key = ?", (f"key{number:08}",)).fetchone()[0]


def make_lmdb(at):
    import lmdb

    with lmdb.open(at, map_size=1 << 30) as base:
        with base.begin(write=True) as change:
            order = list(range(ROWS))
            random.Random(2).shuffle(order)
            for number in order:
                change.put(f"key{number:08}".encode(), values(number, 500))


def read_lmdb(at, task):
    import lmdb

    chosen = random.Random(1).sample(range(ROWS), 20)
    yield
    base = lmdb.open(at, readonly=True, lock=False, readahead=task == "everything")
    with base.begin() as view:
        if task == "everything":
            for _, value in view.cursor():
                yield value
        else:
            for number in chosen:
                yield view.get(f"key{number:08}".encode())


def make_rocksdb(at):
    from rocksdict import Rdict

    base = Rdict(at)
    for number in range(ROWS):
        base[f"key{number:08}"] = values(number, 500)
    base.flush()
    base.compact_range(None, None)
    base.close()


def read_rocksdb(at, task):
    from rocksdict import AccessType, Options, Rdict

    chosen = random.Random(1).sample(range(ROWS), 20)
    yield
    base = Rdict(at, Options(raw_mode=False), access_type=AccessType.read_only())
    for number in chosen:
        yield base[f"key{number:08}"]


def make_lance(at):
    import lance
    import pyarrow

    rows = 300_000
    numbers = lambda c: pyarrow.py_buffer(random.Random(c).randbytes(8 * rows))
    columns = {f"c{c}": pyarrow.Array.from_buffers(pyarrow.uint64(), rows, [None, numbers(c)]) for c in range(5)}
    columns["bytes"] = pyarrow.array([random.Random(n).randbytes(140) for n in range(rows)])
    lance.write_dataset(pyarrow.table(columns), f"{at}/data")


def read_lance(at, task):
    import lance

    yield
    table = lance.dataset(f"{at}/data").take(random.Random(1).sample(range(300_000), 50))
    for column in table.columns:
        yield str(column.to_pylist()).encode()


def make_scattered(at):
    with open(f"{at}/data", "wb") as file:
        for piece in range(64):
            file.write(random.Random(piece).randbytes(1 << 20))


def read_scattered(at, task):
    order = list(range(0, 64 << 20, 256 << 10))
    random.Random(1).shuffle(order)
    yield
    with open(f"{at}/data", "rb", buffering=0) as file:
        for place in order:
            yield os.pread(file.fileno(), 4096, place)


def make_git(at):
    """A repository of one pack: many versions of files that differ."""
    stream = bytearray()
    names = [f"d{n % 40}/f{n}" for n in range(400)]
    chooser = random.Random(3)
    for commit in range(1500):
        stream += b"commit refs/heads/main\ncommitter A <a@b> %d +0000\ndata 2\nv\n" % (1_700_000_000 + commit)
        for name in chooser.sample(names, 10):
            text = chooser.randbytes(3600)
            stream += b"M 100644 inline %s\ndata %d\n%s\n" % (name.encode(), len(text), text)
    subprocess.run(["git", "init", "-q", "--bare", at], check=True)
    subprocess.run(["git", "-C", at, "fast-import", "--quiet"], input=bytes(stream), check=True)
    subprocess.run(["git", "-C", at, "gc", "-q"], check=True)


def read_git(at, task):
    yield
    safe = ["-c", f"safe.directory={at}"]
    yield subprocess.run(["git", *safe, "-C", at, "log", "-p", "main"], check=True, capture_output=True).stdout


def main():
    action, kind, at, *task = sys.argv[1:]
    try:
        if action == "make":
            globals()[f"make_{kind}"](at)
            return
        answers = globals()[f"read_{kind}"](at, *task)
        next(answers)
    except ImportError as error:
        print(error, file=sys.stderr)
        sys.exit(3)
    digest = hashlib.sha256()
    begun = time.monotonic()
    for answer in answers:
        digest.update(answer)
    print(f"{time.monotonic() - begun:.6f} {digest.hexdigest()}")


main()
