"use strict";
const at = (selector, within = document) => within.querySelector(selector);
const make = (tag, fields = {}, ...children) => {
  const made = Object.assign(document.createElement(tag), fields);
  made.append(...children);
  return made;
};
const ask = async (path, fields) => {
  const answer = await fetch(fields ? `${path}?${new URLSearchParams(fields)}` : path);
  if (!answer.ok) throw new Error(await answer.text());
  return answer;
};
const form = at("#query"), grid = at("#grid"), dialog = at("dialog");
const state = { page: 0, pages: 1, tiles: [], curve: [], opened: 0, asked: 0 };

/* Samples */
function query() {
  const fields = Object.fromEntries(new FormData(form));
  const step = Number(fields.slider ?? 0);
  delete fields.slider;
  if (step > 0 && state.curve.length) fields.threshold = state.curve[step][0];
  for (const name of Object.keys(fields)) if (fields[name] === "") delete fields[name];
  return { ...fields, page: state.page };
}

async function show() {
  const number = ++state.asked; // an earlier answer may come later
  try {
    const page = await (await ask("samples", query())).json();
    if (number !== state.asked) return;
    at("#problem").textContent = "";
    state.pages = Math.max(1, page.pages);
    state.tiles = page.samples;
    grid.replaceChildren(...page.samples.map(tile));
    at("#count").replaceChildren(make("strong", { textContent: page.total.toLocaleString("en") }), " samples");
    listed(page.excluded);
    command(page.where);
    pager(at("#samples .pager"), state);
  } catch (error) {
    if (number === state.asked) at("#problem").textContent = error.message;
  }
}

function listed(count) {
  state.excluded = count;
  at("#listed").textContent = count ? `${count.toLocaleString("en")} excluded, in ${document.body.dataset.list}` : "";
}

function command(where) {
  const quoted = (text) => `'${text.replaceAll("'", "'\\''")}'`;
  const parts = [where && `--where ${quoted(where)}`, state.excluded && `--exclude ${quoted(document.body.dataset.list)}`];
  const options = parts.filter(Boolean).join(" ");
  at("#command").textContent = options && `subjectloom filter ${quoted(document.body.dataset.folder)} DEST ${options}`;
  state.where = where;
}

function tile(sample, index) {
  const picture = make("img", { alt: "", loading: "lazy", src: `picture?${new URLSearchParams({ key: sample.key })}` });
  const shot = make("button", { type: "button", className: "shot", ariaLabel: `Open ${sample.key}` }, picture);
  shot.addEventListener("click", () => open(index));
  const box = make("input", { type: "checkbox", checked: sample.excluded });
  box.addEventListener("change", () => exclude(index, box.checked));
  const notes = make("p", { className: "notes" }, ...sample.notes.map((text) => make("span", { textContent: text })));
  return make("article", { className: `tile${sample.excluded ? " out" : ""}`, ariaLabel: sample.key },
    shot,
    make("p", { className: "text", dir: "auto", textContent: sample.caption }),
    notes,
    make("label", {}, box, make("span", {}, "Exclude ", make("code", { textContent: sample.key }))));
}

async function exclude(index, excluded) {
  const sample = state.tiles[index];
  const answer = await fetch("exclude", { method: "POST", body: JSON.stringify({ key: sample.key, excluded }) });
  if (!answer.ok) {
    at("#problem").textContent = await answer.text();
    excluded = sample.excluded;
  } else {
    listed((await answer.json()).excluded);
    command(state.where);
  }
  sample.excluded = excluded;
  const shown = grid.children[index];
  shown.classList.toggle("out", excluded);
  at("input", shown).checked = excluded;
  toggled();
}

function pager(nav, pages) {
  at("[data-at]", nav).textContent = `page ${(pages.page + 1).toLocaleString("en")} of ${pages.pages.toLocaleString("en")}`;
  at('[data-step="-1"]', nav).disabled = pages.page <= 0;
  at('[data-step="1"]', nav).disabled = pages.page >= pages.pages - 1;
}

/* The slider */
async function curve() {
  if (!form.elements.score) return;
  state.curve = await (await ask("curve", { column: form.elements.score.value })).json();
  form.elements.slider.value = 0;
  left();
}

function left() {
  if (!form.elements.slider) return;
  const step = state.curve[Number(form.elements.slider.value)];
  const count = (number) => number.toLocaleString("en");
  at("#left").textContent = step
    ? `${step[0]} leaves ${count(step[1])} samples${state.curve[0][1] === state.curve[0][2] ? "" : ` with ${count(step[2])} scores`}`
    : "no scores";
}

async function values() {
  const column = form.elements.column.value;
  const found = column ? await (await ask("values", { column })).json() : [];
  at("#values").replaceChildren(...found.map(([value, count]) => make("option", { value, label: `${value} (${count})` })));
}

let waiting;
function later() {
  clearTimeout(waiting);
  waiting = setTimeout(() => { state.page = 0; show(); }, 150);
}
form.addEventListener("submit", (event) => event.preventDefault());
form.addEventListener("input", async (event) => {
  if (event.target.name === "column") { form.elements.value.value = ""; await values(); }
  if (event.target.name === "score") await curve();
  if (event.target.name === "slider") left();
  later();
});

/* Large view */
async function open(index) {
  state.opened = index;
  const card = await ask("card", { key: state.tiles[index].key });
  at(".large").innerHTML = await card.text(); // written by the server, which escapes what it takes from the dataset
  toggled();
  if (!dialog.open) dialog.showModal();
}
function toggled() {
  const sample = state.tiles[state.opened];
  if (sample) at("[data-toggle]").textContent = sample.excluded ? "Take back" : "Exclude";
}
dialog.addEventListener("click", (event) => {
  const { move, close, toggle } = event.target.dataset;
  if (event.target === dialog || close !== undefined) dialog.close();
  if (move) open(Math.min(Math.max(state.opened + Number(move), 0), state.tiles.length - 1));
  if (toggle !== undefined) exclude(state.opened, !state.tiles[state.opened].excluded);
});
dialog.addEventListener("close", () => at(".shot", grid.children[state.opened])?.focus());

/* Rejects */
const rejects = { page: 0, pages: 1 };
async function showRejects() {
  const asked = { ...Object.fromEntries(new FormData(at("#reject-query"))), page: rejects.page };
  const page = await (await ask("rejects", asked)).json();
  rejects.pages = Math.max(1, page.pages);
  const select = at("#reject-query").elements.reason;
  if (select.options.length === 1) {
    select.append(...page.reasons.map(([reason, count]) => make("option", { value: reason, textContent: `${reason} (${count})` })));
  }
  at("#reject-count").replaceChildren(make("strong", { textContent: page.total.toLocaleString("en") }), " rejects");
  at("#reject-grid").replaceChildren(...page.rejects.map(rejectTile));
  pager(at("#rejects .pager"), rejects);
}
function rejectTile(reject) {
  const picture = make("img", { alt: "", loading: "lazy", src: `reject?row=${reject.row}` });
  const shot = make("span", { className: "shot" }, picture);
  picture.addEventListener("error", () => shot.replaceChildren(make("span", { className: "absent", textContent: "no picture" })));
  return make("article", { className: "tile", ariaLabel: reject.key },
    shot,
    make("p", { className: "text", textContent: reject.detail }),
    make("p", { className: "notes" }, make("b", { textContent: reject.reason }), make("span", { textContent: `at ${reject.stage}` })),
    make("p", { className: "notes" }, make("code", { textContent: reject.key })));
}
at("#reject-query").addEventListener("submit", (event) => event.preventDefault());
at("#reject-query").addEventListener("input", () => { rejects.page = 0; showRejects(); });

/* Pages, tabs, keys */
for (const [panel, pages, again] of [["#samples", state, show], ["#rejects", rejects, showRejects]]) {
  at(`${panel} .pager`).addEventListener("click", async (event) => {
    const { step } = event.target.dataset;
    if (!step) return;
    pages.page = Math.min(Math.max(pages.page + Number(step), 0), pages.pages - 1);
    await again();
    scrollTo(0, 0);
  });
}
for (const name of ["samples", "rejects"]) {
  at(`#tab-${name}`).addEventListener("click", () => {
    for (const other of ["samples", "rejects"]) {
      at(`#${other}`).hidden = other !== name;
      at(`#tab-${other}`).ariaSelected = String(other === name);
    }
    if (name === "rejects") showRejects();
  });
}
document.addEventListener("keydown", (event) => {
  const typing = event.target.matches('input:not([type="checkbox"]), select');
  if (typing || event.ctrlKey || event.metaKey || event.altKey) return;
  if (dialog.open) {
    if (event.key === "ArrowRight") open(Math.min(state.opened + 1, state.tiles.length - 1));
    if (event.key === "ArrowLeft") open(Math.max(state.opened - 1, 0));
    if (event.key === "x") exclude(state.opened, !state.tiles[state.opened].excluded);
    return;
  }
  const tiles = [...grid.children];
  const here = tiles.findIndex((one) => one.contains(document.activeElement));
  const across = tiles.filter((one) => one.offsetTop === tiles[0]?.offsetTop).length || 1;
  const step = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: across, ArrowUp: -across }[event.key];
  if (event.key === "/") { event.preventDefault(); form.elements.text.focus(); }
  if (event.key === "x" && here >= 0) exclude(here, !state.tiles[here].excluded);
  if (step && (here >= 0 || event.key === "ArrowRight")) {
    event.preventDefault();
    at(".shot", tiles[Math.min(Math.max(here + step, 0), tiles.length - 1)])?.focus();
  }
});

Promise.all([show(), curve(), values()]);
