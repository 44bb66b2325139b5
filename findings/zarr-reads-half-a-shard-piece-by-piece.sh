#!/usr/bin/env bash
# zarr-python reads 255 of the 256 chunks of a shard by 256 requests, and all 256 by one.
#
# Expected: sharding (codec `sharding_indexed` of the Zarr v3 specification) packs chunks into one object so that a store
#   gets few requests; neighbours in a shard are read by one range, or a few.
# Happens: a read of all of a shard is one request. A read of fewer of its chunks asks for the shard's index and then
#   for each chunk by a request of its own, although the ranges follow each other without a gap.
# Version: zarr 3.1.6, numpy 2.2.6 (PyPI).
# Matters: a reader of an array in an image asks by hundreds of small pieces for what is one run of bytes; only the file
#   system below can make few requests of the network of them.
source "$(dirname "${BASH_SOURCE[0]}")/harness.sh"
pypi zarr==3.1.6 numpy==2.2.6

expected 'a few requests for neighbours in one shard'
cat > count.py <<'P'
import asyncio, warnings
import numpy, zarr
from zarr.storage import MemoryStore

class Counting(MemoryStore):
    asked = []
    async def get(self, key, prototype=None, byte_range=None):
        if "/c/" in "/" + key:
            self.asked.append(byte_range)
        return await super().get(key, prototype, byte_range)

store = Counting()
# One shard of 256 chunks, uncompressed, so that they lie one behind the other.
made = zarr.create_array(store=store, shape=(256 * 64,), chunks=(64,), shards=(256 * 64,), dtype="float64", compressors=None)
made[:] = numpy.arange(256 * 64, dtype="float64")
array = zarr.open_array(store=store, mode="r")
for name, end in [("all", 256), ("all but one", 255), ("half", 128)]:
    Counting.asked.clear()
    read = array[: end * 64]
    assert (read == numpy.arange(end * 64)).all()
    print(f"{name}: {len(Counting.asked)}")
Counting.asked.clear()
array[: 255 * 64]
# Ranges of chunks, in the order of their places: do they follow each other without a gap?
ranges = sorted((r.start, r.end) for r in Counting.asked if hasattr(r, "end"))
print("without gaps:", all(one[1] == next[0] for one, next in zip(ranges, ranges[1:])), len(ranges))
P
python3 count.py > counted 2> errors || { cat errors >&2; cannot 'the program failed'; }
seen 'requests for all of a shard of 256 chunks' 'all: 1' "$(sed -n 1p counted)"
seen 'requests for 255 of its chunks' 'all but one: 256' "$(sed -n 2p counted)"
seen 'requests for half of them' 'half: 129' "$(sed -n 3p counted)"
seen 'ranges of the 255 chunks' 'without gaps: True 255' "$(sed -n 4p counted)"
finish
