// Asks for a rerun of the fragment (or page) around it when its part is no longer what that was drawn from.
// One at a time, and none while the tab is hidden: the stream is closed then. Viewers are spread over SPREAD_MS.
const SPREAD_MS = 200, LOST_MS = 5000;
const APART_MS = 20; // the front end sends what is set together as one rerun, of one fragment
const wait = Math.random() * SPREAD_MS;
const begun = (window.phaselineAgain ??= new WeakMap());

function inTurn(ask) {
  const before = window.phaselineAsking ?? Promise.resolve();
  window.phaselineAsking = before.then(() => {
    ask();
    return new Promise((done) => setTimeout(done, APART_MS));
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
