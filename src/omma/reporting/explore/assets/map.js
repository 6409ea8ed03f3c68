// The map itself: it draws points and pictures, and follows the mouse, fingers and keys.
"use strict";

const CLICK = 4; // pixels within which a press is a click, not a drag
const calm = window.matchMedia("(prefers-reduced-motion: reduce)");

class Atlas {
  // app: what the map tells (see main.js): pick, choose, escape, say, tip.
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
    this.pointers = new Map();
    this.frames = 0;
    new ResizeObserver(() => this.resize()).observe(byId("stage"));
    this.listen();
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
    const placed = this.placing.at(view.scale, size + 6, (i) => this.look[i] >= PLAIN);
    const [left, top] = view.from(-size, -size), [right, low] = view.from(view.width + size, view.height + size);
    const { x, y } = this.collection;
    const seen = placed.filter((i) => x[i] >= left && x[i] <= right && y[i] >= low && y[i] <= top);
    if (app.when === "auto") {
      let points = 0;
      this.cells.within(left, low, right, top, (i) => { points += this.look[i] >= PLAIN; });
      if (seen.length < 0.2 * points) return;
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

  // ------------------------------------------------------------ mouse, fingers and keys
  listen() {
    const { canvas } = this;
    canvas.addEventListener("pointerdown", (event) => this.press(event));
    canvas.addEventListener("pointermove", (event) => this.drag(event));
    canvas.addEventListener("pointerup", (event) => this.release(event));
    canvas.addEventListener("pointercancel", (event) => this.cancel(event));
    canvas.addEventListener("pointerleave", () => this.hovered(-1));
    canvas.addEventListener("dblclick", (event) => {
      this.view.zoomAt(event.offsetX, event.offsetY, 2);
      this.redraw();
    });
    canvas.addEventListener("wheel", (event) => {
      event.preventDefault();
      this.moving = null;
      const lines = event.deltaMode === 1 ? 16 : 1;
      this.view.zoomAt(event.offsetX, event.offsetY, Math.exp(-event.deltaY * lines * 0.002));
      this.redraw();
    }, { passive: false });
    canvas.addEventListener("keydown", (event) => this.key(event));
    byId("in").onclick = () => this.zoomBy(1.6);
    byId("out").onclick = () => this.zoomBy(1 / 1.6);
    byId("fit").onclick = () => this.go(this.view.fit());
    byId("lasso").onclick = () => this.setLasso(!this.lassoing);
    byId("inview").onclick = () => this.app.choose(this.seen());
  }

  press(event) {
    if (event.button !== 0) return;
    this.moving = null;
    this.canvas.setPointerCapture(event.pointerId);
    this.pointers.set(event.pointerId, [event.offsetX, event.offsetY]);
    this.start = [event.offsetX, event.offsetY];
    this.dragged = this.pointers.size > 1;
    const lasso = (this.lassoing || event.shiftKey) && this.pointers.size === 1;
    this.line = lasso ? [this.view.from(...this.start)] : null;
  }

  drag(event) {
    const last = this.pointers.get(event.pointerId);
    const now = [event.offsetX, event.offsetY];
    if (last === undefined) {
      if (event.pointerType !== "touch") this.hovered(this.hit(...now), now);
      return;
    }
    this.pointers.set(event.pointerId, now);
    if (Math.hypot(now[0] - this.start[0], now[1] - this.start[1]) > CLICK) this.dragged = true;
    if (!this.dragged) return;
    this.hovered(-1);
    if (this.pointers.size === 2) this.pinch(event.pointerId, last, now);
    else if (this.line !== null) {
      this.line.push(this.view.from(...now));
      this.drawOver();
    } else {
      this.view.move(now[0] - last[0], now[1] - last[1]);
      this.redraw();
    }
  }

  pinch(id, last, now) {
    const [, other] = [...this.pointers].find(([each]) => each !== id);
    const apart = (place) => Math.max(Math.hypot(place[0] - other[0], place[1] - other[1]), 1);
    this.view.zoomAt((now[0] + other[0]) / 2, (now[1] + other[1]) / 2, apart(now) / apart(last));
    this.view.move((now[0] - last[0]) / 2, (now[1] - last[1]) / 2);
    this.redraw();
  }

  release(event) {
    if (!this.pointers.delete(event.pointerId)) return;
    if (this.pointers.size) return;
    const { line } = this;
    this.line = null;
    if (line !== null && line.length > 2) {
      this.setLasso(false);
      this.app.choose(this.inside(line), event.ctrlKey || event.metaKey);
    } else if (!this.dragged) {
      const i = this.hit(event.offsetX, event.offsetY, event.pointerType === "touch" ? 18 : undefined);
      if (i >= 0) this.app.pick(i, false);
    }
    this.drawOver();
  }

  cancel(event) {
    this.pointers.delete(event.pointerId);
    this.line = null;
    this.drawOver();
  }

  hovered(i, at) {
    if (i !== this.hover) {
      this.hover = i;
      this.canvas.classList.toggle("pointing", i >= 0);
      this.drawOver();
    }
    this.app.tip(i, at);
  }

  key(event) {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const arrow = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, 1], ArrowDown: [0, -1] }[event.key];
    const step = Math.min(this.view.width, this.view.height) / 6;
    if (arrow && event.shiftKey) this.walk(...arrow);
    else if (arrow) {
      this.moving = null;
      this.view.move(-arrow[0] * step, arrow[1] * step);
      this.redraw();
    } else if (event.key === "+" || event.key === "=") this.zoomBy(1.6);
    else if (event.key === "-" || event.key === "_") this.zoomBy(1 / 1.6);
    else if (event.key === "0") this.go(this.view.fit());
    else if (event.key === "l" || event.key === "L") this.setLasso(!this.lassoing);
    else if (event.key === "v" || event.key === "V") this.app.choose(this.seen());
    else if (event.key === "Enter" || event.key === " ") this.walk(0, 0);
    else return;
    event.preventDefault();
  }

  // Open the next image in a direction from the open one; without one, that nearest to the middle.
  walk(dx, dy) {
    const { app } = this;
    const start = dx || dy ? app.current : -1;
    const i = start >= 0
      ? this.towards(start, dx, dy)
      : this.cells.nearest(this.view.x, this.view.y, 2, (each) => this.look[each] >= PLAIN);
    if (i >= 0) app.pick(i);
  }
}
