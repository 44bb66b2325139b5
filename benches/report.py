#!/usr/bin/env python3
"""Medians, ratios and targets out of what run.sh measured, as tables in Markdown.

    benches/report.py SAMPLES.jsonl              prints them
    benches/report.py --into FILE SAMPLES.jsonl  puts them between FILE's lines `<!-- figures -->` and `<!-- end -->`,
                                                 with those charts that are in `img` beside FILE
    benches/report.py --json SAMPLES.jsonl       the same, one JSON object a row

Rows of which nothing was measured are left out. How many targets were reached goes to standard error.
"""
import argparse
import json
import statistics
import sys
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

IMAGES = ("python", "node", "server", "ml")
LINKS = ("1000 Mbit/s + 1 ms", "200 Mbit/s + 20 ms", "50 Mbit/s + 80 ms")


@dataclass
class Claim:
    """What is said about one series of samples: `kind` of it beside another (subject, or case and subject).

    "time" and "share" divide it by the other; "speed" is how often it is done while the other is done once;
    "value" takes it alone.
    """

    case: str
    subject: str
    kind: str
    beside: str | tuple[str, str] | None = None
    bound: str | None = None

    def other(self):
        return (self.case, self.beside) if isinstance(self.beside, str) else self.beside


def never(link):
    for image in IMAGES:
        case = f"never seen, {image}, {link}"
        fast = link.startswith("1000 ")
        yield Claim(case, "peelfs", "time", "podman", "<= 0.35" if fast else "<= 1")
        yield Claim(case, "peelfs", "time", "line + native", None if fast else "<= 1.10")
        yield Claim(case, "peelfs-behind", "time", "podman", "<= 1")
        yield Claim(case, "peelfs", "time", "containerd")
        yield Claim(f"{case}, received", "peelfs", "value")
        yield Claim(f"{case}, received", "podman", "value")


def base():
    case = "base layers known, python, 200 Mbit/s + 20 ms"
    yield Claim(case, "peelfs", "time", "peelfs-nothing-known", "<= 0.55")
    yield Claim(f"{case}, received", "peelfs", "value")


def whole_pass():
    for image in IMAGES:
        yield Claim(f"pass, {image}", "peelfs", "time", "podman", "<= 0.25")
        yield Claim(f"pass, {image}", "peelfs", "time", "umoci", "<= 0.20")
        yield Claim(f"pass, {image}", "CPU / cores", "share", "peelfs")
        yield Claim(f"pass, {image}", "CPU with the registry's / cores", "share", "peelfs", ">= 0.9")
        yield Claim(f"pass, {image}, memory at most", "peelfs", "value")


def seen():
    for image in ("python", "node"):
        case = f"seen before, {image}"
        yield Claim(case, "peelfs", "difference", "HEAD", "<= 0.1")
        yield Claim(f"{case}, requests", "peelfs", "value", None, "<= 1")
        yield Claim(f"{case}, HEAD requests", "peelfs", "value", None, "<= 1")
        yield Claim(f"{case}, of blobs", "peelfs", "value", None, "<= 0")


# Seconds: bounds of the index known, without a profile and with one.
INDEX_KNOWN = {
    ("python", LINKS[1]): ("<= 3.0", "<= 2.5"),
    ("node", LINKS[1]): ("<= 1.8", "<= 1.8"),
    ("python", LINKS[2]): ("<= 9.2", "<= 9.2"),
}


def cold():
    for link in LINKS:
        for image in IMAGES:
            case = f"index known, {image}, {link}"
            for subject, bound in zip(("peelfs", "peelfs-profile"), INDEX_KNOWN.get((image, link), (None, None))):
                yield Claim(case, subject, "value", None, bound)
                yield Claim(case, subject, "time", (f"never seen, {image}, {link}", "podman"))
                ahead = "<= 1.5" if subject == "peelfs" else "<= 1.1"
                yield Claim(f"{case}, received", subject, "share", "peelfs-demand", ahead)
    for link in LINKS[1:]:
        case = f"large file, {link}"
        yield Claim(f"{case}, first byte", "peelfs", "time", "2 round trips + 1 MiB", "<= 1")
        yield Claim(f"{case}, all of it", "peelfs", "speed", "line", ">= 0.9")
        yield Claim(f"{case}, all of it, received", "peelfs", "value")


# Speed beside overlayfs, by part and task; None where there is no target.
SPEEDS = {
    "warm": {"find": 1.0, "stat": 1.0, "ls-lR": 1.0, "small": 1.0, "random": 1.0, "sequential": 0.70,
             "sequential-passthrough": 0.90,
             "find-kernel": 1.5, "stat-kernel": 1.5, "ls-lR-kernel": 1.0, "small-kernel": 1.5, "random-kernel": 1.3,
             "sequential-kernel": 1.9},
    "fresh": {"small": 0.20, "sequential": 0.45, "sequential-passthrough": 0.90,
              "find-kernel": 1.3, "small-kernel": 0.97, "sequential-kernel": 0.85},
    "uncached": {"find": 0.9, "small": 1.1, "sequential": 0.8, "tar": 1.3,
                 "find-kernel": 1.3, "small-kernel": 2.5, "sequential-kernel": 1.0, "tar-kernel": 2.1},
}


def warm():
    for part, tasks in SPEEDS.items():
        for image in ("node", "python"):
            for task, speed in tasks.items():
                # An image with extended attributes: `ls -l` asks for two of every name, and FUSE caches none.
                no_bound = (image, task) == ("python", "ls-lR")
                yield Claim(f"{part}, {image}, {task}", "peelfs", "speed", "overlayfs", None if no_bound else f">= {speed}")
                yield Claim(f"{part}, {image}, {task}, from disk", "peelfs", "share", "overlayfs")
        yield Claim(f"{part}, python, import", "peelfs", "time", "overlayfs", "<= 1.05" if part == "warm" else None)
        bound = {"warm": "<= 0.90", "fresh": "<= 0.95"}.get(part)
        yield Claim(f"{part}, python, import-kernel", "peelfs", "time", "overlayfs", bound)
    yield Claim("fresh, python, sequential", "FUSE alone", "speed", "overlayfs")
    yield Claim("fresh, python, sequential", "peelfs", "speed", "FUSE alone")
    yield Claim("a FUSE request", "peelfs", "time", "FUSE alone")


# Seconds for an image of so many entries and its mount.
MADE_WITHIN = {"100000": "<= 0.32"}


def growth():
    for sizes in (("10000", "100000", "1000000"), ("5", "50", "500")):
        unit = "entries" if len(sizes[0]) > 1 else "layers"
        first = f"growth, {sizes[0]} {unit}"
        for size in sizes:
            case = f"growth, {size} {unit}"
            yield Claim(f"{case}, mount", "peelfs", "value", None, "<= 0.1")
            if case != first:
                yield Claim(f"{case}, mount", "peelfs", "time", (f"{first}, mount", "peelfs"), "<= 2")
                yield Claim(f"{case}, 1000 lookups", "peelfs", "time", (f"{first}, 1000 lookups", "peelfs"))
            yield Claim(f"{case}, memory after the mount", "peelfs", "value", None, "<= 32")
            yield Claim(f"{case}, memory after the lookups", "peelfs", "value")
            yield Claim(f"{case}, mount by the kernel, image made", "peelfs", "value", None, MADE_WITHIN.get(size))
            yield Claim(f"{case}, memory for the image", "peelfs", "value")
            if unit == "entries" and case != first:
                yield Claim(f"{case}, memory for the image", "peelfs", "time", (f"{first}, memory for the image", "peelfs"), "<= 2")
            yield Claim(f"{case}, mount by the kernel", "peelfs", "value", None, "<= 0.02" if unit == "entries" else None)
            yield Claim(f"{case}, image, an entry", "peelfs", "value", None, "<= 130" if unit == "entries" else None)
    yield Claim("growth, 100 mounts, the last mount", "peelfs", "value")
    yield Claim("growth, 100 mounts, memory", "peelfs", "share", "1.5 x one + 1 MiB each", "<= 1")


def memory():
    for image in ("python", "node"):
        yield Claim(f"memory, {image}, after ls -lR", "peelfs", "value", None, "<= 64")
        yield Claim(f"memory, {image}, at most", "peelfs", "value")
        yield Claim(f"index, {image}, an entry", "peelfs", "value", None, "<= 110")
        yield Claim(f"index, {image}, checkpoints of decoded size", "peelfs", "value", None, "<= 1.5")


def containers():
    link = LINKS[1]
    never = f"run, never seen, python, {link}"
    yield Claim("run, cached, python, true", "peelfs", "time", "podman", "<= 0.5")
    yield Claim(never, "peelfs", "time", "podman", "<= 0.65")
    yield Claim(never, "peelfs-behind", "time", "podman")
    yield Claim(f"run, index known, python, {link}", "peelfs", "time", (never, "podman"), "<= 0.25")
    never = f"containerd, never seen, python, {link}"
    yield Claim(never, "peelfs", "time", "overlayfs", "<= 0.7")
    yield Claim(f"containerd, index known, python, {link}", "peelfs", "time", (never, "overlayfs"), "<= 0.25")
    yield Claim("containerd, cached, python", "peelfs", "time", "overlayfs", "<= 1.05")
    yield Claim("snapshotter, Prepare of a further lazy layer", "peelfs", "value", None, "<= 5")
    yield Claim("snapshotter, Prepare", "peelfs", "value")
    yield Claim("snapshotter, Commit", "peelfs", "value", None, "<= 5")
    yield Claim("snapshotter, List of 1000", "peelfs", "value", None, "<= 50")
    yield Claim("containerd, 20 containers, mounts", "peelfs", "value", None, "<= 1")
    yield Claim("containerd, 20 containers, memory of the server", "peelfs", "value", None, "<= 64")


def formats():
    for image in ("python", "node"):
        prepared = f"prepared, {image}, {LINKS[1]}"
        for form in ("peelfs-estargz", "peelfs-chunked"):
            yield Claim(prepared, form, "time", "podman", "<= 0.35")
            yield Claim(f"{prepared}, received", form, "value")
            yield Claim(f"listing, {image}, of the layers' bytes", form, "value", None, "<= 3")
            yield Claim(f"one file, {image}, requests", form, "value", None, "<= 2")
            yield Claim(f"one file, {image}, received", form, "value")
        pushed = f"pushed index, {image}, {LINKS[1]}"
        yield Claim(f"pushed index, {image}, of the layers' bytes", "peelfs", "value", None, "<= 1.2")
        yield Claim(pushed, "peelfs-pushed", "time", "peelfs-known", "<= 1.1")
        yield Claim(f"{pushed}, with a profile, received", "peelfs-pushed", "share", "peelfs-demand", "<= 1.1")
        yield Claim(f"pushed index with a profile, {image}, of the layers' bytes", "peelfs", "value", None, "<= 1.2")
        soci = f"SOCI, {image}, {LINKS[1]}"
        yield Claim(soci, "peelfs-soci", "time", "peelfs-known", "<= 1.15")
        yield Claim(f"{soci}, received", "peelfs-soci", "share", "peelfs-known")
    for level in ("peelfs-zstd-3", "peelfs-zstd-19"):
        yield Claim("frames, python, index of the decoded bytes", level, "value", None, "<= 5")
        yield Claim("frames, python, 4 KiB in the middle, received", level, "value", None, "<= 2.5")
        yield Claim(f"frames, python, {LINKS[1]}", level, "time", "peelfs-gzip", "<= 1.25")
    artifact = f"artifact of 2 GiB, {LINKS[0]}"
    yield Claim(f"{artifact}, first 8 KiB, requests since the mount was asked for", "peelfs", "value")
    yield Claim(artifact, "peelfs", "speed", "line", ">= 0.95")
    yield Claim("artifact of 2 GiB, again", "peelfs", "speed", "ext4", ">= 0.95")


def data():
    # More bytes only where they save a fifth of the time.
    for of, time, share in (
        ("sqlite, 20 lookups", None, "<= 1.2"),
        ("sqlite, 100 lookups", "<= 0.8", "<= 2.5"),
        ("lmdb, 20 lookups", None, "<= 1.2"),
        ("rocksdb, 20 lookups", None, "<= 1.2"),
    ):
        case = f"data, {of}"
        yield Claim(case, "peelfs", "time", "peelfs-none", time)
        yield Claim(f"{case}, received", "peelfs", "share", "peelfs-none", share)
        yield from all_of(case)
    case = "data, lance, 50 rows"
    yield Claim(case, "peelfs", "value", None, "<= 0.6")
    yield Claim(f"{case}, received", "peelfs", "value", None, "<= 4.8")
    yield from all_of(case)
    for of in ("lmdb", "git", "scattered"):
        case = f"data, {of}, everything"
        yield Claim(case, "peelfs", "time", "line", "<= 1.3")
        yield from all_of(case)


def all_of(case):
    yield Claim(case, "peelfs-all", "time", "peelfs", "<= 1.05")
    yield Claim(f"{case}, received in the end", "peelfs-all", "share", (f"{case}, received", "layer"), "<= 1.02")


# Heading, chart, claims.
PARTS = [
    ("Never seen", "never.svg", [claim for link in LINKS for claim in never(link)]),
    ("Base layers known", None, list(base())),
    ("The pass", None, list(whole_pass())),
    ("Seen before", None, list(seen())),
    ("Index known, no content", "cold.svg", list(cold())),
    ("Everything cached", "warm.svg", list(warm())),
    ("Growth", "growth.svg", list(growth())),
    ("Memory and index", None, list(memory())),
    ("Containers", None, list(containers())),
    ("Prepared images, indexes, artifacts", None, list(formats())),
    ("Data files", None, list(data())),
]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("samples")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--into", metavar="FILE")
    args = parser.parse_args()
    samples, units = read(args.samples)
    parts = [(heading, chart, [row for claim in claims if (row := judge(samples, units, claim))]) for heading, chart, claims in PARTS]
    rows = [row for _, _, rows in parts for row in rows]
    if args.json:
        for row in rows:
            print(json.dumps(row))
    elif args.into:
        charts = {chart.name for chart in (Path(args.into).parent / "img").glob("*.svg")}
        put_into(args.into, report(parts, charts))
    else:
        print(report(parts), end="")
    judged = [row["met"] for row in rows if "met" in row]
    print(f"{sum(judged)} of {len(judged)} targets reached", file=sys.stderr)


def read(path):
    """Samples by (case, subject), and units by case."""
    samples, units = defaultdict(list), {}
    with open(path) as lines:
        for line in lines:
            one = json.loads(line)
            samples[one["case"], one["subject"]].append(one["value"])
            units[one["case"]] = one["unit"]
    return samples, units


def judge(samples, units, claim):
    """One row, or None if that was not measured."""
    own, other = samples.get((claim.case, claim.subject)), claim.other() and samples.get(claim.other())
    if not own or (claim.beside and not other):
        return None
    median = statistics.median(own)
    row = {"case": claim.case, "subject": claim.subject, "median": median, "unit": units[claim.case], "n": len(own)}
    row |= {"spread": [min(own), max(own)], "kind": claim.kind, "bound": claim.bound}
    if claim.beside:
        row |= {"beside": claim.other(), "beside_median": statistics.median(other)}
    row["result"] = result(claim.kind, median, row.get("beside_median"))
    if claim.bound:
        sign, limit = claim.bound.split()
        row["met"] = row["result"] <= float(limit) if sign == "<=" else row["result"] >= float(limit)
    return row


def result(kind, own, other):
    match kind:
        case "time" | "share":
            return own / other
        case "speed":
            return other / own
        case "difference":
            return own - other
        case "value":
            return own


def report(parts, charts=frozenset()):
    """A heading, a chart if it is there, and a table for each part of which something was measured."""
    text = ""
    for heading, chart, rows in parts:
        if rows:
            text += f"### {heading}\n\n" + (f"![{heading}](img/{chart})\n\n" if chart in charts else "") + table(rows) + "\n"
    return text


def table(rows):
    lines = ["| what | measured | median | beside | | target | reached |", "|---|---|---|---|---|---|---|"]
    for row in rows:
        met = {True: "yes", False: "**no**", None: ""}[row.get("met")]
        beside = ratio = ""
        if "beside" in row:
            case, subject = row["beside"]
            elsewhere = "" if case == row["case"] else f"{case}: "
            beside = f"{elsewhere}{subject} {amount(row['beside_median'], row['unit'])}"
            ratio = f"{row['kind']} {row['result']:.2f}"
        bound = (row["bound"] or "").replace("<=", "≤").replace(">=", "≥")
        own = amount(row["median"], row["unit"])
        lines.append(f"| {row['case']} | {row['subject']} | {own} | {beside} | {ratio} | {bound} | {met} |")
    return "\n".join(lines) + "\n"


def amount(value, unit):
    """With as many digits as mean something."""
    digits = 3 if unit == "s" and value < 1 else 2 if unit in ("s", "%") else 0 if value == int(value) else 1
    return f"{value:,.{digits}f} {unit}"


def put_into(path, text):
    with open(path) as file:
        before, rest = file.read().split("<!-- figures -->\n", 1)
    after = rest.split("<!-- end -->", 1)[1]
    with open(path, "w") as file:
        file.write(f"{before}<!-- figures -->\n\n{text}<!-- end -->{after}")


if __name__ == "__main__":
    main()
