"""A digest of a tree: names, kinds, modes, owners, links and content, without what runtimes mount.

    tree_digest.py DIR [PATH...]

What stands at a PATH, relative to DIR, is left out.
"""
import hashlib
import os
import stat
import sys

MOUNTED = ("proc", "dev", "sys", "run")
root, left_out = sys.argv[1], set(sys.argv[2:])
lines = []
for directory, names, files in os.walk(root):
    below = os.path.relpath(directory, root)
    if below == ".":
        names[:] = [name for name in names if name not in MOUNTED]
    for name in names + files:
        path = os.path.join(directory, name)
        found = os.lstat(path)
        relative = os.path.relpath(path, root)
        if relative in left_out:
            continue
        line = [relative, oct(found.st_mode), found.st_uid, found.st_gid]
        if stat.S_ISLNK(found.st_mode):
            line.append(os.readlink(path))
        elif stat.S_ISREG(found.st_mode):
            with open(path, "rb") as file:
                line += [found.st_size, found.st_nlink, hashlib.sha256(file.read()).hexdigest()]
        lines.append(repr(line))
print(hashlib.sha256("\n".join(sorted(lines)).encode("utf-8", "surrogateescape")).hexdigest(), len(lines))
