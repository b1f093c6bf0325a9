// The page of serve.py: sends a picture, draws the masks of the answer, and writes them as files.
// The server sends all objects once; sliders and downloads need nothing more of it. Texts of the answer, such as names
// of classes, become text only, never HTML.
"use strict";

const $ = id => document.getElementById(id);
const SMALLEST = 900, LARGEST = 1600; // pixels of the canvas's longer side
const FEW = 30; // as many objects get captions that stick out of their boxes
let state = null; // of the picture that is shown: {name, width, height, base, objects, chosen}
let running = null; // the AbortController of the request

// ---- masks ----

// The runs of COCO's run-length code, down the columns, the background's first. A compressed number has five bits a
// character, the lowest first; the sixth bit says that more follow. From the fourth number on, it is the difference
// from the number two before. Source: pycocotools, maskApi.c, rleFrString.
function decodeRuns(counts) {
  if (Array.isArray(counts)) return counts;
  const runs = [];
  for (let i = 0; i < counts.length;) {
    let value = 0, shift = 0, code;
    do {
      code = counts.charCodeAt(i++) - 48;
      value |= (code & 31) << shift;
      shift += 5;
    } while (code & 32);
    if (code & 16 && shift < 32) value |= -1 << shift;
    runs.push(runs.length > 2 ? value + runs[runs.length - 2] : value);
  }
  return runs;
}

// The mask of a run-length code: its box {x1, y1, x2, y2} (the latter two outside), its area, spans [y1, y2, ...] of
// rows in all columns of the box, and where each column's spans begin: starts[x - x1], with one more at the end.
function maskOf(segmentation) {
  const height = segmentation.size[0], spans = [], columns = [];
  let place = 0, isInside = false, area = 0, y1 = Infinity, y2 = 0;
  for (const run of decodeRuns(segmentation.counts)) {
    for (let at = place, end = place + run; isInside && at < end;) {
      const x = Math.floor(at / height), top = at - x * height, bottom = Math.min(height, top + end - at);
      const last = columns.length - 1;
      if (last >= 0 && columns[last] === x && spans[spans.length - 1] === top) spans[spans.length - 1] = bottom;
      else { spans.push(top, bottom); columns.push(x); }
      [area, y1, y2, at] = [area + bottom - top, Math.min(y1, top), Math.max(y2, bottom), at + bottom - top];
    }
    place += run;
    isInside = !isInside;
  }
  if (!columns.length) return { x1: 0, y1: 0, x2: 0, y2: 0, area: 0, spans: [], starts: [0] };
  const x1 = columns[0], x2 = columns[columns.length - 1] + 1, starts = new Int32Array(x2 - x1 + 1);
  for (const x of columns) starts[x - x1 + 1] += 2;
  for (let i = 1; i < starts.length; i++) starts[i] += starts[i - 1];
  return { x1, y1, x2, y2, area, spans: Int32Array.from(spans), starts };
}

// The mask inside its box, scaled: {left, top, width, height, inside} of pixels of the canvas. A pixel is inside if its
// centre is.
function scaledCrop(mask, scale) {
  const first = value => Math.ceil(value * scale - 0.5);
  const left = first(mask.x1), top = first(mask.y1), width = first(mask.x2) - left, height = first(mask.y2) - top;
  const inside = new Uint8Array(Math.max(0, width * height));
  for (let column = 0; column < width; column++) {
    const place = Math.min(mask.x2 - 1, Math.floor((left + column + 0.5) / scale)) - mask.x1;
    for (let i = mask.starts[place]; i < mask.starts[place + 1]; i += 2) {
      const end = first(mask.spans[i + 1]) - top;
      for (let row = first(mask.spans[i]) - top; row < end; row++) inside[row * width + column] = 1;
    }
  }
  return { left, top, width, height, inside };
}

function contains(mask, x, y) {
  if (x < mask.x1 || x >= mask.x2) return false;
  const place = Math.floor(x) - mask.x1;
  for (let i = mask.starts[place]; i < mask.starts[place + 1]; i += 2)
    if (y >= mask.spans[i] && y < mask.spans[i + 1]) return true;
  return false;
}

// ---- drawing ----

// The colours of visualize.py, far apart for colour-blind eyes too. After ten, they repeat, darker or lighter.
const PALETTE = ["0099ff", "ffe680", "cc0066", "b3ff00", "66ffcc", "b31ab3", "ff1a00", "ffb3ff", "334dff", "e68066"];

function colorOf(index) {
  const turn = Math.floor(index / PALETTE.length), share = 0.45 * ((turn * (Math.sqrt(5) - 1) / 2) % 1);
  const pure = PALETTE[index % PALETTE.length].match(/../g).map(pair => parseInt(pair, 16));
  return pure.map(value => Math.round(value + share * (255 * (turn % 2) - value)));
}

const isShown = object => object.classScore >= Number($("score").value) &&
  (object.maskIou === null || Number($("quality").value) === 0 || object.maskIou >= Number($("quality").value));
const shownObjects = () => (state && state.objects ? state.objects.filter(isShown) : []);

function paintMask(frame, object, isFaint) {
  const crop = scaledCrop(object.mask, state.scale), { width, height, inside } = crop;
  const line = object === state.chosen ? 3 : 2;
  const isEdge = (row, column) => row < line || column < line || row >= height - line || column >= width - line ||
    !inside[(row - line) * width + column] || !inside[(row + line) * width + column] ||
    !inside[row * width + column - line] || !inside[row * width + column + line];
  for (let row = 0; row < height; row++) {
    for (let column = 0; column < width; column++) {
      if (!inside[row * width + column]) continue;
      const [x, y] = [crop.left + column, crop.top + row];
      if (x < 0 || y < 0 || x >= frame.width || y >= frame.height) continue;
      const share = (isEdge(row, column) ? 0.95 : 0.42) * (isFaint ? 0.35 : 1), at = (y * frame.width + x) * 4;
      for (let c = 0; c < 3; c++) frame.data[at + c] += share * (object.color[c] - frame.data[at + c]);
    }
  }
}

// taken: the boxes of the captions so far, [x1, y1, x2, y2]. One that would hide another goes below it or is left out.
function paintCaption(context, object, size, isFree, taken) {
  const numbers = [object.classScore.toFixed(2)];
  if (object.maskIou !== null) numbers.push(`IoU ${object.maskIou.toFixed(2)}`);
  const room = (object.mask.x2 - object.mask.x1) * state.scale, number = String(object.number);
  const texts = [`${number} ${object.name} ${numbers.join(" \u00b7 ")}`, `${number} ${object.name}`, number];
  let text = texts.find(each => context.measureText(each).width + size <= room);
  if (isFree && (text === undefined || text === number)) text = texts[1];
  if (object === state.chosen) text = texts[0];
  if (text === undefined) return;
  const width = context.measureText(text).width + size * 0.7, height = size * 1.35;
  const x = Math.max(0, Math.min(object.mask.x1 * state.scale, context.canvas.width - width));
  let y = Math.max(0, object.mask.y1 * state.scale - height);
  const isTaken = () => taken.some(([x1, y1, x2, y2]) => x < x2 && x1 < x + width && y < y2 && y1 < y + height);
  if (isTaken()) y += height;
  if (isTaken()) return;
  taken.push([x, y, x + width, y + height]);
  context.fillStyle = `rgb(${object.color.map(value => Math.round(value * 0.35)).join(" ")} / 85%)`;
  context.fillRect(x, y, width, height);
  context.fillStyle = "#fff";
  context.fillText(text, x + size * 0.35, y + height * 0.52);
}

function paint() {
  if (!state || !state.base) return;
  const canvas = $("canvas"), context = canvas.getContext("2d"), objects = shownObjects();
  const frame = new ImageData(new Uint8ClampedArray(state.base.data), canvas.width, canvas.height);
  const order = [...objects].reverse(); // the best on top
  if (objects.includes(state.chosen)) order.push(order.splice(order.indexOf(state.chosen), 1)[0]);
  for (const object of order) paintMask(frame, object, state.chosen && object !== state.chosen);
  context.putImageData(frame, 0, 0);
  if (!$("captions").checked) return;
  const size = 13 * (canvas.clientWidth ? canvas.width / canvas.clientWidth : 1);
  context.font = `600 ${size}px system-ui, sans-serif`;
  context.textBaseline = "middle";
  const taken = [];
  for (const object of state.chosen ? [state.chosen] : objects)
    paintCaption(context, object, size, objects.length <= FEW, taken);
}

// ---- numbers ----

function element(tag, text, parent) {
  const made = document.createElement(tag);
  made.textContent = text;
  parent.append(made);
  return made;
}

const shortName = name => (name.length > 60 ? `${name.slice(0, 60)}\u2026` : name);
const rounded = value => (value === null ? "-" : value.toFixed(2));

function showChosen() {
  const { chosen } = state, list = $("numbers");
  list.replaceChildren();
  $("object").firstElementChild.textContent = chosen ? `Object ${chosen.number}` : "Object";
  if (!chosen) {
    element("dd", "None is chosen.", list);
    return;
  }
  const { x1, y1, x2, y2, area } = chosen.mask;
  const rows = [["class", chosen.name], ["class score", chosen.classScore.toFixed(3)],
    ["predicted IoU", chosen.maskIou === null ? "-" : chosen.maskIou.toFixed(3)],
    ["mask score", chosen.maskScore.toFixed(3)], ["area", `${area.toLocaleString("en")} px`],
    ["width x height", `${x2 - x1} x ${y2 - y1} px`], ["left, top", `${x1}, ${y1}`]];
  for (const [name, text] of rows) {
    const row = element("div", "", list);
    element("dt", name, row);
    element("dd", text, row);
  }
}

function showTable(objects) {
  const body = $("rows");
  const had = body.contains(document.activeElement) ? document.activeElement.textContent : null;
  body.replaceChildren();
  for (const object of objects) {
    const row = element("tr", "", body), head = element("th", "", row), button = element("button", object.number, head);
    head.scope = "row";
    button.type = "button";
    button.setAttribute("aria-pressed", object === state.chosen);
    button.addEventListener("click", () => choose(object === state.chosen ? null : object));
    if (object === state.chosen) row.setAttribute("aria-current", "true");
    const name = element("td", "", row), dot = element("span", "", name);
    dot.className = "dot";
    dot.style.background = `rgb(${object.color.join(" ")})`;
    name.append(object.name);
    const cells = [rounded(object.classScore), rounded(object.maskIou), rounded(object.maskScore)];
    for (const text of [...cells, object.mask.area.toLocaleString("en")]) element("td", text, row);
    if (had === String(object.number)) button.focus();
  }
}

function update() {
  for (const name of ["score", "quality"]) $(`${name}-value`).value = Number($(name).value).toFixed(2);
  if (!state || !state.objects) return;
  const objects = shownObjects();
  if (state.chosen && !objects.includes(state.chosen)) state.chosen = null;
  $("count").textContent = `${objects.length} of ${state.objects.length} objects`;
  for (const button of $("downloads").children) button.disabled = !objects.length;
  showTable(objects);
  showChosen();
  paint();
}

function choose(object) {
  state.chosen = object;
  update();
}

// ---- a picture ----

function say(text, error = "") {
  $("status").textContent = text;
  $("error").textContent = error;
  $("error").hidden = !error;
}

// Sets the canvas to the picture's shape, at most LARGEST pixels wide and high. image: null for a picture that the
// browser cannot read.
function setCanvas(width, height, image) {
  const canvas = $("canvas"), longest = Math.max(width, height);
  state.scale = Math.min(Math.max(longest, SMALLEST), LARGEST) / longest;
  canvas.width = Math.max(1, Math.round(width * state.scale));
  canvas.height = Math.max(1, Math.round(height * state.scale));
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.imageSmoothingQuality = "high";
  context.fillStyle = "#808080";
  context.fillRect(0, 0, canvas.width, canvas.height);
  if (image) context.drawImage(image, 0, 0, canvas.width, canvas.height);
  state.base = context.getImageData(0, 0, canvas.width, canvas.height);
}

function objectsOf(answer) {
  const entries = [...answer.detections].sort((a, b) => b.score - a.score);
  return entries.map((entry, index) => ({
    number: index + 1, name: shortName(entry.class_name), fullName: entry.class_name, category: entry.category_id,
    classScore: entry.class_score, maskIou: entry.mask_iou, maskScore: entry.score, segmentation: entry.segmentation,
    mask: maskOf(entry.segmentation), color: colorOf(index),
  }));
}

async function ask(file, signal) {
  const type = { "Content-Type": "application/octet-stream" };
  const body = await file.arrayBuffer().catch(() => { throw new Error("The browser cannot read the file; was it moved?"); });
  const response = await fetch("detect", { method: "POST", body, headers: type, signal });
  const text = await response.text();
  let answer;
  try { answer = JSON.parse(text); } catch { answer = { error: `The server answers with status ${response.status}.` }; }
  if (!response.ok) throw new Error(answer.error);
  return answer;
}

async function detect(file) {
  running?.abort();
  const mine = running = new AbortController();
  const ours = state = { name: file.name || "picture.png", objects: null, chosen: null, base: null };
  $("result").hidden = true;
  say(`Looking for objects in ${shortName(ours.name)} \u2026`);
  const image = await createImageBitmap(file).catch(() => null);
  if (ours !== state) return;
  try {
    const answer = await ask(file, mine.signal);
    if (ours !== state) return;
    Object.assign(ours, answer.image, { name: ours.name, categories: answer.categories, objects: objectsOf(answer) });
    setCanvas(ours.width, ours.height, image);
    const hasIou = ours.objects.some(object => object.maskIou !== null);
    $("quality").disabled = ours.objects.length > 0 && !hasIou;
    if ($("quality").disabled) $("quality-words").textContent = "this model does not predict it";
    $("result").hidden = false;
    const note = image ? "" : " This browser cannot show this kind of picture, so the masks are on gray.";
    say(`${shortName(ours.name)}: ${ours.width} x ${ours.height} pixels, ${answer.seconds.toFixed(2)} s.${note}`);
    update();
  } catch (error) {
    if (ours !== state || error.name === "AbortError") return;
    const reason = error instanceof TypeError ? "The server does not answer; is it still running?" : error.message;
    say("", reason);
  } finally {
    image?.close();
  }
}

// ---- files ----

// The rings around a mask's pixels, as [[x, y], ...] of their corners, with the mask at the right hand of whoever walks
// along. Pixels that touch at a corner only are of two parts. No ring comes to a corner twice.
function ringsOf(mask) {
  const { left, top, width, height, inside } = scaledCrop(mask, 1), isDone = new Uint8Array(inside.length), rings = [];
  const at = (x, y) => x >= 0 && y >= 0 && x < width && y < height && inside[y * width + x] === 1;
  const steps = [[1, 0], [0, 1], [-1, 0], [0, -1]]; // right, down, left, up
  const ahead = [[0, 0], [-1, 0], [-1, -1], [0, -1]]; // the pixel at the right hand of each step, from its corner
  for (let start = 0; start < inside.length; start++) {
    const [y0, x0] = [Math.floor(start / width), start % width];
    if (!inside[start] || isDone[start] || at(x0, y0 - 1)) continue;
    const ring = [];
    let [x, y, way] = [x0, y0, 0];
    do {
      if (way === 0) isDone[y * width + x] = 1;
      x += steps[way][0];
      y += steps[way][1];
      const leftHand = (way + 3) % 4;
      let next = way;
      if (!at(x + ahead[way][0], y + ahead[way][1])) next = (way + 1) % 4;
      else if (at(x + ahead[leftHand][0], y + ahead[leftHand][1])) next = leftHand;
      if (next !== way) ring.push([x + left, y + top]);
      way = next;
    } while (x !== x0 || y !== y0 || way !== 0);
    rings.push(...untouching(ring));
  }
  return rings;
}

// A ring, divided where it comes to a corner for the second time.
function untouching(ring) {
  const rings = [], path = [], places = new Map();
  for (const corner of ring) {
    const key = `${corner}`;
    if (places.has(key)) {
      const part = path.splice(places.get(key) + 1);
      for (const passed of part) places.delete(`${passed}`);
      rings.push([corner, ...part]);
    } else {
      places.set(key, path.length);
      path.push(corner);
    }
  }
  return [...rings, path];
}

function signedArea(ring) {
  let sum = 0;
  ring.forEach(([x, y], i) => { const [u, v] = ring[(i + 1) % ring.length]; sum += x * v - u * y; });
  return sum / 2;
}

function encloses(ring, x, y) {
  let isInside = false;
  ring.forEach(([x1, y1], i) => {
    const y2 = ring[(i + 1) % ring.length][1];
    if ((y1 > y) !== (y2 > y) && x1 > x) isInside = !isInside; // an upright side: x1 is x2
  });
  return isInside;
}

// The parts of a mask: [outer ring, ...holes] each.
function partsOf(mask) {
  const rings = ringsOf(mask), parts = rings.filter(ring => signedArea(ring) > 0).map(ring => [ring]);
  for (const hole of rings.filter(ring => signedArea(ring) < 0)) {
    const side = hole.findIndex(([x, y], i) => { const [u, v] = hole[(i + 1) % hole.length]; return v === y && u > x; });
    const [x, y] = hole[side].map(value => value + 0.5); // a pixel of the mask, below a side that leads to the right
    const around = parts.filter(part => encloses(part[0], x, y));
    around.sort((a, b) => signedArea(a[0]) - signedArea(b[0]))[0].push(hole);
  }
  return parts;
}

// A ring moved into the mask by 0.1 pixels each way, as data/writers/outlines.py does: filled with its outline, as
// labelme does, or without, it is the same mask.
function inset(ring) {
  const right = ring.map(([x, y], i) => {
    const [u, v] = ring[(i + 1) % ring.length];
    return [-Math.sign(v - y), Math.sign(u - x)];
  });
  return ring.map(([x, y], i) => {
    const before = right[(i + ring.length - 1) % ring.length];
    return [x + 0.1 * (right[i][0] + before[0]), y + 0.1 * (right[i][1] + before[1])];
  });
}

const CRCS = Int32Array.from({ length: 256 }, (_, n) => {
  for (let k = 0; k < 8; k++) n = n & 1 ? (n >>> 1) ^ 0xedb88320 : n >>> 1;
  return n;
});

const bytesOf = number => [number >>> 24, (number >>> 16) & 255, (number >>> 8) & 255, number & 255];

function pngChunk(kind, content) {
  const body = [...kind].map(letter => letter.charCodeAt(0)).concat(content);
  let crc = -1;
  for (const byte of body) crc = CRCS[(crc ^ byte) & 255] ^ (crc >>> 8);
  return [...bytesOf(content.length), ...body, ...bytesOf(~crc)];
}

// A mask inside its box as a PNG of one bit a pixel, in base64: labelme's shape of the type mask. Its data are not
// compressed (RFC 1950 and 1951: stored blocks).
function pngOf(mask) {
  const { width, height, inside } = scaledCrop(mask, 1), stride = Math.ceil(width / 8) + 1;
  const raw = new Uint8Array(stride * height); // a byte for the filter, none, before each row
  inside.forEach((value, i) => {
    const column = i % width;
    if (value) raw[Math.floor(i / width) * stride + 1 + (column >> 3)] |= 128 >> (column & 7);
  });
  const data = [0x78, 0x01];
  for (let start = 0; start < raw.length; start += 65535) {
    const part = raw.subarray(start, start + 65535), length = part.length;
    data.push(start + 65535 >= raw.length ? 1 : 0, length & 255, length >> 8, ~length & 255, (~length >> 8) & 255);
    for (const byte of part) data.push(byte);
  }
  let [low, high] = [1, 0];
  for (const byte of raw) { low = (low + byte) % 65521; high = (high + low) % 65521; }
  data.push(high >> 8, high & 255, low >> 8, low & 255);
  const header = [...bytesOf(width), ...bytesOf(height), 1, 0, 0, 0, 0];
  const file = [137, 80, 78, 71, 13, 10, 26, 10].concat(
    pngChunk("IHDR", header), pngChunk("IDAT", data), pngChunk("IEND", []));
  let text = "";
  for (let i = 0; i < file.length; i += 4096) text += String.fromCharCode(...file.slice(i, i + 4096));
  return btoa(text);
}

const round6 = value => Math.round(value * 1e6) / 1e6;

function attributesOf(object) {
  const iou = object.maskIou === null ? {} : { mask_iou: round6(object.maskIou) };
  return { score: round6(object.classScore), ...iou, mask_score: round6(object.maskScore) };
}

function cocoFile(objects) {
  const annotations = objects.map(({ number, category, segmentation, mask, ...object }) => ({
    id: number, image_id: 1, category_id: category, segmentation, area: mask.area,
    bbox: [mask.x1, mask.y1, mask.x2 - mask.x1, mask.y2 - mask.y1], iscrowd: 0, score: round6(object.classScore),
    attributes: attributesOf(object),
  }));
  const images = [{ id: 1, file_name: state.name, width: state.width, height: state.height }];
  return JSON.stringify({ info: { description: "detected by serve.py" }, images, annotations,
    categories: state.categories });
}

function labelmeFile(objects) {
  const shapes = [];
  let groups = 0;
  for (const object of objects) {
    const attributes = attributesOf(object), { x1, y1, x2, y2 } = object.mask, parts = partsOf(object.mask);
    const description = Object.entries(attributes).map(([name, value]) => `${name} ${Number(value.toFixed(4))}`).join(", ");
    const shape = { label: object.fullName, group_id: null, description, flags: {}, mask: null, attributes };
    if (parts.some(part => part.length > 1)) {
      shapes.push({ ...shape, shape_type: "mask", points: [[x1, y1], [x2 - 1, y2 - 1]], mask: pngOf(object.mask) });
      continue;
    }
    const group = parts.length > 1 ? ++groups : null;
    for (const [outer] of parts)
      shapes.push({ ...shape, shape_type: "polygon", points: inset(outer), group_id: group });
  }
  return JSON.stringify({ version: "6.3.1", flags: {}, shapes, imagePath: state.name, imageData: null,
    imageHeight: state.height, imageWidth: state.width }, null, 1);
}

function geojsonFile(objects) {
  const features = objects.map(object => {
    const parts = partsOf(object.mask).map(part => part.map(ring => [...ring, ring[0]])), isOne = parts.length === 1;
    const geometry = { type: isOne ? "Polygon" : "MultiPolygon", coordinates: isOne ? parts[0] : parts };
    const properties = { objectType: "annotation", classification: { name: object.fullName },
      measurements: attributesOf(object) };
    return { type: "Feature", geometry, properties };
  });
  return JSON.stringify({ type: "FeatureCollection", features });
}

// The columns of custom.py detect that need no more than the masks.
function csvFile(objects) {
  const rows = [["file", "number", "class", "class_score", "predicted_iou", "mask_score", "box_x_px", "box_y_px",
    "box_width_px", "box_height_px", "area_px", "equivalent_diameter_px", "centroid_x_px", "centroid_y_px",
    "touches_edge"]];
  for (const object of objects) {
    const { x1, y1, x2, y2, area, spans, starts } = object.mask;
    let [sumX, sumY] = [0, 0];
    for (let x = x1; x < x2; x++) for (let i = starts[x - x1]; i < starts[x - x1 + 1]; i += 2) {
      const [from, to] = [spans[i], spans[i + 1]];
      sumX += (x + 0.5) * (to - from);
      sumY += (to * to - from * from) / 2; // of the rows' centres
    }
    const touches = x1 === 0 || y1 === 0 || x2 === state.width || y2 === state.height;
    rows.push([state.name, object.number, object.fullName, round6(object.classScore),
      object.maskIou === null ? "" : round6(object.maskIou), round6(object.maskScore), x1, y1, x2 - x1, y2 - y1, area,
      round6(Math.sqrt(4 * area / Math.PI)), round6(sumX / area), round6(sumY / area), touches ? "yes" : "no"]);
  }
  const cell = value => (/[",\r\n]/.test(value) ? `"${String(value).replaceAll('"', '""')}"` : String(value));
  return rows.map(row => `${row.map(cell).join(",")}\n`).join("");
}

const FORMATS = {
  coco: ["_coco.json", "application/json", cocoFile],
  labelme: [".json", "application/json", labelmeFile],
  csv: [".csv", "text/csv", csvFile],
  geojson: [".geojson", "application/geo+json", geojsonFile],
};

function download(format) {
  const [suffix, type, write] = FORMATS[format], link = document.createElement("a");
  const objects = shownObjects().filter(object => object.mask.area > 0); // no format has objects without a pixel
  link.href = URL.createObjectURL(new Blob([write(objects)], { type }));
  link.download = state.name.replace(/\.[^.]*$/, "") + suffix;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60000);
}

// ---- events ----

for (const name of ["score", "quality", "captions"]) $(name).addEventListener("input", update);
$("file").addEventListener("change", event => {
  const [file] = event.target.files;
  event.target.value = ""; // the same file again is an event, too
  if (file) detect(file);
});
addEventListener("paste", event => event.clipboardData.files[0] && detect(event.clipboardData.files[0]));
addEventListener("dragover", event => { event.preventDefault(); document.body.classList.add("dragging"); });
addEventListener("dragleave", event => event.relatedTarget || document.body.classList.remove("dragging"));
addEventListener("drop", event => {
  event.preventDefault();
  document.body.classList.remove("dragging");
  const [file] = event.dataTransfer.files;
  if (file) detect(file);
  else say("", "That is no file; save the picture first, and drop it from there.");
});
addEventListener("resize", paint);

$("canvas").addEventListener("click", event => {
  if (!state?.objects) return;
  const canvas = event.target, x = event.offsetX / canvas.clientWidth * state.width;
  const y = event.offsetY / canvas.clientHeight * state.height;
  const under = shownObjects().filter(object => contains(object.mask, x, y));
  choose(under.sort((a, b) => a.mask.area - b.mask.area)[0] ?? null); // a small one may lie on a large one
});
$("canvas").addEventListener("keydown", event => {
  const objects = shownObjects(), step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
  if (event.key === "Escape" && state?.objects) choose(null);
  if (!step || !objects.length) return;
  event.preventDefault();
  const place = objects.indexOf(state.chosen);
  choose(objects[place < 0 ? (step > 0 ? 0 : objects.length - 1) : (place + step + objects.length) % objects.length]);
});
for (const button of $("downloads").children) button.addEventListener("click", () => download(button.dataset.format));

update();
fetch("health").then(response => response.json()).then(health => {
  const names = health.classes.slice(0, 12).map(shortName).join(", ");
  const more = health.classes.length > 12 ? ` and ${health.classes.length - 12} more` : "";
  $("model").textContent = `The model ${health.model} knows ${names}${more}.`;
}).catch(() => say("", "The server does not answer; is it still running?"));
