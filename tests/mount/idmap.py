# idmap.py FROM TO: shows the mount FROM on TO once more, with its owners moved up by 100,000
import ctypes, os, struct, subprocess, sys

libc = ctypes.CDLL(None, use_errno=True)


def call(number, *args):
    result = libc.syscall(number, *args)
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result


# A process in a user namespace, which says on a line that it is there.
holder = subprocess.Popen(["unshare", "-U", "sh", "-c", "echo; cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
holder.stdout.readline()
for ids in ("uid_map", "gid_map"):
    with open(f"/proc/{holder.pid}/{ids}", "w") as file:
        file.write("0 100000 65536\n")
namespace = os.open(f"/proc/{holder.pid}/ns/user", os.O_RDONLY)
OPEN_TREE, MOUNT_SETATTR, MOVE_MOUNT = 428, 442, 429
tree = call(OPEN_TREE, -100, sys.argv[1].encode(), 1 | os.O_CLOEXEC)
attributes = struct.pack("QQQQ", 0x100000, 0, 0, namespace)
call(MOUNT_SETATTR, tree, b"", 0x1000, attributes, len(attributes))
call(MOVE_MOUNT, tree, b"", -100, sys.argv[2].encode(), 4)
holder.stdin.close()
holder.wait()
