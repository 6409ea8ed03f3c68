// The page: what is open, selected, searched and hidden, and what changes with it.
"use strict";

class App {
  constructor(facts) {
    this.collection = new Collection(facts);
    this.facet = null; // that the colours tell
    this.current = -1; // the image that is open
    this.selected = [];
    this.found = null; // images that match the search; null: no search
    this.emphasised = null; // a code of the facet that the pointer is on in the legend
    this.when = "auto";
    this.pictureSize = 48;
    this.pictures = new Pictures(facts, () => this.map?.redraw());
    this.setTheme();
    this.tabs = new Tabs([
      ["image", "Image"], ["selection", "Selection"], ["pairs", "Duplicates"], ["suspects", "Suspects"], ["about", "About"],
    ]);
    this.map = new Atlas(this);
    this.gestures = new Gestures(this.map);
    this.legend = new Legend(this);
    const first = this.collection.label ?? this.collection.facets.find((facet) => facet.name === "cluster");
    this.colourBy(first ?? null);
    this.detail = new Detail(this);
    this.selection = new Selection(this);
    pairsTab(this);
    suspectsTab(this);
    aboutTab(this);
    this.tabs.open("image");
    this.controls();
    byId("count").textContent = several(this.collection.n, "image");
  }

  // ------------------------------------------------------------ colours
  setTheme(name = null) {
    if (name !== null) document.documentElement.dataset.theme = name;
    this.theme = currentTheme(this.collection.facts.colours);
  }

  changeTheme(name = null) {
    this.setTheme(name);
    this.recolour();
    if (this.current >= 0) this.detail.show(this.current);
    this.selection.draw();
  }

  colourBy(facet) {
    this.facet = facet;
    this.recolour();
  }

  recolour() {
    this.colouring = this.map.colouring = new Colouring(this.facet, this.collection.n, this.theme);
    const name = this.facet === null ? "" : `, coloured by ${this.facet.name}`;
    byId("map").setAttribute("aria-label", `Map of ${several(this.collection.n, "image")}${name}`);
    this.legend.draw();
    this.changed();
  }

  // ------------------------------------------------------------ what is seen
  // Hidden by the legend, faint beside what is searched or pointed at, plain, or selected.
  changed() {
    const { look } = this.map;
    look.fill(this.found === null ? PLAIN : FAINT);
    for (const i of this.found ?? []) look[i] = PLAIN;
    for (const facet of this.collection.facets) {
      if (!facet.hidden.size) continue;
      facet.codes.forEach((code, i) => { if (facet.hidden.has(code)) look[i] = HIDDEN; });
    }
    if (this.emphasised !== null) {
      this.facet.codes.forEach((code, i) => { if (code !== this.emphasised && look[i] === PLAIN) look[i] = FAINT; });
    }
    for (const i of this.selected) if (look[i] !== HIDDEN) look[i] = CHOSEN;
    this.map.placing.clear();
    this.map.redraw();
  }

  emphasise(code) {
    this.emphasised = code;
    this.changed();
  }

  search(query) {
    const matches = query.trim() ? this.collection.matcher(query) : null;
    this.found = matches && [...Array(this.collection.n).keys()].filter(matches);
    byId("found").textContent = this.found === null ? "" : several(this.found.length, "match", "matches");
    this.changed();
    if (!this.selected.length) this.selection.draw();
  }

  // ------------------------------------------------------------ what is open and selected
  // Open an image; `move`: bring it into sight.
  pick(i, move = true) {
    if (this.current >= 0 && this.current !== i) this.detail.before.push(this.current);
    this.open(i, move);
  }

  open(i, move) {
    this.current = i;
    this.tabs.open("image");
    this.detail.show(i);
    this.say(`${this.collection.name(i)} is open`);
    if (move) this.map.reveal(i);
    else this.map.redraw();
  }

  back() {
    const i = this.detail.before.pop();
    if (i !== undefined) this.open(i, true);
  }

  glance(i) {
    this.map.hover = i;
    this.map.drawOver();
  }

  choose(rows, add = false) {
    this.selected = add ? [...new Set([...this.selected, ...rows])].sort((a, b) => a - b) : [...rows];
    this.changed();
    this.selection.draw();
    if (this.selected.length) this.tabs.open("selection");
    this.say(this.selected.length ? `${several(this.selected.length, "image")} selected` : "nothing selected");
  }

  escape() {
    if (this.map.lassoing || this.map.line !== null) this.map.setLasso(false);
    else if (this.found !== null) {
      byId("search").value = "";
      this.search("");
    } else if (this.selected.length) this.choose([]);
    else if (this.current >= 0) {
      this.current = -1;
      this.detail.before = [];
      this.detail.empty();
      this.map.redraw();
    }
  }

  say(text) {
    byId("live").textContent = text;
  }

  // The image under the pointer, beside it.
  tip(i, at) {
    const tip = byId("tip");
    tip.hidden = i < 0;
    if (i < 0) return;
    if (this.tipped !== i) {
      this.tipped = i;
      const size = Math.min(Math.max(this.pictures.side, 96), 144);
      tip.replaceChildren(this.pictures.canvas(i, size, ""), element("span", { className: "name" }, this.collection.short(i)),
        element("span", { className: "soft" }, this.facet?.text(i) ?? ""));
    }
    const { width, height } = this.map.view;
    tip.style.left = `${Math.max(0, at[0] + 16 + tip.offsetWidth > width ? at[0] - 16 - tip.offsetWidth : at[0] + 16)}px`;
    tip.style.top = `${Math.max(0, Math.min(at[1] + 16, height - tip.offsetHeight - 4))}px`;
  }

  // ------------------------------------------------------------ controls
  controls() {
    const select = byId("facet");
    const facets = this.collection.facets.filter((facet) => facet.codes || facet.numbers);
    select.append(...facets.map((facet, k) => element("option", { value: String(k) }, facet.name)));
    select.append(element("option", { value: "" }, "nothing"));
    select.value = this.facet === null ? "" : String(facets.indexOf(this.facet));
    select.onchange = () => this.colourBy(select.value === "" ? null : facets[Number(select.value)]);
    byId("search").oninput = (event) => this.search(event.target.value);
    byId("finder").onsubmit = (event) => {
      event.preventDefault();
      if (this.found?.length) this.pick(this.found[0]);
    };
    byId("when").onchange = (event) => {
      this.when = event.target.value;
      this.map.redraw();
    };
    byId("size").oninput = (event) => {
      this.pictureSize = Number(event.target.value);
      this.map.placing.clear();
      this.map.redraw();
    };
    byId("size").setAttribute("aria-label", "Size of the pictures on the map");
    const dark = window.matchMedia("(prefers-color-scheme: dark)");
    dark.addEventListener("change", () => this.changeTheme());
    byId("theme").onclick = () => this.changeTheme(
      getComputedStyle(document.documentElement).getPropertyValue("--theme").trim() === "dark" ? "light" : "dark");
    document.addEventListener("keydown", (event) => {
      if (event.key === "Escape") this.escape();
      const typing = /^(INPUT|SELECT|TEXTAREA)$/.test(event.target.tagName);
      if (event.key === "/" && !typing) {
        event.preventDefault();
        byId("search").focus();
      }
    });
  }
}

const app = new App(JSON.parse(byId("facts").textContent));
