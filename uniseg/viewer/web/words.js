// What both pages write: elements with text, and volumes. Text from outside is only ever set as text.

"use strict";

function element(kind, text, className) {
  const made = document.createElement(kind);
  if (text !== undefined) made.textContent = text;
  if (className) made.className = className;
  return made;
}

// 1234.5 -> "1,235", 12.34 -> "12.3", 0.034 -> "0.034"
function millilitres(ml) {
  const digits = ml >= 100 ? 0 : ml >= 1 ? 1 : 3;
  return ml.toLocaleString("en", { minimumFractionDigits: digits, maximumFractionDigits: digits });
}
