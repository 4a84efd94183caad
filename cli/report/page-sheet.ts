/** How a report looks around its figures: one column on a phone, as many as there is room for elsewhere. */
export const pageSheet = `
*{box-sizing:border-box}
body{margin:0;background:var(--page);color:var(--text);font:15px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,sans-serif}
main{max-width:1240px;margin:0 auto;padding:20px 16px 48px}
h1{font-size:1.5rem;line-height:1.25;margin:0 0 4px;overflow-wrap:anywhere}
h2{font-size:1.15rem;margin:36px 0 8px;padding-bottom:4px;border-bottom:1px solid var(--line)}
h3{font-size:1rem;margin:0}
.note,.quiet{color:var(--quiet)}
.note{margin:4px 0 12px;max-width:72ch}
header .note{max-width:none}
.grid{display:grid;align-items:start;grid-template-columns:repeat(auto-fit,minmax(min(340px,100%),1fr));gap:14px}
.grid>*{max-width:600px}
figure,.card{margin:0;padding:12px 14px;background:var(--panel);border:1px solid var(--line);border-radius:8px;min-width:0}
figure>svg{max-width:480px}
figcaption{font-weight:600;margin-bottom:8px}
svg text.cell{font-size:11px;font-weight:600;fill:var(--page)}
.verdict{font-size:1.15rem;font-weight:650;margin:2px 0 8px}
.verdict.good{color:var(--good)}
.verdict.bad{color:var(--bad)}
dl{display:grid;grid-template-columns:auto 1fr;gap:2px 12px;margin:0}
dt{color:var(--quiet)}
dd{margin:0;text-align:right;font-variant-numeric:tabular-nums}
ul.legend{display:flex;flex-wrap:wrap;gap:4px 16px;list-style:none;margin:0 0 10px;padding:0;font-size:.87rem}
ul.legend li{display:flex;align-items:center;gap:6px}
.swatch{width:12px;height:12px;border-radius:3px;flex:none}
.stroke{width:22px;flex:none}
.letter{width:18px;height:18px;border-radius:3px;color:var(--page);font:600 11px/18px system-ui,sans-serif;text-align:center;flex:none}
ul.layers{margin:10px 0 0;padding:0;list-style:none;font-size:.87rem;color:var(--quiet)}
ul.layers b{color:var(--text)}
.scroll{overflow-x:auto;margin:0 0 18px;border:1px solid var(--line);border-radius:8px}
table{border-collapse:collapse;width:100%;font-size:.87rem;font-variant-numeric:tabular-nums}
th,td{padding:4px 12px;text-align:right;vertical-align:top}
tbody tr+tr th,tbody tr+tr td{border-top:1px solid var(--line)}
thead th{background:var(--panel);border-bottom:1px solid var(--line);white-space:nowrap}
tr>:first-child{text-align:left;font-weight:500}
td .quiet{display:inline-block;min-width:6.2em;font-weight:400}
table.bytes td{white-space:nowrap}
tr.part>:first-child{padding-left:26px;font-weight:400;color:var(--quiet)}
tr.sum>*{font-weight:650}
table.text td{text-align:left}
table.text th{white-space:nowrap}
@media(min-width:900px){.single main{display:grid;grid-template-columns:1fr 1fr;column-gap:28px}.single header,.single .wide{grid-column:1/-1}}
@media(max-width:600px){th,td{padding:4px 8px}thead th{white-space:normal}table.text th{white-space:normal}td .quiet{display:block}}
`;
