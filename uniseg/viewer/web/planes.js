// The three planes: where a voxel lies on the screen, and how a slice is drawn.
//
// In every plane the index grows to the left and upwards: the patient's right is on the left of the screen, as a
// radiologist looks from the feet or from the front; the sagittal plane shows the front of the body on the left.

"use strict";

const PLANES = {
  axial: { title: "Axial", normal: 2, across: 0, up: 1 },
  coronal: { title: "Coronal", normal: 1, across: 0, up: 2 },
  sagittal: { title: "Sagittal", normal: 0, across: 1, up: 2 },
};

const view = {
  at: SHAPE.map(n => Math.floor(n / 2)),      // the voxel of the crosshair
  centre: SHAPE.map(n => (n - 1) / 2),        // index in the middle of every plane
  zoom: 1,
  window: [40, 400],                          // HU in the middle, and from black to white
  mode: "both",                               // fill, outline, both
  opacity: 0.35,
  hidden: new Set(),                          // positions of classes
  crosshair: true,
  smooth: true,                               // interpolate between voxels
  main: "axial",                              // the large plane
  active: "axial",                            // the plane that the keyboard moves in
};

class Plane {
  constructor(name) {
    Object.assign(this, PLANES[name], { name });
    this.panel = document.getElementById(name);
    this.canvas = this.panel.querySelector("canvas");
    this.columns = SHAPE[this.across];
    this.rows = SHAPE[this.up];
    this.ct = layer(this.columns, this.rows);
    this.masks = null;
  }

  // Size of the panel in pixels of the page, and pixels per mm.
  measure() {
    const box = this.canvas.getBoundingClientRect();
    this.width = Math.max(1, Math.round(box.width));
    this.height = Math.max(1, Math.round(box.height));
    this.density = Math.min(2, window.devicePixelRatio || 1);
    const [w, h] = [Math.round(this.width * this.density), Math.round(this.height * this.density)];
    if (this.canvas.width !== w || this.canvas.height !== h) {
      this.canvas.width = w;
      this.canvas.height = h;
    }
    const fit = Math.min(this.width / (this.columns * SPACING[this.across]), this.height / (this.rows * SPACING[this.up]));
    this.scale = fit * view.zoom;
  }

  // Pixels of an index, and the index, not rounded, of a pixel.
  toScreen(index) {
    return [this.width / 2 - (index[this.across] - view.centre[this.across]) * SPACING[this.across] * this.scale,
      this.height / 2 - (index[this.up] - view.centre[this.up]) * SPACING[this.up] * this.scale];
  }

  toIndex(x, y) {
    const index = view.at.slice();
    index[this.across] = view.centre[this.across] - (x - this.width / 2) / (SPACING[this.across] * this.scale);
    index[this.up] = view.centre[this.up] - (y - this.height / 2) / (SPACING[this.up] * this.scale);
    return index;
  }

  // The rectangle of the whole slice on the screen: left, top, width, height.
  rectangle() {
    const corner = view.at.slice();
    corner[this.across] = this.columns - 0.5;
    corner[this.up] = this.rows - 0.5;
    return [...this.toScreen(corner), this.columns * SPACING[this.across] * this.scale,
      this.rows * SPACING[this.up] * this.scale];
  }

  draw() {
    this.measure();
    const context = this.canvas.getContext("2d");
    context.setTransform(this.density, 0, 0, this.density, 0, 0);
    context.fillStyle = "#000";
    context.fillRect(0, 0, this.width, this.height);
    this.drawCt(context);
    this.drawMasks(context);
    if (view.crosshair) this.drawCrosshair(context);
    this.drawLetters(context);
    this.drawScaleBar(context);
  }

  drawCt(context) {
    const image = this.ct.image;
    const pixels = new Uint32Array(image.data.buffer);
    const grey = greys();
    const [right, up] = [STRIDE[this.across], STRIDE[this.up]];
    const start = view.at[this.normal] * STRIDE[this.normal];
    let pixel = 0;
    for (let row = this.rows - 1; row >= 0; row--) {
      for (let column = this.columns - 1; column >= 0; column--) {
        pixels[pixel++] = grey[volume.ct[start + row * up + column * right]];
      }
    }
    this.ct.context.putImageData(image, 0, 0);
    context.imageSmoothingEnabled = view.smooth;
    context.imageSmoothingQuality = "medium";   // averages where many voxels share a pixel
    context.drawImage(this.ct.canvas, ...this.rectangle());
  }

  // Masks are drawn in pixels of the screen, so that outlines are thin however large a voxel is.
  drawMasks(context) {
    const [width, height] = [this.canvas.width, this.canvas.height];
    if (!this.masks || this.masks.canvas.width !== width || this.masks.canvas.height !== height) {
      this.masks = layer(width, height);
    }
    const ids = this.idsOnScreen(width, height);
    const pixels = new Uint32Array(this.masks.image.data.buffer).fill(0);
    const fill = colours(view.mode === "outline" ? 0 : view.opacity);
    const line = colours(view.mode === "fill" ? view.opacity : view.mode === "both" ? 1 : Math.max(view.opacity, 0.1));
    const step = Math.round((view.mode === "outline" ? 2 : 1.3) * this.density);    // width of the outline
    for (let y = step, last = height - step; y < last; y++) {
      for (let n = y * width + step, end = (y + 1) * width - step; n < end; n++) {
        const id = ids[n];
        if (id === 0) continue;
        const edge = ids[n - step] !== id || ids[n + step] !== id || ids[n - step * width] !== id ||
          ids[n + step * width] !== id;
        pixels[n] = edge ? line[id] : fill[id];
      }
    }
    this.masks.context.putImageData(this.masks.image, 0, 0);
    context.save();
    context.setTransform(1, 0, 0, 1, 0, 0);
    context.drawImage(this.masks.canvas, 0, 0);
    context.restore();
  }

  // For each pixel of the screen, 1 + the position of the class that is shown there, or 0.
  idsOnScreen(width, height) {
    const ids = new Uint8Array(width * height);
    const shown = shownClasses();
    const columns = this.samples(width, this.width, this.across);
    const rows = this.samples(height, this.height, this.up);
    const start = view.at[this.normal] * STRIDE[this.normal];
    const codes = volume.codes;
    for (let y = 0; y < height; y++) {
      if (rows.low[y] < 0) continue;
      const below = start + rows.low[y], above = start + rows.high[y], upwards = rows.share[y], pixel = y * width;
      for (let x = 0; x < width; x++) {
        const left = columns.low[x];
        if (left < 0) continue;
        const right = columns.high[x];
        const a = codes[below + left], b = codes[below + right], c = codes[above + left], d = codes[above + right];
        ids[pixel + x] = a === b && a === c && a === d ? shown[a]
          : heaviest(shown[a], shown[b], shown[c], shown[d], columns.share[x], upwards);
      }
    }
    return ids;
  }

  // Along one axis, for each pixel of the screen: the offsets of the voxels on both sides of it, and how near it is to
  // the second one, 0 to 1. Where voxels are not interpolated, both are the nearest one. -1 is outside.
  samples(pixels, length, axis) {
    const [low, high, share] = [new Int32Array(pixels).fill(-1), new Int32Array(pixels), new Float32Array(pixels)];
    const n = SHAPE[axis];
    for (let pixel = 0; pixel < pixels; pixel++) {
      const from = (pixel + 0.5) / pixels * length - length / 2;
      const at = view.centre[axis] - from / (SPACING[axis] * this.scale);
      if (at < -0.5 || at >= n - 0.5) continue;
      const exact = view.smooth ? at : Math.round(at);
      const first = Math.floor(exact);
      low[pixel] = Math.max(0, first) * STRIDE[axis];
      high[pixel] = Math.min(n - 1, first + 1) * STRIDE[axis];
      share[pixel] = exact - first;
    }
    return { low, high, share };
  }

  drawCrosshair(context) {
    const [x, y] = this.toScreen(view.at).map(value => Math.round(value) + 0.5);
    const gap = 7;
    context.lineWidth = 1;
    context.strokeStyle = "rgba(120, 220, 255, 0.75)";
    context.beginPath();
    for (const [x0, y0, x1, y1] of [[0, y, x - gap, y], [x + gap, y, this.width, y], [x, 0, x, y - gap],
      [x, y + gap, x, this.height]]) {
      context.moveTo(x0, y0);
      context.lineTo(x1, y1);
    }
    context.stroke();
  }

  drawLetters(context) {
    const [across, up] = [data.grid.letters[this.across], data.grid.letters[this.up]];
    const [w, h] = [this.width, this.height];
    context.font = "600 14px system-ui, sans-serif";
    write(context, across[1], 10, h / 2, "left");
    write(context, across[0], w - 10, h / 2, "right");
    write(context, up[1], w / 2, w < 280 ? 34 : 14, "center");            // below the heading of a small panel
    write(context, up[0], w / 2, h - 14, "center");
  }

  drawScaleBar(context) {
    const mm = [200, 100, 50, 20, 10, 5, 2, 1].find(length => length * this.scale < this.width * 0.3) || 1;
    const length = mm * this.scale;
    const [x, y] = [this.width - 12, this.height - 12];
    context.font = "12px system-ui, sans-serif";
    write(context, mm >= 10 ? `${mm / 10} cm` : `${mm} mm`, x, y - 10, "right");
    context.fillStyle = "#000";
    context.fillRect(x - length - 1, y - 2, length + 2, 4);
    context.fillStyle = "#fff";
    context.fillRect(x - length, y - 1, length, 2);
  }
}

// A canvas in memory, with the pixels that are put into it.
function layer(width, height) {
  const canvas = document.createElement("canvas");
  canvas.width = width;
  canvas.height = height;
  const context = canvas.getContext("2d");
  return { canvas, context, image: context.createImageData(width, height) };
}

// White text with a black rim.
function write(context, text, x, y, align) {
  context.textAlign = align;
  context.textBaseline = "middle";
  context.lineJoin = "round";
  context.lineWidth = 3;
  context.strokeStyle = "#000";
  context.strokeText(text, x, y);
  context.fillStyle = "#fff";
  context.fillText(text, x, y);
}

// Of four neighbours the class with most weight, as linear interpolation of each class by itself would choose.
function heaviest(a, b, c, d, x, y) {
  const ofA = (1 - x) * (1 - y), ofB = x * (1 - y), ofC = (1 - x) * y, ofD = x * y;
  const allA = ofA + (b === a ? ofB : 0) + (c === a ? ofC : 0) + (d === a ? ofD : 0);
  const allB = ofB + (a === b ? ofA : 0) + (c === b ? ofC : 0) + (d === b ? ofD : 0);
  const allC = ofC + (a === c ? ofA : 0) + (b === c ? ofB : 0) + (d === c ? ofD : 0);
  const most = Math.max(allA, allB, allC, ofD);
  return most === allA ? a : most === allB ? b : most === allC ? c : d;
}

// For each combination of classes, 1 + the position of the first one that is not hidden, or 0.
function shownClasses() {
  return Uint8Array.from(data.combinations, members => 1 + (members.find(k => !view.hidden.has(k)) ?? -1));
}

// For each of the 256 values of a byte, a pixel of its grey in the present window.
function greys() {
  const [centre, width] = view.window;
  return Uint32Array.from(data.hu_of_byte, hu => {
    const grey = Math.min(255, Math.max(0, Math.round((hu - centre + width / 2) / width * 255)));
    return packedColour([grey, grey, grey], 1);
  });
}

// For each id, a pixel of its class's colour.
function colours(opacity) {
  return Uint32Array.from([0, ...data.classes.map(one => packedColour(one.color, opacity))]);
}

function packedColour([red, green, blue], opacity) {
  const bytes = new Uint8ClampedArray([red, green, blue, 255 * opacity]);
  return new Uint32Array(bytes.buffer)[0];
}
