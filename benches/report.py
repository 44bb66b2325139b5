#!/usr/bin/env python3
"""Medians, ratios and targets out of what run.sh measured.

    benches/report.py SAMPLES.jsonl

Prints a table, and the same once more as one JSON object a line.
"""
import json
import statistics
import sys
from collections import defaultdict

# (case, subject, against, bound): the ratio subject / against, or without `against` the value itself.
# "speed" turns a ratio of times round: how often peelfs does it while the other does it once.
CLAIMS = [
    *(
        claim
        for image in ("python", "node")
        for claim in [
            (f"never seen, {image}", "peelfs", "podman", "time", "<= 0.25"),
            (f"never seen, {image}", "peelfs", "umoci", "time", "<= 0.20"),
        ]
    ),
    ("shaped, python", "peelfs", "podman", "time", "<= 0.70"),
    ("shaped, python", "peelfs-behind", "podman", "time", "<= 0.70"),
    ("shaped, python", "line", "podman", "time", None),
    ("shaped, python, received", "peelfs", None, "value", None),
    ("shaped, python, received", "peelfs-behind", None, "value", None),
    ("shaped, python, received", "podman", None, "value", None),
    *(
        claim
        for image in ("python", "node")
        for claim in [
            (f"seen before, {image}", "peelfs", "HEAD", "difference", "<= 0.1"),
            (f"seen before, {image}, requests", "peelfs", None, "value", "<= 1"),
            (f"seen before, {image}, HEAD requests", "peelfs", None, "value", "<= 1"),
            (f"seen before, {image}, of blobs", "peelfs", None, "value", "<= 0"),
        ]
    ),
    *(
        claim
        for image in ("node", "python")
        for claim in [
            (f"warm, {image}, find", "peelfs", "overlayfs", "speed", ">= 1.0"),
            (f"warm, {image}, stat", "peelfs", "overlayfs", "speed", ">= 0.9"),
            (f"warm, {image}, open", "peelfs", "overlayfs", "speed", ">= 0.9"),
        ]
    ),
    ("warm, node, ls-lR", "peelfs", "overlayfs", "speed", ">= 0.8"),
    # An image with extended attributes: `ls -l` asks for two of every name, and FUSE caches none.
    ("warm, python, ls-lR", "peelfs", "overlayfs", "speed", None),
    ("warm, python, import", "peelfs", "overlayfs", "time", "<= 1.15"),
    *(
        claim
        for image in ("node", "python")
        for claim in [
            (f"memory, {image}, after ls -lR", "peelfs", None, "value", "<= 64"),
            (f"memory, {image}, at most", "peelfs", None, "value", None),
            (f"index, {image}, an entry", "peelfs", None, "value", "<= 110"),
            (f"index, {image}, checkpoints of decoded size", "peelfs", None, "value", "<= 1.5"),
        ]
    ),
]


def main(path):
    samples, units = defaultdict(list), {}
    with open(path) as lines:
        for line in lines:
            one = json.loads(line)
            samples[one["case"], one["subject"]].append(one["value"])
            units[one["case"]] = one["unit"]
    rows = [row for claim in CLAIMS if (row := judge(samples, units, *claim))]
    table(rows)
    for row in rows:
        print(json.dumps(row))


def judge(samples, units, case, subject, against, kind, bound):
    """One row, or None if that was not measured."""
    own, other = samples.get((case, subject)), samples.get((case, against))
    if not own or (against and not other):
        return None
    median = statistics.median(own)
    row = {"case": case, "subject": subject, "median": median, "unit": units[case], "n": len(own)}
    row |= {"spread": [min(own), max(own)], "against": against}
    if against:
        row["against_median"] = statistics.median(other)
    row |= {"kind": kind, "result": result(kind, median, row.get("against_median")), "bound": bound}
    if bound:
        sign, limit = bound.split()
        row["met"] = row["result"] <= float(limit) if sign == "<=" else row["result"] >= float(limit)
    return row


def result(kind, own, other):
    match kind:
        case "time":
            return own / other
        case "speed":
            return other / own
        case "difference":
            return own - other
        case "value":
            return own


def table(rows):
    head = ["case", "subject", "median", "n", "against", "median", "", "result", "bound", ""]
    cells = [head]
    for row in rows:
        met = {True: "yes", False: "NO", None: ""}[row.get("met")]
        other = f"{row['against_median']:.3f} {row['unit']}" if row["against"] else ""
        own = f"{row['median']:.3f} {row['unit']}"
        cells.append([row["case"], row["subject"], own, str(row["n"]), row["against"] or "", other, row["kind"]])
        cells[-1] += [f"{row['result']:.3f}", row["bound"] or "", met]
    widths = [max(len(row[column]) for row in cells) for column in range(len(head))]
    for row in cells:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip())


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(sys.argv[1])
