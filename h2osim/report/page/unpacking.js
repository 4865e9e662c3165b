// Arrays and texts as `packing.py` packed them.

async function inflated(text) {
  const bytes = Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}

// A typed array with its shape; the bytes come sorted by their place in a number.
async function unpacked({ shape, type, data }) {
  const planes = await inflated(data);
  const Kind = { uint16: Uint16Array, uint32: Uint32Array, float32: Float32Array }[type];
  const size = Kind.BYTES_PER_ELEMENT, count = planes.length / size;
  const bytes = new Uint8Array(planes.length);
  for (let b = 0; b < size; b++) {
    for (let i = 0; i < count; i++) bytes[i * size + b] = planes[b * count + i];
  }
  return { shape, values: new Kind(bytes.buffer) };
}

async function unpackedText({ data }) {
  return new TextDecoder().decode(await inflated(data));
}

// The place of indices in a row-major array.
function place(shape, ...indices) {
  return indices.reduce((at, i, dim) => at * shape[dim] + i, 0);
}

function number(value, digits = 3) {
  if (value === null || Number.isNaN(value)) return "–";
  if (value === 0) return "0";
  return Math.abs(value) >= 1000 ? Math.round(value).toLocaleString("en") : String(Number(value.toPrecision(digits)));
}

function percent(share) {
  return share > 0 && share < 1e-5 ? "under 0.001 %" : `${number(100 * share)} %`;
}

// "", "2nd ", "3rd ", …: what stands before "costliest".
function ordinal(rank) {
  if (rank === 1) return "";
  const teens = rank % 100 > 10 && rank % 100 < 14;
  return `${rank}${(!teens && ["th", "st", "nd", "rd"][rank % 10]) || "th"} `;
}

// An element with attributes and children; text is text, never markup.
function element(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (key.startsWith("on")) made.addEventListener(key.slice(2), value);
    else made.setAttribute(key, value);
  }
  made.append(...children);
  return made;
}

function table(heads, rows) {
  const cell = (name, value) => element(name, name === "th" ? { scope: "col" } : {}, typeof value === "number" ? number(value, 4) : value ?? "–");
  return element("table", {},
    element("thead", {}, element("tr", {}, ...heads.map((word) => cell("th", word)))),
    element("tbody", {}, ...rows.map((row) => element("tr", {}, ...row.map((value) => cell("td", value))))));
}

function download(name, text, type) {
  const url = URL.createObjectURL(new Blob([text], { type }));
  element("a", { href: url, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(url), 1000);
}
