// Forms: Enter sends, a command line completes, what was sent is taken out of the field, filters filter while typing.

import { refreshAll } from "./live.js";

const SAID_MS = 5000;

export function startForms() {
  document.addEventListener("keydown", onEnter);
  document.addEventListener("input", (event) => {
    if (event.target.matches("[data-prompt]")) suggest(event.target);
    if (event.target.matches("[data-filter]")) filter(event.target);
  });
  document.addEventListener("change", (event) => event.target.matches("[data-submit]") && event.target.form.submit());
  document.addEventListener("submit", onSubmit, true);
  document.addEventListener("htmx:afterRequest", ({ target }) => target.removeAttribute?.("aria-busy"));
  document.addEventListener("htmx:sendError", ({ target }) => notSent(target));
  document.addEventListener("hive:done", ({ target }) => done(target));
  document.addEventListener("hive:changed", ({ target }) => {
    document.querySelectorAll("[data-filter]").forEach(filter);
    if (target.id === "rail") countInTitle(target);
  });
  startTheme();
}

function onEnter(event) {
  const field = event.target;
  if (!field.matches?.("[data-enter]")) return;
  if (event.key === "Tab" && field.matches("[data-prompt]") && complete(field)) event.preventDefault();
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  field.form.requestSubmit();
}

function onSubmit(event) {
  const form = event.target;
  if (form.querySelector("[data-filter]")) return event.preventDefault();
  if (form.getAttribute("aria-busy") === "true" || ownCommand(form)) {
    event.preventDefault();
    event.stopPropagation();
    return undefined;
  }
  form.setAttribute("aria-busy", "true");
  return undefined;
}

function notSent(form) {
  const said = document.createElement("p");
  said.className = "said bad";
  said.role = "alert";
  said.textContent = "Not sent: no connection to the web server. What you typed is kept; try again when it is back.";
  form.querySelector("output")?.replaceChildren(said);
}

function done(target) {
  const form = target.closest?.("form");
  refreshAll();
  if (!form) return;
  form.querySelectorAll("textarea, input:not([type=hidden])").forEach((field) => (field.value = field.defaultValue));
  const prompt = form.querySelector("[data-prompt]");
  if (prompt) suggest(prompt);
  const output = form.querySelector("output");
  setTimeout(() => output?.querySelector(".ok") && output.replaceChildren(), SAID_MS);
  form.closest("details.drop")?.removeAttribute("open");
}

// The prompt line
const list = () => document.getElementById("commands");

function suggest(field) {
  const word = field.value.split(/\s/)[0];
  const asks = /^\/[a-z-]*$/.test(word) && !field.value.includes("\n");
  let any = false;
  for (const entry of list()?.children ?? []) {
    entry.hidden = !(asks && entry.dataset.command.startsWith(word));
    any ||= !entry.hidden;
  }
  if (list()) list().hidden = !any;
}

function complete(field) {
  const found = [...(list()?.children ?? [])].filter((entry) => !entry.hidden && !list().hidden);
  if (found.length === 0 || field.value === found[0].dataset.command) return false;
  field.value = `${found[0].dataset.command} `;
  suggest(field);
  return true;
}

// /help and /clear concern only what is shown.
function ownCommand(form) {
  const field = form.querySelector("[data-prompt]");
  const line = field?.value.trim();
  if (line === "/help") {
    for (const entry of list().children) entry.hidden = false;
    list().hidden = false;
  } else if (line === "/clear") {
    document.getElementById("transcript").replaceChildren();
    document.getElementById("older")?.parentElement.remove();
    list().hidden = true;
  } else {
    return false;
  }
  field.value = "";
  return true;
}

function filter(field) {
  const words = field.value.toLowerCase().split(/\s+/).filter(Boolean);
  for (const row of document.querySelectorAll(field.dataset.filter)) {
    row.hidden = !words.every((word) => row.dataset.text.toLowerCase().includes(word));
  }
}

function countInTitle(rail) {
  const needs = Number(rail.dataset.needs);
  document.title = `${needs ? `(${needs}) ` : ""}${document.body.dataset.title} · hive`;
  const icon = document.querySelector("link[rel=icon]");
  icon.href = needs ? icon.dataset.needs : icon.dataset.calm;
}

function startTheme() {
  const button = document.getElementById("theme");
  if (!button) return;
  const root = document.documentElement;
  const order = ["auto", "dark", "light"];
  const label = () => (button.querySelector(".label").textContent = root.dataset.theme || "auto");
  button.hidden = false;
  label();
  button.addEventListener("click", () => {
    const next = order[(order.indexOf(root.dataset.theme || "auto") + 1) % order.length];
    if (next === "auto") delete root.dataset.theme;
    else root.dataset.theme = next;
    try {
      localStorage.setItem("hive-theme", next);
    } catch {
      // it holds for this page
    }
    label();
  });
}
