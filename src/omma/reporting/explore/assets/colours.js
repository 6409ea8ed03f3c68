// Colours that stay apart for readers of any colour vision; further classes have the same in other shapes.
"use strict";

const SHAPES = ["disc", "square", "triangle", "diamond", "cross"];
const STEPS = 64; // of the scale of numbers
// Viridis (van der Walt & Smith, 2015; public domain) from .05 to .95: even steps of lightness for all readers.
const SCALE = ["#471365", "#482475", "#414487", "#355f8d", "#2a788e", "#21918c", "#22a884", "#44bf70", "#7ad151", "#bddf26", "#dfe318"];

const rgb = (hex) => [1, 3, 5].map((at) => parseInt(hex.slice(at, at + 2), 16));
const hex = (colour) => "#" + colour.map((value) => Math.round(value).toString(16).padStart(2, "0")).join("");
const mixed = (a, b, share) => a.map((value, k) => value + (b[k] - value) * share);
const scaled = (at) => {
  const place = Math.min(Math.max(at, 0), 1) * (SCALE.length - 1);
  const low = Math.min(Math.floor(place), SCALE.length - 2);
  return mixed(rgb(SCALE[low]), rgb(SCALE[low + 1]), place - low);
};

// How each image is drawn by one facet: `of[i]` is the number of a style, `styles` its colour and shape.
// Style 0 is that of images without a value.
class Colouring {
  constructor(facet, n, theme) {
    this.facet = facet;
    this.styles = [{ colour: theme.none, shape: "disc" }];
    this.of = new Uint16Array(n);
    if (facet === null) {
      this.styles.push({ colour: theme.palette[0], shape: "disc" });
      this.of.fill(1);
    } else if (facet.codes) {
      this.of = facet.codes;
      facet.values.forEach((_, k) => this.styles.push({
        colour: theme.palette[k % theme.palette.length],
        shape: SHAPES[Math.floor(k / theme.palette.length) % SHAPES.length],
      }));
    } else {
      for (let k = 0; k < STEPS; k++) this.styles.push({ colour: scaled(k / (STEPS - 1)), shape: "disc" });
      const { low, high } = facet.limits;
      facet.numbers.forEach((value, i) => {
        const at = (value - low) / (high - low);
        this.of[i] = Number.isNaN(value) ? 0 : 1 + Math.round(Math.min(Math.max(at, 0), 1) * (STEPS - 1));
      });
    }
  }

  css(i) {
    return hex(this.styles[this.of[i]].colour);
  }
}

// The colours of the page's style sheet that the canvas needs, in the theme that is on.
function currentTheme(colours) {
  const style = getComputedStyle(document.documentElement);
  const read = (name) => style.getPropertyValue(name).trim();
  return {
    paper: rgb(read("--paper")), ink: rgb(read("--ink")), none: rgb(read("--none")), accent: read("--accent"),
    palette: colours[read("--theme")].map(rgb),
  };
}

// A sign of the legend: the shape in its colour, as SVG.
const OUTLINES = {
  disc: "M10 4a6 6 0 1 0 .01 0z", square: "M5 5h10v10H5z", triangle: "M10 3.5l6.500 11.500h-13z",
  diamond: "M10 3l7 7-7 7-7-7z", cross: "M8 4h4v4h4v4h-4v4H8v-4H4V8h4z",
};
function sign(style) {
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  svg.setAttribute("viewBox", "0 0 20 20");
  svg.setAttribute("class", "sign");
  svg.setAttribute("aria-hidden", "true");
  const path = document.createElementNS("http://www.w3.org/2000/svg", "path");
  path.setAttribute("d", OUTLINES[style.shape]);
  path.setAttribute("fill", hex(style.colour));
  svg.append(path);
  return svg;
}
