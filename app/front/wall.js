// The wall display: places words that come formatted, draws the two lines, says when it hears nothing.
const SILENT_MS = 5000, SVG = "http://www.w3.org/2000/svg";

function element(name, className, text, style) {
  const made = document.createElement(name);
  if (className) made.className = className;
  if (text !== undefined) made.textContent = text;
  if (style) Object.assign(made.style, style);
  return made;
}

function drawn(name, attributes, text) {
  const made = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  if (text !== undefined) made.textContent = text;
  return made;
}

const scaled = (dash, by) => (dash ? dash.split(" ").map((part) => part * by).join(" ") : "");

const sample = (color, dash) => {
  const svg = drawn("svg", { viewBox: "0 0 44 10", class: "sample", "aria-hidden": "true" });
  const line = { x1: 0, x2: 44, y1: 5, y2: 5, stroke: color, "stroke-width": 5, "stroke-dasharray": scaled(dash, 1.6) };
  svg.append(drawn("line", line));
  return svg;
};

// --- the lines -------------------------------------------------------------

function merged(old, news) { // a stream's first message is the whole window, later ones its young end
  if (!old || news.until - news.since >= news.window) return news;
  const since = news.until - news.window;
  const lines = news.lines.map((young, index) => {
    const kept = old.lines[index].slice(Math.max(0, since - old.since), Math.max(0, news.since - old.since));
    const gap = news.since - since - kept.length;
    return [...new Array(Math.max(0, gap)).fill(null), ...kept, ...young];
  });
  return { ...news, since, lines };
}

function chart(place, points, view) {
  const width = place.clientWidth, height = place.clientHeight;
  if (!points || width < 50 || height < 50) return place.replaceChildren();
  const size = Math.max(14, Math.min(width / 60, height / 14));
  const box = { left: size * 3.6, right: width - size * 0.6, top: size * 0.7, bottom: height - size * 1.9 };
  const top = Math.max(points.top, ...points.lines.flat().map((value) => (value ?? 0) / 1000));
  const x = (second) => box.left + ((box.right - box.left) * (second - points.until + points.window)) / points.window;
  const y = (share) => box.bottom - ((box.bottom - box.top) * share) / top;
  const svg = drawn("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": alt(view) });
  for (let tick = 0; tick <= 4; tick++) {
    const share = (top * tick) / 4;
    svg.append(drawn("line", { class: "grid", x1: box.left, x2: box.right, y1: y(share), y2: y(share) }));
    const label = `${+(share * 100).toFixed(1)}%`;
    const spot = { x: box.left - size * 0.5, y: y(share) + size * 0.35, "text-anchor": "end", "font-size": size };
    svg.append(drawn("text", spot, label));
  }
  const clock = new Intl.DateTimeFormat([], { hour: "2-digit", minute: "2-digit", hourCycle: "h23" });
  const every = 180;
  for (let at = Math.ceil((points.until - points.window) / every) * every; at <= points.until; at += every) {
    if (x(at) - box.left < size || box.right - x(at) < size) continue;
    const spot = { x: x(at), y: height - size * 0.4, "text-anchor": "middle", "font-size": size };
    svg.append(drawn("text", spot, clock.format(at * 1000)));
  }
  for (const mark of view.marks ?? []) {
    if (x(mark.t) < box.left) continue;
    const { color, dash } = view.looks[mark.kind] ?? { color: "#8b949e", dash: [4, 4] }; // a command
    const ends = { x1: x(mark.t), x2: x(mark.t), y1: box.top, y2: box.bottom };
    svg.append(drawn("line", { class: "mark", ...ends, stroke: color, "stroke-dasharray": dash.join(" ") }));
  }
  points.lines.forEach((values, index) => {
    let path = "", pen = "M";
    values.forEach((value, second) => {
      if (value === null) pen = "M";
      else { path += `${pen}${x(points.since + second).toFixed(1)} ${y(value / 1000).toFixed(1)}`; pen = "L"; }
    });
    const look = view.lines[index];
    const thick = Math.max(3, size / 7);
    const stroke = { "stroke-width": thick, "stroke-linejoin": "round", "stroke-dasharray": scaled(look.dash, thick / 2) };
    svg.append(drawn("path", { d: path, fill: "none", stroke: look.color, ...stroke }));
  });
  place.replaceChildren(svg);
}

const alt = (view) => "Wall utilization over 15 minutes: " + view.lines.map((line) => `${line.name} ${line.value}`).join(", ");

// --- the words -------------------------------------------------------------

function head(view) {
  const made = element("header");
  made.setAttribute("role", "status");
  made.dataset.at = view.at ?? "";
  const words = element("div", "health");
  const dot = element("span", "dot", "", { background: view.color ?? "#8b949e" });
  words.append(dot, element("b", "", view.word), element("span", "said", view.text));
  made.append(words);
  if (view.limit) made.append(element("div", "limit", view.limit));
  return made;
}

function lines(view) {
  const made = element("div", "lines");
  for (const line of view.lines) {
    const entry = element("div", "line");
    const value = element("b", "", line.value, { color: line.color });
    const name = element("span", "name");
    name.append(sample(line.color, line.dash), element("span", "", line.name), element("span", "tag", line.tag));
    entry.append(value, name);
    made.append(entry);
  }
  return made;
}

function card(label, value, note, color) {
  const made = element("section", "card", undefined, color ? { borderLeft: `calc(0.5 * var(--u)) solid ${color}` } : undefined);
  made.setAttribute("aria-label", `${label}: ${value}`);
  made.append(element("span", "label", label), element("b", "", value), element("span", "note", note));
  return made;
}

function side(view) {
  const made = element("aside");
  for (const figure of view.figures) made.append(card(figure.label, figure.value, figure.note));
  for (const pool of view.pools) made.append(card(`${pool.role} workers`, pool.value, pool.note, pool.color));
  return made;
}

function glyph(event, looks) { // the shape that is at the event's rule in a chart; a command is a dot
  const path = looks[event.kind]?.path;
  if (!path) return element("span", "dot small", "", { background: event.color });
  const svg = drawn("svg", { viewBox: "0 0 10 10", class: "glyph", "aria-hidden": "true" });
  svg.append(drawn("path", { d: path, fill: event.color }));
  return svg;
}

function events(view) {
  const made = element("ol", "events");
  made.setAttribute("aria-label", "Latest commands and events");
  for (const event of view.events) {
    const row = element("li");
    row.append(element("time", "", event.at), glyph(event, view.looks), element("span", "what", event.what));
    made.append(row);
  }
  if (!view.events.length) made.append(element("li", "quiet", "Nothing happened within the last hour."));
  return made;
}

function foot(view) {
  const made = element("footer");
  made.append(element("span", "", view.fleet ?? ""));
  if (view.simulated) made.append(element("span", "tag", "simulated workers: no model is computed"));
  made.append(element("span", "clock", view.clock ? `as of ${view.clock}` : ""));
  return made;
}

// --- the screen -------------------------------------------------------------

function begin(place, looks) {
  const screen = element("main", "wall"), alone = element("div", "alone"), plot = element("div", "plot");
  place.append(screen);
  let view = null, points = null, wide = false;

  function show() {
    view.looks = looks;
    screen.classList.toggle("stale", Boolean(view.stale));
    if (!view.lines || view.empty) {
      const what = view.lines ? "No workers yet" : "No data yet";
      alone.replaceChildren(element("b", "", what), element("span", "", view.text));
      screen.replaceChildren(head(view), alone, foot(view));
      return;
    }
    const left = element("div", "left");
    const title = "Wall utilization: work done / peak, over all the time, last 15 min";
    left.append(lines(view), element("div", "title", title), plot);
    const body = element("div", "body");
    body.append(left, side(view));
    screen.replaceChildren(head(view), body, events(view), foot(view));
    chart(plot, points, view);
  }

  function watch() { // its own clock: the console itself may be what is silent
    const silentMs = performance.now() - stream.heardMs;
    const silent = silentMs > SILENT_MS && !document.hidden;
    screen.classList.toggle("silent", silent);
    screen.dataset.silent = silent ? `Nothing heard from the console for ${Math.round(silentMs / 1000)} s` : "";
  }

  const redraw = () => { if (view?.lines && !view.empty) chart(plot, points, view); };
  const ends = [
    stream.listen("wall", (value) => { view = value; show(); }),
    stream.listen("wall_lines", (value) => { points = value && merged(points, value); redraw(); }),
  ];
  const clock = setInterval(watch, 1000);
  const sized = new ResizeObserver(redraw);
  sized.observe(screen);
  const awake = () => { if (!document.hidden) navigator.wakeLock?.request("screen").catch(() => {}); };
  document.addEventListener("visibilitychange", awake);
  awake();
  return {
    first: (value) => { if (!view) { view = value; show(); } },
    end: () => {
      ends.forEach((each) => each());
      clearInterval(clock);
      sized.disconnect();
      document.removeEventListener("visibilitychange", awake);
    },
  };
}

export default function ({ parentElement, data }) {
  const wall = once(parentElement, () => begin(parentElement, data.looks));
  wall.first(data.first);
  return wall.end;
}
