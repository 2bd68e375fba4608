"use strict";
const samples = document.querySelector("#samples");
const gallery = samples.querySelector(".gallery");
const dialog = samples.querySelector("dialog");

// A phrase, its mask, its number and its line in the list have the same data-region; they are highlighted together.
function highlight(target) {
  for (const card of samples.querySelectorAll(".card.lit")) {
    card.classList.remove("lit");
    for (const part of card.querySelectorAll(".on")) part.classList.remove("on");
  }
  const part = target instanceof Element && target.closest("[data-region]");
  const card = part && part.closest(".card");
  if (!card) return;
  card.classList.add("lit");
  for (const same of card.querySelectorAll(`[data-region="${part.dataset.region}"]`)) same.classList.add("on");
}

const shown = () => [...gallery.querySelectorAll("li:not([hidden]) > .card")];

// Only one card is in the Tab order: its picture first, then its slider or its phrases.
function enter(card) {
  for (const stop of gallery.querySelectorAll(".open, .phrase, .fade input"))
    stop.tabIndex = card && card.contains(stop) ? 0 : -1;
}

function neighbour(card, key) {
  const cards = shown();
  const top = (c) => c.getBoundingClientRect().top;
  const columns = Math.max(1, cards.findIndex((c) => top(c) > top(cards[0]) + 1));
  const step = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -columns, ArrowDown: columns }[key];
  if (key === "Home") return cards[0];
  if (key === "End") return cards[cards.length - 1];
  return step && cards[cards.indexOf(card) + step];
}

function show(card) {
  const large = card.cloneNode(true);
  for (const path of large.querySelectorAll("defs")) path.remove(); // the references point to the gallery's
  const picture = large.querySelector(".open");
  picture.replaceWith(picture.firstElementChild);
  for (const part of large.querySelectorAll(".phrase, .fade input")) part.tabIndex = 0;
  dialog.querySelector(".large").replaceChildren(large);
  dialog.setAttribute("aria-label", card.getAttribute("aria-label"));
  dialog.current = card;
  highlight(null);
  enter(card);
  if (!dialog.open) dialog.showModal();
}

function step(by) {
  const cards = shown();
  const next = cards[cards.indexOf(dialog.current) + by];
  if (next) show(next);
}

function press(buttons, pressed) {
  for (const button of buttons) button.setAttribute("aria-pressed", String(pressed(button)));
}

function toggle(layer) {
  const off = samples.classList.toggle(`no-${layer}`);
  press(samples.querySelectorAll(`[data-layer="${layer}"]`), () => !off);
}

function filter(group) {
  gallery.style.minHeight = "100vh"; // a page that got shorter would scroll, and the buttons with it
  for (const item of gallery.children) item.hidden = group !== "all" && item.dataset.group !== group;
  press(samples.querySelectorAll("[data-filter]"), (button) => button.dataset.filter === group);
  enter(shown()[0]);
}

function clicked(event) {
  const button = event.target.closest("button");
  if (!button) return;
  if (button.matches(".open")) show(button.closest(".card"));
  else if (button.dataset.layer) toggle(button.dataset.layer);
  else if (button.dataset.filter) filter(button.dataset.filter);
  else if (button.dataset.step) step(Number(button.dataset.step));
  else if ("close" in button.dataset) dialog.close();
}

function faded(event) {
  if (event.target.matches(".fade input"))
    event.target.closest(".card").style.setProperty("--maps", event.target.value / 100);
}

function keyed(event) {
  if (event.altKey || event.ctrlKey || event.metaKey || event.shiftKey || event.target.matches("input")) return;
  if (dialog.open) {
    if (event.key === "ArrowLeft" || event.key === "ArrowRight") step(event.key === "ArrowLeft" ? -1 : 1);
    return;
  }
  const card = event.target.closest(".gallery .card");
  const next = card && neighbour(card, event.key);
  if (!next) return;
  event.preventDefault();
  enter(next);
  next.querySelector(".open").focus();
}

if (gallery) {
  enter(shown()[0]);
  samples.addEventListener("click", clicked);
  samples.addEventListener("keydown", keyed);
  samples.addEventListener("input", faded);
  samples.addEventListener("pointerover", (event) => highlight(event.target));
  samples.addEventListener("pointerleave", () => highlight(document.activeElement));
  samples.addEventListener("focusin", (event) => highlight(event.target));
  samples.addEventListener("focusout", () => highlight(null));
  dialog.addEventListener("close", () => dialog.current.querySelector(".open").focus());
  dialog.addEventListener("click", (event) => event.target === dialog && dialog.close());
}
