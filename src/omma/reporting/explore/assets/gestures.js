// The mouse, fingers and keys on the map: move, zoom, open an image, draw a lasso.
"use strict";

const CLICK = 4; // pixels within which a press is a click, not a drag

class Gestures {
  constructor(map) {
    this.map = map;
    this.app = map.app;
    this.canvas = map.canvas;
    this.pointers = new Map(); // that are down: their number => place in pixels
    this.listen();
  }

  listen() {
    const { map, canvas } = this;
    canvas.addEventListener("pointerdown", (event) => this.press(event));
    canvas.addEventListener("pointermove", (event) => this.drag(event));
    canvas.addEventListener("pointerup", (event) => this.release(event));
    canvas.addEventListener("pointercancel", (event) => this.cancel(event));
    canvas.addEventListener("pointerleave", () => this.hovered(-1));
    canvas.addEventListener("dblclick", (event) => {
      map.view.zoomAt(event.offsetX, event.offsetY, 2);
      map.redraw();
    });
    canvas.addEventListener("wheel", (event) => {
      event.preventDefault();
      map.moving = null;
      const lines = event.deltaMode === 1 ? 16 : 1;
      map.view.zoomAt(event.offsetX, event.offsetY, Math.exp(-event.deltaY * lines * 0.002));
      map.redraw();
    }, { passive: false });
    canvas.addEventListener("keydown", (event) => this.key(event));
    byId("in").onclick = () => map.zoomBy(1.6);
    byId("out").onclick = () => map.zoomBy(1 / 1.6);
    byId("fit").onclick = () => map.go(map.view.fit());
    byId("lasso").onclick = () => map.setLasso(!map.lassoing);
    byId("inview").onclick = () => this.app.choose(map.seen());
  }

  press(event) {
    const { map } = this;
    if (event.button !== 0) return;
    map.moving = null;
    this.canvas.setPointerCapture(event.pointerId);
    this.pointers.set(event.pointerId, [event.offsetX, event.offsetY]);
    this.start = [event.offsetX, event.offsetY];
    this.dragged = this.pointers.size > 1;
    const lasso = (map.lassoing || event.shiftKey) && this.pointers.size === 1;
    map.line = lasso ? [map.view.from(...this.start)] : null;
  }

  drag(event) {
    const { map } = this;
    const last = this.pointers.get(event.pointerId);
    const now = [event.offsetX, event.offsetY];
    if (last === undefined) {
      if (event.pointerType !== "touch") this.hovered(map.hit(...now), now);
      return;
    }
    this.pointers.set(event.pointerId, now);
    if (Math.hypot(now[0] - this.start[0], now[1] - this.start[1]) > CLICK) this.dragged = true;
    if (!this.dragged) return;
    this.hovered(-1);
    if (this.pointers.size === 2) this.pinch(event.pointerId, last, now);
    else if (map.line !== null) {
      map.line.push(map.view.from(...now));
      map.drawOver();
    } else {
      map.view.move(now[0] - last[0], now[1] - last[1]);
      map.redraw();
    }
  }

  pinch(id, last, now) {
    const { map } = this;
    const [, other] = [...this.pointers].find(([each]) => each !== id);
    const apart = (place) => Math.max(Math.hypot(place[0] - other[0], place[1] - other[1]), 1);
    map.view.zoomAt((now[0] + other[0]) / 2, (now[1] + other[1]) / 2, apart(now) / apart(last));
    map.view.move((now[0] - last[0]) / 2, (now[1] - last[1]) / 2);
    map.redraw();
  }

  release(event) {
    const { map } = this;
    if (!this.pointers.delete(event.pointerId)) return;
    if (this.pointers.size) return;
    const { line } = map;
    map.line = null;
    if (line !== null && line.length > 2) {
      map.setLasso(false);
      this.app.choose(map.inside(line), event.ctrlKey || event.metaKey);
    } else if (!this.dragged) {
      const i = map.hit(event.offsetX, event.offsetY, event.pointerType === "touch" ? 18 : undefined);
      if (i >= 0) this.app.pick(i, false);
    }
    map.drawOver();
  }

  cancel(event) {
    const { map } = this;
    this.pointers.delete(event.pointerId);
    map.line = null;
    map.drawOver();
  }

  hovered(i, at) {
    const { map } = this;
    if (i !== map.hover) {
      map.hover = i;
      this.canvas.classList.toggle("pointing", i >= 0);
      map.drawOver();
    }
    this.app.tip(i, at);
  }

  key(event) {
    const { map } = this;
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const arrow = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, 1], ArrowDown: [0, -1] }[event.key];
    const step = Math.min(map.view.width, map.view.height) / 6;
    if (arrow && event.shiftKey) this.walk(...arrow);
    else if (arrow) {
      map.moving = null;
      map.view.move(-arrow[0] * step, arrow[1] * step);
      map.redraw();
    } else if (event.key === "+" || event.key === "=") map.zoomBy(1.6);
    else if (event.key === "-" || event.key === "_") map.zoomBy(1 / 1.6);
    else if (event.key === "0") map.go(map.view.fit());
    else if (event.key === "l" || event.key === "L") map.setLasso(!map.lassoing);
    else if (event.key === "v" || event.key === "V") this.app.choose(map.seen());
    else if (event.key === "Enter" || event.key === " ") this.walk(0, 0);
    else return;
    event.preventDefault();
  }

  // Open the next image in a direction from the open one; without one, that nearest to the middle.
  walk(dx, dy) {
    const { map, app } = this;
    const start = dx || dy ? app.current : -1;
    const i = start >= 0
      ? map.towards(start, dx, dy)
      : map.cells.nearest(map.view.x, map.view.y, 2, (each) => map.look[each] >= PLAIN);
    if (i >= 0) app.pick(i);
  }
}
