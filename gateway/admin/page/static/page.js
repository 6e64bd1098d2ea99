// Keeps the status page current.  The server draws everything; this writes new figures into the
// cells that changed, asks for a section anew when its shape changed, and sends the buttons.
"use strict";

const NONE = "–";
const SPACE = "\u00a0";
const POINTS = 180;
const LINE_HEIGHT = 32;

// Milliseconds without a word, which comes every second, until that is told, and until the page
// connects anew: a gateway that hangs, and a line that a sleeping laptop lost, close nothing.
const SILENT = 5000;
const TOO_SILENT = 15000;
const PARTS = ["top", "accounts", "conversations", "turns", "keys", "recordings", "memory", "configuration"];

// ---- figures, written as gateway/admin/page/formatting.py writes them

const thousands = (value) => String(value).replace(/\B(?=(\d{3})+$)/g, ",");

function number(value) {
  if (Number.isInteger(value) || Math.abs(value) >= 10) return thousands(Math.floor(value + 0.5));
  return (Math.floor(value * 10 + 0.5) / 10).toFixed(1);
}

function ms(value) {
  return value < 1000 ? `${number(value)}${SPACE}ms` : `${number(value / 1000)}${SPACE}s`;
}

function size(value) {
  const units = ["B", "kB", "MB", "GB", "TB"];
  let unit = 0;
  while (value >= 1000 && unit < units.length - 1) {
    value /= 1000;
    unit += 1;
  }
  return `${number(value)}${SPACE}${units[unit]}`;
}

function duration(seconds) {
  let left = Math.max(0, Math.floor(seconds));
  const parts = [];
  for (const [name, length] of [["d", 86400], ["h", 3600], ["min", 60], ["s", 1]]) {
    const count = Math.floor(left / length);
    left %= length;
    if (count || (name === "s" && !parts.length)) parts.push(`${count}${SPACE}${name}`);
    else if (parts.length) break;
  }
  return parts.slice(0, 2).join(" ");
}

const FORMS = {
  number,
  ms,
  size,
  duration,
  share: (value) => `${Math.floor(value * 100 + 0.5)}${SPACE}%`,
  text: String,
};

const written = (form, value) => (value === null ? NONE : FORMS[form](value));

// ---- cells

const at = (values, path) => path.split(".").reduce((found, name) => found?.[name], values);

function write(element, text) {
  const only = element.firstChild;
  if (only?.nodeType === Node.TEXT_NODE && !only.nextSibling) {
    if (only.data !== text) only.data = text;
  } else {
    element.textContent = text;
  }
}

function patch(root, values, wanted) {
  for (const cell of root.querySelectorAll("[data-v]")) {
    if (!cell.dataset.v || !wanted(cell)) continue;
    const value = at(values, cell.dataset.v);
    if (value !== undefined) write(cell, written(cell.dataset.as, value));
  }
}

function patchAccounts(accounts) {
  const byName = new Map(accounts.map((account) => [account.name, account]));
  for (const row of document.querySelectorAll("tr[data-account]")) {
    const account = byName.get(row.dataset.account);
    if (!account) continue;
    patch(row, account, () => true);
    for (const cell of row.querySelectorAll("[data-at]")) {
      const moment = account[cell.dataset.at];
      if (moment === undefined) continue;
      const kind = cell.dataset.at === "until" ? "ahead" : "ago";
      if (moment === null) {
        delete cell.dataset[kind];
        write(cell, NONE);
      } else if (cell.dataset[kind] !== moment.toFixed(0)) {
        cell.dataset[kind] = moment.toFixed(0);
      }
    }
  }
}

// ---- moments that come nearer or go by

const offset = Number(document.getElementById("main").dataset.now) * 1000 - Date.now();

function tick() {
  const now = (Date.now() + offset) / 1000;
  for (const cell of document.querySelectorAll("[data-ago]")) {
    const gone = duration(now - cell.dataset.ago);
    write(cell, `${now - cell.dataset.ago < 3600 ? gone.split(" ")[0] : gone} ago`);
  }
  for (const cell of document.querySelectorAll("[data-ahead]")) {
    const left = cell.dataset.ahead - now;
    write(cell, left > 0 ? `in ${duration(left)}` : "now");
  }
}

// ---- lines

function path(points, top) {
  const first = POINTS - points.length;
  let pen = "M";
  let steps = "";
  points.forEach((value, index) => {
    if (value === null) {
      pen = "M";
      return;
    }
    const y = LINE_HEIGHT + 1 - (value / top) * LINE_HEIGHT;
    steps += `${pen}${first + index} ${y.toFixed(1)}`;
    pen = "L";
  });
  return steps || "M0 0";
}

function extend(line, value) {
  const known = line.dataset.points ? line.dataset.points.split(",") : [];
  const points = known.map((each) => (each === "" ? null : Number(each)));
  points.push(value ?? null);
  points.splice(0, points.length - POINTS);
  const measured = points.filter((each) => each !== null);
  const peak = measured.length ? Math.max(...measured) : null;
  const stroke = path(points, Math.max(peak ?? 0, 1e-9));
  const whole = measured.length === points.length;
  const bottom = LINE_HEIGHT + 1;
  const ground = `L${POINTS - 1} ${bottom}L${POINTS - points.length} ${bottom}Z`;
  line.dataset.points = points.map((each) => each ?? "").join(",");
  line.querySelector(".stroke").setAttribute("d", stroke);
  line.querySelector(".area").setAttribute("d", whole ? stroke + ground : "M0 0");
  const shown = line.parentElement.querySelector(".peak [data-as]");
  write(shown, written(shown.dataset.as, peak));
}

let extendedAt = null;

// The server measures a point every few seconds; the page came with those before the first event.
function extendLines(status) {
  const newest = status.newest;
  if (!newest?.at || newest.at === extendedAt) return;
  const first = extendedAt === null;
  extendedAt = newest.at;
  if (first) return;
  for (const line of document.querySelectorAll("svg[data-series]")) {
    const value = newest.values[line.dataset.series];
    if (value !== undefined) extend(line, value);
  }
}

// ---- sections drawn anew by the server

const key = (node) =>
  node.nodeType === Node.ELEMENT_NODE &&
  (node.dataset.key || node.dataset.account || node.id || node.dataset.part || null);

function morph(from, to) {
  if (from.nodeType === Node.TEXT_NODE) {
    if (from.data !== to.data) from.data = to.data;
    return;
  }
  const keep = from.tagName === "DETAILS" ? ["open"] : [];
  for (const { name } of [...from.attributes]) {
    if (!to.hasAttribute(name) && !keep.includes(name)) from.removeAttribute(name);
  }
  for (const { name, value } of to.attributes) {
    if (from.getAttribute(name) !== value) from.setAttribute(name, value);
  }
  morphChildren(from, to);
}

function morphChildren(from, to) {
  const keyed = new Map();
  for (const child of from.childNodes) if (key(child)) keyed.set(key(child), child);
  let next = from.firstChild;
  for (const wanted of [...to.childNodes]) {
    const name = key(wanted);
    let found = name ? keyed.get(name) : next;
    if (found && !name && (key(found) || found.nodeName !== wanted.nodeName)) found = null;
    if (!found) {
      from.insertBefore(wanted, next);
      continue;
    }
    if (found === next) next = next.nextSibling;
    else if (name) {
      // what stands before it is gone, or was moved; focus survives only in what is not moved
      while (next && next !== found && !(key(next) && stays(to, key(next)))) {
        const gone = next;
        next = next.nextSibling;
        gone.remove();
      }
      if (found === next) next = next.nextSibling;
      else from.insertBefore(found, next);
    }
    morph(found, wanted);
  }
  while (next) {
    const gone = next;
    next = next.nextSibling;
    gone.remove();
  }
}

const stays = (parent, name) => [...parent.childNodes].some((child) => key(child) === name);

// ---- tables whose rows move are left alone while somebody reads or aims

const READING = 10000;
let movedAt = 0;

const boxOf = (part) => document.querySelector(`[data-part="${part}"] .scroll`);

function held(part) {
  const sign = document.querySelector(`[data-held="${part}"]`);
  const box = sign && boxOf(part);
  const aims = Date.now() - movedAt < READING && box?.matches(":hover");
  const holds = Boolean(box && (aims || box.scrollTop > 0 || box.matches(":focus-within")));
  if (sign) write(sign, holds ? "held while you read; Escape goes on" : "");
  return holds;
}

document.addEventListener("pointermove", () => { movedAt = Date.now(); }, { passive: true });

document.addEventListener("keydown", ({ key }) => {
  if (key !== "Escape") return;
  movedAt = 0;
  for (const sign of document.querySelectorAll("[data-held]")) {
    const box = boxOf(sign.dataset.held);
    if (box?.matches(":focus-within")) document.activeElement.blur();
    if (box) box.scrollTop = 0;
  }
});

const refreshes = new Map();

// Asks for a part at most once in `gap` milliseconds.
function refresh(part, gap = 3000) {
  const entry = refreshes.get(part) ?? { last: -Infinity, timer: null };
  refreshes.set(part, entry);
  if (entry.timer !== null) {
    if (gap > 0) return;
    clearTimeout(entry.timer);
  }
  const soonest = Math.max(0, entry.last + gap - performance.now());
  // All open pages ask in the same moment, by the gateway's clock: it draws once for all.
  const wait = gap < 2000 ? soonest : gap - ((Date.now() + offset) % gap);
  entry.timer = setTimeout(() => draw(part, entry), wait);
}

async function draw(part, entry) {
  if (held(part)) {
    entry.timer = setTimeout(() => draw(part, entry), 1000);
    return;
  }
  entry.timer = null;
  entry.last = performance.now();
  if (!(await fetchPart(part))) again(part);
}

// No event tells again of what changed.  A gateway that is away is asked when it is back.
function again(part) {
  if (events && !lost) refresh(part, 3000);
}

const asked = new Map();
const drawn = new Map();

// False when there was no answer, or the gateway failed; what it refuses it goes on to refuse.
async function fetchPart(part) {
  const query = new URLSearchParams(location.search);
  query.set("part", part);
  const order = (asked.get(part) ?? 0) + 1;
  asked.set(part, order);
  let text;
  try {
    const answer = await fetch(`/status?${query}`, { headers: { accept: "text/html" } });
    if (!answer.ok) return answer.status < 500;
    text = await answer.text();
  } catch (error) {
    return false;
  }
  if (order < (drawn.get(part) ?? 0)) return true;  // overtaken by a newer drawing
  drawn.set(part, order);
  const wanted = new DOMParser().parseFromString(text, "text/html").querySelector("[data-part]");
  const shown = document.querySelector(`[data-part="${part}"]`);
  if (!wanted || !shown) return true;
  const active = document.activeElement;
  morph(shown, document.importNode(wanted, true));
  keepFocus(active);
  tick();
  return true;
}

// A button that has gone hands its focus to the next one.
function keepFocus(element) {
  if (element?.hidden) element.form?.querySelector("button:not([hidden])")?.focus();
}

// ---- events

const link = document.getElementById("link");
const age = document.getElementById("age");
let events = null;
let shape = {};

// What patching cells cannot show: which rows there are, and cells of several figures.
function changed(name, value) {
  const now = JSON.stringify(value);
  const before = shape[name];
  shape[name] = now;
  return before !== undefined && before !== now;
}

const composite = (account) => [
  account.name,
  account.state,
  account.why,
  account.resets_at,
  account.max_in_flight,
  account.windows,
  account.errors,
  account.websockets?.lost,
  account.websockets?.unavailable,
  account.websockets?.forgets_until,
  account.models,
  account.continuity,
  account.learned,
  account.actions,
];

function onStatus(status) {
  if (changed("version", status.version)) return location.reload();
  const main = document.getElementById("main");
  patch(main, status, (cell) => !cell.closest("tr[data-account]"));
  extendLines(status);
  if (status.accounts) {
    patchAccounts(status.accounts);
    const states = status.accounts.map((each) => [each.name, each.state, each.actions]);
    if (changed("states", states)) refresh("accounts", 500);
    else if (changed("accounts", status.accounts.map(composite))) refresh("accounts", 5000);
  }
  if (status.keys && changed("keys", status.keys)) refresh("keys", 5000);
  if (changed("recordings", status.recordings)) refresh("recordings", 1000);
  if (changed("turns", status.turns)) refresh("turns", 2000);
  if (changed("alarms", [status.alarms, status.state])) refresh("top", 500);
  const processes = status.workers?.map((each) => [each.pid, each.state, each.restarts]);
  if (processes && changed("workers", processes)) refresh("top", 500);
  if (changed("configuration", [status.generation, status.log_level, status.drain?.state])) refresh("configuration", 500);
  if (changed("state", status.state) && !said.textContent) say(`The gateway is now ${status.state}.`);
  title(status.state ?? "ready");
  tick();
}

function title(word) {
  document.title = word ? `${word} · responses-gateway` : "responses-gateway";
}

let heardAt = Date.now();
let triedAt = 0;
let lost = false;

function listen() {
  if (events || document.hidden) return;
  triedAt = Date.now();
  events = new EventSource("/events");
  let first = true;
  events.addEventListener("error", () => {
    lose("not connected");
    if (events?.readyState === EventSource.CLOSED) refused();
  });
  events.addEventListener("status", (event) => {
    const missed = first || lost;
    first = false;
    heard();
    onStatus(JSON.parse(event.data));
    // No event tells what changed between the drawing and now.
    if (missed) refreshAll();
  });
  events.addEventListener("turn", () => {
    refresh("turns", 2000);
    if (!new URLSearchParams(location.search).has("why")) refresh("conversations", 5000);
  });
}

function refreshAll() {
  for (const part of PARTS) refresh(part, 500);
}

function heard() {
  heardAt = Date.now();
  lost = false;
  delete document.documentElement.dataset.lost;
  write(link, "live");
  link.dataset.link = "live";
  write(age, "");
}

// What the page shows is old from now on, and says so.
function lose(why) {
  lost = true;
  document.documentElement.dataset.lost = "";
  link.dataset.link = "lost";
  write(link, why);
  title("not connected");
  showAge();
}

const showAge = () => write(age, `all this is ${duration((Date.now() - heardAt) / 1000)} old`);

function watch() {
  if (lost) showAge();
  if (!events) return;
  const silent = Date.now() - Math.max(heardAt, triedAt);
  if (silent > SILENT && !lost) lose("no answer");
  if (silent > TOO_SILENT) {
    ignore();
    listen();
  }
}

// The browser tries again by itself unless it was refused; a login that is over stays over.
async function refused() {
  ignore();
  const answer = await fetch("/status?part=top", { headers: { accept: "text/html" } }).catch(() => null);
  if (answer?.status === 401) return signedOut();
  if (answer?.ok) lose("too many pages are open");
  setTimeout(listen, 5000);
}

function signedOut() {
  const again = document.createElement("a");
  again.href = "/login";
  again.textContent = "sign in again";
  lose("signed out: ");
  link.append(again);
}

function ignore() {
  events?.close();
  events = null;
}

document.addEventListener("visibilitychange", () => {
  if (document.hidden) {
    title("");  // nobody keeps it true
    return ignore();
  }
  listen();
});

setInterval(() => document.hidden || lost || refresh("memory", 5000), 10000);
setInterval(() => {
  if (document.hidden) return;
  tick();
  watch();
}, 1000);

// ---- actions

const said = document.getElementById("said");

let saidTimer = null;

function say(text) {
  write(said, text);
  clearTimeout(saidTimer);
  saidTimer = setTimeout(() => write(said, ""), 15000);
}

async function act(form, button) {
  const what = button.getAttribute("aria-label") || button.textContent;
  const part = form.closest("[data-part]")?.dataset.part;
  const fields = new FormData(form);
  if (button.name) fields.append(button.name, button.value);
  button.setAttribute("aria-busy", "true");
  try {
    const answer = await fetch(button.formAction, {
      method: "POST",
      headers: { accept: "application/json", "content-type": "application/json" },
      body: JSON.stringify(Object.fromEntries(fields)),
    });
    const told = await answer.json().catch(() => ({}));
    say(told.result ?? `${what}: ${told.error ?? `answered ${answer.status}`}`);
  } catch (error) {
    say(`${what}: the gateway did not answer.`);
  }
  button.removeAttribute("aria-busy");
  if (part && !(await fetchPart(part))) again(part);
}

document.addEventListener("submit", (event) => {
  const { target, submitter } = event;
  if (!submitter || !submitter.hasAttribute("formaction")) return;
  event.preventDefault();
  act(target, submitter);
});

// ---- theme

const THEMES = ["auto", "light", "dark"];
const toggle = document.getElementById("theme");

function showTheme() {
  const theme = document.documentElement.dataset.theme ?? "auto";
  write(toggle, `Theme: ${theme}`);
  return theme;
}

toggle.addEventListener("click", () => {
  const next = THEMES[(THEMES.indexOf(showTheme()) + 1) % THEMES.length];
  if (next === "auto") delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = next;
  try {
    localStorage.setItem("theme", next);
  } catch (error) {
    // it holds for this page
  }
  showTheme();
});

if (said.textContent) say(said.textContent);
showTheme();
toggle.hidden = false;
listen();
