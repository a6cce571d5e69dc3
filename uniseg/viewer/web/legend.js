// What the page says in words: the case, the classes with their volumes, the warnings, and what is under the cursor.
//
// Names and warnings come from outside. They are only ever set as text, never as HTML.

"use strict";

const legendRows = [];                        // one element per class, in the order of data.classes

function byId(id) {
  return document.getElementById(id);
}

function fillWords() {
  document.title = data.case;
  byId("case").textContent = data.case;
  byId("size").textContent = data.grid.note;
  fillWarnings();
  fillLegend();
  const about = byId("about");
  for (const line of data.about) about.append(element("p", line));
}

function fillWarnings() {
  const count = data.warnings.length === 1 ? "1 warning" : `${data.warnings.length} warnings`;
  byId("warnings").hidden = byId("warned").hidden = data.warnings.length === 0;
  byId("warnings").querySelector("h2").textContent = byId("warned").textContent = count;
  for (const warning of data.warnings) byId("warnings").querySelector("ul").append(element("li", warning));
}

function fillLegend() {
  data.classes.forEach((one, position) => {
    const row = element("li");
    const box = element("input");
    box.type = "checkbox";
    box.checked = true;
    box.setAttribute("aria-label", `show ${one.title}`);
    box.style.setProperty("--colour", `rgb(${one.color.join(", ")})`);
    box.addEventListener("change", () => showClass(position, box.checked));
    const name = element("button", undefined, "jump");
    name.type = "button";
    name.title = "Go to its middle";
    name.append(element("bdi", one.title));
    if (one.experimental) name.append(" ", element("span", "experimental", "mark"));
    if (one.border) name.append(" ", element("span", "cut", "mark"));
    name.addEventListener("click", () => goTo(position));
    row.append(box, name, element("span", `${millilitres(one.ml)} ml`, "ml"));
    if (one.experimental) row.append(element("p", one.experimental, "remark"));
    legendRows.push(row);
    byId("classes").append(row);
  });
  if (data.classes.length === 0) byId("classes").append(element("li", "Nothing was found.", "nothing"));
  byId("cut").hidden = !data.classes.some(one => one.border);
  byId("absent").textContent = data.absent.length ? `Looked for and not found: ${data.absent.join(", ")}.` : "";
}

// Mark the classes at the crosshair, and tick those that are shown.
function updateLegend() {
  const here = new Set(data.combinations[volume.codes[offset(view.at)]]);
  legendRows.forEach((row, position) => {
    row.classList.toggle("here", here.has(position));
    row.querySelector("input").checked = !view.hidden.has(position);
  });
}

// index: the voxel under the cursor, or null for the crosshair
function updateReadout(index) {
  const at = index || view.at;
  const names = classesAt(at).map(one => one.title + (view.hidden.has(data.classes.indexOf(one)) ? " (hidden)" : ""));
  byId("where").textContent = index ? "Under the cursor" : "At the crosshair";
  byId("classes-here").textContent = names.length ? names.join(", inside ") : "no class";
  byId("hu-here").textContent = huText(at);
  byId("mm-here").textContent = positionText(at);
  byId("voxel-here").textContent = transform(data.grid.to_file, at).map(value => Math.round(value)).join(", ");
}

// The headings of the planes, the sliders and the buttons.
function updateControls() {
  for (const plane of planes) {
    const [slice, count] = [view.at[plane.normal] + 1, SHAPE[plane.normal]];
    const text = `${plane.title} ${slice}/${count}`;
    plane.canvas.setAttribute("aria-label", `${text}. ${positionText(view.at)} mm`);
    const heading = plane.panel.querySelector(".enlarge");
    heading.textContent = plane.name === view.main ? text : `${text} ⤢`;
    heading.title = plane.name === view.main ? "" : `Make the ${plane.name} plane the large one`;
    plane.panel.querySelector(".slice").value = view.at[plane.normal];
    plane.panel.classList.toggle("main", plane.name === view.main);
    plane.panel.classList.toggle("active", plane.name === view.active);
  }
  byId("window-centre").value = Math.round(view.window[0]);
  byId("window-width").value = Math.round(view.window[1]);
  byId("opacity").value = Math.round(view.opacity * 100);
  for (const button of byId("windows").children) {
    const preset = WINDOWS[button.dataset.window];
    button.setAttribute("aria-pressed", preset.every((value, n) => value === Math.round(view.window[n])));
  }
  for (const button of byId("modes").children) {
    button.setAttribute("aria-pressed", button.dataset.mode === view.mode);
  }
}
