"""The stylesheet of the page that `explain --html` writes: light and dark, narrow and wide, and on paper. Pure.

Everything that a colour says, a mark or a word says too.
"""

STYLESHEET = """
:root {
  color-scheme: light dark;
  --page: #f6f7f9; --card: #ffffff; --ink: #14181f; --soft: #5a6472; --line: #d9dee5; --faint: #edf0f3;
  --network: #2a6fd6; --container: #6a4fc4; --files: #178a63; --whole: #b4bcc8; --bad: #c62f2f; --bad-soft: #fdecec;
  --warn: #8a5a00; --host: #f1f4f8; --pod: #e9f1fd;
  --mono: ui-monospace, "DejaVu Sans Mono", "Liberation Mono", Menlo, Consolas, monospace;
}
@media (prefers-color-scheme: dark) {
  :root {
    --page: #101318; --card: #181c23; --ink: #e8ebf0; --soft: #a0aab8; --line: #343b46; --faint: #232932;
    --network: #5b9bf0; --container: #a48df0; --files: #3dbb8e; --whole: #5a6474; --bad: #ff7b7b; --bad-soft: #3a1d20;
    --warn: #e0b050; --host: #1d222a; --pod: #17263c;
  }
}
* { box-sizing: border-box; }
body {
  margin: 0; background: var(--page); color: var(--ink);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", "DejaVu Sans", "Liberation Sans", sans-serif;
}
main { max-width: 1160px; margin: 0 auto; padding: 28px 24px 48px; }
h1, h2, h3, h4, p, dl, dd, ol, figure { margin: 0; padding: 0; }
ol { list-style: none; }
h1 { font-size: 27px; line-height: 1.25; overflow-wrap: anywhere; }
h1 small { font-size: 14px; font-weight: 400; color: var(--soft); display: block; }
h2 { font-size: 19px; margin-bottom: 10px; }
h3 { font-size: 16px; }
h3 small { font-weight: 400; color: var(--soft); margin-left: 8px; }
h4 { font-size: 12px; color: var(--soft); font-weight: 600; }
section { background: var(--card); border: 1px solid var(--line); border-radius: 10px; }
section { padding: 18px 20px; margin-top: 18px; }
.operation + .operation { margin-top: 22px; padding-top: 18px; border-top: 1px solid var(--line); }
.state {
  display: inline-block; border: 1px solid currentColor; border-radius: 99px; padding: 0 10px; margin-left: 10px;
  font-size: 13px; font-weight: 600; line-height: 22px; vertical-align: middle; white-space: nowrap;
}
.state.good { color: var(--files); } .state.bad { color: var(--bad); } .state.idle { color: var(--soft); }
.facts { display: grid; grid-template-columns: fit-content(30%) minmax(0, 1fr); gap: 2px 14px; }
.facts { font-size: 13px; }
header .facts { margin-top: 12px; }
.facts dt { color: var(--soft); overflow-wrap: anywhere; }
.facts dd { font-family: var(--mono); font-size: 12.5px; overflow-wrap: anywhere; }
.failure { border-color: var(--bad); border-left-width: 6px; background: var(--bad-soft); }
.failure h2 { color: var(--bad); }
.said { overflow-wrap: anywhere; }
.note { overflow-wrap: anywhere; font-size: 14px; display: grid; grid-template-columns: 58px minmax(0, 1fr); }
.failure .note { margin-top: 6px; font-size: 15px; }
.note b { color: var(--soft); font-weight: 600; }
.note.cause b, .note.said b { color: var(--bad); }
.remark { color: var(--warn); font-size: 13px; overflow-wrap: anywhere; }
figcaption { color: var(--soft); font-size: 13.5px; margin-top: 4px; }
.words { margin-top: 10px; font-size: 14px; }
.words ul { margin: 6px 0 0; padding-left: 20px; overflow-wrap: anywhere; }
summary { cursor: pointer; }
summary:focus-visible, pre:focus-visible { outline: 2px solid var(--network); outline-offset: 1px; }

.drawing { display: block; width: 100%; height: auto; font-family: inherit; }
.drawing text { fill: var(--ink); font-size: 13px; }
.drawing .heading { font-weight: 700; font-family: var(--mono); font-size: 12px; }
.drawing .said { fill: var(--soft); font-family: var(--mono); font-size: 11px; }
.drawing .data { font-family: var(--mono); font-size: 12px; }
.drawing .small { font-size: 11px; fill: var(--soft); }
.drawing .name, .drawing .address { font-weight: 700; }
.drawing .trouble { fill: var(--bad); font-family: var(--mono); font-size: 11px; font-weight: 700; }
.drawing text.missing, .drawing text.undone { fill: var(--soft); }
.drawing text.failed { fill: var(--bad); }
.box { fill: var(--host); stroke: var(--soft); stroke-width: 1.5; }
.box.pod { fill: var(--pod); }
.rules { fill: var(--card); stroke: var(--line); stroke-width: 1.5; }
.node { fill: var(--card); stroke: var(--network); stroke-width: 2; }
.wire { stroke: var(--network); stroke-width: 2.5; }
.rule { stroke: var(--line); }
rect.undone, line.undone { stroke: var(--whole); }
rect.missing, line.missing { stroke: var(--soft); stroke-dasharray: 5 4; stroke-width: 1.5; }
rect.failed, line.failed { stroke: var(--bad); stroke-dasharray: 5 4; }

.waterfall { margin-top: 8px; font-size: 14px; }
.row {
  display: grid; grid-template-columns: 76px 92px minmax(0, 1fr) 36%; column-gap: 12px; align-items: start;
  border-top: 1px solid var(--faint); list-style: none; position: relative;
}
.row::-webkit-details-marker { display: none; }
.row.head { border-top: 0; color: var(--soft); font-size: 12px; align-items: end; }
summary.row:hover { background: var(--faint); }
.when, .took { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
.when, .took { padding: 3px 0; font-size: 13px; }
.when { color: var(--soft); }
.what { overflow-wrap: anywhere; padding: 3px 0 3px 14px; position: relative; }
summary .what::before { content: "▸"; color: var(--soft); font-size: 11px; }
summary .what::before { position: absolute; margin-left: -14px; top: 5px; }
details[open] > summary .what::before { content: "▾"; }
.what.d1 { padding-left: 32px; } .what.d2 { padding-left: 50px; } .what.d3 { padding-left: 68px; }
.what.d4 { padding-left: 86px; } .what.d5 { padding-left: 104px; }
.notes, .record { padding: 0 0 6px 206px; }
.notes.d1 { padding-left: 224px; } .notes.d2 { padding-left: 242px; } .notes.d3 { padding-left: 260px; }
.notes.d4 { padding-left: 278px; } .notes.d5 { padding-left: 296px; }
.failed > details > summary .what, .mark { color: var(--bad); font-weight: 600; }
.running > details > summary .mark { color: var(--network); }
.beside { color: var(--soft); }
/* As high as the row, whatever the row is: its place in the grid contains it. */
.bar { position: absolute; inset: 0; grid-column: 4; width: 100%; height: 100%; overflow: visible; }
.bar line { stroke: var(--line); stroke-width: 1; }
.axis text { fill: var(--soft); font-size: 11px; }
rect.network { fill: var(--network); } rect.container { fill: var(--container); } rect.files { fill: var(--files); }
rect.whole { fill: var(--whole); }
.bar rect.failed, .swatch rect.failed { fill: var(--bad-soft); stroke: var(--bad); stroke-width: 1.5; }
.bar rect.failed, .swatch rect.failed { stroke-dasharray: 4 2; }
.own { color: var(--soft); font-weight: 400; white-space: nowrap; }
.bar rect.running { fill-opacity: .45; stroke: var(--network); stroke-dasharray: 2 2; }
.legend { display: flex; flex-wrap: wrap; gap: 2px 18px; margin-top: 12px; font-size: 12.5px; color: var(--soft); }
.swatch { width: 18px; height: 14px; margin-right: 6px; vertical-align: -2px; }
.record { background: none; }
.block { margin-top: 8px; }
pre {
  margin: 2px 0 0; padding: 8px 10px; background: var(--page); border: 1px solid var(--line); border-radius: 6px;
  font: 12px/1.45 var(--mono); white-space: pre-wrap; overflow-wrap: anywhere;
}
.raw { margin-top: 8px; font-size: 13px; }
.earlier { margin-top: 12px; }
footer { margin-top: 18px; color: var(--soft); font-size: 12.5px; }

@media (max-width: 760px) {
  main { padding: 16px 10px 32px; }
  section { padding: 14px 12px; }
  .row { grid-template-columns: 84px minmax(0, 1fr); }
  .row .when { order: 1; text-align: left; } .row .took { order: 2; text-align: left; }
  .row .what, .row .bar { grid-column: 1 / -1; order: 3; }
  .row .bar { position: static; height: 24px; }
  .row.head span { display: none; }
  .notes, .notes.d1, .notes.d2, .notes.d3, .notes.d4, .notes.d5, .record { padding-left: 14px; }
  .what.d1 { padding-left: 22px; } .what.d2 { padding-left: 30px; } .what.d3 { padding-left: 38px; }
  .what.d4 { padding-left: 46px; } .what.d5 { padding-left: 54px; }
  figure { overflow-x: auto; }
  .drawing { min-width: 800px; }
}
@media print {
  :root {
    color-scheme: light; --page: #ffffff; --card: #ffffff; --ink: #000000; --soft: #444444; --line: #bbbbbb;
    --faint: #eeeeee; --network: #1d57ad; --container: #5a3fb4; --files: #11714f; --whole: #a0a8b4; --bad: #a81f1f;
    --bad-soft: #ffffff; --warn: #6a4500; --host: #ffffff; --pod: #ffffff;
  }
  body { font-size: 10pt; }
  main { max-width: none; padding: 0; }
  section { border: 0; padding: 6px 0; }
  rect { print-color-adjust: exact; -webkit-print-color-adjust: exact; }
  /* What is folded on the screen is printed. */
  details::details-content { content-visibility: visible; height: auto; }
  .raw { display: none; }
  h2, h3, summary, .note { break-after: avoid; }
  li, figure { break-inside: avoid-page; }
}
"""
