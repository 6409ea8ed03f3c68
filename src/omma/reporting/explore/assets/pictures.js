// Thumbnails from sheets, which are decoded when one of their pictures is shown; those used last are kept.
"use strict";

const KEPT = 64; // decoded sheets, 4 MB each at most

class Pictures {
  constructor(facts, changed) {
    this.side = facts.side;
    this.perRow = facts.perRow;
    this.tile = unpacked(facts.tile, Uint32Array);
    this.width = unpacked(facts.width, Uint8Array);
    this.height = unpacked(facts.height, Uint8Array);
    this.folder = facts.folder;
    this.changed = changed; // called when a sheet has been decoded
    this.sheets = new Map(); // number => bitmap, or null while it is decoded; the last used at the end
    this.waiting = []; // canvases of the page whose sheet is decoded
  }

  sheetOf(i) {
    return Math.floor(this.tile[i] / this.perRow ** 2);
  }

  // The decoded sheet of an image, or null, and then it will be decoded.
  sheet(number) {
    const known = this.sheets.get(number);
    if (known !== undefined) {
      this.sheets.delete(number);
      this.sheets.set(number, known);
      return known;
    }
    this.sheets.set(number, null);
    this.load(number);
    return null;
  }

  async load(number) {
    const image = new Image();
    image.src = this.folder === null
      ? "data:image/jpeg;base64," + byId(`sheet-${number}`).textContent
      : `${this.folder}${String(number).padStart(5, "0")}.jpg`;
    try {
      await image.decode();
      this.sheets.set(number, await createImageBitmap(image));
    } catch {
      return; // a thumbnail's file is missing: the point stays a point
    }
    for (const [old, bitmap] of this.sheets) {
      if (this.sheets.size <= KEPT) break;
      if (bitmap === null) continue;
      bitmap.close();
      this.sheets.delete(old);
    }
    const ready = this.waiting.filter(({ i }) => this.sheetOf(i) === number);
    this.waiting = this.waiting.filter(({ i }) => this.sheetOf(i) !== number);
    for (const { canvas, i, size } of ready) this.paint(canvas, i, size);
    this.changed();
  }

  // The image in a box of this size around a place; whether it could be drawn yet.
  draw(context, i, x, y, size) {
    const sheet = this.sheet(this.sheetOf(i));
    if (sheet === null) return null;
    const at = this.tile[i] % this.perRow ** 2;
    const [width, height] = [this.width[i], this.height[i]];
    const scale = size / Math.max(width, height);
    const box = [x - (width * scale) / 2, y - (height * scale) / 2, width * scale, height * scale];
    const column = at % this.perRow, row = Math.floor(at / this.perRow);
    context.drawImage(sheet, column * this.side, row * this.side, width, height, ...box);
    return box;
  }

  // Draw an image into a canvas of the page, now or when its sheet is there; size in pixels of the page.
  paint(canvas, i, size) {
    const ratio = Math.min(window.devicePixelRatio, 2);
    const scale = size / Math.max(this.width[i], this.height[i]);
    canvas.width = Math.max(1, Math.round(this.width[i] * scale * ratio));
    canvas.height = Math.max(1, Math.round(this.height[i] * scale * ratio));
    const context = canvas.getContext("2d");
    context.imageSmoothingEnabled = scale * ratio < 4; // a tiny picture is shown as its pixels
    context.imageSmoothingQuality = "high";
    const drawn = this.draw(context, i, canvas.width / 2, canvas.height / 2, size * ratio);
    if (drawn === null) this.waiting.push({ canvas, i, size });
  }

  // A canvas with the image, its longer side `size`.
  canvas(i, size, name) {
    const made = element("canvas", { className: "picture", role: "img", "aria-label": name });
    this.paint(made, i, size);
    return made;
  }
}

// Which images can stand on the map as pictures without covering each other, for each step of the zoom.
class Placing {
  constructor(collection) {
    this.places = collection;
    this.order = Placing.shuffled(collection.n);
    this.levels = new Map();
  }

  // Always the same order, without regard to the collection's, in which neighbours may follow each other.
  static shuffled(n) {
    const order = Uint32Array.from({ length: n }, (_, i) => i);
    let state = 1;
    for (let i = n - 1; i > 0; i--) {
      state = (Math.imul(state, 1664525) + 1013904223) >>> 0; // Numerical Recipes' generator
      const j = Math.floor((state / 2 ** 32) * (i + 1));
      [order[i], order[j]] = [order[j], order[i]];
    }
    return order;
  }

  // Forget what was placed: other images are to be seen.
  clear() {
    this.levels.clear();
  }

  // The images for a scale, in order; `size`: of a picture, in pixels of the page.
  at(scale, size, allowed) {
    const level = Math.floor(Math.log2(scale / size) * 4); // four to each doubling
    if (!this.levels.has(level)) this.levels.set(level, this.placed(2 ** (-level / 4), allowed));
    return this.levels.get(level);
  }

  placed(box, allowed) {
    const { x, y } = this.places;
    const taken = new Map();
    const found = [];
    const key = (column, row) => column * 2 ** 21 + row;
    for (const i of this.order) {
      if (!allowed(i)) continue;
      const column = Math.floor(x[i] / box) + 1, row = Math.floor(y[i] / box) + 1;
      let free = true;
      for (let c = column - 1; free && c <= column + 1; c++) {
        for (let r = row - 1; free && r <= row + 1; r++) {
          const other = taken.get(key(c, r));
          free = other === undefined || Math.abs(x[other] - x[i]) >= box || Math.abs(y[other] - y[i]) >= box;
        }
      }
      if (!free) continue;
      taken.set(key(column, row), i);
      found.push(i);
    }
    return found;
  }
}
