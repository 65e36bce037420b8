// Small charts of the last minutes, drawn as SVG.

import {element} from "./dom.js";
import {duration} from "./words.js";

const SVG = "http://www.w3.org/2000/svg";
const HEIGHT = 100;

// Draw `lines` into `target`: each has `values`, the oldest first, null where there is none, and a class; `label`
// says a value, `title` what the chart is.
export function draw(target, {lines, seconds, label, title, area = false}) {
  const top = nice(Math.max(...lines.flatMap(({values}) => values.map((value) => value ?? 0))));
  if (!target.firstChild) target.append(frame());
  const svg = target.querySelector("svg");
  const length = lines[0].values.length;
  svg.setAttribute("viewBox", `0 0 ${length - 1} ${HEIGHT}`);
  svg.setAttribute("aria-label", `${title}: ${lines.map(({name, values}) => said(name, values, label)).join("; ")}`);
  const y = (value) => HEIGHT - (value / top) * HEIGHT;
  const paths = lines.map(({values, className}) => path(points(values, y), `line ${className}`));
  if (area) paths.unshift(path(`M0 ${HEIGHT}${points(lines[0].values, y).replace("M", "L")}V${HEIGHT}Z`, "area"));
  paths.unshift(path(`M0 ${HEIGHT}H${length - 1}`, "base"), path(`M0 0H${length - 1}`, "top"));
  svg.replaceChildren(...paths);
  target.querySelector(".most").textContent = label(top);
  target.querySelector(".from").textContent = `${duration(seconds).replace(/ 0 s$/, "")} ago`;
}

function frame() {
  const svg = document.createElementNS(SVG, "svg");
  svg.setAttribute("preserveAspectRatio", "none");
  svg.setAttribute("role", "img");
  const above = element("div", {className: "scale"}, element("span", {className: "most"}));
  const below = element("div", {className: "scale"}, element("span", {className: "from"}), element("span", {}, "now"));
  const made = document.createDocumentFragment();
  made.append(above, svg, below);
  return made;
}

function path(d, className) {
  const made = document.createElementNS(SVG, "path");
  made.setAttribute("d", d);
  made.setAttribute("class", className);
  return made;
}

// A line with gaps where there is no value; a value alone is a short stroke.
function points(values, y) {
  let d = "";
  values.forEach((value, x) => {
    if (value === null) return;
    const begins = x === 0 || values[x - 1] === null;
    const alone = begins && (x === values.length - 1 || values[x + 1] === null);
    d += alone ? `M${x - 0.5} ${y(value)}h1` : `${begins ? "M" : "L"}${x} ${y(value)}`;
  });
  return d;
}

// The next of 1, 2, 5, 10, 20, ... from this value up.
function nice(value) {
  if (!(value > 0)) return 1;
  const power = 10 ** Math.floor(Math.log10(value));
  return [1, 2, 5, 10].find((step) => step * power >= value) * power;
}

function said(name, values, label) {
  const known = values.filter((value) => value !== null);
  if (!known.length) return `${name} none`;
  return `${name} ${label(known.at(-1))} now, ${label(Math.max(...known))} at most`;
}
