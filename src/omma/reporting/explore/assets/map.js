// The map itself: it draws points and pictures, and finds the images at a place.
"use strict";

const FAIR = 0.12; // share of the images in view that have room as pictures, from which pictures are drawn
const calm = window.matchMedia("(prefers-reduced-motion: reduce)");

class Atlas {
  // app: whose state the map draws (see main.js).
  constructor(app) {
    this.app = app;
    this.collection = app.collection;
    this.canvas = byId("map");
    this.over = byId("over");
    this.points = new Points(this.canvas);
    this.view = new View(this.collection);
    this.cells = new Cells(this.collection);
    this.placing = new Placing(this.collection);
    this.look = new Uint8Array(this.collection.n).fill(PLAIN);
    this.colouring = null;
    this.shown = []; // [image, left, top, width, height] of the pictures in the last frame
    this.hover = -1;
    this.drawing = false;
    this.line = null; // the lasso's corners, in places of the map
    this.lassoing = false;
    this.frames = 0; // drawn so far
    new ResizeObserver(() => this.resize()).observe(byId("stage"));
    this.resize();
    Object.assign(this.view, this.view.fit());
  }

  resize() {
    const { clientWidth, clientHeight } = byId("stage");
    if (!clientWidth || !clientHeight) return;
    this.ratio = Math.min(window.devicePixelRatio || 1, 2);
    this.view.resize(clientWidth, clientHeight);
    const [width, height] = [Math.round(clientWidth * this.ratio), Math.round(clientHeight * this.ratio)];
    this.points.resize(width, height);
    [this.over.width, this.over.height] = [width, height];
    this.redraw();
  }

  // ------------------------------------------------------------ drawing
  redraw() {
    if (this.drawing) return;
    this.drawing = true;
    requestAnimationFrame(() => {
      this.drawing = false;
      if (this.colouring === null) return;
      this.draw();
      this.frames++;
    });
  }

  get radius() {
    const base = Math.max(1.6, Math.min(4.5, 90 / Math.sqrt(this.collection.n)));
    return Math.min(7, base * Math.max(1, this.view.zoom) ** 0.35);
  }

  draw() {
    this.points.draw(
      this.collection, this.view, this.look, this.colouring, this.app.theme, this.ratio, this.radius);
    this.drawPictures();
    this.drawOver();
  }

  // Pictures where there is room for a fair share of what is seen, or wherever there is room.
  drawPictures() {
    const { view, app } = this;
    const size = app.pictureSize;
    this.shown = [];
    if (app.when === "never") return;
    const placed = this.placing.at(view.scale, size + 4, (i) => this.look[i] >= PLAIN);
    const [left, top] = view.from(-size, -size), [right, low] = view.from(view.width + size, view.height + size);
    const { x, y } = this.collection;
    const seen = placed.filter((i) => x[i] >= left && x[i] <= right && y[i] >= low && y[i] <= top);
    if (app.when === "auto") {
      let points = 0;
      this.cells.within(left, low, right, top, (i) => { points += this.look[i] >= PLAIN; });
      if (seen.length < FAIR * points) return;
    }
    const sheets = new Map();
    for (const i of seen) sheets.set(app.pictures.sheetOf(i), (sheets.get(app.pictures.sheetOf(i)) ?? 0) + 1);
    const best = new Set([...sheets.keys()].sort((a, b) => sheets.get(b) - sheets.get(a)).slice(0, KEPT - 8));
    const context = this.points.context;
    context.setTransform(this.ratio, 0, 0, this.ratio, 0, 0);
    context.lineWidth = 2;
    for (const i of seen) {
      if (!best.has(app.pictures.sheetOf(i))) continue;
      const box = app.pictures.draw(context, i, ...view.to(x[i], y[i]), size);
      if (box === null) continue;
      context.strokeStyle = this.look[i] === CHOSEN ? hex(app.theme.ink) : this.colouring.css(i);
      context.strokeRect(box[0] - 1, box[1] - 1, box[2] + 2, box[3] + 2);
      this.shown.push([i, ...box]);
    }
    context.setTransform(1, 0, 0, 1, 0, 0);
  }

  // What changes with the pointer: the lasso, the image under it, the one that is open and its neighbours.
  drawOver() {
    const context = this.over.getContext("2d");
    const { view, app } = this;
    const { x, y } = this.collection;
    context.setTransform(this.ratio, 0, 0, this.ratio, 0, 0);
    context.clearRect(0, 0, view.width, view.height);
    const ink = hex(app.theme.ink);
    if (app.current >= 0) {
      const from = view.to(x[app.current], y[app.current]);
      context.strokeStyle = ink;
      context.globalAlpha = 0.45;
      context.lineWidth = 1;
      context.beginPath();
      for (const { i } of this.collection.neighbours(app.current)) {
        context.moveTo(...from);
        context.lineTo(...view.to(x[i], y[i]));
      }
      context.stroke();
      context.globalAlpha = 1;
      this.ring(context, app.current, ink, 2.5);
    }
    if (this.hover >= 0) this.ring(context, this.hover, ink, 1.5);
    if (this.line !== null) {
      context.beginPath();
      this.line.forEach((place, k) => context[k ? "lineTo" : "moveTo"](...view.to(...place)));
      context.closePath();
      context.globalAlpha = 0.12;
      context.fillStyle = app.theme.accent;
      context.fill();
      context.globalAlpha = 1;
      context.strokeStyle = app.theme.accent;
      context.lineWidth = 1.5;
      context.stroke();
    }
  }

  ring(context, i, colour, width) {
    const { view } = this;
    const [px, py] = view.to(this.collection.x[i], this.collection.y[i]);
    const box = this.shown.find(([other]) => other === i);
    context.lineWidth = width;
    for (const [stroke, more] of [[hex(this.app.theme.paper), 2.5], [colour, 0]]) {
      context.strokeStyle = stroke;
      context.lineWidth = width + more;
      context.beginPath();
      if (box) context.rect(box[1] - 2, box[2] - 2, box[3] + 4, box[4] + 4);
      else context.arc(px, py, this.radius + 3.5, 0, 2 * Math.PI);
      context.stroke();
    }
  }

  // ------------------------------------------------------------ moving
  // Go to a view, in a few frames where the reader does not mind motion.
  go(target) {
    const from = { x: this.view.x, y: this.view.y, scale: this.view.scale };
    this.moving = Symbol("move"); // a new move ends the one before
    const move = this.moving, start = performance.now(), last = calm.matches ? 0 : 220;
    const step = (now) => {
      if (this.moving !== move) return;
      const at = last ? Math.min((now - start) / last, 1) : 1;
      const share = at < 1 ? 1 - (1 - Math.max(at, 0)) ** 3 : 1;
      const mix = (a, b) => a + (b - a) * share;
      this.view.set({
        x: mix(from.x, target.x), y: mix(from.y, target.y),
        scale: Math.exp(mix(Math.log(from.scale), Math.log(target.scale))),
      });
      this.draw();
      this.frames++;
      if (at < 1) requestAnimationFrame(step);
    };
    requestAnimationFrame(step);
  }

  zoomBy(factor) {
    this.go({ x: this.view.x, y: this.view.y, scale: this.view.scale * factor });
  }

  // Move so that an image is in sight, if it is not.
  reveal(i) {
    const [px, py] = this.view.to(this.collection.x[i], this.collection.y[i]);
    const margin = Math.min(60, this.view.width / 6, this.view.height / 6);
    const inside = px > margin && py > margin && px < this.view.width - margin && py < this.view.height - margin;
    if (inside) this.redraw();
    else this.go({ x: this.collection.x[i], y: this.collection.y[i], scale: this.view.scale });
  }

  // The image at a pixel: a picture there, else the nearest point within reach; -1 for none.
  hit(px, py, reach = this.radius + 6) {
    for (let k = this.shown.length - 1; k >= 0; k--) {
      const [i, left, top, width, height] = this.shown[k];
      if (px >= left && py >= top && px <= left + width && py <= top + height) return i;
    }
    const [x, y] = this.view.from(px, py);
    return this.cells.nearest(x, y, reach / this.view.scale, (i) => this.look[i] !== HIDDEN);
  }

  // The next image in a direction (dx, dy) from image i: near, and not far off the line.
  towards(i, dx, dy) {
    const { x, y, n } = this.collection;
    let best = -1, least = Infinity;
    for (let j = 0; j < n; j++) {
      if (j === i || this.look[j] < PLAIN) continue;
      const along = (x[j] - x[i]) * dx + (y[j] - y[i]) * dy;
      const off = Math.abs((x[j] - x[i]) * dy - (y[j] - y[i]) * dx);
      if (along > 0 && off <= along && along + 2 * off < least) [best, least] = [j, along + 2 * off];
    }
    return best;
  }

  // The images inside a line around a part of the map, of those not hidden and not faint.
  inside(line) {
    const xs = line.map(([x]) => x), ys = line.map(([, y]) => y);
    const found = [];
    const { x, y } = this.collection;
    this.cells.within(Math.min(...xs), Math.min(...ys), Math.max(...xs), Math.max(...ys), (i) => {
      if (this.look[i] < PLAIN) return;
      let odd = false; // edges to the right of the image
      for (let k = 0, j = line.length - 1; k < line.length; j = k++) {
        const above = ys[k] > y[i] !== ys[j] > y[i];
        if (above && x[i] < xs[k] + ((y[i] - ys[k]) / (ys[j] - ys[k])) * (xs[j] - xs[k])) odd = !odd;
      }
      if (odd) found.push(i);
    });
    return found.sort((a, b) => a - b);
  }

  seen() {
    const [left, top] = this.view.from(0, 0), [right, low] = this.view.from(this.view.width, this.view.height);
    return this.inside([[left, low], [right, low], [right, top], [left, top]]);
  }

  setLasso(on) {
    this.lassoing = on;
    this.line = null;
    byId("lasso").setAttribute("aria-pressed", String(on));
    this.canvas.classList.toggle("lassoing", on);
    this.drawOver();
  }
}
