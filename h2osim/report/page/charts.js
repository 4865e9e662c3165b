// Charts: Vega-Lite specifications, with the rows of the chosen text and budget.

// Their number has no factor in common with that of the colours, so that pairs repeat late.
const DASHES = [[1, 0], [7, 3], [2, 2], [8, 2, 2, 2], [12, 3], [4, 1, 1, 1, 1, 1], [1, 3], [14, 2, 4, 2]];
const COLOURS = ["c0", "c1", "c2", "c3", "c4", "c5", "c6"];

function colour(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
}

// How charts look, from the page's own colours, light or dark.
function look() {
  const [ink, soft, line] = ["ink", "soft", "line"].map(colour);
  const font = 'system-ui, -apple-system, "Segoe UI", Roboto, "Liberation Sans", sans-serif';
  return {
    background: "transparent", font, view: { stroke: null },
    axis: { labelColor: soft, titleColor: soft, gridColor: line, domainColor: line, tickColor: line, labelFontSize: 12, titleFontSize: 12, titleFontWeight: "normal" },
    legend: { labelColor: ink, titleColor: soft, labelFontSize: 12, titleFontWeight: "normal", columns: Math.max(1, Math.floor(innerWidth / 260)), labelLimit: 240 },
    header: { labelColor: ink, labelFontSize: 12, labelFontWeight: "bold" },
  };
}

// Give every policy its colour and dashes, the same in all charts; the optimum is grey.
function tellApart(part, names, policies) {
  const number = (name) => policies.findIndex((policy) => name === policy || name.startsWith(`${policy} (`));
  const pick = (some, last) => names.map((name) => some[number(name) % some.length] ?? last);
  const colours = pick(COLOURS.map(colour), colour("both")), dashes = pick(DASHES, [1, 0]);
  for (const [channel, range] of Object.entries({ color: colours, fill: colours, stroke: colours, strokeDash: dashes })) {
    if (part.encoding?.[channel]?.field === "policy") part.encoding[channel].scale = { domain: names, range };
  }
}

class Charts {
  constructor(specs, policies) {
    this.specs = specs;
    this.policies = policies;
    this.shown = new Map();
    const again = () => { for (const [id, one] of this.shown) this.draw(id, ...one); };
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", again);
    let waiting;
    let width = innerWidth;
    addEventListener("resize", () => {
      if (innerWidth === width) return;
      width = innerWidth;
      clearTimeout(waiting);
      waiting = setTimeout(again, 250);
    });
  }

  // Draw rows into a figure: `kind` names the specification, `change` may alter a copy of it.
  async draw(id, kind, rows, description, change = () => {}) {
    this.shown.set(id, [kind, rows, description, change]);
    const figure = document.getElementById(id);
    const spec = structuredClone(this.specs[kind]);
    spec.description = description;
    spec.datasets = { rows };
    change(spec, figure.clientWidth);
    const names = [...new Set(rows.map((row) => row.policy).filter(Boolean))];
    for (const part of [spec, ...(spec.layer ?? [])]) tellApart(part, names, this.policies);
    if (spec.facet) spec.facet.sort = names;
    await vegaEmbed(figure.querySelector(".plot"), spec, {
      mode: "vega-lite", renderer: "svg", ast: true, config: look(), tooltip: { theme: "custom" },
      actions: { export: true, source: false, compiled: false, editor: false }, downloadFileName: id,
    });
    figure.querySelector(".plot summary")?.setAttribute("aria-label", "Save this chart");
    this.numbers(figure, rows);
  }

  // The rows as a table below the chart, made when it is opened.
  numbers(figure, rows) {
    figure.querySelector("details.numbers")?.remove();
    const inside = element("div", { tabindex: "0" });
    const fold = element("details", { class: "numbers" }, element("summary", {}, "Numbers"), inside);
    fold.addEventListener("toggle", () => {
      if (!fold.open || inside.childElementCount) return;
      const heads = Object.keys(rows[0] ?? {});
      inside.append(table(heads, rows.map((row) => heads.map((name) => row[name]))));
    });
    figure.append(fold);
  }
}
