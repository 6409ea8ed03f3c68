// Which part of the map is seen: from places (0 to 1, y upwards) to pixels of the page, and back.
"use strict";

const NEAREST = 400; // times as large as when all is shown

class View {
  constructor(collection) {
    this.bounds = View.bounds(collection);
    this.width = this.height = 1;
    this.x = this.y = 0.5; // the place in the middle
    this.scale = 1; // pixels of the page for a map's side
  }

  static bounds({ x, y, n }) {
    let [left, right, low, high] = [1, 0, 1, 0];
    for (let i = 0; i < n; i++) {
      left = Math.min(left, x[i]);
      right = Math.max(right, x[i]);
      low = Math.min(low, y[i]);
      high = Math.max(high, y[i]);
    }
    return { left, right, low, high };
  }

  get fitted() {
    const { left, right, low, high } = this.bounds;
    const margin = Math.min(32, this.width / 12, this.height / 12);
    const across = (this.width - 2 * margin) / Math.max(right - left, 1e-3);
    return Math.min(across, (this.height - 2 * margin - this.foot) / Math.max(high - low, 1e-3));
  }

  // The height of the tools, which cover the lower edge.
  get foot() {
    return this.height > 300 ? 44 : 0;
  }

  get zoom() {
    return this.scale / this.fitted;
  }

  // A new size of the map keeps its middle and how near it is.
  resize(width, height) {
    const near = this.width > 1 ? this.zoom : 1;
    [this.width, this.height] = [width, height];
    this.scale = this.fitted * near;
  }

  fit() {
    const { left, right, low, high } = this.bounds;
    return { x: (left + right) / 2, y: (low + high) / 2 - this.foot / 2 / this.fitted, scale: this.fitted };
  }

  to(x, y) {
    return [(x - this.x) * this.scale + this.width / 2, this.height / 2 - (y - this.y) * this.scale];
  }

  from(px, py) {
    return [(px - this.width / 2) / this.scale + this.x, (this.height / 2 - py) / this.scale + this.y];
  }

  set({ x, y, scale }) {
    this.scale = Math.min(Math.max(scale, this.fitted / 3), this.fitted * NEAREST);
    const { left, right, low, high } = this.bounds; // the middle stays on the map
    this.x = Math.min(Math.max(x, left), right);
    this.y = Math.min(Math.max(y, low - this.foot / this.scale), high);
  }

  move(dx, dy) {
    this.set({ x: this.x - dx / this.scale, y: this.y + dy / this.scale, scale: this.scale });
  }

  // Zoom by a factor, so that the place at this pixel stays there.
  zoomAt(px, py, factor) {
    const [x, y] = this.from(px, py);
    this.set({ x: this.x, y: this.y, scale: this.scale * factor });
    const [nowX, nowY] = this.from(px, py);
    this.set({ x: this.x + x - nowX, y: this.y + y - nowY, scale: this.scale });
  }
}

// Images by place, in square cells, for what is near a place or within a box.
class Cells {
  constructor({ x, y, n }, side = 128) {
    this.side = side;
    this.places = { x, y };
    const cell = (i) => this.at(y[i]) * side + this.at(x[i]);
    this.start = new Uint32Array(side * side + 1);
    for (let i = 0; i < n; i++) this.start[cell(i) + 1]++;
    for (let c = 0; c < side * side; c++) this.start[c + 1] += this.start[c];
    const next = this.start.slice();
    this.members = new Uint32Array(n);
    for (let i = 0; i < n; i++) this.members[next[cell(i)]++] = i;
  }

  at(place) {
    return Math.min(Math.max(Math.floor(place * this.side), 0), this.side - 1);
  }

  within(left, low, right, high, visit) {
    const { x, y } = this.places;
    for (let row = this.at(low); row <= this.at(high); row++) {
      const first = this.start[row * this.side + this.at(left)];
      const last = this.start[row * this.side + this.at(right) + 1];
      for (let k = first; k < last; k++) {
        const i = this.members[k];
        if (x[i] >= left && x[i] <= right && y[i] >= low && y[i] <= high) visit(i);
      }
    }
  }

  // The image nearest to a place, no further than `reach`, of those that `allowed` lets pass; -1 for none.
  nearest(px, py, reach, allowed) {
    const { x, y } = this.places;
    let best = -1;
    let least = reach * reach;
    this.within(px - reach, py - reach, px + reach, py + reach, (i) => {
      const away = (x[i] - px) ** 2 + (y[i] - py) ** 2;
      if (away <= least && allowed(i)) [best, least] = [i, away];
    });
    return best;
  }
}
