"""Colours, dashes and the page's own style sheet: the few looks that `.streamlit/config.toml` cannot say.

Nothing is measured or formatted here. A role differs in colour, dash and label, never in colour alone.
"""

from __future__ import annotations

PREFILL = "#d97706"
DECODE = "#2f81f7"
MIXED = "#8b949e"
BLENDED = "#8b949e"
OK = "#2da44e"
DANGER = "#cf222e"
ATTENTION = "#bf8700"
ROUTING = "#1b9aaa"

ROLE_COLORS: dict[str, str] = {"prefill": PREFILL, "decode": DECODE, "mixed": MIXED, "unassigned": "#6e7681"}
ROLE_DASHES: dict[str, list[int]] = {"prefill": [1, 0], "decode": [6, 3], "mixed": [2, 2], "unassigned": [1, 4]}
STATE_COLORS: dict[str, str] = {
    "ok": OK,
    "attention": ATTENTION,
    "starting": DECODE,
    "broken": DANGER,
    "accepted": DECODE,
    "running": DECODE,
    "planned": MIXED,
    "done": OK,
    "failed": DANGER,
    "superseded": MIXED,
    "pending": ATTENTION,
    "firing": DANGER,
    "resolved": OK,
    "burned": DANGER,
    "answers": OK,
    "no answer": DANGER,
    "off": ATTENTION,
    "not exported": MIXED,
    "refused": DANGER,
}
#: Events on a chart: a colour, a dash and a shape each. Moves with and without their KV look the same.
EVENT_COLORS: dict[str, str] = {
    "died": DANGER,
    "continued": "#bc4c00",
    "moved": DECODE,
    "back": OK,
    "plane": "#a371f7",
    "history": ATTENTION,
    "permission": "#1b9aaa",
}
EVENT_DASHES: dict[str, list[int]] = {
    "died": [1, 0],
    "continued": [6, 2],
    "moved": [1, 3],
    "back": [8, 4],
    "plane": [2, 2],
    "history": [4, 2, 1, 2],
    "permission": [1, 1],
}
EVENT_SHAPES: dict[str, str] = {
    "died": "cross",
    "continued": "triangle-right",
    "moved": "diamond",
    "back": "triangle-up",
    "plane": "square",
    "history": "triangle-down",
    "permission": "circle",
}
EVENT_PATHS: dict[str, str] = {
    "died": "M1 3.5H3.5V1H6.5V3.5H9V6.5H6.5V9H3.5V6.5H1Z",
    "continued": "M2 1L9 5L2 9Z",
    "moved": "M5 0L10 5L5 10L0 5Z",
    "back": "M5 1L9.5 9H.5Z",
    "plane": "M1.5 1.5H8.5V8.5H1.5Z",
    "history": "M.5 1H9.5L5 9Z",
    "permission": "M5 1A4 4 0 1 1 4.99 1Z",
}
CATEGORICAL: tuple[str, ...] = (
    "#2f81f7", "#d97706", "#2da44e", "#a371f7", "#db61a2", "#1b9aaa",
    "#b08800", "#cf222e", "#8b949e", "#57ab5a", "#6cb6ff", "#f69d50",
)  # fmt: skip

STYLE = """
<style>
[data-testid="stMainBlockContainer"] { padding: 14px 24px 32px; }
[data-testid="stHeader"] { background: transparent; height: 44px; min-height: 44px; }
.pl { font-variant-numeric: tabular-nums; font-size: 14px; line-height: 1.45; }
.pl *, .pl { box-sizing: border-box; }
.pl-muted { opacity: .66; }
.pl-mono { font-family: "JetBrains Mono", ui-monospace, monospace; font-size: .89em; }
.pl-row { display: flex; flex-wrap: wrap; align-items: baseline; gap: 4px 16px; }
.pl-between { justify-content: space-between; }
.pl-card, .pl-kpi { border: 1px solid color-mix(in srgb, currentColor 16%, transparent); border-radius: 6px; }
.pl-card { padding: 12px 16px; }
.pl-kpis { display: grid; grid-template-columns: repeat(auto-fit, minmax(176px, 1fr)); gap: 8px; }
.pl-kpi { padding: 10px 12px 8px; min-width: 0; position: relative; }
.pl-kpi-label { font-size: 12px; display: flex; justify-content: space-between; gap: 8px; }
.pl-kpi-value { font-size: 22px; font-weight: 600; line-height: 1.3; letter-spacing: -.01em; white-space: nowrap; }
.pl-kpi-note { font-size: 12px; opacity: .66; white-space: nowrap; overflow: hidden; text-overflow: ellipsis; }
.pl-tag { position: relative; font-size: 11px; line-height: 16px; padding: 0 5px; border-radius: 4px; cursor: help;
  border: 1px solid color-mix(in srgb, currentColor 22%, transparent); opacity: .8; white-space: nowrap;
  font-weight: 400; letter-spacing: 0; }
.pl-tip { position: relative; cursor: help; }
.pl-tag:hover::after, .pl-tag:focus::after, .pl-tip:hover::after, .pl-tip:focus::after {
  content: attr(data-tip); position: absolute; z-index: 50; top: calc(100% + 6px); right: 0; width: max-content;
  max-width: 300px; white-space: normal; text-align: left; padding: 8px 10px; border-radius: 6px; font-size: 12px;
  line-height: 1.4; font-weight: 400; background: #24292f; color: #f6f8fa; border: 1px solid #57606a; }
.pl-left:hover::after, .pl-left:focus::after { right: auto; left: 0; }
.pl-health { display: flex; align-items: center; gap: 10px; font-size: 16px; }
.pl-dot { flex: none; width: 10px; height: 10px; border-radius: 50%; }
.pl-word { font-weight: 600; }
.pl-banner { padding: 8px 12px; border-radius: 6px; border: 1px solid; font-size: 13px; }
.pl-notices { display: flex; flex-wrap: wrap; gap: 2px 32px; padding: 6px 12px; }
.pl code { font-family: "JetBrains Mono", ui-monospace, monospace; font-size: .89em; padding: 1px 4px;
  border-radius: 4px; background: color-mix(in srgb, currentColor 10%, transparent); color: inherit; }
[data-testid="stSidebarHeader"] { height: 28px; min-height: 28px; margin-bottom: 0; padding-top: 4px; }
.pl-legend { display: flex; flex-wrap: wrap; gap: 2px 24px; align-items: center; font-size: 13px; min-height: 22px; }
.pl-legend b { font-weight: 600; }
.pl-table { width: 100%; border-collapse: collapse; font-size: 13px; }
.pl-table th { text-align: left; font-weight: 500; font-size: 12px; opacity: .66; padding: 4px 10px 4px 0;
  white-space: nowrap; border: 0; border-bottom: 1px solid color-mix(in srgb, currentColor 24%, transparent); }
.pl-table td { padding: 5px 10px 5px 0; vertical-align: baseline; border: 0;
  border-bottom: 1px solid color-mix(in srgb, currentColor 12%, transparent); }
.pl-table tr:last-child td { border-bottom: 0; }
.pl-table .num { text-align: right; padding-right: 20px; white-space: nowrap; }
.pl-table .nowrap { white-space: nowrap; }
.pl-steps { margin: 6px 0 0; font-size: 13px; }
.pl-steps > div { display: grid; grid-template-columns: 60px 72px 1fr; gap: 8px; padding: 2px 0; }
.pl h1.pl-title { font-size: 20px; font-weight: 600; padding: 0; margin: 0; }
.pl-button { font: inherit; font-size: 12.25px; min-height: 35px; padding: 3px 11px; border-radius: 6px;
  cursor: pointer; color: inherit; background: transparent;
  border: 1px solid color-mix(in srgb, currentColor 20%, transparent); }
.pl-button:hover, .pl-button:focus-visible { border-color: #2563eb; color: #2f81f7; }
.pl-note { font-size: 12px; margin: 4px 0; opacity: .8; }
.pl-nowrap { white-space: nowrap; }
.pl-small { display: inline-block; width: 8px; height: 8px; margin-right: 6px; }
.pl-h { font-weight: 600; font-size: 13px; margin: 0 0 6px; }
.pl-load { display: grid; grid-template-columns: 1fr auto; gap: 2px 12px; font-size: 13px; align-items: baseline; }
.pl-load b { text-align: right; font-weight: 600; white-space: nowrap; }
.pl-bar { height: 4px; border-radius: 2px; overflow: hidden; grid-column: 1 / -1; margin: 2px 0 6px;
  background: color-mix(in srgb, currentColor 14%, transparent); }
.pl-bar i { display: block; height: 100%; }
.pl-empty { padding: 32px 16px; text-align: center; border-radius: 6px;
  border: 1px dashed color-mix(in srgb, currentColor 24%, transparent); }
.pl-empty b { display: block; font-size: 15px; margin-bottom: 4px; }
[class*="st-key-again-"] { position: absolute; width: 0; height: 0; }
.pl-brand { display: flex; align-items: center; gap: 8px; font-weight: 600; font-size: 15px; letter-spacing: -.01em; }
@media (prefers-reduced-motion: no-preference) { .pl-pulse { animation: pl-pulse 1.6s ease-in-out infinite; } }
@keyframes pl-pulse { 50% { opacity: .35; } }
</style>
"""

LOGO = (
    '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 22 22"><path d="M2 15 L7 5 L11 12" fill="none" '
    f'stroke="{PREFILL}" stroke-width="2.2" stroke-linejoin="round" stroke-linecap="round"/>'
    f'<path d="M11 12 L14 8 L20 8" fill="none" stroke="{DECODE}" stroke-width="2.2" stroke-dasharray="3.4 2" '
    'stroke-linejoin="round" stroke-linecap="round"/></svg>'
)

LOGIN_STYLE = """
@font-face { font-family: Inter; font-weight: 400; src: url("/app/static/fonts/inter-latin-400-normal.woff2"); }
@font-face { font-family: Inter; font-weight: 600; src: url("/app/static/fonts/inter-latin-600-normal.woff2"); }
:root { color-scheme: dark light; --back: #0d1117; --field: #161b22; --text: #e6edf3; --edge: #30363d; }
@media (prefers-color-scheme: light) {
  :root { --back: #ffffff; --field: #f6f8fa; --text: #1f2328; --edge: #d1d9e0; } }
body { margin: 0; font: 14px/1.5 Inter, system-ui, sans-serif; background: var(--back); color: var(--text); }
main { max-width: 400px; margin: 16vh auto 0; padding: 0 24px; }
h1 { display: flex; align-items: center; gap: 8px; font-size: 15px; font-weight: 600; }
h1 svg { width: 24px; height: 24px; display: block; }
form { border: 1px solid var(--edge); border-radius: 6px; padding: 16px; }
label { display: block; margin-bottom: 4px; }
input, button { box-sizing: border-box; width: 100%; font: inherit; padding: 8px 10px; border-radius: 6px; }
input { background: var(--field); color: inherit; border: 1px solid var(--edge); margin-bottom: 16px; }
button { background: #2563eb; color: #ffffff; border: 0; font-weight: 600; cursor: pointer; }
:focus-visible { outline: 2px solid #2f81f7; outline-offset: 1px; }
.alert, .note { border: 1px solid var(--edge); border-left: 3px solid #cf222e; border-radius: 6px; padding: 8px 12px; }
.note { border-left-color: #2f81f7; }
.quiet { font-size: 12px; opacity: .66; }
"""
