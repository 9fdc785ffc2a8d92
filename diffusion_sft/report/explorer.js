/* The list of all concepts and the page of each, from the data in #explorer-data.
   Every text of the data reaches the page as text (textContent), none as markup. The page of concept n is #concept/n. */
"use strict";
(() => {
const DASH = "–", NO_BREAK = "\u00a0", ROWS = 50, SVG = "http://www.w3.org/2000/svg";
const $ = (id) => document.getElementById(id);
const source = $("explorer-data");
if (!source) return;
const data = JSON.parse(source.textContent);

/* ---- text and numbers, written as the rest of the page writes them ---- */

const printable = (text) => text.replace(/[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u202a-\u202e\ufffe\uffff]/g, "\ufffd")
  .replace(/[\ud800-\udbff](?![\udc00-\udfff])|(?<![\ud800-\udbff])[\udc00-\udfff]/g, "\ufffd");

function cut(text, length = 60) {
  const letters = Array.from(String(text).slice(0, 4 * length));
  return letters.length <= length ? letters.join("") : letters.slice(0, length - 1).join("").trimEnd() + "…";
}

function fixed(value, decimals, signed = false) {
  if (!Number.isFinite(value)) return number(value);
  const size = Math.abs(value), long = size.toFixed(decimals + 30), whole = long.slice(0, -30).replace(/\.$/, "");
  // of two equally near numbers the even one, as the still tables have it
  const tie = /^50{29}$/.test(long.slice(-30)) && "02468".includes(whole.at(-1));
  const text = tie ? whole : size.toFixed(decimals);
  const [left, right] = text.split(".");
  const grouped = left.replace(/\B(?=(\d{3})+$)/g, ",") + (right === undefined ? "" : "." + right);
  const zero = !/[1-9]/.test(text);
  return (zero ? "" : value < 0 ? "−" : signed ? "+" : "") + grouped;
}

function number(value, digits = 3, signed = false) {
  if (value === null || value === undefined || Number.isNaN(value)) return DASH;
  if (!Number.isFinite(value)) return value > 0 ? "∞" : "−∞";
  if (value === 0) return "0";
  const size = Math.floor(Math.log10(Math.abs(value)));
  if (size > -4 && size < 6) return fixed(value, Math.max(0, digits - 1 - size), signed);
  const text = value.toExponential(digits - 1).replace(/e([+-])(\d)$/, "e$10$2").replaceAll("-", "−");
  return (signed && value > 0 ? "+" : "") + text;
}

const plain = (value, digits = 3) => (Number.isInteger(value) ? value.toLocaleString("en").replace("-", "−") : number(value, digits));
const share = (value) => (value === null || value === undefined ? DASH : fixed(100 * value, 0) + NO_BREAK + "%");

function plusMinus(value, error) {
  const reach = 1.96 * error;
  if (value === null || error === null || !(reach > 0)) return number(value, 3, true);
  const decimals = Math.min(6, Math.max(0, 1 - Math.floor(Math.log10(reach))));
  return fixed(value, decimals, true) + NO_BREAK + "±" + NO_BREAK + fixed(reach, decimals);
}

function reading(value, low, high) {
  if (value === null || low === null || high === null || !(high > low)) return [plain(value), ""];
  const decimals = Math.min(6, Math.max(0, 1 - Math.floor(Math.log10((high - low) / 2))));
  return [fixed(value, decimals), `[${fixed(low, decimals)},${NO_BREAK}${fixed(high, decimals)}]`];
}

const counted = (count, noun) => `${count.toLocaleString("en")} ${noun}${count === 1 ? "" : "s"}`;
const capital = (text) => text.charAt(0).toUpperCase() + text.slice(1);

/* ---- elements ---- */

function el(tag, properties = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name === "class") made.className = value;
    else made.setAttribute(name, value);
  }
  for (const child of children) if (child !== null && child !== "") made.append(child);
  return made;
}

const word = (text, length = 60) => el("bdi", {}, printable(length ? cut(text, length) : String(text)));

function mark(label) {
  const shape = data.markers[label];
  if (!shape) return "";
  const drawn = document.createElementNS(SVG, "svg");
  const name = data.categories.includes(label) ? label : "bucket-" + label;
  for (const [key, value] of [["viewBox", "0 0 12 12"], ["class", "mark"], ["aria-hidden", "true"], ["fill", `var(--${name})`]]) {
    drawn.setAttribute(key, value);
  }
  const path = document.createElementNS(SVG, "path");
  path.setAttribute("d", {
    o: "M.6 6a5.4 5.4 0 1 0 10.8 0a5.4 5.4 0 1 0-10.8 0z", s: "M1 1h10v10H1z", "^": "M6 .6 11.8 11H.2z", D: "M6 0 12 6 6 12 0 6z",
  }[shape]);
  drawn.append(path);
  return drawn;
}

function picture(half, place, alt) {
  const [uri, width, height, crisp] = half.pictures.bank[place];
  return el("img", { src: uri, width, height, alt: printable(alt), class: crisp ? "picture crisp" : "picture" });
}

/* cells: [content, small line under it, class] or the content alone */
function table(name, headings, rows, numeric = []) {
  const cell = (item, place) => {
    const [content, under = "", style = ""] = Array.isArray(item) ? item : [item];
    const kind = [numeric.includes(place) ? "num" : "", style].filter(Boolean).join(" ");
    const made = el(place ? "td" : "th", kind ? { class: kind } : {}, content);
    if (!place) made.setAttribute("scope", "row");
    if (under) made.append(" ", el("span", { class: "under" }, under));
    return made;
  };
  const head = headings.map((text, place) => el("th", { scope: "col", class: numeric.includes(place) ? "num" : "" }, text));
  const body = el("tbody", {}, ...rows.map((row) => el("tr", {}, ...row.map(cell))));
  const shown = el("table", {}, el("thead", {}, el("tr", {}, ...head)), body);
  const style = rows.length > 15 ? "scroll dense tall" : "scroll dense";
  return el("div", { class: style, role: "region", "aria-label": name, tabindex: "0" }, shown);
}

/* ---- the data: columns by name, rows by concept ---- */

class Columns {
  constructor(columns) { this.columns = columns; this.rowsOf = null; }
  has(name) { return name in this.columns; }
  get size() {
    const first = Object.values(this.columns)[0];
    return first === undefined ? 0 : (first.codes ?? first).length;
  }
  get(name, row) {
    const column = this.columns[name];
    if (column === undefined) return null;
    if (column.levels === undefined) return column[row];
    return column.codes[row] < 0 ? null : column.levels[column.codes[row]];
  }
  about(place) {
    if (this.rowsOf === null) {
      this.rowsOf = new Map();
      for (let row = 0; row < this.size; row++) {
        const of = this.get("place", row);
        if (!this.rowsOf.has(of)) this.rowsOf.set(of, []);
        this.rowsOf.get(of).push(row);
      }
    }
    return this.rowsOf.get(place) ?? [];
  }
}

const entries = [];
for (const half of data.halves) {
  for (const name of ["concepts", "shown", "scores", "answers", "samples", "systems", "classes", "accuracy", "asked"]) {
    half[name] = new Columns(half[name]);
  }
  for (let place = 0; place < half.concepts.size; place++) {
    const own = (name) => half.concepts.get(name, place), beside = (name) => half.shown.get(name, place);
    entries.push({
      n: entries.length, half, place, name: own("concept") ?? "", words: own("words") ?? "", category: own("category") ?? "",
      bucket: own("bucket") ?? "", exposure: own("exposure"), error: own("error_nats"), gain: own("gain_nats"),
      gainError: own("gain_se_nats"), opinion: own("opinion_nats"), right: own("greedy_share"),
      answer: half.learner === "llm" ? own("answer") : null, caption: beside("caption") ?? "", said: beside("said"),
      saidCount: beside("said_count"), asked: beside("num_asked"), rounds: beside("rounds"), recovery: beside("recovery"),
      class: beside("solution_class"), misknown: own("misknown"),
    });
  }
}
const both = data.halves.length > 1;
const classes = Object.keys(data.classes);
const ranked = (list, label) => (list.includes(label) ? list.indexOf(label) : label ? list.length : null);
const any = (key) => entries.some((entry) => entry[key] !== null && entry[key] !== undefined);

/* ---- the list ---- */

const COLUMNS = [
  { key: "name", label: "name", of: (e) => e.name.toLowerCase(), heading: true },
  { key: "learner", label: "learner", of: (e) => e.half.model, cell: (e) => e.half.model.replace(/ model$/, ""), shown: both },
  { key: "category", label: "category", of: (e) => ranked(data.categories, e.category), cell: (e) => labelled(e.category), style: "one" },
  { key: "bucket", label: "bucket", of: (e) => e.bucket, cell: (e) => labelled(e.bucket), style: "one" },
  { key: "said", label: "says", of: (e) => e.said?.toLowerCase() ?? null, cell: said, shown: any("said"), style: "says" },
  { key: "right", label: "right", of: (e) => e.right, cell: (e) => share(e.right), numeric: true },
  { key: "error", label: "error", of: (e) => e.error, cell: (e) => number(e.error, 4), numeric: true },
  { key: "gain", label: "gain", of: (e) => e.gain, cell: (e) => plusMinus(e.gain, e.gainError), numeric: true },
  { key: "exposure", label: "seen", of: (e) => e.exposure, cell: (e) => e.exposure?.toLocaleString("en") ?? DASH, numeric: true, shown: any("exposure") },
  { key: "opinion", label: "opinion", of: (e) => e.opinion, cell: (e) => number(e.opinion), numeric: true, shown: any("opinion") },
  { key: "rounds", label: "rounds", of: (e) => e.rounds, cell: (e) => plain(e.rounds), numeric: true, shown: any("rounds") },
  { key: "recovery", label: "recovery", of: (e) => e.recovery, cell: (e) => plain(e.recovery), numeric: true, shown: any("recovery") },
  { key: "class", label: "class", of: (e) => ranked(classes, e.class), cell: (e) => (e.class ? word(e.class) : DASH), shown: any("class") },
].filter((column) => column.shown !== false);

function labelled(label) {
  const made = document.createDocumentFragment();
  made.append(mark(label), word(label));
  return made;
}

function said(entry) {
  const made = document.createDocumentFragment();
  if (entry.said === null || entry.said === undefined) return DASH;
  made.append(entry.said.trim() ? word(entry.said, 40) : "(nothing)", ` ×${NO_BREAK}${entry.saidCount}`);
  if (entry.answer !== null) made.append(" ", el("span", { class: "under" }, "right: ", word(entry.answer, 40)));
  return made;
}

let order = { key: null, down: false }, found = entries, page = 0;

function matches(entry, wanted) {
  if (wanted.category && entry.category !== wanted.category) return false;
  if (wanted.bucket && entry.bucket !== wanted.bucket) return false;
  if (wanted.learner && entry.half.learner !== wanted.learner) return false;
  entry.text ??= [entry.name, entry.words, entry.caption, entry.answer ?? "", entry.said ?? ""].join("\n").toLowerCase();
  return wanted.words.every((text) => entry.text.includes(text));
}

function sorted(list) {
  const column = COLUMNS.find((one) => one.key === order.key);
  if (!column) return list;
  const keyed = list.map((entry) => [column.of(entry), entry]);
  const absent = (value) => value === null || value === undefined || value === "";
  keyed.sort(([a, first], [b, second]) => {
    if (absent(a) || absent(b)) return absent(a) - absent(b) || first.n - second.n;
    const sign = a < b ? -1 : a > b ? 1 : 0;
    return (order.down ? -sign : sign) || first.n - second.n;
  });
  return keyed.map(([, entry]) => entry);
}

function find() {
  const wanted = { words: $("find").value.toLowerCase().split(/\s+/).filter(Boolean) };
  for (const name of ["category", "bucket", "learner"]) wanted[name] = $(`of-${name}`)?.value ?? "";
  found = sorted(entries.filter((entry) => matches(entry, wanted)));
  page = 0;
  showRows();
}

function row(entry) {
  const cells = COLUMNS.map((column) => {
    if (!column.heading) return el("td", { class: [column.numeric ? "num" : "", column.style ?? ""].filter(Boolean).join(" ") }, column.cell(entry));
    const real = entry.half.pictures?.real[entry.place] ?? [];
    const link = el("a", { href: `#concept/${entry.n}` }, entry.name.trim() ? word(entry.name) : "(no name)");
    return el("th", { scope: "row" }, el("span", { class: "who" }, real.length ? picture(entry.half, real[0], "") : "", link));
  });
  return el("tr", { "data-n": entry.n }, ...cells);
}

function showRows() {
  const first = page * ROWS, shown = found.slice(first, first + ROWS), pages = Math.max(1, Math.ceil(found.length / ROWS));
  $("explorer-rows").replaceChildren(...shown.map(row));
  const where = found.length > ROWS ? `, rows ${first + 1} to ${first + shown.length} shown` : "";
  $("explorer-count").textContent = `${found.length.toLocaleString("en")} of ${counted(entries.length, "row")} match${where}.`;
  $("explorer-page").textContent = `page ${page + 1} of ${pages}`;
  for (const [id, off] of [["explorer-back", page === 0], ["explorer-on", page + 1 >= pages]]) {
    $(id).setAttribute("aria-disabled", String(off));
  }
  $("explorer-pager").hidden = pages === 1;
}

function turn(by) {
  const last = Math.max(0, Math.ceil(found.length / ROWS) - 1);
  page = Math.min(last, Math.max(0, page + by));
  showRows();
}

function sortBy(key) {
  order = { key, down: order.key === key && !order.down };
  for (const heading of $("explorer-head").children) {
    heading.setAttribute("aria-sort", heading.dataset.key === key ? (order.down ? "descending" : "ascending") : "none");
  }
  find();
}

function makeList() {
  const options = {
    category: data.categories.map((label) => [label, label]),
    bucket: ["known", "unknown"].map((label) => [label, label]),
    learner: data.halves.map((half) => [half.learner, half.model]),
  };
  for (const [name, values] of Object.entries(options)) {
    $(`of-${name}`).append(...values.map(([value, label]) => el("option", { value }, label)));
    $(`of-${name}`).addEventListener("change", find);
  }
  if (!both) $("of-learner").closest("label").hidden = true;
  $("explorer-head").append(...COLUMNS.map((column) => {
    const button = el("button", { type: "button" }, column.label);
    button.addEventListener("click", () => sortBy(column.key));
    return el("th", { scope: "col", "aria-sort": "none", "data-key": column.key, class: column.numeric ? "num" : "" }, button);
  }));
  let waiting = 0;
  $("find").addEventListener("input", () => { clearTimeout(waiting); waiting = setTimeout(find, 80); });
  $("explorer-form").addEventListener("submit", (event) => { event.preventDefault(); find(); });
  $("explorer-form").addEventListener("reset", () => setTimeout(find, 0));
  $("explorer-back").addEventListener("click", () => turn(-1));
  $("explorer-on").addEventListener("click", () => turn(1));
  $("explorer-rows").addEventListener("click", (event) => {
    const at = event.target.closest("tr");
    const selecting = String(getSelection()).length > 0;
    if (at && !selecting && !event.target.closest("a")) location.hash = `#concept/${at.dataset.n}`;
  });
  $("explorer-app").hidden = false;
  find();
}

/* ---- the page of a concept ---- */

const rowsOf = (entry, name) => entry.half[name].about(entry.place);
const getter = (entry, name) => (column, at) => entry.half[name].get(column, at);
const yes = (value) => (value === null ? DASH : value ? `✓${NO_BREAK}right` : "wrong");
const rightCell = (value) => [yes(value), "", value ? "better" : ""];
const modelled = (text) => word(text);

function part(title, remark, ...content) {
  const made = content.filter(Boolean);
  if (!made.length) return [];
  return [el("h3", {}, title), ...made, remark ? el("p", { class: "remark" }, remark) : ""];
}

function facts(entry) {
  const own = (name) => entry.half.concepts.get(name, entry.place);
  const pairs = [
    ["error, nats", entry.error === null ? DASH : own("error_se_nats") ? plusMinus(entry.error, own("error_se_nats")).replace(/^\+/, "") : number(entry.error, 4)],
    ["gain, nats", plusMinus(entry.gain, entry.gainError)],
    ["right answers", share(entry.right)],
    ["seen in pretraining", entry.exposure === null ? "not recorded" : entry.exposure.toLocaleString("en")],
  ];
  if (entry.opinion !== null) pairs.push(["opinion, nats", number(entry.opinion)]);
  if (entry.rounds !== null) pairs.push(["rounds", plain(entry.rounds)]);
  if (entry.recovery !== null) pairs.push(["recovery", plain(entry.recovery)]);
  if (entry.class) pairs.push(["solution class", entry.class]);
  return el("dl", { class: "facts" }, ...pairs.map(([what, value]) => el("div", {}, el("dt", {}, what), el("dd", {}, word(value)))));
}

function pictures(entry) {
  const { half, place } = entry;
  if (!half.pictures) return [];
  const { real, drawn, models } = half.pictures, made = [];
  if (real[place].length) {
    const shown = real[place].map((at, index) => picture(half, at, `real picture ${index + 1} of ${cut(entry.name)}`));
    made.push(...part("Real pictures", "", el("div", { class: "reals" }, ...shown)));
  }
  if (drawn[place].length) {
    const strip = el("div", { class: "strip" });
    strip.style.setProperty("--columns", models.length);
    strip.append(...models.map((model) => el("span", { class: "head" }, word(model))));
    for (const [noise, row] of drawn[place]) {
      strip.append(...row.map((at, index) => el("div", {}, at === null ? el("span", { class: "nothing" }, "no picture")
        : picture(half, at, `${cut(entry.name)} drawn by ${models[index]}, start noise ${noise}`))));
    }
    made.push(...part("Drawn before and after each mix", "In a row all pictures begin from the same noise and the same caption.", strip));
  }
  if (!made.length) made.push(el("p", { class: "missing" }, "No picture of it is in this page, which holds pictures up to a limit of bytes."));
  return made;
}

function answers(entry) {
  const get = getter(entry, "answers"), rows = rowsOf(entry, "answers");
  const gains = ["true_gain_nats", "best_other_gain_nats"].filter((name) => rows.some((at) => get(name, at) !== null));
  const named = { true_gain_nats: "gain of the right one, nats", best_other_gain_nats: "best of the others, nats" };
  const lines = rows.map((at) => [
    String(get("rendering", at)), word((get("template", at) ?? DASH).replace("{}", () => entry.words), 200), word(get("answer", at)?.trim() || "(nothing)", 200),
    rightCell(get("correct", at)), ...gains.map((name) => number(get(name, at))),
  ]);
  const headings = ["rendering", "asked as", "answer", "", ...gains.map((name) => named[name])];
  return part("Answers in each rendering of the question", "", lines.length && table("Answers in each rendering", headings, lines, [4, 5]));
}

function samples(entry) {
  const get = getter(entry, "samples");
  const lines = rowsOf(entry, "samples").map((at) => [word(get("answer", at)?.trim() || "(nothing)", 200), rightCell(get("correct", at)), String(get("count", at))]);
  return part("Sampled answers", "Drawn where no greedy answer was right.", lines.length && table("Sampled answers", ["answer", "", "times"], lines, [2]));
}

/* One row for each run and role, one column for each evaluation: right of asked, and the answers themselves. */
function learning(entry) {
  const get = getter(entry, "asked"), lines = new Map(), updates = new Set();
  for (const at of rowsOf(entry, "asked")) {
    const key = `${get("run", at)}\u0000${get("role", at)}`, update = get("update", at);
    if (!lines.has(key)) lines.set(key, { run: get("run", at), role: get("role", at), at: new Map() });
    const cells = lines.get(key).at;
    if (!cells.has(update)) cells.set(update, { right: 0, asked: 0, said: new Map() });
    const cell = cells.get(update), answer = get("answer", at) ?? "";
    cell.asked += 1;
    cell.right += get("correct", at) ? 1 : 0;
    cell.said.set(answer, (cell.said.get(answer) ?? 0) + 1);
    updates.add(update);
  }
  const columns = [...updates].sort((a, b) => a - b);
  const rows = [...lines.values()].map((line) => [
    [modelled(line.run), printable(cut(entry.half.roles[line.role] ?? line.role))],
    ...columns.map((update) => learnt(line.at.get(update))),
  ]);
  const remark = "Right of asked at each evaluation, and below it what was answered. The darker, the more were right.";
  const headings = ["mix", ...columns.map((update) => `update ${update.toLocaleString("en")}`)];
  return part("Over fine-tuning", remark, rows.length && table("Over fine-tuning", headings, rows, columns.map((_, n) => n + 1)));
}

function learnt(cell) {
  if (!cell) return DASH;
  const told = [...cell.said].sort((a, b) => b[1] - a[1]).slice(0, 2);
  const texts = told.map(([answer, times]) => `${cut(printable(answer).trim() || "(nothing)", 24)}${cell.asked > 1 ? ` × ${times}` : ""}`);
  const box = el("span", { class: "heat-box" }, `${cell.right} of ${cell.asked}`);
  box.style.setProperty("--heat", Math.round(100 * cell.right / cell.asked));
  return [box, texts.join(", ") + (cell.said.size > 2 ? ", …" : "")];
}

function accuracy(entry) {
  const get = getter(entry, "accuracy");
  const lines = rowsOf(entry, "accuracy").map((at) => [
    word(get("model", at) === "base" ? "base" : `mix ${get("model", at)}`), `${get("num_correct", at)} of ${get("num_images", at)}`, share(get("accuracy", at)),
  ]);
  return part("Drawn images that are read correctly", "", lines.length && table("Images read correctly", ["model", "right", "share"], lines, [1, 2]));
}

function systems(entry) {
  const get = getter(entry, "systems");
  const lines = rowsOf(entry, "systems").map((at) => {
    const system = entry.half.systems_words[get("system", at)], about = system?.measures[get("measure", at)];
    const [value, ends] = reading(get("value", at), get("low", at), get("high", at));
    const name = about?.[0] ?? (get("measure", at) ?? "").replaceAll("_", " ");
    return [[word(name), about?.[1] ?? ""], word(system?.name ?? get("system", at) ?? DASH), [value, ends], plain(get("num_draws", at))];
  });
  return part("As systems of equations", "", lines.length && table("Measures of systems", ["measure", "system", "value", "draws"], lines, [2, 3]));
}

function scores(entry) {
  const get = getter(entry, "scores"), rows = rowsOf(entry, "scores");
  const shown = ["error", "gain", "opinion"].filter((name) => rows.some((at) => get(`${name}_nats`, at) !== null));
  const score = (name, at) => {
    const text = plusMinus(get(`${name}_nats`, at), get(`${name}_se_nats`, at));
    return name === "gain" ? text : text.replace(/^\+/, "");
  };
  const lines = rows.map((at) => [word(get("example_id", at) ?? DASH), plain(get("num_draws", at)), ...shown.map((name) => score(name, at))]);
  return part("Scores of each example", "In nats, ± 1.96 standard errors.", lines.length && table("Scores", [entry.half.example, "draws", ...shown], lines, [1, 2, 3, 4]));
}

function record(entry) {
  const own = entry.half.concepts;
  const lines = Object.keys(own.columns).map((name) => {
    const value = own.get(name, entry.place);
    const text = value === null ? DASH : typeof value === "boolean" ? (value ? "yes" : "no") : typeof value === "number" ? plain(value, 6) : value;
    return [word(name.replaceAll("_", " ")), word(text, 0)];
  });
  return part("Whole record", "", table("Whole record", ["column", "value"], lines));
}

function neighbours(entry) {
  const list = found.includes(entry) ? found : entries, at = list.indexOf(entry);
  const link = (other, before, after) => (other ? el("a", { href: `#concept/${other.n}` }, before, word(other.name.trim() || "(no name)", 30), after) : "");
  return el("p", { class: "beside" }, el("a", { href: "#explorer" }, "All concepts"), link(list[at - 1], "← ", ""), link(list[at + 1], "", " →"));
}

function showConcept(entry) {
  const heading = el("h2", { tabindex: "-1" }, entry.name.trim() ? word(entry.name, 200) : "(no name)");
  const kind = el("p", { class: "kind" }, el("span", {}, labelled(entry.category)), el("span", {}, labelled(entry.bucket)), el("span", {}, `${capital(entry.half.concept)}, ${entry.half.model}`));
  if (entry.misknown) kind.append(el("span", { class: "badge" }, "confident and wrong"));
  const asked = entry.caption ? el("p", { class: "lede" }, word(entry.caption, 400)) : "";
  const right = entry.answer !== null ? el("p", {}, "Right answer: ", el("strong", {}, word(entry.answer, 400))) : "";
  const content = [neighbours(entry), heading, kind, asked, right, facts(entry)];
  for (const make of [pictures, answers, samples, learning, accuracy, systems, scores, record]) content.push(...make(entry));
  $("concept-page").replaceChildren(...content.filter((item) => item !== ""));
  heading.focus({ preventScroll: true });
  return entry.name;
}

/* ---- where we are: #concept/n is a page of its own, everything else is the report ---- */

const title = document.title;
let left = null;

function route() {
  const asked = /^#concept\/(\d+)$/.exec(location.hash), entry = asked && entries[Number(asked[1])];
  if (entry) {
    if (!document.body.classList.contains("one-concept")) left = { hash: lastHash, top: scrollY };
    document.body.classList.add("one-concept");
    $("concept-page").hidden = false;
    document.title = `${printable(cut(showConcept(entry)))} – ${title}`;
    scrollTo({ top: 0, behavior: "instant" });
    shownConcept = entry;
  } else if (document.body.classList.contains("one-concept")) {
    document.body.classList.remove("one-concept");
    $("concept-page").hidden = true;
    $("concept-page").replaceChildren();
    document.title = title;
    dispatchEvent(new Event("resize"));
    if (left && left.hash === location.hash) scrollTo({ top: left.top, behavior: "instant" });
    else document.getElementById(decodeURIComponent(location.hash.slice(1)) || "answer")?.scrollIntoView({ behavior: "instant" });
    $("explorer-rows").querySelector(`tr[data-n="${shownConcept.n}"] a`)?.focus({ preventScroll: true });
  }
  lastHash = location.hash;
}

let lastHash = location.hash, shownConcept = null;
makeList();
addEventListener("hashchange", route);
route();
})();
