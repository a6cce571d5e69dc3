// The cases of a folder. Names and warnings come from outside: they are only ever set as text.

"use strict";

const data = JSON.parse(document.getElementById("data").textContent);

function card(one) {
  const made = element("article");
  const link = element(one.view ? "a" : "div", undefined, "picture");
  if (one.view) link.href = one.view;
  if (one.thumbnail) {
    const picture = element("img");
    picture.src = one.thumbnail;
    picture.alt = "";
    link.append(picture);
  } else {
    link.append(element("span", one.view ? "no picture" : "no viewer: run again with --view --resume"));
  }
  const words = element("div", undefined, "words");
  const heading = element("h2");
  const name = element(one.view ? "a" : "bdi", one.case);
  if (one.view) name.href = one.view;
  heading.append(name);
  words.append(heading, warnings(one), volumes(one));
  made.append(link, words);
  made.dataset.text = [one.case, ...one.warnings, ...one.classes.map(c => c.title)].join("\n").toLowerCase();
  return made;
}

function warnings(one) {
  const list = element("ul", undefined, "warnings");
  for (const warning of one.warnings) list.append(element("li", warning));
  return list;
}

function volumes(one) {
  const list = element("ul", undefined, "volumes");
  for (const c of one.classes) {
    const row = element("li");
    const swatch = element("span", undefined, "swatch");
    swatch.style.backgroundColor = `rgb(${c.color.join(", ")})`;
    const name = element("bdi", c.title, "name");
    row.append(swatch, name);
    if (c.experimental) {
      const mark = element("span", "experimental", "mark");
      mark.title = c.experimental;
      name.append(" ", mark);
    }
    if (c.border) {
      const mark = element("span", "cut", "mark");
      mark.title = "Reaches the edge of the CT: the volume is a part.";
      name.append(" ", mark);
    }
    row.append(element("span", `${millilitres(c.ml)} ml`, "ml"));
    list.append(row);
  }
  if (one.absent) list.append(element("li", `${one.absent} more looked for and not found`, "absent"));
  return list;
}

function show(words) {
  let shown = 0;
  for (const one of document.getElementById("cases").children) {
    one.hidden = !one.dataset.text.includes(words.trim().toLowerCase());
    if (!one.hidden) shown += 1;
  }
  const all = data.cases.length;
  const count = all === 1 ? "1 case" : `${all} cases`;
  const warned = data.cases.filter(one => one.warnings.length).length;
  document.getElementById("count").textContent =
    (shown === all ? count : `${shown} of ${count}`) + `, ${warned || "none"} with warnings`;
}

document.title = data.folder;
document.getElementById("folder").textContent = data.folder;
for (const one of data.cases) document.getElementById("cases").append(card(one));
for (const line of data.about) document.getElementById("about").append(element("p", line));
document.getElementById("find").addEventListener("input", event => show(event.target.value));
show("");
