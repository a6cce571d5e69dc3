// The voxels of the page: decoding them, and what lies at one of them.
//
// An index [i, j, k] counts voxels from the patient's left to the right, from back to front, from bottom to top, as
// arrays in the Python package do. Axis 0 is the fastest in memory.

"use strict";

const data = JSON.parse(document.getElementById("data").textContent);
const SHAPE = data.grid.shape;
const SPACING = data.grid.spacing_mm;
const STRIDE = [1, SHAPE[0], SHAPE[0] * SHAPE[1]];
const volume = { ct: null, codes: null };     // Uint8Array, and Uint8Array or Uint16Array

async function loadVolume() {
  if (typeof DecompressionStream === "undefined") {
    throw new Error("This browser cannot unpack the images. Use Chrome or Edge 80, Safari 16.4, Firefox 113 or newer.");
  }
  const count = SHAPE[0] * SHAPE[1] * SHAPE[2];
  volume.ct = summedUp(await inflated("ct", count));
  if (data.grid.bytes_per_code === 1) {
    volume.codes = summedUp(await inflated("codes", count));
  } else {                                    // all low bytes, then all high bytes
    const bytes = await inflated("codes", 2 * count);
    const low = summedUp(bytes.subarray(0, count));
    const high = summedUp(bytes.subarray(count));
    volume.codes = Uint16Array.from(low, (value, n) => value + 256 * high[n]);
  }
}

// The bytes of an element of the page: base64, then gzip.
async function inflated(id, expected) {
  const element = document.getElementById(id);
  const text = atob(element.textContent);
  element.textContent = "";                   // the text takes more memory than the voxels
  const packed = new Uint8Array(text.length);
  for (let n = 0; n < text.length; n++) packed[n] = text.charCodeAt(n);
  const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));
  const bytes = new Uint8Array(await new Response(stream).arrayBuffer());
  if (bytes.length !== expected) throw new Error("The images in this file are damaged. Make the file again.");
  return bytes;
}

// Undo the differences along axis 0 (encoding.py); an Uint8Array counts modulo 256 by itself.
function summedUp(bytes) {
  for (let row = 0; row < bytes.length; row += SHAPE[0]) {
    for (let n = row + 1; n < row + SHAPE[0]; n++) bytes[n] += bytes[n - 1];
  }
  return bytes;
}

function offset(index) {
  return index[0] + STRIDE[1] * index[1] + STRIDE[2] * index[2];
}

function inside(index) {
  return index.every((value, axis) => value >= 0 && value < SHAPE[axis]);
}

function nearestInside(index) {
  return index.map((value, axis) => Math.min(SHAPE[axis] - 1, Math.max(0, Math.round(value))));
}

// An affine (4 rows of 4) applied to an index.
function transform(affine, index) {
  return [0, 1, 2].map(r => affine[r][0] * index[0] + affine[r][1] * index[1] + affine[r][2] * index[2] + affine[r][3]);
}

// "R 12.3  A 40.0  S 1034.5": the distances in mm from the origin of the scanner, with the direction of each.
function positionText(index) {
  const names = [["L", "R"], ["P", "A"], ["I", "S"]];
  return transform(data.grid.affine, index)
    .map((mm, axis) => `${names[axis][mm < 0 ? 0 : 1]} ${Math.abs(mm).toFixed(1)}`).join("  ");
}

// HU as they are stored in the page: with the largest error of the rounding to one byte.
function huText(index) {
  const byte = volume.ct[offset(index)];
  const values = data.hu_of_byte;
  if (byte === 0) return `${values[0]} HU or less`;
  if (byte === values.length - 1) return `${values[byte]} HU or more`;
  const error = Math.ceil(Math.max(values[byte] - values[byte - 1], values[byte + 1] - values[byte]) / 2);
  return `about ${values[byte]} HU (±${error})`;
}

// The classes of a voxel, the one on top first.
function classesAt(index) {
  return data.combinations[volume.codes[offset(index)]].map(position => data.classes[position]);
}
