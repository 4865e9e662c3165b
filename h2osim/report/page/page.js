// The page: what is chosen, and what follows from it.

const data = JSON.parse(document.getElementById("data").textContent);
const charts = new Charts(JSON.parse(document.getElementById("specs").textContent), data.policies);
const tokens = new Tokens(data);
const chosen = { trace: 0, budget: Math.floor(data.budgets.length / 2), unit: -1, policy: 0 };
const field = (name) => document.getElementById(name);
const measures = Object.entries(data.measures);
let now;

// The arrays of a text, unpacked when it is first shown.
const known = new Map();
async function unpackedTrace(i) {
  if (!known.has(i)) {
    const one = data.traces[i], all = async (map) => Object.fromEntries(await Promise.all(Object.entries(map).map(async ([k, v]) => [k, await unpacked(v)])));
    const parts = await Promise.all([all(one.where), all(one.when), all({ best: one.best, prices: one.prices, gone: one.gone, lost: one.lost, received: one.received })]);
    known.set(i, { trace: one, where: parts[0], when: parts[1], ...parts[2] });
  }
  return known.get(i);
}

const at = ({ shape, values }, ...indices) => values[place(shape, ...indices)];
const context = () => `${now.trace.name}, budget ${data.budgets[chosen.budget]}`;
const edges = () => {
  const { n, promptLen, spans } = now.trace;
  return Array.from({ length: spans + 1 }, (_, s) => promptLen + Math.round(s * (n - promptLen) / spans));
};

function drawCurves() {
  for (const [name, word] of measures) {
    // An error of nothing has no place on a logarithmic axis.
    const rows = data.curves.filter((row) => row.measure === name && (name === "recall" || row.mean > 0));
    charts.draw(`curve-${name}`, "curve", rows, `${word} against the budget, a line a policy`, (spec) => {
      spec.layer[1].encoding.y.axis.title = word;
      if (name === "recall") return;
      const least = Math.min(...rows.map((row) => row.mean)), most = Math.max(...rows.map((row) => row.high));
      spec.layer.forEach((layer) => { layer.encoding.y.scale = { type: "log", domain: [least / 3, most], nice: false }; });
    });
  }
}

// What the maps may show: a measure, or what recall is short of the optimum.
const SHOWN = {
  ...Object.fromEntries(measures.map(([name, word]) => [name, { word, of: (p, l, u) => at(now.where[name], p, chosen.budget, l, u), optimum: name === "recall" }])),
  short: { word: "recall short of the optimum", of: (p, l, u) => at(now.best, chosen.budget, l, u) - at(now.where.recall, p, chosen.budget, l, u) },
};

function drawMap() {
  const { word, of, optimum } = SHOWN[field("where-what").value];
  const [, , layers, units] = now.where.recall.shape, rows = [];
  const heads = Object.fromEntries(data.units.map((one) => [`${one.layer},${one.unit}`, one.heads.join(", ")]));
  const add = (policy, value) => {
    for (let l = 0; l < layers; l++) {
      for (let u = 0; u < units; u++) rows.push({ policy, layer: data.layers[l], unit: u, heads: heads[`${data.layers[l]},${u}`] ?? "", value: value(l, u) });
    }
  };
  data.policies.forEach((policy, p) => add(policy, (l, u) => of(p, l, u)));
  if (optimum) add(data.optimum, (l, u) => at(now.best, chosen.budget, l, u));
  const facets = data.policies.length + (optimum ? 1 : 0);
  charts.draw("map", "map", rows, `${word} of each layer and unit, a map a policy, ${context()}`, (spec, width) => {
    const most = Math.max(1, Math.min(facets, Math.floor(width / 165)));
    spec.columns = Math.ceil(facets / Math.ceil(facets / most));
    spec.spec.width = Math.max(60, Math.min(80 * units, (width - 130) / spec.columns - 46));
    spec.spec.height = Math.max(60, Math.min(34 * layers, 11 * layers + 40));
  });
  field("map").querySelector("figcaption").textContent = `${word[0].toUpperCase()}${word.slice(1)} of each unit at a budget of ${data.budgets[chosen.budget]}; rows are layers, columns the heads that share a cache.`;
}

function drawTime() {
  const edge = edges(), spans = now.trace.spans;
  for (const [name, word] of measures) {
    const rows = data.policies.flatMap((policy, p) => Array.from({ length: spans }, (_, s) => ({ policy, step: edge[s], value: at(now.when[name], p, chosen.budget, s) })));
    charts.draw(`time-${name}`, "time", rows, `${word} over the decode steps, a line a policy, ${context()}`, (spec) => {
      spec.encoding.y.axis.title = word;
    });
  }
  const rows = data.layers.flatMap((layer, l) => Array.from({ length: spans }, (_, s) => ({ layer, step: edge[s], end: edge[s + 1], value: at(now.prices, chosen.budget, l, s) })));
  charts.draw("price", "price", rows, `Price of a cache slot, layer over decode step, ${context()}`, (spec) => {
    spec.height = Math.max(80, Math.min(12 * data.layers.length + 20, 420));
  });
}

function showTokens() {
  const b = data.rasterBudgets.includes(chosen.budget) ? chosen.budget : data.rasterBudgets.reduce((a, x) => (Math.abs(x - chosen.budget) < Math.abs(a - chosen.budget) ? x : a));
  const few = data.units.length < data.layers.length * now.where.recall.shape[3];
  const notes = [];
  if (b !== chosen.budget) notes.push(`There was no room for the tokens at ${data.budgets[chosen.budget]}; this is ${data.budgets[b]}.`);
  if (few) notes.push(`There was room for ${data.units.length} units, evenly spread; “all” means these.`);
  field("room").hidden = !notes.length;
  field("room").textContent = notes.join(" ");
  tokens.show(chosen.policy, data.rasterBudgets.indexOf(b), chosen.unit);
  const name = data.schedules[chosen.policy];
  const whole = tokens.received.values, shape = tokens.received.shape;
  let mass = 0;
  for (const u of tokens.units()) for (let j = 0; j < tokens.n; j++) mass += whole[place(shape, u, j)];
  const share = mass ? tokens.all / mass : 0;
  let text = `At ${data.budgets[b]}, ${name} lost ${percent(share)} of the attention ${chosen.unit < 0 ? "of all units here" : "of this unit"}; ${tokens.topCount ? `the ${tokens.topCount} costliest tokens are ${percent(tokens.top)} of that` : "no token was missed"}.`;
  const p = data.policies.indexOf(name);
  if ("output_error" in data.measures && p >= 0) {
    const errors = tokens.units().map((u) => {
      const { layer, unit } = data.units[u];
      return at(now.where.output_error, p, b, data.layers.indexOf(layer), unit);
    });
    text += ` The attention's output is off by ${percent(errors.reduce((a, x) => a + x, 0) / errors.length)} of its squared norm${errors.length > 1 ? ", the mean over the units" : ""}.`;
  }
  field("sum").textContent = text;
}

function fillUnits() {
  const layer = field("layer").value;
  const of = data.units.map((one, u) => ({ ...one, u })).filter((one) => String(one.layer) === layer);
  field("unit").replaceChildren(...(layer === "all" ? [element("option", { value: -1 }, "all")] : of.map((one) => element("option", { value: one.u }, `${one.unit} (heads ${one.heads.join(", ")})`))));
  chosen.unit = Number(field("unit").value);
}

function setStep(t) {
  field("step").value = t;
  field("step-word").textContent = `${t} of ${now.trace.n - 1}`;
  tokens.setStep(t);
}

async function showTrace() {
  now = await unpackedTrace(chosen.trace);
  tokens.setTrace(now.trace, now.gone, now.lost, now.received);
  field("step").max = now.trace.n - 1;
  setStep(now.trace.n - 1);
  showTokens();
  drawMap();
  drawTime();
}

async function start() {
  field("budget").value = chosen.budget;
  field("where-what").append(...Object.entries(SHOWN).map(([name, { word }]) => element("option", { value: name }, word)));
  field("layer").append(...["all", ...new Set(data.units.map((one) => one.layer))].map((word) => element("option", { value: word }, String(word))));
  fillUnits();
  field("trace")?.addEventListener("change", (event) => { chosen.trace = Number(event.target.value); showTrace(); });
  field("budget").addEventListener("change", (event) => { chosen.budget = Number(event.target.value); showTokens(); drawMap(); drawTime(); });
  field("policy").addEventListener("change", (event) => { chosen.policy = Number(event.target.value); showTokens(); });
  field("layer").addEventListener("change", () => { fillUnits(); showTokens(); });
  field("unit").addEventListener("change", (event) => { chosen.unit = Number(event.target.value); showTokens(); });
  field("step").addEventListener("input", (event) => setStep(Number(event.target.value)));
  field("where-what").addEventListener("change", drawMap);
  tokens.onstep = setStep;
  tokens.onunit = (u) => {
    field("layer").value = data.units[u].layer;
    fillUnits();
    field("unit").value = chosen.unit = u;
    showTokens();
  };
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => tokens.drawRaster());
  const button = (name, make, type = "text/csv") => field("downloads").append(element("button", { type: "button", onclick: async () => download(name, await make(), type) }, name));
  for (const [name, packedFile] of Object.entries(data.files)) button(name, () => unpackedText(packedFile));
  button("tokens-in-view.csv", () => tokens.csv());
  button("page-data.json", () => field("data").textContent, "application/json");
  drawCurves();
  await showTrace();
  document.body.dataset.ready = "yes";
}

start();
