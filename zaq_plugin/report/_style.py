"""The page's style sheet and its one script, kept as text so that the page is one file."""

CSS = """
:root{color-scheme:light dark;--bg:#fbfbfa;--card:#fff;--ink:#1b1b1b;--muted:#5d6168;--line:#e2e2df;
--soft:#f2f3f3;--accent:#0a5a9c;--accent-soft:#e6f0f8;--warn:#8a4600;--warn-soft:#fbeedd;--good:#0b6b4f;
--fig-blue:#0072b2;--fig-vermilion:#d55e00;--fig-green:#009e73;--fig-purple:#cc79a7;
--fig-orange:#e69f00;--fig-sky:#56b4e9;--fig-ink:#1b1b1b;--fig-muted:#6a6a6a;--fig-grid:#dadada}
@media (prefers-color-scheme:dark){:root{--bg:#15171a;--card:#1c1f23;--ink:#e9e9e6;--muted:#a3a8b0;
--line:#32363c;--soft:#23272c;--accent:#7cbcf0;--accent-soft:#1d3347;--warn:#f0b878;--warn-soft:#3a2a17;
--good:#5fd0aa;--fig-blue:#4da9e6;--fig-vermilion:#f0803c;--fig-green:#2fc49a;--fig-purple:#e09cc2;
--fig-orange:#f0b53c;--fig-sky:#86ccf4;--fig-ink:#e9e9e6;--fig-muted:#9aa0a8;--fig-grid:#363b42}}
*{box-sizing:border-box}
html{-webkit-text-size-adjust:100%}
body{margin:0;background:var(--bg);color:var(--ink);
font:15px/1.55 system-ui,-apple-system,"Segoe UI",Roboto,"DejaVu Sans",Helvetica,Arial,sans-serif}
main,header>div,footer>div{max-width:1180px;margin:0 auto;padding:0 28px}
header{border-bottom:1px solid var(--line);background:var(--card);padding:34px 0 20px}
h1{font-size:30px;line-height:1.2;margin:0 0 6px;letter-spacing:-.015em;font-weight:680}
h2{font-size:20px;margin:46px 0 12px;letter-spacing:-.01em;font-weight:650}
h3{font-size:15px;margin:0 0 6px;font-weight:650}
.lead{color:var(--muted);font-size:16px;margin:0;max-width:80ch}
p.above{margin-bottom:12px;font-size:15px}
nav{margin-top:16px;display:flex;flex-wrap:wrap;gap:6px 18px;font-size:14px}
a{color:var(--accent);text-decoration:none}a:hover{text-decoration:underline}
.cards{display:grid;grid-template-columns:repeat(auto-fit,minmax(200px,1fr));gap:14px;
margin:26px 0 0}
.card{background:var(--card);border:1px solid var(--line);border-radius:10px;padding:14px 18px 15px}
.card dt{color:var(--muted);font-size:13px;margin:0}
.card dd{margin:0}
.card .value{font-size:29px;font-weight:680;line-height:1.25;letter-spacing:-.02em;
font-variant-numeric:tabular-nums}
.card .note{color:var(--muted);font-size:13px;line-height:1.4}
.scroll{overflow-x:auto;background:var(--card);border:1px solid var(--line);border-radius:10px}
table{border-collapse:collapse;width:100%;font-size:14px;font-variant-numeric:tabular-nums}
th,td{padding:7px 14px;text-align:left;vertical-align:top;border-bottom:1px solid var(--line)}
tbody tr:last-child>*{border-bottom:0}
th{font-weight:600;color:var(--muted);font-size:13px;line-height:1.3;vertical-align:bottom;
background:var(--soft);border-bottom:1px solid var(--line)}
.num{text-align:right;white-space:nowrap}
tbody th{background:none;color:inherit;font-size:14px;font-weight:550;vertical-align:top}
th button{all:unset;cursor:pointer;font:inherit;color:inherit}
th button:focus-visible{outline:2px solid var(--accent);outline-offset:3px;border-radius:2px}
th button::after{content:"";display:inline-block;width:.9em;text-align:right;opacity:.75}
th[aria-sort=ascending] button::after{content:"\\2191"}
th[aria-sort=descending] button::after{content:"\\2193"}
tr.base td,tr.base th{background:var(--soft)}
tr.pick td,tr.pick th{background:var(--accent-soft)}
tr.pick>:first-child{box-shadow:inset 3px 0 0 var(--accent)}
tr.left td,tr.left th{color:var(--muted)}
.why{color:var(--warn);background:var(--warn-soft);padding:1px 7px;border-radius:5px;
-webkit-box-decoration-break:clone;box-decoration-break:clone}
.bar{display:inline-block;height:.62em;border-radius:2px;background:var(--fig-blue);opacity:.55;
margin-right:8px;vertical-align:baseline}
code,.mono{font:13px/1.5 ui-monospace,SFMono-Regular,Menlo,"DejaVu Sans Mono",Consolas,monospace;
overflow-wrap:anywhere}
.notes{color:var(--muted);font-size:13px;margin:10px 2px 0;max-width:105ch}
.notes p{margin:0 0 4px}
.figures{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,480px),1fr));gap:18px}
figure{margin:0;background:var(--card);border:1px solid var(--line);border-radius:10px;
padding:16px 18px 14px;display:flex;flex-direction:column}
figure svg{width:100%;height:auto;display:block}
figure img{width:100%;height:auto;image-rendering:pixelated;border-radius:4px;display:block}
figcaption{color:var(--muted);font-size:13.5px;line-height:1.45;margin-top:auto;padding-top:10px}
details{margin-top:12px;background:var(--card);border:1px solid var(--line);border-radius:10px}
summary{cursor:pointer;padding:10px 16px;font-weight:600}
summary span{font-weight:400;color:var(--muted)}
details .scroll{border-width:1px 0 0;border-radius:0 0 10px 10px}
.facts{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,330px),1fr));gap:18px}
.facts>div{background:var(--card);border:1px solid var(--line);border-radius:10px;
padding:14px 18px}
.kv{display:grid;grid-template-columns:minmax(90px,max-content) 1fr;gap:3px 16px;margin:0;
font-size:14px}
.kv dt{color:var(--muted)}.kv dd{margin:0;overflow-wrap:anywhere}
.fail{color:var(--warn);font-weight:600}
footer{margin-top:52px;border-top:1px solid var(--line);padding:16px 0 40px;color:var(--muted);
font-size:13px}
@media (max-width:640px){main,header>div,footer>div{padding:0 16px}h1{font-size:25px}
th,td{padding:6px 10px}}
@media print{
@page{size:A4;margin:14mm 13mm}
:root{color-scheme:light;--bg:#fff;--card:#fff;--ink:#000;--muted:#444;--line:#bbb;--soft:#f3f3f3;
--accent:#0a4f88;--accent-soft:#eaf2f8;--warn:#6b3600;--warn-soft:#fff;--good:#0b5a43;
--fig-blue:#0072b2;--fig-vermilion:#d55e00;--fig-green:#009e73;--fig-purple:#cc79a7;
--fig-orange:#e69f00;--fig-sky:#56b4e9;--fig-ink:#000;--fig-muted:#555;--fig-grid:#d5d5d5}
*{-webkit-print-color-adjust:exact;print-color-adjust:exact}
body{font-size:9.5pt}
header{padding:0 0 10px}main,header>div,footer>div{max-width:none;padding:0}
nav,th button::after{display:none}
h1{font-size:19pt}h2{font-size:13pt;margin:20px 0 8px;break-after:avoid}
.cards{grid-template-columns:repeat(4,1fr);gap:8px;margin-top:12px}
.card{padding:8px 10px}.card .value{font-size:16pt}.card .note,.card dt{font-size:8pt}
table{font-size:8pt}th,td,tbody th{padding:3px 6px;font-size:8pt}thead{display:table-header-group}
tr,figure,.card,.facts>div{break-inside:avoid}
.scroll{overflow:visible}.figures{grid-template-columns:1fr 1fr;gap:10px}figure{padding:8px 10px}
figcaption,.notes,.kv{font-size:8pt}code,.mono{font-size:7.5pt}
footer{margin-top:18px;padding:8px 0 0}
}
"""

SCRIPT = """
for (const table of document.querySelectorAll("table.sortable")) {
  const body = table.tBodies[0];
  table.querySelectorAll("thead th").forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.title = "Sort";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const down = head.getAttribute("aria-sort") === "ascending";
      table.querySelectorAll("thead th").forEach(h => h.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      const numeric = head.classList.contains("num");
      const key = row => row.cells[column].dataset.k ?? "";
      const order = (a, b) => {
        const [x, y] = [key(a), key(b)];
        if (x === "" || y === "") return (x === "") - (y === "");
        const sign = numeric ? Number(x) - Number(y) : x.localeCompare(y, "en", {numeric: true});
        return down ? -sign : sign;
      };
      body.append(...[...body.rows].sort(order));
    });
  });
}
let opened = [];
addEventListener("beforeprint", () => {
  opened = [...document.querySelectorAll("details:not([open])")];
  opened.forEach(d => { d.open = true; });
});
addEventListener("afterprint", () => { opened.forEach(d => { d.open = false; }); });
"""
