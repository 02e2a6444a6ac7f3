"use strict";
const root = document.documentElement;
const figures = JSON.parse(document.getElementById("figures").textContent);

// ---- figures, in the colours of the theme
function themed(layout) {
  const style = getComputedStyle(root), text = style.getPropertyValue("--text").trim();
  const line = style.getPropertyValue("--line").trim();
  const axis = a => ({...a, gridcolor: line, zerolinecolor: line, linecolor: line, automargin: true});
  return {
    ...layout, xaxis: axis(layout.xaxis), yaxis: axis(layout.yaxis), font: {color: text, family: "system-ui, sans-serif"},
    paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", margin: {l: 50, r: 15, t: 15, b: 50},
    legend: {orientation: "h", y: -0.25}, hovermode: "closest",
  };
}
function draw() {
  for (const f of figures) {
    Plotly.react(f.at, f.traces, themed(f.layout), {
      responsive: true, displaylogo: false,
      modeBarButtonsToRemove: ["select2d", "lasso2d", "autoScale2d"],
      toImageButtonOptions: {format: "svg", filename: f.name},
    });
  }
}
draw();
const dark = matchMedia("(prefers-color-scheme: dark)");
dark.addEventListener("change", draw);
document.getElementById("theme").addEventListener("click", () => {
  const now = root.dataset.theme || (dark.matches ? "dark" : "light");
  root.dataset.theme = now === "dark" ? "light" : "dark";
  draw();
});

// ---- tables that sort and filter
for (const button of document.querySelectorAll("th button")) {
  button.addEventListener("click", () => {
    const head = button.parentElement, table = head.closest("table"), column = head.cellIndex;
    const order = head.getAttribute("aria-sort") === "ascending" ? "descending" : "ascending";
    for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", order);
    const key = row => row.cells[column].dataset.value;
    const rows = [...table.tBodies[0].rows].sort((a, b) => {
      const x = key(a), y = key(b);
      if (x === undefined || y === undefined) return (x === undefined) - (y === undefined);
      const difference = isNaN(x) || isNaN(y) ? x.localeCompare(y, undefined, {numeric: true}) : x - y;
      return order === "ascending" ? difference : -difference;
    });
    table.tBodies[0].append(...rows);
  });
}
for (const field of document.querySelectorAll(".filter input")) {
  field.addEventListener("input", () => {
    const words = field.value.toLowerCase().split(/\s+/).filter(Boolean);
    for (const row of field.closest("details").querySelectorAll("tbody tr")) {
      const text = row.textContent.toLowerCase();
      row.hidden = !words.every(word => text.includes(word));
    }
  });
}

// ---- versions of a picture
for (const section of document.querySelectorAll(".compare")) {
  const pictures = JSON.parse(section.previousElementSibling.textContent);
  const part = name => section.querySelector("." + name);
  const [which, left, right, zoom, error, position] =
    ["which", "left", "right", "zoom", "error", "position"].map(part);
  const layers = part("versions"), under = part("under"), over = part("over"), stage = part("stage");
  const errors = new Map();

  for (const [i, p] of pictures.entries()) which.add(new Option(p.name, i));

  function load(uri) {
    return new Promise(resolve => { const image = new Image(); image.onload = () => resolve(image); image.src = uri; });
  }
  async function difference(picture, version) {  // of the original, 8 times, around grey
    const key = picture.name + "\n" + version.label;
    if (!errors.has(key)) {
      const samples = [];
      for (const v of [picture.versions[0], version]) {
        const canvas = new OffscreenCanvas(picture.width, picture.height), context = canvas.getContext("2d");
        context.drawImage(await load(v.uri), 0, 0);
        samples.push(context.getImageData(0, 0, picture.width, picture.height));
      }
      const [a, b] = samples;
      for (let i = 0; i < a.data.length; i++) if (i % 4 < 3) a.data[i] = 128 + 8 * (b.data[i] - a.data[i]);
      const canvas = document.createElement("canvas");
      [canvas.width, canvas.height] = [picture.width, picture.height];
      canvas.getContext("2d").putImageData(a, 0, 0);
      errors.set(key, canvas.toDataURL());
    }
    return errors.get(key);
  }
  async function show() {
    const picture = pictures[which.value], sides = [left, right].map(s => picture.versions[s.value]);
    const uris = error.checked ? await Promise.all(sides.map(v => difference(picture, v))) : sides.map(v => v.uri);
    [[under, 0], [over, 1]].forEach(([image, i]) => { image.src = uris[i]; image.alt = picture.name + ", " + sides[i].label; });
    layers.style.setProperty("--zoom", zoom.value);
    section.classList.toggle("pixels", zoom.value > 2);
    part("said").textContent = `Left: ${sides[0].label}. Right: ${sides[1].label}.` + (error.checked ? " Errors times 8, around grey." : "");
    section.dataset.ready = [which.value, left.value, right.value, error.checked].join(" ");
  }
  function offer() {
    const labels = pictures[which.value].versions.map(v => v.label);
    for (const [select, start] of [[left, 1], [right, Math.min(2, labels.length - 1)]]) {
      const kept = select.value === "" ? start : select.value;
      select.replaceChildren(...labels.map((label, i) => new Option(label, i)));
      select.value = kept;
    }
    show();
  }
  function divide(percent) {
    position.value = percent;
    layers.style.setProperty("--at", position.value + "%");
  }
  which.addEventListener("change", offer);
  for (const control of [left, right, zoom, error]) control.addEventListener("change", show);
  position.addEventListener("input", () => divide(position.value));
  const follow = event => {
    const box = layers.getBoundingClientRect();
    divide(100 * (event.clientX - box.left) / box.width);
  };
  layers.addEventListener("pointerdown", event => { layers.setPointerCapture(event.pointerId); follow(event); });
  layers.addEventListener("pointermove", event => { if (event.buttons) follow(event); });
  offer();
}
