// Mouse, wheel, touch, keyboard and buttons. They change `view` and ask for a new picture.

"use strict";

const WINDOWS = { soft: [40, 400], lung: [-600, 1500], bone: [400, 1800] };    // centre and width in HU
const MODES = ["both", "fill", "outline"];
let hovered = null;                           // the voxel under the cursor
let drawing = false;
let visited = null;                           // the class whose middle was gone to last

function redraw() {
  if (drawing) return;
  drawing = true;
  requestAnimationFrame(() => {
    drawing = false;
    updateControls();
    for (const plane of planes) plane.draw();
    updateLegend();
    updateReadout(hovered);
  });
}

// ------------------------------------------------------------------------------------------------------- actions

function moveTo(index) {
  const before = view.at;
  view.at = nearestInside(index);
  if (view.zoom > 1) followCrosshair(before);
  redraw();
}

function moveAlong(axis, voxels) {
  const index = view.at.slice();
  index[axis] += voxels;
  moveTo(index);
}

// Along each axis that the crosshair has moved on, the middle of the planes goes along where one does not show it.
function followCrosshair(before) {
  for (const plane of planes) {
    const [x, y] = plane.toScreen(view.at);
    if ((x < 0 || x > plane.width) && view.at[plane.across] !== before[plane.across]) {
      view.centre[plane.across] = view.at[plane.across];
    }
    if ((y < 0 || y > plane.height) && view.at[plane.up] !== before[plane.up]) {
      view.centre[plane.up] = view.at[plane.up];
    }
  }
}

// The crosshair stays where it is on the screen.
function zoomBy(factor) {
  const zoom = Math.min(16, Math.max(1, view.zoom * factor));
  const share = view.zoom / zoom;
  view.centre = view.centre.map((value, axis) => view.at[axis] + (value - view.at[axis]) * share);
  view.zoom = zoom;
  if (zoom === 1) view.centre = SHAPE.map(n => (n - 1) / 2);
  redraw();
}

function setWindow(centre, width) {
  view.window = [Math.min(3040, Math.max(-1024, centre)), Math.min(4100, Math.max(1, width))];
  redraw();
}

function showClass(position, shown) {
  if (shown) view.hidden.delete(position); else view.hidden.add(position);
  redraw();
}

function goTo(position) {
  visited = position;
  moveTo(data.classes[position].middle);
  if (byId("planes").getBoundingClientRect().top < -40) byId("planes").scrollIntoView({ behavior: "smooth" });   // phone
}

function nextClass(step) {
  const count = data.classes.length;
  if (count === 0) return;
  const stillThere = visited !== null && offset(view.at) === offset(data.classes[visited].middle);
  const here = stillThere ? visited : data.combinations[volume.codes[offset(view.at)]][0];
  goTo(here === undefined ? 0 : (here + step + count) % count);
}

function enlarge(name) {
  view.main = view.active = name;
  redraw();
}

function activePlane() {
  return planes.find(plane => plane.name === view.active);
}

// ------------------------------------------------------------------------------------------------ mouse and touch

function listenTo(plane) {
  const fingers = new Map();                  // pointers that are down: where they were last
  const at = event => [event.offsetX, event.offsetY];
  plane.canvas.addEventListener("pointerdown", event => {
    plane.canvas.setPointerCapture(event.pointerId);
    fingers.set(event.pointerId, at(event));
    view.active = plane.name;
    if (event.button === 0 && !event.shiftKey && fingers.size === 1) moveTo(plane.toIndex(...at(event)));
    event.preventDefault();
  });
  plane.canvas.addEventListener("pointermove", event => {
    hovered = nearestOrNull(plane.toIndex(...at(event)));
    if (fingers.has(event.pointerId)) drag(plane, event, fingers, at(event));
    else updateReadout(hovered);
  });
  for (const end of ["pointerup", "pointercancel", "pointerleave"]) {
    plane.canvas.addEventListener(end, event => {
      fingers.delete(event.pointerId);
      if (end === "pointerleave" || event.pointerType === "touch") hovered = null;
      updateReadout(hovered);
    });
  }
  plane.canvas.addEventListener("contextmenu", event => event.preventDefault());
  plane.canvas.addEventListener("dblclick", () => enlarge(plane.name));
  let turned = 0;                             // of the wheel, in pixels; touchpads send many small steps
  plane.canvas.addEventListener("wheel", event => {
    event.preventDefault();
    view.active = plane.name;
    const pixels = event.deltaMode === 0 ? event.deltaY : 40 * event.deltaY;
    if (event.ctrlKey) {
      zoomBy(Math.exp(-pixels / 400));
      return;
    }
    turned += pixels;
    if (Math.abs(turned) < 40) return;
    moveAlong(plane.normal, turned < 0 ? 1 : -1);
    turned = 0;
    hovered = nearestOrNull(plane.toIndex(...at(event)));
  }, { passive: false });
}

// Left button or one finger: the crosshair. Right button: the window. Shift or the middle button: the picture itself.
// Two fingers: size and place.
function drag(plane, event, fingers, now) {
  const [x, y] = fingers.get(event.pointerId);
  const [dx, dy] = [now[0] - x, now[1] - y];
  if (fingers.size === 2) {
    const other = [...fingers].find(([id]) => id !== event.pointerId)[1];
    const before = Math.hypot(x - other[0], y - other[1]);
    pan(plane, dx / 2, dy / 2);
    zoomBy(Math.hypot(now[0] - other[0], now[1] - other[1]) / Math.max(1, before));
  } else if (event.buttons & 2) {
    setWindow(view.window[0] + 2 * dy, view.window[1] + 2 * dx);
  } else if (event.buttons & 4 || event.shiftKey) {
    pan(plane, dx, dy);
  } else {
    moveTo(plane.toIndex(...now));
  }
  fingers.set(event.pointerId, now);
}

function pan(plane, dx, dy) {
  if (view.zoom === 1) return;
  view.centre[plane.across] += dx / (SPACING[plane.across] * plane.scale);
  view.centre[plane.up] += dy / (SPACING[plane.up] * plane.scale);
  redraw();
}

function nearestOrNull(index) {
  const rounded = index.map(Math.round);
  return inside(rounded) ? rounded : null;
}

// ------------------------------------------------------------------------------------------------------- keyboard

const KEYS = [                                // keys, and what they do
  [["ArrowLeft"], () => moveAlong(activePlane().across, 1)],
  [["ArrowRight"], () => moveAlong(activePlane().across, -1)],
  [["ArrowUp"], () => moveAlong(activePlane().up, 1)],
  [["ArrowDown"], () => moveAlong(activePlane().up, -1)],
  [["PageUp", "."], () => moveAlong(activePlane().normal, 1)],
  [["PageDown", ","], () => moveAlong(activePlane().normal, -1)],
  [["1"], () => enlarge("axial")],
  [["2"], () => enlarge("coronal")],
  [["3"], () => enlarge("sagittal")],
  [["s"], () => setWindow(...WINDOWS.soft)],
  [["l"], () => setWindow(...WINDOWS.lung)],
  [["b"], () => setWindow(...WINDOWS.bone)],
  [["["], () => setWindow(view.window[0], view.window[1] / 1.1)],
  [["]"], () => setWindow(view.window[0], view.window[1] * 1.1)],
  [["m"], () => { view.mode = MODES[(MODES.indexOf(view.mode) + 1) % 3]; redraw(); }],
  [["h"], () => { setAllShown(view.hidden.size > 0); }],
  [["n"], () => nextClass(1)],
  [["p"], () => nextClass(-1)],
  [["x"], () => { view.crosshair = !view.crosshair; redraw(); }],
  [["i"], () => { view.smooth = !view.smooth; redraw(); }],
  [["+", "="], () => zoomBy(1.25)],
  [["-"], () => zoomBy(0.8)],
  [["0"], () => zoomBy(0)],
  [["?"], () => byId("help").showModal()],
];

const HELP = [
  ["click, drag, one finger", "move the crosshair; the other planes follow"],
  ["wheel, slider, Page up and down, comma and full stop", "go through the slices"],
  ["arrow keys", "move the crosshair by a voxel in the plane used last"],
  ["1  2  3, double click", "make the axial, coronal or sagittal plane the large one"],
  ["click a name, n, p", "go to the middle of a class, of the next one, of the one before"],
  ["tick a box, h", "hide or show a class, all classes"],
  ["s  l  b", "window for soft tissue, lung, bone"],
  ["[  ], drag with the right button", "narrower or wider window; drag up and down for its centre"],
  ["m", "outline and fill, fill, outline"],
  ["i", "show the voxels as they are, or interpolate between them"],
  ["+  −  0, Ctrl and wheel, two fingers", "zoom in, out, back; move with Shift and drag"],
  ["x", "crosshair on or off"],
  ["?", "this help; Escape closes it"],
];

function onKey(event) {
  if (event.ctrlKey || event.metaKey || event.altKey || byId("help").open) return;
  if (event.target.tagName === "INPUT" && (event.target.type === "number" || event.key.startsWith("Arrow"))) return;
  const entry = KEYS.find(([keys]) => keys.includes(event.key) || keys.includes(event.key.toLowerCase()));
  if (!entry) return;
  event.preventDefault();
  entry[1]();
}

// -------------------------------------------------------------------------------------------------------- buttons

function setAllShown(shown) {
  view.hidden = new Set(shown ? [] : data.classes.keys());
  redraw();
}

function listenToButtons() {
  for (const plane of planes) {
    const slider = plane.panel.querySelector(".slice");
    slider.max = SHAPE[plane.normal] - 1;
    slider.addEventListener("input", () => moveAlong(plane.normal, Number(slider.value) - view.at[plane.normal]));
    plane.panel.querySelector(".enlarge").addEventListener("click", () => enlarge(plane.name));
  }
  for (const button of byId("windows").children) {
    button.addEventListener("click", () => setWindow(...WINDOWS[button.dataset.window]));
  }
  for (const button of byId("modes").children) {
    button.addEventListener("click", () => { view.mode = button.dataset.mode; redraw(); });
  }
  byId("opacity").addEventListener("input", event => { view.opacity = event.target.value / 100; redraw(); });
  byId("window-centre").addEventListener("change", event => setWindow(Number(event.target.value), view.window[1]));
  byId("window-width").addEventListener("change", event => setWindow(view.window[0], Number(event.target.value)));
  byId("show-all").addEventListener("click", () => setAllShown(true));
  byId("hide-all").addEventListener("click", () => setAllShown(false));
  byId("help-button").addEventListener("click", () => byId("help").showModal());
  byId("help-close").addEventListener("click", () => byId("help").close());
  for (const [keys, does] of HELP) {
    const row = element("tr");
    row.append(element("th", keys), element("td", does));
    byId("keys").append(row);
  }
  document.addEventListener("keydown", onKey);
  new ResizeObserver(redraw).observe(byId("planes"));
}
