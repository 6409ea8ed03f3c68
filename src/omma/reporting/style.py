"""The report's style sheet: two sets of colours, one column, grids that scroll where it is narrow."""

CSS = """
:root{--paper:#fbfbf9;--card:#fff;--ink:#1c2127;--soft:#5b6470;--line:#e4e5e3;--axis:#a9afb5;--floor:#b3bac1;
--good:#1f7a4d;--warn:#9a6700;--bad:#b3261e;
--s1:#2f6fb5;--s2:#d2691e;--s3:#2a8f7a;--s4:#8a5bb5;--s5:#b8475a;--s6:#8a7a1f}
@media (prefers-color-scheme:dark){:root{--paper:#14171b;--card:#1b1f24;--ink:#e8eaed;--soft:#a2abb6;
--line:#2c3239;--axis:#5c6670;--floor:#5a636d;--good:#5bc48e;--warn:#e0ae45;--bad:#f28b82;
--s1:#6ea8e6;--s2:#f0995a;--s3:#5cc2ab;--s4:#b996e0;--s5:#e88394;--s6:#cdbb55}}
*{box-sizing:border-box}
html{-webkit-text-size-adjust:100%}
body{margin:0;background:var(--paper);color:var(--ink);
font:16px/1.55 system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue",sans-serif}
main{max-width:64rem;margin:0 auto;padding:2.5rem 1.5rem 5rem}
header{margin-bottom:1.5rem}
h1,h2,p,dl,dd,figure,table,ul{margin:0}
h1{font-size:1.75rem;line-height:1.2;font-weight:650;letter-spacing:-.015em;overflow-wrap:anywhere}
h2{font-size:1.2rem;font-weight:650;letter-spacing:-.01em;margin-bottom:.35rem}
.brand{color:var(--soft);font-size:.8rem;font-weight:600;letter-spacing:.12em;margin-bottom:.25rem}
section{margin-top:3rem}
.verdict{margin-top:0;display:flex;gap:1rem;padding:1.1rem 1.25rem;background:var(--card);
border:1px solid var(--line);border-left:4px solid var(--tone);border-radius:6px}
.verdict+.verdict{margin-top:.75rem}
.verdict{--tone:var(--axis)}.verdict.good{--tone:var(--good)}.verdict.warn{--tone:var(--warn)}.verdict.bad{--tone:var(--bad)}
.sign{flex:none;width:1.7rem;height:1.7rem;border-radius:50%;background:var(--tone);color:var(--card);
font-weight:700;text-align:center;line-height:1.7rem;margin-top:.05rem}
.of{color:var(--soft);font-size:.8rem;margin-bottom:.1rem}
.lead{font-size:1.15rem;line-height:1.45;font-weight:600}
.lead+p{margin-top:.35rem;color:var(--soft)}
.facts{display:grid;grid-template-columns:repeat(auto-fit,minmax(9rem,1fr));gap:1rem 1.5rem;
margin-top:1.5rem}
.facts dt{color:var(--soft);font-size:.8rem}
.facts dd{font-weight:550;font-variant-numeric:tabular-nums;overflow-wrap:anywhere}
.results{display:grid;grid-template-columns:1fr 1fr;gap:2.5rem;align-items:start;margin-top:.75rem}
.results>*,.curves>*{min-width:0}
.results>div{overflow-x:auto}
table{border-collapse:collapse;width:100%}
.scores th,.scores td{padding:.55rem 0 .55rem 1rem;text-align:right;vertical-align:top;
border-top:1px solid var(--line);font-variant-numeric:tabular-nums;white-space:nowrap}
.scores th[scope=row]{text-align:left;font-weight:400;padding-left:0;white-space:normal}
.scores thead th,.scores thead td{border:0;color:var(--soft);font-size:.85rem;font-weight:550}
.scores small{display:block;color:var(--soft);font-size:.75rem;font-weight:400;line-height:1.3}
.scores .trained>*{font-weight:650}
.scores .trained td{color:var(--s1)}
.print{margin-top:1rem;color:var(--soft);font-size:.8rem;line-height:1.5;overflow-wrap:anywhere}
.print b{font-weight:600}
ul.print{margin-top:.5rem}
.caption{color:var(--soft);max-width:46rem;margin-bottom:1rem}
.scroll{overflow-x:auto;padding:3px;margin:0 -3px 1.25rem;display:flex;flex-wrap:wrap;gap:1.25rem}
.grid{flex:1 1 calc(var(--n)*4.8rem);max-width:calc(var(--n)*9rem);min-width:0;
display:grid;gap:.6rem .55rem;align-content:start;grid-template-columns:repeat(var(--n),minmax(4.25rem,1fr))}
.head{color:var(--soft);font-size:.8rem;align-self:end;margin-bottom:-.25rem}
.cell img{display:block;width:100%;height:auto;border-radius:3px;image-rendering:auto}
.cell.right img{outline:2px solid var(--good);outline-offset:1px}
.cell.wrong img{outline:1px dashed var(--bad);outline-offset:1px}
.cell span{display:-webkit-box;-webkit-box-orient:vertical;-webkit-line-clamp:2;
margin-top:.25rem;color:var(--soft);font-size:.72rem;line-height:1.3;
overflow:hidden;overflow-wrap:anywhere;font-variant-numeric:tabular-nums}
.cell .name{display:block;white-space:nowrap;text-overflow:ellipsis}.name+span{margin-top:0}
.curves{display:grid;grid-template-columns:1fr 1fr;gap:2rem 2.5rem;margin-top:.75rem}
figure img{max-width:100%;height:auto}
.chart{display:block;width:100%;max-width:36rem;height:auto;overflow:visible}
.chart.wide{max-width:none}
.chart text{font-variant-numeric:tabular-nums}
.mark:hover{opacity:1}
ul{padding-left:1.1rem}li+li{margin-top:.25rem}
details{margin-top:3rem;border-top:1px solid var(--line);padding-top:1rem}
summary{cursor:pointer;font-weight:650}
.folded{margin-top:.5rem}.folded .scores{margin-top:.5rem}
.config{margin-top:.75rem;font-size:.85rem}
.config th{text-align:left;font-weight:400;color:var(--soft);padding:.2rem 1.5rem .2rem 0;vertical-align:top;
white-space:nowrap}
.config td{padding:.2rem 0;width:100%;overflow-wrap:anywhere;
font-family:ui-monospace,Menlo,Consolas,monospace}
@media (max-width:46rem){main{padding:1.5rem 1rem 3rem}h1{font-size:1.45rem}
.results,.curves{grid-template-columns:minmax(0,1fr)}section{margin-top:2.25rem}
.verdict{margin-top:0;padding:1rem}
.scores th,.scores td{padding-left:.6rem}.config th{white-space:normal}
.facts{grid-template-columns:1fr 1fr}}
@media print{:root{--paper:#fff}.scroll{overflow:visible}section{break-inside:avoid}}
"""
