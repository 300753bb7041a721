"use strict";
// Without this script the page shows the same text and figures. It adds: sorting, filtering and copying of tables, the
// section in view, values under the pointer, paging and searching of battles.
const make = (tag, properties = {}, ...children) => {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
};

const copied = async (text, button) => {
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    const area = make("textarea", { value: text });
    document.body.append(area);
    area.select();
    document.execCommand("copy");
    area.remove();
  }
  button.textContent = "copied";
};
const copyButton = (label, text, shown = "copy") => {
  const button = make("button", { className: "copy", type: "button", textContent: shown });
  button.setAttribute("aria-label", label);
  button.addEventListener("click", () => {
    button.removeAttribute("aria-label");
    copied(text(), button);
  });
  return button;
};

// Tables
const valueOf = (cell) => {
  const data = cell.querySelector("data");
  return data ? Number(data.value) : cell.textContent.trim();
};
const compare = (a, b) => {
  const numbers = typeof a === "number" && typeof b === "number";
  return numbers ? a - b : String(a).localeCompare(String(b));
};
const sortBy = (table, column, head) => {
  const down = head.getAttribute("aria-sort") === "ascending";
  const rows = [...table.tBodies[0].rows];
  rows.sort((x, y) => (down ? -1 : 1) * compare(valueOf(x.cells[column]), valueOf(y.cells[column])));
  table.tBodies[0].append(...rows);
  for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
  head.setAttribute("aria-sort", down ? "descending" : "ascending");
};
const matches = (element, words) => {
  const text = element.textContent.toLowerCase();
  return words.every((word) => text.includes(word));
};
const searchBox = (label, changed) => {
  const box = make("input", { type: "search", placeholder: label });
  box.setAttribute("aria-label", label);
  box.addEventListener("input", () => changed(box.value.toLowerCase().split(/\s+/).filter(Boolean)));
  return box;
};
for (const table of document.querySelectorAll("table")) {
  [...table.tHead.rows[0].cells].forEach((head, column) => {
    if (!head.textContent) return;
    const button = make("button", { type: "button" }, ...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => sortBy(table, column, head));
  });
  const lines = () => [...table.rows].map((row) => [...row.cells].map((cell) => cell.textContent.trim()).join("\t"));
  const caption = table.closest(".table").querySelector("summary");
  const tools = make("div", { className: "tools" });
  const rows = [...table.tBodies[0].rows];
  const filter = (words) => rows.forEach((row) => { row.hidden = !matches(row, words); });
  if (rows.length > 20) tools.append(searchBox("filter rows", filter));
  tools.append(copyButton(`copy the table ${caption.textContent.trim()}`, () => lines().join("\n")));
  caption.after(tools);
}
for (const command of document.querySelectorAll(".command")) {
  command.append(copyButton("copy the command", () => command.querySelector("code").textContent));
}

// Battles: a page of four at a time, of those that hold all words of the search; links to a battle turn to its page
const PAGE = 4;
const turnTo = new Map();
for (const battle of document.querySelectorAll(".battle[id]")) {
  const title = battle.querySelector("h3");
  const link = () => `${location.href.split("#")[0]}#${battle.id}`;
  title.after(copyButton(`copy link to ${title.textContent.split(":")[0]}`, link, "copy link"));
}
for (const list of document.querySelectorAll(".battles")) {
  const battles = [...list.querySelectorAll(".battle")];
  if (battles.length <= PAGE) continue;
  let found = battles;
  let first = 0;
  const place = make("span", { role: "status" });
  const turn = (label, step) => {
    const button = make("button", { type: "button", textContent: label });
    button.addEventListener("click", () => { first += step; show(); });
    return button;
  };
  const [back, on] = [turn("previous", -PAGE), turn("next", PAGE)];
  const show = () => {
    battles.forEach((battle) => { battle.hidden = true; });
    found.slice(first, first + PAGE).forEach((battle) => { battle.hidden = false; });
    back.disabled = first === 0;
    on.disabled = first + PAGE >= found.length;
    const last = Math.min(first + PAGE, found.length);
    place.textContent = found.length ? `${first + 1} to ${last} of ${found.length}` : "none found";
  };
  const search = searchBox("search these battles", (words) => {
    found = battles.filter((battle) => matches(battle, words));
    first = 0;
    show();
  });
  battles.forEach((battle, i) => turnTo.set(battle, () => {
    [search.value, found, first] = ["", battles, i - (i % PAGE)];
    show();
  }));
  list.querySelector("summary").after(make("div", { className: "tools" }, search, back, on, place));
  show();
}
const showTarget = () => {
  const battle = document.getElementById(location.hash.slice(1));
  if (!battle || !battle.matches(".battle")) return;
  battle.closest("details").open = true;
  turnTo.get(battle)?.();
  battle.scrollIntoView();
};
addEventListener("hashchange", showTarget);
showTarget();

// Values under the pointer
const tip = make("div", { className: "tip", hidden: true });
document.body.append(tip);
const pointed = (event) => {
  const mark = event.target.closest("svg .hover");
  if (mark) return mark.dataset.shown;
  const svg = event.target.closest("svg[data-square]");
  if (!svg) return "";
  const box = svg.getBoundingClientRect();
  const [left, top, width, height] = svg.dataset.square.split(" ").map(Number);
  const x = ((event.clientX - box.left) / box.width - left) / width;
  const y = 1 - ((event.clientY - box.top) / box.height - top) / height;
  if (Math.min(x, y) < 0 || Math.max(x, y) > 1) return "";
  return `${svg.dataset.x} ${x.toFixed(2)}, ${svg.dataset.y} ${y.toFixed(2)}`;
};
for (const title of document.querySelectorAll("figure svg title")) { // the browser would show these, too, and later
  title.parentElement.dataset.shown = title.textContent;
  title.remove();
}
for (const svg of document.querySelectorAll("figure svg")) {
  svg.addEventListener("pointermove", (event) => {
    tip.textContent = pointed(event);
    tip.hidden = !tip.textContent;
    tip.style.left = `${Math.min(event.clientX + 12, innerWidth - tip.offsetWidth - 8)}px`;
    tip.style.top = `${event.clientY - tip.offsetHeight - 8}px`;
  });
  svg.addEventListener("pointerleave", () => { tip.hidden = true; });
}

// Section in view, and the targets of links
const links = new Map([...document.querySelectorAll("nav a")].map((link) => [link.hash.slice(1), link]));
const inView = new IntersectionObserver((entries) => {
  for (const entry of entries) {
    if (!entry.isIntersecting) continue;
    links.forEach((link) => link.removeAttribute("aria-current"));
    links.get(entry.target.id).setAttribute("aria-current", "location");
  }
}, { rootMargin: "-15% 0px -75% 0px" });
links.forEach((_, id) => inView.observe(document.getElementById(id)));
