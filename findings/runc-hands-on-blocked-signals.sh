#!/usr/bin/env bash
# A container's first process has the signals blocked that were blocked in whatever started the runtime.
#
# Expected: a container begins from a clean state: runtime-spec says nothing of blocked signals, and the runtime makes a
#   new process with its own environment, limits and capabilities.
# Happens: runc's Go runtime honours the mask it is started with and unblocks a few signals only; its child, the
#   container's first process, keeps the others. A program that blocks SIGUSR1 to wait for
#   it elsewhere (signalfd, sigwait) and then starts a runtime makes containers in which SIGUSR1 never arrives, whatever
#   handler is set; the usual SIGTERM arrives, so a quick look finds nothing.
# Version: runc 1.1.5+ds1-1+deb12u1 (Debian 12), seen with Linux 6.18.
# Matters: a program that starts a runtime from a process with signal threads must clear the mask between fork and exec;
#   `subprocess` of Python and `std::process::Command` of Rust do not.
source "$(dirname "${BASH_SOURCE[0]}")/harness.sh"
needs python3
needs_root

deb runc=1.1.5+ds1-1+deb12u1 busybox-static libseccomp2
expected 'no signal is blocked in the container'

mkdir -p bundle/rootfs/bin bundle/rootfs/proc bundle/rootfs/dev bundle/rootfs/sys
cp root/bin/busybox bundle/rootfs/bin/busybox
runc spec --bundle bundle
python3 - <<'PY'
import json
config = json.load(open("bundle/config.json"))
config["process"].update(terminal=False, args=["/bin/busybox", "grep", "SigBlk", "/proc/self/status"])
# The namespaces that every machine lets a container have, and no limits.
config["linux"]["namespaces"] = [one for one in config["linux"]["namespaces"] if one["type"] not in ("cgroup", "network")]
config["linux"].pop("resources", None)
config["mounts"] = [one for one in config["mounts"] if one["type"] == "proc"]
json.dump(config, open("bundle/config.json", "w"))
PY
cat >start.py <<'PY'
import os, signal, subprocess, sys
signal.pthread_sigmask(signal.SIG_SETMASK, [getattr(signal, one) for one in sys.argv[1:]])
done = subprocess.run(["runc", "--root", "state", "run", "--bundle", "bundle", f"finding-{os.getpid()}"], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
mask = int((done.stdout.split() or [b"", b"0"])[1], 16) if done.returncode == 0 else None
print(done.stderr.decode().strip()[:200] if mask is None else
      " ".join(one.name for one in sorted(signal.Signals) if mask >> (one - 1) & 1) or "none")
PY
seen 'nothing blocked before' none "$(python3 start.py)"
seen 'blocked before: TERM, USR1, USR2' 'SIGUSR1 SIGUSR2' "$(python3 start.py SIGTERM SIGUSR1 SIGUSR2)"
finish
