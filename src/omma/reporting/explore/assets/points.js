// Points written straight into the pixels of the canvas: tens of thousands a frame, without a graphics card.
"use strict";

const HIDDEN = 0, FAINT = 1, PLAIN = 2, CHOSEN = 3; // how an image looks

// The pixels of a shape and how much of each it covers, 0 to 255; `radius` in pixels of the screen.
function mask(shape, radius) {
  const inside = {
    disc: (x, y) => x * x + y * y <= 1,
    square: (x, y) => Math.max(Math.abs(x), Math.abs(y)) <= 0.86,
    triangle: (x, y) => y <= 0.8 && Math.abs(x) * 1.7 <= y + 1.1,
    diamond: (x, y) => Math.abs(x) + Math.abs(y) <= 1.2,
    cross: (x, y) => Math.max(Math.abs(x), Math.abs(y)) <= 1.1 && Math.min(Math.abs(x), Math.abs(y)) <= 0.4,
  }[shape];
  const reach = Math.ceil(radius * 1.2);
  const pixels = [];
  for (let dy = -reach; dy <= reach; dy++) {
    for (let dx = -reach; dx <= reach; dx++) {
      let covered = 0;
      for (let k = 0; k < 16; k++) {
        const x = dx + ((k & 3) - 1.5) / 4;
        const y = dy + ((k >> 2) - 1.5) / 4;
        covered += inside(x / radius, y / radius);
      }
      if (covered) pixels.push({ dx, dy, alpha: Math.round((covered / 16) * 255) });
    }
  }
  return { pixels, reach };
}

class Points {
  constructor(canvas) {
    this.canvas = canvas;
    this.context = canvas.getContext("2d", { alpha: false, willReadFrequently: true });
    this.image = null;
    this.masks = new Map();
  }

  // A canvas of this size in pixels of the screen.
  resize(width, height) {
    [this.canvas.width, this.canvas.height] = [width, height];
    this.image = this.context.createImageData(width, height);
    this.pixels = new Uint32Array(this.image.data.buffer);
  }

  // Offsets into the pixels of this canvas, and how much of each a shape covers.
  mask(shape, radius) {
    const key = `${shape} ${radius} ${this.canvas.width}`;
    if (!this.masks.has(key)) {
      const { pixels, reach } = mask(shape, radius);
      this.masks.set(key, {
        reach,
        offsets: Int32Array.from(pixels, ({ dx, dy }) => dy * this.canvas.width + dx),
        alphas: Uint8Array.from(pixels, ({ alpha }) => alpha),
      });
    }
    return this.masks.get(key);
  }

  // All images that are seen; `ratio`: pixels of the screen for one of the page; radius in pixels of the page.
  draw({ x, y, n }, view, look, colouring, theme, ratio, radius) {
    const packed = ([red, green, blue]) => (255 << 24 | blue << 16 | green << 8 | red) >>> 0;
    this.pixels.fill(packed(theme.paper));
    const size = Math.max(1, Math.round(radius * ratio * 4) / 4);
    const width = this.canvas.width, height = this.canvas.height;
    const scale = view.scale * ratio;
    const left = width / 2 - view.x * scale, top = height / 2 + view.y * scale;
    const faint = packed(mixed(theme.paper, theme.none, 0.35));
    const ink = packed(theme.ink);
    const passes = [
      { wanted: FAINT, styles: colouring.styles.map((s) => ({ colour: faint, mask: this.mask(s.shape, size * 0.8) })) },
      { wanted: PLAIN, styles: colouring.styles.map((s) => ({ colour: packed(s.colour.map(Math.round)), mask: this.mask(s.shape, size) })) },
      { wanted: CHOSEN, styles: colouring.styles.map(() => ({ colour: ink, mask: this.mask("disc", size + 1.6 * ratio) })) },
      { wanted: CHOSEN, styles: colouring.styles.map((s) => ({ colour: packed(s.colour.map(Math.round)), mask: this.mask(s.shape, size) })) },
    ];
    for (const { wanted, styles } of passes) {
      for (let i = 0; i < n; i++) {
        if (look[i] !== wanted) continue;
        const style = styles[colouring.of[i]];
        const px = Math.round(left + x[i] * scale), py = Math.round(top - y[i] * scale);
        const { reach } = style.mask;
        if (px < reach || py < reach || px >= width - reach || py >= height - reach) continue;
        this.stamp(style.mask, py * width + px, style.colour);
      }
    }
    this.context.putImageData(this.image, 0, 0);
  }

  stamp({ offsets, alphas }, at, colour) {
    const pixels = this.pixels;
    for (let k = 0; k < offsets.length; k++) {
      const place = at + offsets[k], alpha = alphas[k];
      if (alpha === 255) {
        pixels[place] = colour;
        continue;
      }
      const below = pixels[place], rest = 255 - alpha;
      const red = ((colour & 255) * alpha + (below & 255) * rest) / 255;
      const green = ((colour >>> 8 & 255) * alpha + (below >>> 8 & 255) * rest) / 255;
      const blue = ((colour >>> 16 & 255) * alpha + (below >>> 16 & 255) * rest) / 255;
      pixels[place] = (255 << 24 | blue << 16 | green << 8 | red) >>> 0;
    }
  }
}
