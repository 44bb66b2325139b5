#!/usr/bin/env python3
"""Charts out of what run.sh measured, drawn by gnuplot as SVG.

    benches/charts.py SAMPLES.jsonl DIR

A chart of which nothing was measured is not drawn; bars are medians.
"""
import os
import statistics
import subprocess
import sys

from report import IMAGES, LINKS, SPEEDS, read

COLOURS = {
    "peelfs": "#0072b2",
    "peelfs-profile": "#56b4e9",
    "podman": "#d55e00",
    "containerd": "#e69f00",
    "line + native": "#999999",
    "native": "#999999",
}
NAMES = {
    "peelfs-profile": "peelfs with profile",
    "line + native": "line rate + command",
    "native": "command alone",
}
STYLE = """
set encoding utf8
set terminal svg size {width},{height} font "sans-serif,12" background "#ffffff"
set output "{output}"
set style data histogram
set style histogram clustered gap 1
set style fill solid noborder
set boxwidth 0.9
set border 3 lc rgb "#444444"
set tics nomirror
set grid ytics lc rgb "#dddddd" lt 1
unset key
"""
# Room for one title and one legend over all panels.
PANELS = "margins screen {left:.3f}, screen {right:.3f}, screen {bottom}, screen 0.74 spacing screen {gap:.3f}"


def main(samples_path, directory):
    samples, _ = read(samples_path)
    medians = {key: statistics.median(values) for key, values in samples.items()}
    charts = {"never.svg": never(medians), "cold.svg": cold(medians), "warm.svg": warm(medians), "growth.svg": growth(medians)}
    for name, chart in charts.items():
        if chart:
            width, height, script = chart
            style = STYLE.format(width=width, height=height, output=os.path.join(directory, name))
            subprocess.run(["gnuplot"], input=style + script, text=True, check=True)


def never(medians):
    """A panel a link: seconds until the command has run, by image and tool."""
    panels = [
        (link, {image: {s: medians.get((f"never seen, {image}, {link}", s)) for s in subjects} for image in IMAGES})
        for subjects in [("peelfs", "podman", "containerd", "line + native")]
        for link in LINKS
    ]
    return panels_of_bars("An image never seen: seconds until its command has run", panels)


def cold(medians):
    panels = []
    for link in LINKS:
        rows = {}
        for image in IMAGES:
            case = f"index known, {image}, {link}"
            rows[image] = {s: medians.get((case, s)) for s in ("peelfs", "peelfs-profile")}
            if medians.get((case, "peelfs")) is not None:
                rows[image]["podman"] = medians.get((f"never seen, {image}, {link}", "podman"))
                rows[image]["native"] = medians.get((case, "native"))
        panels.append((link, rows))
    return panels_of_bars("Index known, no content: seconds until the command has run", panels)


def panels_of_bars(title, panels):
    """Panels side by side, each (name, {group: {subject: value}}); None if there is no value at all."""
    panels = [(name, drop_empty(rows)) for name, rows in panels]
    panels = [(name, rows) for name, rows in panels if rows]
    if not panels:
        return None
    measured = {s for _, rows in panels for row in rows.values() for s, value in row.items() if value is not None}
    subjects = [s for s in COLOURS if s in measured]
    script = multiplot(title, len(panels)) + "set yrange [0:*]\n"
    script += legend({NAMES.get(s, s): COLOURS[s] for s in subjects})
    for name, rows in panels:
        script += f'set title "{name}"\n' + bars(rows, {s: COLOURS[s] for s in subjects})
    return width_of(len(panels)), 360, script + "unset multiplot\n"


def multiplot(title, panels, bottom=0.1):
    """Panels side by side below a title, their frames where their number of pixels says, whatever stands in them."""
    width = width_of(panels)
    margins = PANELS.format(left=45 / width, right=1 - 15 / width, bottom=bottom, gap=45 / width)
    return f'set multiplot layout 1,{panels} {margins} title "{title}"\n'


def width_of(panels):
    return 60 + 330 * max(panels, 2)


def legend(colours):
    """One line below the title."""
    return "".join(
        f'set label {number} "■ {name}" at screen {number / (len(colours) + 1):.3f}, screen 0.9 center tc rgb "{colour}"\n'
        for number, (name, colour) in enumerate(colours.items(), 1)
    )


def bars(rows, colours):
    """Groups of bars: {group: {subject: value}}, each subject in its colour; gnuplot fails on one without a value."""
    colours = {s: colour for s, colour in colours.items() if any(row.get(s) is not None for row in rows.values())}
    columns = (f'$data using {column}:xtic(1) lc rgb "{colour}"' for column, colour in enumerate(colours.values(), 2))
    # A legend is drawn once, by the panel that comes first.
    return block(rows, list(colours)) + "plot " + ", ".join(columns) + "\nunset label\n"


def drop_empty(rows):
    return {group: row for group, row in rows.items() if any(value is not None for value in row.values())}


def block(rows, columns):
    """Inline data; what is missing is `?`."""
    lines = (f'"{group}" ' + " ".join(str(row.get(c) if row.get(c) is not None else "?") for c in columns) for group, row in rows.items())
    return "$data << END\n" + "\n".join(lines) + '\nEND\nset datafile missing "?"\n'


def warm(medians):
    """Speed beside overlayfs, a bar a task, a panel a state of the caches."""
    panels = []
    for part in SPEEDS:
        rows = {}
        for task in ("find", "stat", "ls-lR", "small", "random", "sequential", "tar", "import"):
            rows[task] = {}
            for image in ("python", "node"):
                own, other = (medians.get((f"{part}, {image}, {task}", s)) for s in ("peelfs", "overlayfs"))
                rows[task][image] = other / own if own and other else None
        if rows := drop_empty(rows):
            panels.append((part, rows))
    if not panels:
        return None
    colours = {"python": "#0072b2", "node": "#009e73"}
    titles = {"warm": "warm", "fresh": "fresh mount, page cache warm", "uncached": "page cache cold"}
    script = multiplot("Speed beside kernel overlayfs over the unpacked layers (1: as fast)", len(panels), bottom=0.2)
    script += "set yrange [0:1.2<*]\nset xtics rotate by -45\nset arrow 1 from graph 0, first 1 to graph 1, first 1 nohead front lc rgb '#000000' dt 2\n"
    script += legend(colours)
    for part, rows in panels:
        script += f'set title "{titles[part]}"\n' + bars(rows, colours)
    return width_of(len(panels)), 380, script + "unset multiplot\n"


def growth(medians):
    """Milliseconds a mount from cached indexes takes, over the number of entries and of layers."""
    lines = {}
    for unit, sizes in (("entries", (10000, 100000, 1000000)), ("layers", (5, 50, 500))):
        values = [(size, medians.get((f"growth, {size} {unit}, mount", "peelfs"))) for size in sizes]
        lines[unit] = [(size, value * 1000) for size, value in values if value is not None]
    if not all(lines.values()):
        return None
    script = multiplot("Mounting from cached indexes, milliseconds", 2) + "set logscale x\nset yrange [0:120<*]\nunset key\n"
    script += "set arrow 1 from graph 0, first 100 to graph 1, first 100 nohead front lc rgb '#000000' dt 2\nset format x '10^{%L}'\n"
    for unit, points in lines.items():
        axis = "set format x '%g'\n" if unit == "layers" else ""
        script += f'{axis}set title "{unit}"\n$data << END\n' + "\n".join(f"{x} {y}" for x, y in points) + "\nEND\n"
        script += "plot $data using 1:2 with linespoints lw 2 pt 7 lc rgb '#0072b2'\n"
    return width_of(2), 320, script + "unset multiplot\n"


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    main(*sys.argv[1:])
