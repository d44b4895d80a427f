// The script of the page: parts that change, the upload form, the buttons, the transcript, the
// waterfall.
"use strict";

const main = document.querySelector("main");
const connection = document.getElementById("connection");

// Parts. The server sends each one that has changed.
let events = null;

function connect() {
  if (!main.dataset.events || events) return;
  events = new EventSource(main.dataset.events);
  events.addEventListener("open", () => (connection.textContent = ""));
  events.addEventListener("part", (event) => replace(JSON.parse(event.data)));
  events.addEventListener("gone", () => {
    disconnect();
    connection.textContent = "deleted";
  });
  events.addEventListener("error", () => {
    connection.textContent = "not connected";
    // The browser connects again after a lost connection, but not after a refusal.
    if (events?.readyState === EventSource.CLOSED) {
      disconnect();
      setTimeout(connect, 5000);
    }
  });
}

function disconnect() {
  if (events) events.close();
  events = null;
}

function replace({ part, version, html }) {
  const element = document.getElementById(part);
  // What is being filled in stays.
  if (!element || element.dataset.version === version || element.matches(":focus-within:has(form)")) return;
  const hadFocus = element.contains(document.activeElement);
  element.dataset.version = version;
  element.innerHTML = html;
  document.dispatchEvent(new CustomEvent("replaced", { detail: { hadFocus } }));
}

// A hidden page needs no connection: a browser has only six of them for a server.
document.addEventListener("visibilitychange", () => (document.hidden ? disconnect() : connect()));
window.addEventListener("pagehide", disconnect);
window.addEventListener("pageshow", connect);

async function call(method, path, body) {
  const response = await fetch(path, { method, body });
  const answer = response.status === 204 ? null : await response.json();
  if (!response.ok) throw new Error(answer.detail ?? answer.error?.message ?? response.statusText);
  return answer;
}

document.addEventListener("submit", async (event) => {
  const form = event.target;
  if (!form.dataset.upload) return;
  event.preventDefault();
  const [output, button] = [form.querySelector("output"), form.querySelector("button")];
  output.textContent = "";
  button.disabled = true;
  try {
    location.assign(`jobs/${(await call("POST", form.dataset.upload, new FormData(form))).id}`);
  } catch (error) {
    output.textContent = error.message;
  }
  button.disabled = false;
});

document.addEventListener("click", async (event) => {
  const button = event.target.closest("[data-call]");
  if (!button || (button.dataset.confirm && !confirm(button.dataset.confirm))) return;
  const [method, path] = button.dataset.call.split(" ");
  button.disabled = true;
  try {
    await call(method, path);
    if (method === "DELETE") location.assign("./");
  } catch (error) {
    button.disabled = false;
    connection.textContent = error.message;
  }
});

// The transcript, once the job is completed.
async function showTranscript() {
  const source = document.querySelector("[data-transcript]");
  const section = document.getElementById("transcript");
  if (!source || !section?.hidden) return;
  section.hidden = false;
  const text = section.querySelector("p");
  try {
    text.textContent = (await call("GET", source.dataset.transcript)).text;
  } catch (error) {
    text.textContent = error.message;
  }
}
document.addEventListener("replaced", showTranscript);
showTranscript();

// The waterfall. The server draws it; here it is folded, zoomed and selected.
const WIDTH = 100000; // as in trace/mod.rs
const details = document.getElementById("details");
const collapsed = new Set();
let zoom = [0, 1];
let selected = location.hash.slice(1);

const rows = () => [...document.querySelectorAll("#trace .row")];
const depth = (row) => Number(row.ariaLevel);
const visible = () => rows().filter((row) => !row.hidden);
const current = () => document.getElementById(selected);

// Applies what a person has chosen to rows that may be new.
function arrange() {
  let below = Infinity;
  for (const row of rows()) {
    if (depth(row) <= below) below = Infinity;
    row.hidden = depth(row) > below;
    if (row.ariaExpanded !== null) {
      row.ariaExpanded = String(!collapsed.has(row.id));
      row.querySelector(".toggle").textContent = collapsed.has(row.id) ? "▸" : "▾";
      if (!row.hidden && collapsed.has(row.id)) below = depth(row);
    }
    row.ariaSelected = String(row.id === selected);
    row.tabIndex = row.id === selected ? 0 : -1;
  }
  if (!current() && rows().length) rows()[0].tabIndex = 0;
  const [from, to] = zoom;
  for (const bar of document.querySelectorAll("#trace .bar")) {
    bar.setAttribute("viewBox", `${from * WIDTH} 0 ${(to - from) * WIDTH} 20`);
  }
  const axis = document.querySelector("#trace .axis");
  axis?.querySelectorAll("span").forEach((tick, quarter) => {
    tick.textContent = duration(axis.dataset.seconds * (from + ((to - from) * quarter) / 4));
  });
}

function duration(seconds) {
  if (seconds >= 1) return `${seconds.toFixed(2)} s`;
  return seconds ? `${(seconds * 1000).toPrecision(3)} ms` : "0 ms";
}

function parent(row) {
  for (let above = row; (above = above.previousElementSibling); ) {
    if (depth(above) < depth(row)) return above;
  }
  return null;
}

function select(row) {
  selected = row.id;
  for (let above = parent(row); above; above = parent(above)) collapsed.delete(above.id);
  arrange();
  row.focus({ preventScroll: true });
  row.scrollIntoView({ block: "nearest" });
  // With the path: a base element would lead a bare fragment to another page.
  history.replaceState(null, "", `${location.pathname}${location.search}#${row.id}`);
  if (!details.hidden) showDetails();
}

function showDetails() {
  const close = document.createElement("button");
  close.textContent = "Close";
  close.dataset.trace = "close";
  details.replaceChildren(close, current().querySelector("template").content.cloneNode(true));
  details.hidden = false;
  current().scrollIntoView({ block: "nearest" });
}

function fold(row, isFolded) {
  if (isFolded) collapsed.add(row.id);
  else collapsed.delete(row.id);
  select(row);
}

const commands = {
  reset: () => ((zoom = [0, 1]), arrange()),
  expand: () => (collapsed.clear(), arrange()),
  help: () => document.getElementById("help")?.showModal(),
  close: () => (details.hidden = true),
};

document.addEventListener("click", (event) => {
  const command = event.target.closest("[data-trace]");
  if (command) return commands[command.dataset.trace]();
  const row = event.target.closest("#trace .row");
  if (!row) return;
  if (event.target.closest(".toggle") && row.ariaExpanded !== null) return fold(row, row.ariaExpanded === "true");
  select(row);
  showDetails();
});

const keys = {
  ArrowDown: (row, all) => select(all[all.indexOf(row) + 1] ?? row),
  ArrowUp: (row, all) => select(all[all.indexOf(row) - 1] ?? row),
  ArrowRight: (row, all) => {
    if (row.ariaExpanded === "false") fold(row, false);
    else if (row.ariaExpanded === "true") select(all[all.indexOf(row) + 1]);
  },
  ArrowLeft: (row) => {
    if (row.ariaExpanded === "true") fold(row, true);
    else if (parent(row)) select(parent(row));
  },
  Enter: () => showDetails(),
};

document.addEventListener("keydown", (event) => {
  if (event.target.matches("input, select, textarea") || event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.key === "?") commands.help();
  if (event.key === "Escape" && details) commands.close();
  if (event.key === "0" && details) commands.reset();
  const row = event.target.closest("#trace .row");
  if (!row || !keys[event.key]) return;
  event.preventDefault();
  if (row.id !== selected) select(row);
  keys[event.key](row, visible());
});

// Zoom by drag: from the place where the button goes down to the place where it comes up.
document.addEventListener("pointerdown", (event) => {
  const bar = event.target.closest("#trace .bar");
  if (!bar || event.button !== 0) return;
  event.preventDefault();
  const box = bar.getBoundingClientRect();
  const list = bar.closest(".rows");
  const mark = document.createElement("div");
  mark.className = "mark";
  const place = (x) => Math.min(Math.max((x - box.left) / box.width, 0), 1);
  const from = event.clientX;
  const end = new AbortController();
  const span = (to) => [place(Math.min(from, to)), place(Math.max(from, to))];
  const move = ({ clientX }) => {
    const [start, stop] = span(clientX);
    list.append(mark);
    mark.style.left = `${box.left - list.getBoundingClientRect().left + start * box.width}px`;
    mark.style.width = `${(stop - start) * box.width}px`;
  };
  const finish = ({ clientX, type }) => {
    mark.remove();
    end.abort();
    const [start, stop] = span(clientX);
    if (type !== "pointerup" || Math.abs(clientX - from) < 5) return;
    // The end of the drag is no click on a row.
    const ignore = (click) => click.stopPropagation();
    window.addEventListener("click", ignore, true);
    setTimeout(() => window.removeEventListener("click", ignore, true));
    const width = zoom[1] - zoom[0];
    zoom = [zoom[0] + start * width, zoom[0] + stop * width];
    arrange();
  };
  document.addEventListener("pointermove", move, { signal: end.signal });
  document.addEventListener("pointerup", finish, { signal: end.signal });
  document.addEventListener("pointercancel", finish, { signal: end.signal });
});

// A link to a span shows it as soon as it is there.
let linked = selected;

function follow() {
  arrange();
  const row = document.getElementById(linked);
  if (!row?.matches("#trace .row")) return;
  linked = "";
  select(row);
  showDetails();
}

window.addEventListener("hashchange", () => {
  linked = location.hash.slice(1);
  follow();
});
document.addEventListener("replaced", ({ detail }) => {
  follow();
  if (detail.hadFocus) current()?.focus({ preventScroll: true });
});
follow();
