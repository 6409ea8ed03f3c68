// The other tabs: what is selected, near-equal pairs, suspects, and what to know of the map.
"use strict";

const PAGE = 60; // rows that are shown at a time

// Rows of a list, some at a time; `row(item)` makes one.
function shownRows(items, row, className) {
  const list = element("div", { className });
  const more = element("button", { type: "button", className: "quiet", onclick: () => add() });
  let shown = 0;
  const add = () => {
    const first = shown;
    list.append(...items.slice(shown, shown + PAGE).map(row));
    shown = Math.min(shown + PAGE, items.length);
    more.hidden = shown === items.length;
    more.textContent = `Show ${Math.min(PAGE, items.length - shown)} more of ${several(items.length, "image")}`;
    if (first) list.children[first].querySelector("button")?.focus();
  };
  add();
  return [list, more];
}

// ---------------------------------------------------------------- selection
class Selection {
  constructor(app) {
    this.app = app;
    this.draw();
  }

  draw() {
    const { app } = this;
    const rows = app.selected;
    app.tabs.count("selection", "Selection", rows.length || null);
    if (!rows.length) {
      const hint = "Draw around images with the lasso (L, or hold Shift and drag), or take all in view (V) or all that match the search.";
      app.tabs.fill("selection", element("p", { className: "hint" }, hint), this.matches());
      return;
    }
    const act = (name, run) => element("button", { type: "button", onclick: run }, name);
    const tools = element("div", { className: "acts" },
      act("Copy names", () => this.copy()), act("Download CSV", () => this.download()),
      act("Clear", () => app.choose([])));
    const row = (i) => element("div", { className: "row" }, thumb(app, i, 40, null),
      element("div", { className: "words" }, element("span", { className: "name" }, app.collection.short(i)),
        element("span", { className: "soft" }, app.facet?.text(i) ?? "")));
    app.tabs.fill("selection", element("h2", {}, `${several(rows.length, "image")} selected`), tools,
      this.shares(), ...shownRows(rows, row, "rows"));
  }

  matches() {
    const { app } = this;
    if (app.found === null || !app.found.length) return null;
    return element("button", { type: "button", onclick: () => app.choose(app.found) },
      `Select ${several(app.found.length, "match", "matches")}`);
  }

  // How the selection divides among the classes of the map's colours.
  shares() {
    const { facet, selected, colouring } = this.app;
    if (!facet?.codes) return null;
    const counts = new Map();
    for (const i of selected) counts.set(facet.codes[i], (counts.get(facet.codes[i]) ?? 0) + 1);
    const list = element("ul", { className: "shares" });
    const most = Math.max(...counts.values());
    for (const [code, count] of [...counts].sort((a, b) => b[1] - a[1]).slice(0, 12)) {
      const bar = element("span", { className: "share" });
      bar.style.width = `${(count / most) * 100}%`;
      bar.style.background = hex(colouring.styles[code].colour);
      list.append(element("li", {},
        element("span", { className: "name" }, sign(colouring.styles[code]), code ? facet.values[code - 1] : "none"),
        element("span", { className: "number" }, `${count.toLocaleString("en")} (${Math.round((count / selected.length) * 100)} %)`),
        bar));
    }
    if (counts.size > 12) list.append(element("li", { className: "soft" }, `and ${counts.size - 12} more`));
    return list;
  }

  async copy() {
    const { app } = this;
    const text = app.selected.map((i) => app.collection.paths[i]).join("\n") + "\n";
    try {
      await navigator.clipboard.writeText(text);
    } catch { // an old browser, or a page that may not: the way that works everywhere
      const field = element("textarea", { value: text, className: "unseen" });
      document.body.append(field);
      field.select();
      document.execCommand("copy");
      field.remove();
    }
    app.say(`${several(app.selected.length, "name")} copied`);
  }

  download() {
    const { app } = this;
    const address = URL.createObjectURL(new Blob([app.collection.csv(app.selected)], { type: "text/csv" }));
    element("a", { href: address, download: "selection.csv" }).click();
    setTimeout(() => URL.revokeObjectURL(address), 1000);
    app.say(`${several(app.selected.length, "image")} in selection.csv`);
  }
}

// ---------------------------------------------------------------- what looks wrong
function ofAll(listed, found) {
  return listed < found ? `, the first ${listed.toLocaleString("en")} listed` : "";
}

function pairsTab(app) {
  const { pairs, pairsFound } = app.collection.facts;
  app.tabs.count("pairs", "Duplicates", pairsFound || null);
  if (!pairs.length) {
    app.tabs.fill("pairs", element("p", { className: "hint" }, "No two images are near-equal to this model."));
    return;
  }
  const row = ([i, j, similarity]) => element("div", { className: "row pair" },
    thumb(app, i, 64, null), thumb(app, j, 64, null),
    element("div", { className: "words" }, element("span", { className: "name" }, app.collection.short(i)),
      element("span", { className: "name" }, app.collection.short(j)),
      element("span", { className: "soft" }, `cosine ${similarity.toFixed(3)}`)));
  app.tabs.fill("pairs",
    element("h2", {}, several(pairsFound, "near-equal pair")),
    element("p", { className: "soft" }, `The most similar first${ofAll(pairs.length, pairsFound)}.`),
    selectAll(app, [...new Set(pairs.flatMap(([i, j]) => [i, j]))]), ...shownRows(pairs, row, "rows"));
}

function suspectsTab(app) {
  const { suspects, suspectsFound, outliers } = app.collection.facts;
  app.tabs.count("suspects", "Suspects", suspectsFound || null);
  const parts = [];
  if (suspects.length) {
    const row = ([i, instead, share]) => element("div", { className: "row" }, thumb(app, i, 64, null),
      element("div", { className: "words" }, element("span", { className: "name" }, app.collection.short(i)),
        element("span", {}, `labelled ${app.collection.label.text(i)}`),
        element("span", { className: "soft" }, `${Math.round(share * 100)} % of its neighbours: ${instead}`)));
    parts.push(element("section", {},
      element("h2", {}, `${several(suspectsFound, "label")} that neighbours do not share`),
      element("p", { className: "soft" }, `At least half of the neighbours have one other label. A wrong label, or an image that the model takes for something else; the clearest first${ofAll(suspects.length, suspectsFound)}.`),
      selectAll(app, suspects.map(([i]) => i)), ...shownRows(suspects, row, "rows")));
  }
  if (outliers.length) {
    const row = ([i, distance]) => thumb(app, i, 72, element("span", { className: "line" }, distance.toFixed(2)),
      `distance ${distance.toFixed(2)}`);
    parts.push(element("section", {}, element("h2", {}, "Least like any other"),
      element("p", { className: "soft" }, "Mean cosine distance to the neighbours, the largest first."),
      selectAll(app, outliers.map(([i]) => i)), ...shownRows(outliers, row, "thumbs")));
  }
  if (!parts.length) parts.push(element("p", { className: "hint" }, "Nothing stands out."));
  app.tabs.fill("suspects", ...parts);
}

function selectAll(app, rows) {
  return element("button", { type: "button", onclick: () => app.choose(rows) }, `Select these ${several(rows.length, "image")}`);
}

function aboutTab(app) {
  const { notes, skipped, skippedFound } = app.collection.facts;
  const keys = [
    ["Arrow keys", "move the map"], ["+ and -", "zoom"], ["0", "show all"],
    ["Enter", "open the image in the middle"], ["Shift + arrow", "open the next image that way"],
    ["L", "lasso on or off"], ["Shift + drag", "lasso at once"], ["V", "select all in view"], ["/", "search"],
    ["Escape", "end the lasso, then clear the search, selection and image"],
  ];
  const parts = [element("section", {}, element("h2", {}, "This map"),
    element("ul", {}, ...notes.map((note) => element("li", {}, note))))];
  parts.push(element("section", {}, element("h2", {}, "Search"), element("p", {},
    "Words must all occur in an image's path, label or columns; ", element("code", {}, "label:cat"),
    " looks in one column, ", element("code", {}, "distance:>0.4"), " compares a number.")));
  parts.push(element("section", {}, element("h2", {}, "Keys, on the map"), element("dl", { className: "keys" },
    ...keys.map(([key, does]) => element("div", {}, element("dt", {}, key), element("dd", {}, does))))));
  if (skippedFound) {
    parts.push(element("section", {}, element("h2", {}, `${several(skippedFound, "image")} left out`),
      element("ul", { className: "skipped" }, ...skipped.map(([path, reason]) =>
        element("li", {}, element("span", { className: "name" }, path), element("span", { className: "soft" }, reason)))),
      skipped.length < skippedFound ? element("p", { className: "soft" }, `The first ${skipped.length}.`) : null));
  }
  app.tabs.fill("about", ...parts);
}
