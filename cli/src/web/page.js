"use strict";

const REASONS = [
  ["demand", "On demand", "a program waited for it"],
  ["readahead", "Read ahead", "it follows what a program has read"],
  ["siblings", "Siblings", "it is near files of the same kind that a program reads"],
  ["program", "Program", "a program that was started names it"],
  ["profile", "Profile", "earlier runs have read it"],
  ["fill", "Fill", "everything is fetched"],
  ["first_pass", "First pass", "the layer was new and was read once"],
];
const EVERY = 1000;
const PAST = 120;
const token = new URLSearchParams(location.hash.slice(1)).get("token") || "";

let data = null;
let chosen = null;
let scale = "image";
let filter = "";
const past = new Map();
const orders = { files: ["idle_ms", 1], layers: ["number", 1] };

// Texts ----------------------------------------------------------------------------------------------------------------

function size(bytes) {
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  let unit = 0;
  while (bytes >= 1024 && unit < units.length - 1) {
    bytes /= 1024;
    unit += 1;
  }
  return `${unit === 0 || bytes >= 100 ? Math.round(bytes) : bytes.toFixed(1)} ${units[unit]}`;
}

function time(us) {
  if (us < 1000) return `${us} µs`;
  if (us < 1e6) return `${Math.floor(us / 1000)} ms`;
  return us < 1e8 ? `${(us / 1e6).toFixed(1)} s` : `${Math.floor(us / 1e6)} s`;
}

function ago(ms) {
  const seconds = Math.floor(ms / 1000);
  if (seconds < 1) return "now";
  if (seconds < 120) return `${seconds} s ago`;
  return seconds < 7200 ? `${Math.floor(seconds / 60)} min ago` : `${Math.floor(seconds / 3600)} h ago`;
}

function count(number, thing) {
  return `${number.toLocaleString("en")} ${thing}${number === 1 ? "" : "s"}`;
}

function share(part, whole) {
  if (whole === 0) return "0 %";
  const percent = (100 * part) / whole;
  return percent > 0 && percent < 0.1 ? "< 0.1 %" : `${percent < 10 ? percent.toFixed(1) : Math.floor(percent)} %`;
}

/** Names of images have control characters, and some that change the direction of text. */
function shown(name) {
  return name.replace(/[\u0000-\u001f\u007f-\u009f\u200e\u200f\u202a-\u202e\u2066-\u2069]/g, "\ufffd");
}

// Elements: all text is set as text, whatever an image has for names --------------------------------------------------------

function make(tag, options, ...children) {
  const element = document.createElement(tag);
  const { color, ...rest } = options || {};
  for (const [name, value] of Object.entries(rest)) {
    if (name === "class") element.className = value;
    else if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else element.setAttribute(name, value);
  }
  if (color) element.style.background = `var(--${color})`;
  element.append(...children);
  return element;
}

const at = (id) => document.getElementById(id);

function put(id, ...children) {
  at(id).replaceChildren(...children);
}

// Numbers of a mount -------------------------------------------------------------------------------------------------------

function reasons(layers) {
  const all = Object.fromEntries(REASONS.map(([reason]) => [reason, 0]));
  for (const layer of layers) for (const [reason, bytes] of Object.entries(layer.fetched)) all[reason] += bytes;
  return all;
}

function sum(by) {
  return Object.values(by).reduce((all, one) => all + one, 0);
}

/** Takes note of a mount for its picture of the past. */
function note(mount, now) {
  if (!mount.activity) return;
  const key = `${mount.at}\n${mount.pid}`;
  const samples = past.get(key) || [];
  samples.push({ now, by: reasons(mount.activity.layers), read: sum(Object.fromEntries(mount.activity.layers.map((l) => [l.number, l.read_bytes]))) });
  while (samples.length > 2 && samples[0].now < now - PAST * 1000 - EVERY) samples.shift();
  past.set(key, samples);
}

function samplesOf(mount) {
  return past.get(`${mount.at}\n${mount.pid}`) || [];
}

function rate(mount) {
  const samples = samplesOf(mount);
  if (samples.length < 2) return 0;
  const [before, last] = samples.slice(-2);
  return Math.max(0, (sum(last.by) - sum(before.by)) / ((last.now - before.now) / 1000));
}

// The list of mounts -------------------------------------------------------------------------------------------------------

function bar(by, whole) {
  const all = Math.max(whole, sum(by), 1);
  return REASONS.filter(([reason]) => by[reason] > 0).map(([reason]) => {
    const part = make("i", { color: reason });
    part.style.width = `${(100 * by[reason]) / all}%`;
    return part;
  });
}

function drawMounts() {
  const links = data.mounts.map((mount) => {
    const link = make("a", { href: "#", onclick: (event) => { event.preventDefault(); chosen = mount.at; draw(); } });
    if (mount.at === chosen) link.setAttribute("aria-current", "true");
    const waiting = mount.activity ? mount.activity.waiting : 0;
    if (waiting > 0) link.append(make("em", {}, `${waiting} waiting`));
    link.append(make("b", { title: shown(mount.reference) }, brief(mount.reference).split("/").pop()), make("small", { title: shown(mount.at) }, shown(mount.at)));
    if (mount.activity) {
      const by = reasons(mount.activity.layers);
      const speed = rate(mount);
      const rated = speed >= 1 ? `, ${size(speed)}/s` : "";
      link.append(make("small", {}, `${size(sum(by))} of ${size(mount.activity.image_bytes)}${rated}`));
      link.append(make("div", { class: "bar" }, ...bar(by, mount.activity.image_bytes)));
    } else {
      link.append(make("small", {}, shown(mount.unknown || "")));
    }
    return link;
  });
  put("mounts", ...links);
}

/** The name without what all names have. */
function brief(reference) {
  return shown(reference).replace(/^docker\.io\/(library\/)?/, "");
}

// One mount ----------------------------------------------------------------------------------------------------------------

function drawMount(mount) {
  at("mount").hidden = false;
  // A long name breaks between its parts.
  put("image", ...brief(mount.reference).split(/(?<=[/@])/).flatMap((part) => [part, make("wbr")]));
  const since = mount.since ? `, since ${new Date(mount.since * 1000).toLocaleString()}` : "";
  const after = mount.takeovers ? `, taken over ${count(mount.takeovers, "time")}` : "";
  put("where", `${shown(mount.at)}${mount.pid ? ` · process ${mount.pid}${since}${after}` : ""}`);
  const activity = mount.activity;
  for (const card of document.querySelectorAll("article .card")) card.hidden = !activity || (card.id === "waiting" && activity.waiting === 0);
  if (!activity) {
    put("figures", figure("State", shown(mount.unknown || "not known")));
    return;
  }
  const by = reasons(activity.layers);
  drawFigures(activity, by, mount);
  drawWaiting(activity);
  put("bar", ...bar(by, activity.image_bytes));
  at("bar").setAttribute("aria-label", `${size(sum(by))} of ${size(activity.image_bytes)} fetched`);
  put("legend", ...REASONS.filter(([reason]) => by[reason] > 0).map(([reason, name, meaning]) =>
    make("li", { title: meaning }, make("i", { color: reason }), `${name} `, make("b", {}, size(by[reason])))));
  drawRate(mount);
  drawMap(activity);
  drawFiles(activity);
  drawLayers(activity);
}

function figure(name, value, small, bad) {
  const shownValue = make("dd", bad ? { class: "bad" } : {}, value);
  if (small) shownValue.append(make("small", {}, ` ${small}`));
  return make("div", {}, make("dt", {}, name), shownValue);
}

function drawFigures(activity, by, mount) {
  const reads = activity.layers.reduce((all, layer) => all + layer.reads, 0);
  const waits = activity.layers.reduce((all, layer) => all + layer.waits, 0);
  const figures = [
    figure("Fetched", size(sum(by)), `of ${size(activity.image_bytes)}, ${share(sum(by), activity.image_bytes)}`),
    figure("Now", `${size(rate(mount))}/s`),
    figure("Reads without waiting", reads === 0 ? "–" : share(reads - waits, reads), `of ${reads.toLocaleString("en")}`),
  ];
  const registry = activity.registry;
  if (registry) {
    const failing = registry.failing > 0;
    figures.push(figure("Registry", failing ? `fails for ${registry.failing_s} s` : count(registry.requests, "request"),
      registry.retries + registry.resumptions > 0 ? `${registry.retries + registry.resumptions} repeated` : "", failing));
  }
  if (activity.failed > 0) figures.push(figure("Failed", count(activity.failed, "request"), "", true));
  put("figures", ...figures);
}

function drawWaiting(activity) {
  const head = ["For", "Program", "Does", "With"].map((name) => make("th", {}, name));
  const isLong = (request) => request.waits_us >= 1e6;
  at("waiting").classList.toggle("long", activity.waiting_requests.some(isLong));
  const rows = activity.waiting_requests.slice(0, 20).map((request) => make("tr", {},
    make("td", isLong(request) ? { class: "bad" } : {}, time(request.waits_us)),
    make("td", {}, `${shown(request.command || "?")}${request.pid ? ` (${request.pid})` : ""}`),
    make("td", {}, shown(request.operation)),
    make("td", { class: "path" }, shown(request.path || "?"))));
  put("waits", make("thead", {}, make("tr", {}, ...head)), make("tbody", {}, ...rows));
}

// The last two minutes -----------------------------------------------------------------------------------------------------

function drawRate(mount) {
  const svg = at("rate");
  const space = "http://www.w3.org/2000/svg";
  const samples = samplesOf(mount);
  const now = samples.length ? samples[samples.length - 1].now : 0;
  const steps = samples.slice(1).map((sample, number) => {
    const before = samples[number];
    const seconds = Math.max((sample.now - before.now) / 1000, 0.001);
    return { from: before.now, to: sample.now, rates: REASONS.map(([reason]) => Math.max(0, sample.by[reason] - before.by[reason]) / seconds) };
  });
  const most = Math.max(...steps.map((step) => step.rates.reduce((a, b) => a + b, 0)), 1);
  const [width, height] = [PAST * 10, 100];
  svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
  const x = (moment) => width - ((now - moment) / (PAST * 1000)) * width;
  const bars = [];
  for (const step of steps) {
    let y = height;
    step.rates.forEach((rated, number) => {
      const tall = (rated / most) * (height - 4);
      if (tall < 0.2) return;
      const rect = document.createElementNS(space, "rect");
      y -= tall;
      for (const [name, value] of [["x", x(step.from) + 0.6], ["y", y], ["width", Math.max(x(step.to) - x(step.from) - 1.2, 0.5)], ["height", tall]])
        rect.setAttribute(name, value.toFixed(2));
      rect.style.fill = `var(--${REASONS[number][0]})`;
      bars.push(rect);
    });
  }
  svg.replaceChildren(...bars);
  svg.setAttribute("aria-label", `Fetched in the last two minutes; at most ${size(most)} a second`);
  put("peak", most > 1 ? `peak ${size(most)}/s` : "nothing was fetched since this page was opened");
}

// The treemap --------------------------------------------------------------------------------------------------------------

/** Squarified treemap (Bruls, Huizing, van Wijk): rectangles for `items`, the largest first, that fill `box`. */
function squarify(items, box) {
  const all = items.reduce((sum, item) => sum + item.value, 0);
  let { x, y, w, h } = box;
  if (all <= 0 || w <= 0 || h <= 0) return [];
  const unit = (w * h) / all;
  const placed = [];
  let rest = items.filter((item) => item.value > 0).sort((a, b) => b.value - a.value);
  const worst = (row, side) => {
    const area = row.reduce((sum, item) => sum + item.value * unit, 0);
    return Math.max(...row.map((item) => Math.max((side * side * item.value * unit) / (area * area), (area * area) / (side * side * item.value * unit))));
  };
  while (rest.length > 0) {
    const side = Math.min(w, h);
    const row = [rest[0]];
    while (row.length < rest.length && worst([...row, rest[row.length]], side) <= worst(row, side)) row.push(rest[row.length]);
    rest = rest.slice(row.length);
    const area = row.reduce((sum, item) => sum + item.value * unit, 0);
    const thick = area / side;
    let along = 0;
    for (const item of row) {
      const long = (item.value * unit) / thick;
      placed.push(w >= h ? { item, x, y: y + along, w: thick, h: long } : { item, x: x + along, y, w: long, h: thick });
      along += long;
    }
    if (w >= h) { x += thick; w -= thick; } else { y += thick; h -= thick; }
  }
  return placed;
}

/** What of a layer was fetched: its files, and for each reason what belongs to none of them. */
function parts(layer, files) {
  const left = { ...layer.fetched };
  const own = files.filter((file) => file.layer === layer.number && file.fetched_bytes > 0);
  const items = own.map((file) => {
    let main = "demand";
    for (const [reason, bytes] of Object.entries(file.fetched)) {
      left[reason] = Math.max(0, (left[reason] || 0) - bytes);
      if (bytes > (file.fetched[main] || 0)) main = reason;
    }
    return { value: file.fetched_bytes, reason: main, file };
  });
  for (const [reason, , ] of REASONS) if (left[reason] > 0) items.push({ value: left[reason], reason });
  return items;
}

function drawMap(activity) {
  const map = at("map");
  const box = { x: 0, y: 0, w: map.clientWidth, h: map.clientHeight };
  const value = (layer) => (scale === "image" ? Math.max(layer.size, layer.fetched_bytes) : layer.fetched_bytes);
  const layers = activity.layers.map((layer) => ({ value: value(layer), layer }));
  const tiles = [];
  for (const { item: { layer }, x, y, w, h } of squarify(layers, box)) {
    const tile = place(make("div", { class: "tile layer" }), x, y, w, h, 2);
    tips(tile, () => [`Layer ${layer.number} (${layer.state})`, `${size(layer.fetched_bytes)} of ${size(layer.size)} fetched`, layer.digest]);
    const labelled = w > 90 && h > 44;
    if (labelled) tile.append(make("span", {}, make("b", {}, `Layer ${layer.number}`), `  ${size(layer.fetched_bytes)} of ${size(layer.size)}`));
    const room = { x: 3, y: labelled ? 23 : 3, w: w - 10, h: h - (labelled ? 30 : 10) };
    const items = parts(layer, activity.files);
    if (scale === "image") items.push({ value: Math.max(0, layer.size - layer.fetched_bytes), rest: true });
    for (const part of squarify(items, room)) {
      if (part.item.rest || part.w < 1.5 || part.h < 1.5) continue;
      tile.append(drawPart(part));
    }
    tiles.push(tile);
  }
  map.replaceChildren(...tiles);
  const nothing = activity.layers.every((layer) => layer.fetched_bytes === 0);
  put("mapnote", nothing
    ? "Nothing was fetched: all that was read was in the cache."
    : scale === "image"
      ? "The area of a layer is the size of its blob; what is coloured was fetched, what is grey was not needed."
      : "The area is what was fetched: files by themselves, the rest by reason.");
}

function drawPart({ item, x, y, w, h }) {
  const tile = place(make("div", { class: "tile file", "data-reason": item.reason, color: item.reason }), x, y, w, h, 1);
  const name = REASONS.find(([reason]) => reason === item.reason)[1];
  const file = item.file;
  if (w > 46 && h > 20) tile.append(make("span", {}, file ? shown(file.path.split("/").pop()) : name));
  if (w > 60 && h > 38) tile.append(make("span", {}, size(item.value)));
  tips(tile, () => file
    ? [shown(file.path), ...REASONS.filter(([reason]) => file.fetched[reason]).map(([reason, label]) => `${label}: ${size(file.fetched[reason])}`),
      file.waits > 0 ? `${count(file.waits, "read")} waited, ${time(file.waited_us)} together` : "no program waited for it"]
    : [`${name}: ${size(item.value)}`, "of files that are not listed one by one"]);
  return tile;
}

function place(tile, x, y, w, h, gap) {
  Object.assign(tile.style, { left: `${x}px`, top: `${y}px`, width: `${Math.max(w - gap, 1)}px`, height: `${Math.max(h - gap, 1)}px` });
  return tile;
}

function tips(element, lines) {
  const tip = at("tip");
  element.addEventListener("mousemove", (event) => {
    event.stopPropagation();
    tip.textContent = lines().join("\n");
    tip.hidden = false;
    tip.style.left = `${Math.min(event.clientX + 14, innerWidth - tip.offsetWidth - 10)}px`;
    tip.style.top = `${Math.min(event.clientY + 16, innerHeight - tip.offsetHeight - 10)}px`;
  });
  element.addEventListener("mouseleave", () => { tip.hidden = true; });
}

// Tables -------------------------------------------------------------------------------------------------------------------

function table(id, columns, rows) {
  const [by, direction] = orders[id];
  const column = columns.find((one) => one.key === by);
  const compare = (a, b) => (typeof a === "string" ? a.localeCompare(b) : a - b);
  const sorted = [...rows].sort((a, b) => direction * compare(column.value(a), column.value(b)));
  const head = columns.map((one) => {
    const turn = () => { orders[id] = [one.key, one.key === by ? -direction : one.first || -1]; draw(); };
    const cell = make("th", { class: `sorts${one.number ? " number" : ""}`, tabindex: "0", onclick: turn, onkeydown: (event) => { if (event.key === "Enter") turn(); } }, one.name);
    if (one.key === by) cell.setAttribute("aria-sort", direction > 0 ? "ascending" : "descending");
    return cell;
  });
  const focused = document.activeElement && at(id).contains(document.activeElement) ? [...at(id).querySelectorAll("th")].indexOf(document.activeElement) : -1;
  const body = sorted.map((row) => make("tr", {}, ...columns.map((one) => make("td", one.class || one.number ? { class: one.class || "number" } : {}, ...[one.show(row)].flat()))));
  put(id, make("thead", {}, make("tr", {}, ...head)), make("tbody", {}, ...body));
  if (focused >= 0) head[focused].focus();
}

function why(fetched) {
  const each = REASONS.filter(([reason]) => fetched[reason] > 0).sort(([a], [b]) => fetched[b] - fetched[a]);
  return each.map(([reason, name]) => make("span", { title: size(fetched[reason]) }, make("i", { color: reason }), `${name} ${share(fetched[reason], sum(fetched))}`));
}

function drawFiles(activity) {
  const files = activity.files.filter((file) => file.path.toLowerCase().includes(filter));
  table("files", [
    { key: "path", name: "Path", first: 1, class: "path", value: (file) => file.path, show: (file) => shown(file.path) },
    { key: "layer", name: "Layer", first: 1, number: true, value: (file) => file.layer, show: (file) => String(file.layer) },
    { key: "size", name: "Size", number: true, value: (file) => file.size, show: (file) => size(file.size) },
    { key: "fetched", name: "Fetched", number: true, value: (file) => file.fetched_bytes, show: (file) => size(file.fetched_bytes) },
    { key: "waited", name: "Waited", number: true, value: (file) => file.waited_us, show: (file) => (file.waits ? `${time(file.waited_us)}, ${file.waits}×` : "–") },
    { key: "idle_ms", name: "Last", first: 1, number: true, value: (file) => file.idle_ms, show: (file) => ago(file.idle_ms) },
    { key: "why", name: "Why", class: "why", value: (file) => file.fetched_bytes, show: (file) => why(file.fetched) },
  ], files.slice(0, 200));
}

function drawLayers(activity) {
  table("layers", [
    { key: "number", name: "Layer", first: 1, value: (layer) => layer.number, show: (layer) => `${layer.number}  ${shown(layer.digest).replace(/^[^:]*:/, "").slice(0, 12)}` },
    { key: "state", name: "State", first: 1, value: (layer) => layer.state, show: (layer) => (layer.state === "failed" ? make("b", { class: "bad" }, "failed") : layer.state) },
    { key: "size", name: "Size", number: true, value: (layer) => layer.size, show: (layer) => size(layer.size) },
    { key: "fetched", name: "Fetched", number: true, value: (layer) => layer.fetched_bytes, show: (layer) => size(layer.fetched_bytes) },
    { key: "cached", name: "Cached", number: true, value: (layer) => layer.cached_bytes, show: (layer) => (layer.decoded_size ? share(Math.min(layer.cached_bytes, layer.decoded_size), layer.decoded_size) : "–") },
    { key: "read", name: "Programs read", number: true, value: (layer) => layer.read_bytes, show: (layer) => size(layer.read_bytes) },
    { key: "waits", name: "Waited", number: true, value: (layer) => layer.waited_us, show: (layer) => (layer.waits ? `${time(layer.waited_us)}, ${layer.waits}×` : "–") },
    { key: "why", name: "Why", class: "why", value: (layer) => layer.fetched_bytes, show: (layer) => why(layer.fetched) },
  ], activity.layers);
}

// Life ---------------------------------------------------------------------------------------------------------------------

function draw() {
  if (!data) return;
  if (!data.mounts.some((mount) => mount.at === chosen)) chosen = data.mounts.length ? data.mounts[0].at : null;
  drawMounts();
  const mount = data.mounts.find((one) => one.at === chosen);
  at("empty").hidden = Boolean(mount);
  if (mount) drawMount(mount);
  else {
    at("mount").hidden = true;
    put("empty", "Nothing is mounted.\npeelfs mount IMAGE DIR mounts an image.");
  }
}

function say(text, bad) {
  put("state", text);
  at("state").className = bad ? "off" : "";
}

async function look() {
  if (!document.hidden) {
    try {
      const answer = await fetch("/data", { headers: { Authorization: `Bearer ${token}` }, cache: "no-store" });
      if (answer.status === 401) {
        say("The token is missing or wrong", true);
        at("empty").hidden = false;
        put("empty", "Open the whole address that peelfs web has printed:\nits end, from # on, is the token.");
        return;
      }
      if (!answer.ok) throw new Error(await answer.text());
      data = await answer.json();
      data.mounts.forEach((mount) => note(mount, performance.now()));
      say(`peelfs ${data.version}, live`);
      draw();
      document.body.dataset.drawn = String(1 + Number(document.body.dataset.drawn || 0));
    } catch (error) {
      say("peelfs web does not answer", true);
    }
  }
  setTimeout(look, EVERY);
}

function theme(name) {
  document.documentElement.dataset.theme = name;
}

const dark = matchMedia("(prefers-color-scheme: dark)");
theme(dark.matches ? "dark" : "light");
dark.addEventListener("change", () => theme(dark.matches ? "dark" : "light"));
at("theme").addEventListener("click", () => theme(document.documentElement.dataset.theme === "dark" ? "light" : "dark"));
for (const which of ["image", "fetched"])
  at(`scale-${which}`).addEventListener("click", () => {
    scale = which;
    for (const other of ["image", "fetched"]) at(`scale-${other}`).setAttribute("aria-pressed", String(other === which));
    draw();
  });
at("filter").addEventListener("input", () => { filter = at("filter").value.toLowerCase(); draw(); });
addEventListener("resize", draw);
look();
