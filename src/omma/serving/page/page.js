"use strict";
// One request an image, so that a bad one hides none of the others; three of them at once.
const SHOWN = 5;
const AT_ONCE = 3;
const NEAR = 8;
const at = (id) => document.getElementById(id);
let model = null;

function element(name, text, kind) {
  const made = document.createElement(name);
  if (text !== undefined) made.textContent = text;
  if (kind) made.className = kind;
  return made;
}

const percent = (p) => (100 * p).toFixed(1) + " %";

async function post(path, file) {
  const form = new FormData();
  form.append("images", file, file.name || "pasted image");
  const answer = await fetch(path, { method: "POST", body: form });
  if (!answer.ok) throw new Error((await answer.json()).error);
  return answer;
}

async function ask(path, file) {
  return (await (await post(path, file)).json()).results[0];
}

function classes(row) {
  if (row.classes) return row.classes.map((name, i) => [name, row.probabilities[i]]);
  const found = [[row.class, row.probability], [row.runner_up, row.runner_up_probability]];
  for (let n = 3; row["class_" + n]; n++) found.push([row["class_" + n], row["probability_" + n]]);
  return found.filter(([name]) => name !== null);
}

function bars(pairs) {
  const list = element("ol", undefined, "bars");
  for (const [name, p] of pairs) {
    const item = element("li");
    const meter = element("meter");
    meter.value = p;
    meter.setAttribute("aria-hidden", "true");
    item.append(meter, element("span", name), element("span", percent(p), "value"));
    list.append(item);
  }
  return list;
}

function verdict(row) {
  if (row.classes) return element("p", row.classes.length ? row.classes.join(", ") : "none of the classes");
  const line = element("p", row.class + ", " + percent(row.probability));
  if (row.abstain) {
    line.className = "unsure";
    line.textContent = "Not sure enough to answer; likeliest: " + line.textContent;
  }
  return line;
}

async function neighbours(file) {
  const row = await ask("/search?k=" + NEAR, file);
  const block = element("div", undefined, "near");
  block.append(element("h3", "Nearest in the index"));
  const table = element("table");
  for (const each of row.neighbours) {
    const line = element("tr");
    const name = element("th", each.path);
    name.scope = "row";
    line.append(name, element("td", each.label || ""), element("td", each.similarity.toFixed(3), "value"));
    table.append(line);
  }
  block.append(table);
  return block;
}

// The choice of a map, and the button that asks for it: some take seconds.
function explanations(file) {
  const block = element("div", undefined, "why");
  const choice = element("select");
  choice.setAttribute("aria-label", "Kind of map");
  for (const name of model.maps) choice.append(element("option", name));
  const button = element("button", "Draw map");
  const place = element("div");
  place.setAttribute("aria-live", "polite");
  button.addEventListener("click", async () => {
    button.disabled = true;
    place.replaceChildren(element("p", "computing ...", "soft"));
    try {
      const answer = await post("/explain?format=png&what=" + choice.value, file);
      const picture = element("img");
      picture.alt = choice.value + " map of " + file.name;
      picture.src = URL.createObjectURL(await answer.blob());
      const scale = choice.value + ", from 0 (dark) to its largest (bright), over what the network sees";
      place.replaceChildren(picture, element("p", scale, "soft"));
    } catch (error) {
      place.replaceChildren(element("p", error.message, "error"));
    }
    button.disabled = false;
  });
  block.append(choice, button, place);
  return block;
}

async function look(file, place) {
  const text = place.lastChild;
  try {
    if (model.classes) {
      const most = Math.max(2, Math.min(SHOWN, model.classes.length));
      const row = await ask("/predict?top=" + most, file);
      text.append(verdict(row), bars(classes(row)));
    } else {
      const row = await ask("/embed", file);
      text.append(element("p", row.vector.length + " numbers: the model has no classifier", "soft"));
    }
    if (model.index !== null) text.append(await neighbours(file));
    if (model.maps.length) text.append(explanations(file));
  } catch (error) {
    text.append(element("p", error.message, "error"));
  }
}

function card(file) {
  const place = element("section", undefined, "result");
  const left = element("div");
  const picture = element("img");
  picture.alt = file.name;
  picture.src = URL.createObjectURL(file);
  picture.onload = () => URL.revokeObjectURL(picture.src);
  picture.onerror = () => picture.replaceWith(element("p", "no preview", "soft"));
  left.append(picture);
  const right = element("div");
  right.append(element("h2", file.name || "pasted image"));
  place.append(left, right);
  return place;
}

async function show(files) {
  const list = [...files];
  if (!list.length) return;
  at("status").textContent = "Looking at " + (list.length === 1 ? "1 image" : list.length + " images") + " ...";
  at("results").replaceChildren();
  const cards = list.map(card);
  at("results").append(...cards);
  let next = 0;
  const work = async () => {
    while (next < list.length) {
      const number = next++;
      await look(list[number], cards[number]);
    }
  };
  await Promise.all(Array.from({ length: AT_ONCE }, work));
  at("status").textContent = list.length === 1 ? "Done: 1 image" : "Done: " + list.length + " images";
}

async function begin() {
  try {
    model = await (await fetch("/model")).json();
  } catch (error) {
    at("status").append(element("span", "The server does not answer: " + error.message, "error"));
    return;
  }
  const kind = model.classes
    ? model.classes.length + " classes" + (model.calibrated ? ", calibrated" : ", probabilities not calibrated")
    : "vectors of " + model.dim + " numbers";
  at("facts").textContent = [model.model, kind, model.precision + " on " + model.device].join(" · ");
  if (model.classes && model.threshold !== null && !model.multi_label)
    at("limits").textContent = "Below " + percent(model.threshold) + " it does not answer.";
  at("file").addEventListener("change", (event) => show(event.target.files));
  addEventListener("paste", (event) => show(event.clipboardData.files));
  for (const name of ["dragover", "dragleave", "drop"])
    addEventListener(name, (event) => {
      event.preventDefault();
      at("drop").classList.toggle("over", name === "dragover");
      if (name === "drop") show(event.dataTransfer.files);
    });
  document.body.dataset.ready = "yes";
}

begin();
