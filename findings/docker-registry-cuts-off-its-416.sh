#!/usr/bin/env bash
# docker-registry's answer to a range beyond the end promises as many bytes as the blob has, sends 33, and hangs up.
#
# Expected: 416 says how large the blob is (`Content-Range: bytes */SIZE`), has a body with a length of its own, and leaves
#   the connection open (RFC 9110, 15.5.17). Range is defined for GET alone (14.2), so a HEAD that carries one is
#   answered as if it did not, and its Content-Length is the size of the blob.
# Happens: 416 has the blob's Content-Length over a sentence of 33 bytes; then the connection is closed. To a client that
#   is a body cut short, a network error and not an answer: curl exits with 18, Python raises IncompleteRead. A HEAD
#   with a range is 206 and has the length of the range. `bytes=-0`, which nothing satisfies, is 206, and its
#   Content-Range ends before it begins.
# Version: docker-registry 2.8.2+ds1-1 (Debian 12).
# Matters: a reader that looks for a footer, or resumes a download that was complete, repeats the request until its patience
#   ends. It has to go by the status before it reads the body, and take no size from a HEAD with a range.
source "$(dirname "${BASH_SOURCE[0]}")/harness.sh"
needs python3

deb docker-registry=2.8.2+ds1-1
expected '416 and a whole body; a HEAD with the length of the blob'

port=$(python3 -c 'import socket; free = socket.socket(); free.bind(("127.0.0.1", 0)); print(free.getsockname()[1])')
cat >config.yml <<YML
version: 0.1
log: {level: error, accesslog: {disabled: true}}
storage: {filesystem: {rootdirectory: $work/data}}
http: {addr: 127.0.0.1:$port}
YML
docker-registry serve config.yml >registry.log 2>&1 &
registry=$!
# shellcheck disable=SC2317 # the harness calls it
at_end() { kill "$registry" 2>/dev/null || true; wait; }

cat >ask.py <<'PY'
import hashlib, http.client, sys, time, urllib.parse
blob = b"x" * 100000
digest = "sha256:" + hashlib.sha256(blob).hexdigest()
def ask(method, path, body=None, **headers):
    connection = http.client.HTTPConnection("127.0.0.1", int(sys.argv[1]), timeout=20)
    connection.request(method, path, body, headers)
    return connection.getresponse()
for _ in range(100):   # until it listens
    try:
        upload = urllib.parse.urlsplit(ask("POST", "/v2/a/blobs/uploads/").headers["Location"])
        break
    except ConnectionRefusedError:
        time.sleep(0.1)
assert ask("PUT", f"{upload.path}?{upload.query}&digest={digest}", blob).status == 201
def describe(method, ranges):
    answer = ask(method, "/v2/a/blobs/" + digest, Range=ranges)
    try:
        got = f"{len(answer.read())} came"
    except http.client.IncompleteRead as error:
        got = f"{len(error.partial)} came, then the end"
    print(f"{answer.status}, {answer.headers['Content-Range']}, length {answer.headers['Content-Length']}, {got}")
describe("GET", "bytes=0-9")
describe("GET", "bytes=100000-")
describe("GET", "bytes=-0")
describe("HEAD", "bytes=0-9")
PY
python3 ask.py "$port" >results 2>ask.log || cannot "$(tail -1 ask.log)"
mapfile -t results <results

seen 'GET bytes=0-9' '206, bytes 0-9/100000, length 10, 10 came' "${results[0]}"
seen 'GET bytes=100000-' '416, bytes */100000, length 100000, 33 came, then the end' "${results[1]}"
seen 'GET bytes=-0' '206, bytes 100000-99999/100000, length 0, 0 came' "${results[2]}"
seen 'HEAD bytes=0-9' '206, bytes 0-9/100000, length 10, 0 came' "${results[3]}"
finish
