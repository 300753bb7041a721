"use strict";
// Tables are sorted by a click on a heading and copied as tab-separated text. The page works without this script.
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
const copy = async (table, button) => {
  const text = [...table.rows].map((row) => [...row.cells].map((cell) => cell.textContent.trim()).join("\t")).join("\n");
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    const area = document.createElement("textarea");
    area.value = text;
    document.body.append(area);
    area.select();
    document.execCommand("copy");
    area.remove();
  }
  button.textContent = "copied";
};
for (const table of document.querySelectorAll("table")) {
  [...table.tHead.rows[0].cells].forEach((head, column) => {
    const button = document.createElement("button");
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => sortBy(table, column, head));
  });
  const button = document.createElement("button");
  button.className = "copy";
  button.textContent = "copy";
  button.addEventListener("click", (event) => {
    event.preventDefault(); // a click inside a summary would also fold the table
    copy(table, button);
  });
  table.closest(".table").querySelector("summary").append(button);
}
