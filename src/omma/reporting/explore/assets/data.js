// The collection as the page holds it: names, places, columns and neighbours of n images.
"use strict";

function element(tag, properties = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name.startsWith("aria-") || name === "role" || name === "for") made.setAttribute(name, value);
    else made[name] = value;
  }
  made.append(...children.filter((child) => child !== null && child !== undefined));
  return made;
}

const byId = (id) => document.getElementById(id);
const several = (n, thing, plural = thing + "s") => `${n.toLocaleString("en")} ${n === 1 ? thing : plural}`;

// A typed array from base64, little-endian as every browser's machine is.
function unpacked(text, Kind) {
  const binary = atob(text);
  const bytes = new Uint8Array(binary.length);
  for (let k = 0; k < binary.length; k++) bytes[k] = binary.charCodeAt(k);
  return new Kind(bytes.buffer);
}

class Facet {
  constructor(facts) {
    this.name = facts.name;
    this.kind = facts.kind; // class, number or text
    this.values = facts.values ?? [];
    this.codes = facts.codes === undefined ? null : unpacked(facts.codes, Uint16Array); // 0: none, else 1 + class
    this.numbers = facts.numbers === undefined ? null : unpacked(facts.numbers, Float32Array);
    this.texts = facts.texts ?? null;
    this.hidden = new Set(); // codes that are switched off in the legend
    if (this.codes) {
      this.counts = new Uint32Array(this.values.length + 1);
      for (const code of this.codes) this.counts[code]++;
    }
    if (this.numbers) this.limits = Facet.limits(this.numbers);
  }

  // The 1st and 99th percentile, and the extremes, of what is a number.
  static limits(numbers) {
    const known = numbers.filter((value) => !Number.isNaN(value)).sort();
    if (!known.length) return { low: 0, high: 1, least: NaN, most: NaN, missing: numbers.length };
    const at = (share) => known[Math.round(share * (known.length - 1))];
    const [low, high] = [at(0.01), at(0.99)];
    return {
      low, high: high > low ? high : low + 1, least: at(0), most: at(1), missing: numbers.length - known.length,
    };
  }

  text(i) {
    if (this.codes) return this.codes[i] ? this.values[this.codes[i] - 1] : "";
    if (this.numbers) return Number.isNaN(this.numbers[i]) ? "" : shortNumber(this.numbers[i]);
    return this.texts[i];
  }

  // For a table: numbers in full.
  cell(i) {
    return this.numbers && !Number.isNaN(this.numbers[i]) ? String(this.numbers[i]) : this.text(i);
  }
}

function shortNumber(value) {
  if (Number.isInteger(value) && Math.abs(value) < 1e6) return value.toLocaleString("en");
  return String(Number(value.toPrecision(4)));
}

class Collection {
  constructor(facts) {
    this.title = facts.title;
    this.paths = facts.paths;
    this.n = facts.paths.length;
    this.x = Float32Array.from(unpacked(facts.x, Uint16Array), (value) => value / 65535);
    this.y = Float32Array.from(unpacked(facts.y, Uint16Array), (value) => value / 65535);
    this.facets = facts.facets.map((facet) => new Facet(facet));
    this.label = this.facets.find((facet) => facet.name === "label" && facet.kind === "class") ?? null;
    this.k = facts.neighbours;
    this.near = this.k ? unpacked(facts.near, Uint32Array) : null;
    this.similarity = this.k ? unpacked(facts.similarity, Uint16Array) : null;
    this.links = facts.links;
    this.facts = facts;
    this.searched = null; // lower-case text of each image, made when it is first searched
  }

  name(i) {
    const path = this.paths[i];
    return path.slice(path.lastIndexOf("/") + 1) || path;
  }

  // The name with the folder that it is in.
  short(i) {
    return this.paths[i].split("/").slice(-2).join("/");
  }

  neighbours(i) {
    const found = [];
    for (let place = i * this.k; place < (i + 1) * this.k; place++) {
      found.push({ i: this.near[place], similarity: (this.similarity[place] / 65535) * 2 - 1 });
    }
    return found;
  }

  // The address of the image's file, or null.
  link(i) {
    const path = this.paths[i];
    if (this.links === null || path.includes("://") || path.includes("\ufffd")) return null;
    const address = path.split("/").map(encodeURIComponent).join("/");
    return path.startsWith("/") ? "file://" + address : this.links + address;
  }

  // A function (image) => whether it matches: all words occur in its name or columns. `column:word` looks in one
  // column, `column:>0.5` compares its numbers.
  matcher(query) {
    const tests = [];
    for (const [, column, quoted, plain] of query.matchAll(/(?:([^\s:"]+):)?(?:"([^"]*)"?|(\S+))/g)) {
      tests.push(this.test(column, (quoted ?? plain).toLowerCase()));
    }
    return (i) => tests.every((test) => test(i));
  }

  test(column, word) {
    const lower = column?.toLowerCase();
    const facet = this.facets.find((each) => each.name.toLowerCase() === lower);
    if (lower === "name" || lower === "path") return (i) => this.paths[i].toLowerCase().includes(word);
    const compared = facet?.numbers && word.match(/^([<>])=?(-?[\d.]+(?:e-?\d+)?)$/);
    if (compared) {
      const limit = Number(compared[2]);
      return compared[1] === "<" ? (i) => facet.numbers[i] < limit : (i) => facet.numbers[i] > limit;
    }
    if (facet) return (i) => facet.text(i).toLowerCase().includes(word);
    const whole = column === undefined ? word : `${lower}:${word}`;
    this.searched ??= this.paths.map((path, i) =>
      [path, ...this.facets.filter((each) => !each.numbers).map((each) => each.text(i))].join("\n").toLowerCase());
    return (i) => this.searched[i].includes(whole);
  }

  // The rows as CSV (RFC 4180), with all columns.
  csv(rows) {
    const cell = (text) => (/[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text);
    const lines = [["path", ...this.facets.map((facet) => facet.name)]];
    for (const i of rows) lines.push([this.paths[i], ...this.facets.map((facet) => facet.cell(i))]);
    return lines.map((line) => line.map(cell).join(",") + "\r\n").join("");
  }
}
