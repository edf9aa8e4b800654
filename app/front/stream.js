// One event stream for all parts of this tab, closed while nobody looks. Every component's script begins with this.
const stream = (window.phaselineStream ??= (() => {
  const SETTLE_MS = 100, AGAIN_MS = 2000; // parts that come together are asked for together
  const listeners = new Map(); // part -> Set of functions
  const newest = new Map(); // part -> the last whole value
  let source = null, open = "", timer = 0;
  const found = { heardMs: performance.now() };

  const wanted = () => [...listeners.keys()].sort().join(",");
  const settle = (ms) => { clearTimeout(timer); timer = setTimeout(connect, ms); };

  function close() { source?.close(); source = null; open = ""; }

  function connect() {
    const parts = wanted();
    if (document.hidden || !parts) return close();
    if (source && open === parts && source.readyState !== EventSource.CLOSED) return;
    close();
    open = parts;
    const zone = Intl.DateTimeFormat().resolvedOptions().timeZone ?? "";
    const fleet = new URLSearchParams(location.search).get("fleet") ?? "";
    const url = `/live?parts=${encodeURIComponent(parts)}&tz=${encodeURIComponent(zone)}&fleet=${encodeURIComponent(fleet)}`;
    source = new EventSource(url);
    source.onmessage = (event) => heard(JSON.parse(event.data));
    source.addEventListener("ended", leave);
    source.onerror = () => { if (source?.readyState === EventSource.CLOSED) refused(url); };
  }

  function heard(message) {
    found.heardMs = performance.now();
    for (const [part, value] of Object.entries(message.parts)) {
      newest.set(part, value);
      for (const tell of listeners.get(part) ?? []) tell(value, message.turn);
    }
  }

  async function refused(url) { // the event stream does not say why: ask once as JSON
    close();
    try {
      const answer = await fetch(`${url}&once=1`);
      if (answer.status === 401) return leave();
    } catch { /* the console is away: try on */ }
    settle(AGAIN_MS);
  }

  function leave() {
    close();
    const here = encodeURIComponent(location.pathname + location.search);
    location.replace(`/login?ended=1&next=${here}`);
  }

  document.addEventListener("visibilitychange", () => settle(0));
  found.listen = (part, tell) => {
    const known = listeners.get(part);
    if (known) known.add(tell);
    else listeners.set(part, new Set([tell]));
    if (known && newest.has(part)) tell(newest.get(part), -1);
    settle(SETTLE_MS);
    return () => {
      const rest = listeners.get(part);
      rest?.delete(tell);
      if (rest?.size === 0) { listeners.delete(part); newest.delete(part); settle(AGAIN_MS); }
    };
  };
  return found;
})());

// A component's function runs again whenever its data changes: what it began for a place, it keeps there.
const begun = (window.phaselineBegun ??= new WeakMap());
const once = (place, begin) => {
  if (!begun.has(place)) begun.set(place, begin());
  return begun.get(place);
};
