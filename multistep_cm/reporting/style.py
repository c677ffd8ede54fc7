"""The style of a report: one sheet for phones and desks, light and dark, no fonts."""

STYLE = """
:root {
  color-scheme: light dark;
  --paper: #ffffff; --ink: #1f2328; --faint: #59636e; --edge: #d1d9e0;
  --panel: #f6f8fa; --accent: #0b63c5; --ramp-light: 40%;
  --c0: #0b63c5; --c1: #c2410c; --c2: #15803d; --c3: #9333ea;
  --c4: #be185d; --c5: #0e7490; --c6: #854d0e; --c7: #475569;
}
@media (prefers-color-scheme: dark) {
  :root {
    --paper: #0d1117; --ink: #e6edf3; --faint: #9aa4af; --edge: #30363d;
    --panel: #161b22; --accent: #7ab7ff; --ramp-light: 68%;
    --c0: #7ab7ff; --c1: #fb923c; --c2: #4ade80; --c3: #c4a1ff;
    --c4: #f472b6; --c5: #22d3ee; --c6: #facc15; --c7: #cbd5e1;
  }
}
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; }
body {
  margin: 0 auto; max-width: 68rem; padding: 1rem; background: var(--paper);
  color: var(--ink); line-height: 1.5;
  font-family: system-ui, -apple-system, "Segoe UI", Roboto, sans-serif;
}
h1 { font-size: 1.6rem; line-height: 1.2; margin: 0.5rem 0; }
h2 { font-size: 1.25rem; margin: 2.2rem 0 0.6rem; padding-bottom: 0.3rem;
  border-bottom: 1px solid var(--edge); }
h3 { font-size: 1.05rem; margin: 1.6rem 0 0.5rem; }
p { margin: 0.5rem 0; max-width: 46rem; }
h1, h2, h3, p, li, dd, summary { overflow-wrap: anywhere; }
.faint, figcaption { color: var(--faint); font-size: 0.9rem; }
nav ul { display: flex; flex-wrap: wrap; gap: 0.2rem 1rem; list-style: none;
  margin: 0.6rem 0; padding: 0; }
a { color: var(--accent); }
a:focus-visible, summary:focus-visible, .wide:focus-visible {
  outline: 2px solid var(--accent); outline-offset: 2px; }

.wide { overflow-x: auto; max-width: 100%; margin: 0.8rem 0; }
table { border-collapse: collapse; font-size: 0.88rem; }
th, td { padding: 0.3rem 0.6rem; text-align: left; white-space: nowrap; }
td, th { border-bottom: 1px solid var(--edge); }
td.number, th.number { text-align: right; font-variant-numeric: tabular-nums; }
thead th { color: var(--faint); font-weight: 600; vertical-align: bottom; }
th[scope=row] { position: sticky; left: 0; background: var(--paper);
  font-weight: 600; }

.charts { display: grid; gap: 1.2rem;
  grid-template-columns: repeat(auto-fit, minmax(min(100%, 21rem), 1fr)); }
figure { margin: 0; }
.chart { max-width: 36rem; min-width: 0; }
.chart figcaption { font-weight: 600; color: var(--ink); }
.chart > svg { display: block; width: 100%; height: auto; }
svg text { fill: var(--faint); font-size: 12px; }
svg .name { fill: var(--ink); }
svg .end { text-anchor: end; }
svg .mid { text-anchor: middle; }
svg path { fill: none; }
svg .grid { stroke: var(--edge); stroke-width: 1; opacity: 0.7; }
svg .axis { stroke: var(--faint); stroke-width: 1; }
svg .line { stroke: currentColor; stroke-width: 2; stroke-linejoin: round; }
svg .mark { fill: currentColor; stroke: var(--paper); stroke-width: 1.5; }
svg .rule { stroke: var(--ink); stroke-width: 1.5; stroke-dasharray: 7 4; }
svg .rule.r1 { stroke: var(--faint); stroke-dasharray: 2 3; }
.c0 { color: var(--c0); } .c1 { color: var(--c1); } .c2 { color: var(--c2); }
.c3 { color: var(--c3); } .c4 { color: var(--c4); } .c5 { color: var(--c5); }
.c6 { color: var(--c6); } .c7 { color: var(--c7); }
.ramp { color: hsl(var(--hue) 72% var(--ramp-light)); }
.legend { display: flex; flex-wrap: wrap; gap: 0.1rem 1rem; list-style: none;
  margin: 0.3rem 0 0; padding: 0; font-size: 0.82rem; }
.legend svg { width: 28px; height: 14px; margin-right: 0.35rem;
  vertical-align: -2px; }

.pictures td, .pictures th { border: 0; padding: 0.15rem 0.5rem 0.15rem 0; }
.pictures th[scope=row] { white-space: normal; max-width: 8rem; min-width: 5rem;
  font-size: 0.82rem; font-weight: 500; line-height: 1.25; z-index: 1; }
.pictures img { display: block; max-width: none; image-rendering: pixelated; }
.heads { display: grid; color: var(--faint); font-size: 0.75rem;
  text-align: center; }

dl.facts { display: grid; grid-template-columns: auto 1fr; gap: 0.15rem 1rem;
  margin: 0.5rem 0; font-size: 0.92rem; }
dl.facts dt { color: var(--faint); }
dl.facts dd { margin: 0; }
details { margin: 0.8rem 0; }
summary { cursor: pointer; }
pre { background: var(--panel); border: 1px solid var(--edge); border-radius: 6px;
  padding: 0.7rem; overflow-x: auto; font-size: 0.82rem; line-height: 1.45;
  margin: 0.5rem 0; }
.missing { border-left: 4px solid var(--c1); background: var(--panel);
  padding: 0.6rem 0.9rem; margin: 1rem 0; }
.missing ul { margin: 0.3rem 0; padding-left: 1.2rem; }
code { font-family: ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; }
@media (min-width: 50rem) { body { padding: 1.5rem 2rem; } }
@media print { details > * { display: block; } .wide { overflow: visible; } }
"""
