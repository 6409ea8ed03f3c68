// The legend, the tabs beside the map, and the tab of the image that is open.
"use strict";

// Tabs as the ARIA practices describe them: arrow keys go from one to the next, Tab goes into the page.
class Tabs {
  constructor(names) {
    this.buttons = new Map();
    this.pages = new Map();
    for (const [id, name] of names) {
      const page = element("div", {
        id: `page-${id}`, className: "page", role: "tabpanel", "aria-labelledby": `tab-${id}`, hidden: true, tabIndex: 0,
      });
      const button = element("button", {
        id: `tab-${id}`, type: "button", role: "tab", "aria-controls": page.id, "aria-selected": "false", tabIndex: -1,
        onclick: () => this.open(id),
      }, name);
      this.buttons.set(id, button);
      this.pages.set(id, page);
      byId("tabs").append(button);
      byId("pages").append(page);
    }
    byId("tabs").addEventListener("keydown", (event) => this.key(event));
    this.opened = null;
    this.prepare = new Map(); // what fills a page when it is opened
  }

  open(id, focus = false) {
    for (const [each, button] of this.buttons) {
      const on = each === id;
      button.setAttribute("aria-selected", String(on));
      button.tabIndex = on ? 0 : -1;
      this.pages.get(each).hidden = !on;
      if (on && focus) button.focus();
    }
    this.opened = id;
    this.prepare.get(id)?.();
  }

  key(event) {
    const ids = [...this.buttons.keys()];
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    const at = { Home: 0, End: ids.length - 1 }[event.key];
    if (step === undefined && at === undefined) return;
    event.preventDefault();
    this.open(ids[at ?? (ids.indexOf(this.opened) + step + ids.length) % ids.length], true);
  }

  count(id, name, n) {
    this.buttons.get(id).replaceChildren(name, n === null ? "" : element("span", { className: "badge" }, n.toLocaleString("en")));
  }

  fill(id, ...content) {
    this.pages.get(id).replaceChildren(...content.filter((child) => child !== null));
    this.pages.get(id).scrollTop = 0;
  }
}

// A button with an image's thumbnail and a line below, which opens the image.
function thumb(app, i, size, line, spoken) {
  const name = app.collection.name(i);
  const label = [name, app.collection.label?.text(i), spoken].filter(Boolean).join(", ");
  return element("button", {
    className: "thumb", type: "button", "aria-label": label, title: label, onclick: () => app.pick(i),
    onmouseenter: () => app.glance(i), onmouseleave: () => app.glance(-1),
  }, app.pictures.canvas(i, size, ""), line);
}

// ---------------------------------------------------------------- legend
class Legend {
  constructor(app) {
    this.app = app;
    this.place = byId("legend");
  }

  draw() {
    const { app } = this;
    const { facet, colouring } = app;
    this.place.replaceChildren();
    if (facet === null) return;
    if (facet.numbers) this.scale(facet, colouring);
    else this.classes(facet, colouring);
  }

  classes(facet, colouring) {
    const list = element("ul", { className: "classes", "aria-label": `Classes of ${facet.name}` });
    const items = facet.values.map((value, k) => [k + 1, value]);
    if (facet.counts[0]) items.push([0, "none"]);
    for (const [code, value] of items) {
      if (!facet.counts[code]) continue;
      const name = element("span", { className: "name" }, value);
      const shown = !facet.hidden.has(code);
      const button = element("button", {
        type: "button", className: "class", "aria-pressed": String(shown), title: `${value}: click to hide or show`,
        onclick: () => this.toggle(facet, code),
        onmouseenter: () => this.app.emphasise(code), onmouseleave: () => this.app.emphasise(null),
      }, sign(colouring.styles[code]), name, element("span", { className: "number" }, facet.counts[code].toLocaleString("en")));
      const only = element("button", {
        type: "button", className: "only", "aria-label": `Only ${value}`, onclick: () => this.only(facet, code),
      }, "only");
      list.append(element("li", {}, button, only));
    }
    const all = element("button", {
      type: "button", className: "quiet", onclick: () => this.set(facet, []), hidden: !facet.hidden.size,
    }, "Show all");
    this.place.append(list, all);
  }

  scale(facet, colouring) {
    const { low, high, least, most, missing } = facet.limits;
    const bar = element("div", { className: "scale" });
    bar.style.background = `linear-gradient(to right, ${SCALE.join(",")})`;
    const below = least < low ? "≤ " : "", above = most > high ? "≥ " : "";
    this.place.append(bar, element("p", { className: "ends" },
      element("span", {}, below + shortNumber(low)), element("span", {}, above + shortNumber(high))));
    if (missing) {
      this.place.append(element("p", { className: "soft none" }, sign(colouring.styles[0]), `none: ${several(missing, "image")}`));
    }
  }

  toggle(facet, code) {
    const hidden = new Set(facet.hidden);
    if (!hidden.delete(code)) hidden.add(code);
    this.set(facet, hidden);
  }

  only(facet, code) {
    this.set(facet, [...facet.counts.keys()].filter((other) => other !== code && facet.counts[other]));
  }

  set(facet, hidden) {
    facet.hidden = new Set(hidden);
    const at = [...this.place.querySelectorAll("button")].indexOf(document.activeElement);
    this.app.changed();
    this.draw();
    const buttons = this.place.querySelectorAll("button");
    if (at >= 0) buttons[Math.min(at, buttons.length - 1)]?.focus();
  }
}

// ---------------------------------------------------------------- the image that is open
class Detail {
  constructor(app) {
    this.app = app;
    this.before = []; // images that were open before
    this.empty();
  }

  empty() {
    this.app.tabs.fill("image", element("p", { className: "hint" },
      "Click a point on the map to see its image and those most like it."));
  }

  show(i) {
    const { app } = this;
    const { collection, pictures } = app;
    const name = collection.name(i), address = collection.link(i);
    const title = element("h2", {}, address === null ? name
      : element("a", { href: address, target: "_blank", rel: "noopener noreferrer", title: "Open the file" }, name));
    const back = element("button", {
      type: "button", className: "quiet", disabled: !this.before.length, onclick: () => app.back(),
    }, "Back");
    const picture = pictures.canvas(i, Math.min(320, Math.max(pictures.side, 240)), `Image ${name}`);
    picture.classList.add("large");
    const path = collection.paths[i];
    const facts = element("dl", { className: "facts" });
    for (const facet of collection.facets) {
      const text = facet.text(i);
      if (!text) continue;
      const value = element("dd", {}, text);
      if (facet === app.facet) value.prepend(sign(app.colouring.styles[app.colouring.of[i]]));
      facts.append(element("div", {}, element("dt", {}, facet.name), value));
    }
    app.tabs.fill("image",
      element("div", { className: "top" }, title, back),
      path === name ? null : element("p", { className: "path soft" }, path),
      picture, facts, this.neighbours(i));
  }

  neighbours(i) {
    const { collection } = this.app;
    if (!collection.k) return null;
    const grid = element("div", { className: "thumbs" });
    for (const { i: other, similarity } of collection.neighbours(i)) {
      const own = collection.label?.text(i), its = collection.label?.text(other);
      const differs = own && its && own !== its;
      const line = element("span", { className: differs ? "line differs" : "line" },
        similarity.toFixed(2), differs ? ` ${its}` : "");
      grid.append(thumb(this.app, other, 72, line, `similarity ${similarity.toFixed(2)}`));
    }
    return element("section", {}, element("h3", {}, "Most like it"), grid);
  }
}
