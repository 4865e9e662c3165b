// The text with what became of its tokens, the raster, and what a token was worth.

const COSTLY = 12;
const CELLS = 768;

class Tokens {
  constructor(data) {
    this.data = data;
    this.token = -1;
    this.text = document.getElementById("text");
    this.canvas = document.getElementById("raster");
    this.text.addEventListener("click", (event) => {
      const at = event.target.closest(".tk");
      if (at) this.select(Number(at.dataset.at));
    });
    this.text.addEventListener("keydown", (event) => this.keyInText(event));
    this.canvas.addEventListener("click", (event) => {
      const box = this.canvas.getBoundingClientRect();
      const cell = (x, side) => Math.min(this.n - 1, Math.max(0, Math.floor(x / side * this.n)));
      this.onstep(cell(event.clientY - box.top, box.height));
      this.select(cell(event.clientX - box.left, box.width));
    });
    this.canvas.addEventListener("keydown", (event) => this.keyInRaster(event));
  }

  // Show another text: its tokens, once unpacked.
  setTrace(trace, gone, lost, received) {
    Object.assign(this, { trace, gone, lost, received, n: trace.n });
    this.token = Math.min(this.token, this.n - 1);
    this.spans = Array.from({ length: this.n }, (_, j) => this.span(j));
    this.text.replaceChildren(...this.spans);
  }

  word(j) {
    return this.trace.tokens ? this.trace.tokens[j] : `⟨${j}⟩`;
  }

  // The few words before a token, which alone may say little.
  before(j) {
    const words = [];
    for (let i = j - 1; i >= Math.max(0, j - 3) && words.join("").length < 12; i--) words.unshift(this.word(i));
    return words.join("").replaceAll("\n", "⏎");
  }

  // A token as it is read: line ends are shown and made.
  span(j) {
    const made = element("span", { class: "tk", role: "option", id: `tk${j}`, "data-at": j, "aria-selected": "false" });
    const parts = this.word(j).split("\n");
    parts.forEach((part, i) => {
      if (i) made.append(element("span", { class: "ghost", "aria-hidden": "true" }, "⏎"), "\n");
      made.append(part);
    });
    if (!this.trace.tokens) made.append(" ");
    made.setAttribute("aria-label", `${this.word(j).trim() || "space"}, token ${j}`);
    return made;
  }

  // Units in view: one, or all.
  units() {
    const all = this.data.units.map((_, u) => u);
    return this.unit < 0 ? all : [this.unit];
  }

  rows(kind, schedule) {
    const { shape, values } = this[kind];
    return this.units().map((u) => {
      const at = place(shape, this.budget, schedule, u, 0);
      return values.subarray(at, at + this.n);
    });
  }

  sum(rows) {
    const total = new Float64Array(this.n);
    for (const row of rows) for (let j = 0; j < this.n; j++) total[j] += row[j];
    return total;
  }

  // Show a policy, a budget (its place among those with rasters) and a unit (-1: all).
  show(schedule, budget, unit) {
    Object.assign(this, { schedule, budget, unit });
    this.optimum = this.data.schedules.length - 1;
    this.mine = this.rows("gone", schedule);
    this.best = this.rows("gone", this.optimum);
    this.cost = this.sum(this.rows("lost", schedule));
    this.all = this.cost.reduce((a, b) => a + b, 0);
    this.order = Array.from({ length: this.n }, (_, j) => j).sort((a, b) => this.cost[b] - this.cost[a] || a - b);
    this.paint();
    this.drawRaster();
    this.listCostly();
    // At first the token that was missed most.
    this.select(this.token < 0 ? this.order[0] : this.token, false);
  }

  // Share of the units that keep token j after step t.
  kept(rows, j, t) {
    let count = 0;
    for (const row of rows) count += row[j] > t;
    return count / rows.length;
  }

  // Colour the text as it is after a step.
  paint() {
    const top = Math.max(this.cost[this.order[0]], 1e-12);
    this.spans.forEach((span, j) => {
      const unread = j > this.step;
      const keep = unread ? 1 : this.kept(this.mine, j, this.step);
      const cost = unread || keep === 1 ? 0 : this.cost[j] / top * (this.unit < 0 ? 1 : 1 - keep);
      span.classList.toggle("unread", unread);
      span.style.setProperty("--keep", keep.toFixed(3));
      span.style.setProperty("--cost", cost.toFixed(3));
      span.dataset.hot = cost > 0.35 ? 1 : 0;
    });
  }

  setStep(t) {
    this.step = t;
    if (this.spans && this.mine) {
      this.paint();
      this.marks();
    }
  }

  drawRaster() {
    const side = Math.min(this.n, CELLS);
    const context = this.canvas.getContext("2d");
    this.canvas.width = this.canvas.height = side;
    const picture = context.createImageData(side, side);
    const rgb = (name) => colour(name).match(/\w\w/g).map((pair) => parseInt(pair, 16));
    const [paper, both, only, other] = ["paper", "both", "only", "other"].map(rgb);
    for (let x = 0; x < side; x++) {
      const j = Math.floor((x + 0.5) * this.n / side);
      for (let y = 0; y < side; y++) {
        const t = Math.floor((y + 0.5) * this.n / side), at = 4 * (y * side + x);
        const inside = j <= t;
        const mine = inside ? this.kept(this.mine, j, t) : 0, best = inside ? this.kept(this.best, j, t) : 0;
        const shared = Math.min(mine, best), more = mine - shared, less = best - shared, none = 1 - shared - more - less;
        for (let c = 0; c < 3; c++) {
          picture.data[at + c] = paper[c] * none + both[c] * shared + only[c] * more + other[c] * less;
        }
        picture.data[at + 3] = 255;
      }
    }
    context.putImageData(picture, 0, 0);
  }

  marks() {
    const at = (i) => `${(i + 0.5) / this.n * 100}%`;
    document.getElementById("mark-x").style.left = at(this.token);
    document.getElementById("mark-y").style.top = at(this.step);
  }

  listCostly() {
    const most = this.order.slice(0, COSTLY).filter((j) => this.cost[j] > 0);
    document.getElementById("costly").replaceChildren(...most.map((j) =>
      element("li", {}, element("button", { type: "button", "data-at": j, onclick: () => this.select(j) },
        element("span", {}, element("i", {}, this.before(j)), this.word(j).replaceAll("\n", "⏎")), element("b", {}, percent(this.cost[j] / this.all))))));
    this.top = this.all ? most.reduce((sum, j) => sum + this.cost[j], 0) / this.all : 0;
    this.topCount = most.length;
  }

  // Choose a token: mark it in the text and the raster, and say what became of it.
  select(j, scroll = true) {
    const before = this.spans[this.token];
    before?.setAttribute("aria-selected", "false");
    this.token = j;
    const span = this.spans[j];
    span.setAttribute("aria-selected", "true");
    this.text.setAttribute("aria-activedescendant", span.id);
    if (scroll) {
      const top = span.offsetTop - this.text.clientHeight / 2;
      if (span.offsetTop < this.text.scrollTop || span.offsetTop + 30 > this.text.scrollTop + this.text.clientHeight) this.text.scrollTop = top;
    }
    this.canvas.setAttribute("aria-label", `Kept tokens over time; token ${j}, ${this.word(j).trim()}, after step ${this.step}`);
    this.marks();
    this.detail(j);
  }

  // "after step 73, when ' model' was read", or that it stays.
  when(rows, j) {
    const steps = Array.from(rows, (row) => row[j]).sort((a, b) => a - b);
    if (steps.length === 1) return steps[0] >= this.n ? "never" : `after step ${steps[0]} (‘${this.word(steps[0]).trim()}’ read)`;
    const gone = steps.filter((t) => t < this.n);
    if (!gone.length) return "in no unit";
    return `in ${gone.length} of ${steps.length} units, half of these by step ${gone[Math.floor((gone.length - 1) / 2)]}`;
  }

  detail(j) {
    const schedules = this.data.schedules;
    const received = this.units().reduce((sum, u) => sum + this.received.values[place(this.received.shape, u, j)], 0);
    const name = schedules[this.schedule], cost = this.cost[j];
    const rank = this.order.indexOf(j) + 1;
    const sentence = cost > 0
      ? `${name} evicted it ${this.when(this.mine, j)}. It would have received ${number(cost)} of attention since: ${percent(cost / this.all)} of all that ${name} lost, the ${ordinal(rank)}costliest of ${this.n} tokens.`
      : this.kept(this.mine, j, this.n - 1) === 1 ? `${name} kept it to the end.` : `${name} evicted it ${this.when(this.mine, j)}, and no later step asked for it.`;
    const rows = schedules.map((word, s) => {
      const lost = this.sum(this.rows("lost", s))[j];
      return [word, this.when(this.rows("gone", s), j), number(lost), received ? percent(lost / received) : "–"];
    });
    const parts = [
      element("p", {}, element("span", { class: "word" }, element("i", {}, this.before(j)), this.word(j).replaceAll("\n", "⏎")), ` is token ${j}. It receives ${number(received)} of attention from the decode steps, if it is always there.`),
      element("p", {}, sentence),
      table(["schedule", "evicts it", "lost", "of its own"], rows),
    ];
    if (this.unit < 0 && cost > 0) parts.push(this.worst(j));
    document.getElementById("detail").replaceChildren(...parts);
  }

  // Buttons to the units in which the token was missed most.
  worst(j) {
    const rows = this.rows("lost", this.schedule);
    const most = rows.map((row, u) => [row[j], u]).filter(([lost]) => lost > 0).sort((a, b) => b[0] - a[0]).slice(0, 3);
    const made = element("p", {}, "Missed most in ");
    for (const [lost, u] of most) {
      const { layer, unit } = this.data.units[u];
      made.append(element("button", { type: "button", onclick: () => this.onunit(u) }, `layer ${layer}, unit ${unit}: ${number(lost)}`), " ");
    }
    return made;
  }

  keyInText(event) {
    const line = (sign) => {
      const from = this.spans[this.token], x = from.offsetLeft;
      let j = this.token + sign;
      while (this.spans[j] && Math.abs(this.spans[j].offsetTop - from.offsetTop) < 8) j += sign;
      const top = this.spans[j]?.offsetTop;
      let found = j;
      while (this.spans[j] && Math.abs(this.spans[j].offsetTop - top) < 8) {
        if (Math.abs(this.spans[j].offsetLeft - x) < Math.abs(this.spans[found].offsetLeft - x)) found = j;
        j += sign;
      }
      return found;
    };
    const to = { ArrowRight: this.token + 1, ArrowLeft: this.token - 1, PageDown: this.token + 50, PageUp: this.token - 50, Home: 0, End: this.n - 1 };
    let next = to[event.key];
    if (event.key === "ArrowDown") next = line(1);
    if (event.key === "ArrowUp") next = line(-1);
    if (next === undefined) return;
    event.preventDefault();
    this.select(Math.min(this.n - 1, Math.max(0, next)));
  }

  keyInRaster(event) {
    const by = event.shiftKey ? 10 : 1, last = this.n - 1;
    const bound = (i) => Math.min(last, Math.max(0, i));
    const across = { ArrowRight: by, ArrowLeft: -by }[event.key], down = { ArrowDown: by, ArrowUp: -by }[event.key];
    if (across === undefined && down === undefined) return;
    event.preventDefault();
    if (down) this.onstep(bound(this.step + down));
    this.select(bound(this.token + (across ?? 0)));
  }

  csv() {
    const quoted = (text) => `"${String(text).replaceAll('"', '""')}"`;
    const rows = [["token", "text", "layer", "unit", "budget", "schedule", "evicted_at", "lost"].join(",")];
    const budget = this.data.budgets[this.data.rasterBudgets[this.budget]];
    this.data.schedules.forEach((name, s) => {
      const gone = this.rows("gone", s), lost = this.rows("lost", s);
      this.units().forEach((u, i) => {
        const { layer, unit } = this.data.units[u];
        for (let j = 0; j < this.n; j++) {
          rows.push([j, quoted(this.trace.tokens?.[j] ?? ""), layer, unit, quoted(budget), quoted(name), gone[i][j], lost[i][j]].join(","));
        }
      });
    });
    return `${rows.join("\n")}\n`;
  }
}
