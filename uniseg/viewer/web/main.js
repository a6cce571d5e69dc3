// The start: words first, so that they are there even where the images cannot be shown.

"use strict";

const planes = Object.keys(PLANES).map(name => new Plane(name));

async function start() {
  fillWords();
  await loadVolume();
  view.at = data.start;
  view.main = view.active = data.main;
  listenToButtons();
  planes.forEach(listenTo);
  redraw();
  byId("message").hidden = true;
  document.body.classList.add("ready");
}

start().catch(error => { byId("message").textContent = error.message; });
