// Asks for a rerun of the fragment (or page) around it when its part is no longer what that was drawn from.
// One at a time, and none while the tab is hidden: the stream is closed then. Viewers are spread over SPREAD_MS.
const SPREAD_MS = 100, LOST_MS = 5000;
const APART_MS = 20; // the front end sends what is set together as one rerun, of one fragment
const CALM_MS = 400, LONGEST_MS = 2000; // a press would be sent as part of a rerun that asks at the same moment, and be lost
const wait = Math.random() * SPREAD_MS;
const begun = (window.phaselineAgain ??= new WeakMap());
const hands = (window.phaselineHands ??= (() => {
  const found = { movedMs: -Infinity };
  const moved = () => { found.movedMs = performance.now(); };
  for (const each of ["pointerdown", "pointerup", "keydown", "input"]) addEventListener(each, moved, { capture: true, passive: true });
  return found;
})());

const after = (ms) => new Promise((done) => setTimeout(done, ms));

async function calm() { // nobody presses or types now
  const untilMs = performance.now() + LONGEST_MS;
  let left;
  while ((left = Math.min(hands.movedMs + CALM_MS, untilMs) - performance.now()) > 0) await after(left);
}

function inTurn(ask) {
  const before = window.phaselineAsking ?? Promise.resolve();
  window.phaselineAsking = before.then(calm).then(() => {
    ask();
    return after(APART_MS);
  });
}

function begin(part) {
  let drawn, newest, ask, askedMs = -Infinity, stop = () => {};
  const look = () => {
    if (newest === undefined || newest === drawn || performance.now() - askedMs < LOST_MS) return;
    askedMs = performance.now();
    setTimeout(() => inTurn(() => ask("again", newest)), wait);
  };
  const listen = () => {
    if (!window.phaselineStream) return void setTimeout(listen, 50); // made by the first slot of the page
    stop = window.phaselineStream.listen(part, (value) => { newest = value; look(); });
  };
  listen();
  return {
    end: () => stop(),
    redrawn: (value, setTrigger) => { drawn = value; ask = setTrigger; askedMs = -Infinity; look(); },
  };
}

export default function ({ parentElement, data, setTriggerValue }) {
  if (!begun.has(parentElement)) begun.set(parentElement, begin(data.part));
  const again = begun.get(parentElement);
  again.redrawn(data.drawn, setTriggerValue);
  return again.end;
}
