"use strict";
(() => {
  const blank = (text) => text === "" || text === null;

  function compare(a, b) {
    if (blank(a) || blank(b)) return blank(a) - blank(b);
    const [x, y] = [Number(a), Number(b)];
    return Number.isNaN(x) || Number.isNaN(y) ? a.localeCompare(b) : x - y;
  }

  function valueOf(row, column) {
    const cell = row.cells[column];
    return cell.dataset.value !== undefined ? cell.dataset.value : cell.textContent.trim();
  }

  // A click sorts from the highest number (or the first letter) down, another one turns it round; blanks stay last.
  function sort(table, column, head) {
    const body = table.tBodies[0];
    const rows = [...body.rows];
    const numeric = rows.some((row) => !blank(valueOf(row, column)) && !Number.isNaN(Number(valueOf(row, column))));
    const before = head.getAttribute("aria-sort");
    const down = before ? before === "ascending" : numeric;
    rows.sort((one, other) => {
      const [a, b] = [valueOf(one, column), valueOf(other, column)];
      const order = compare(a, b);
      return down && !blank(a) && !blank(b) ? -order : order;
    });
    for (const other of head.parentElement.cells) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", down ? "descending" : "ascending");
    body.append(...rows);
  }

  for (const table of document.querySelectorAll("table.sortable, table.paper")) {
    [...table.tHead.rows[0].cells].forEach((head, column) => {
      const button = document.createElement("button");
      button.type = "button";
      button.textContent = head.textContent;
      button.addEventListener("click", () => sort(table, column, head));
      head.replaceChildren(button);
    });
  }

  const words = (text) => (text || "").split(" ").filter(Boolean);
  const chosen = { method: document.getElementById("method"), task: document.getElementById("task") };

  function filter() {
    const [method, task] = [chosen.method.value, chosen.task.value];
    const fits = (list, wanted) => !wanted || list.includes(wanted);
    for (const block of document.querySelectorAll("[data-columns]")) {
      const columns = words(block.dataset.columns);
      for (const row of block.querySelectorAll("tr")) {
        if (!row.closest("table.cost")) {
          [...row.cells].slice(1).forEach((cell, k) => { cell.hidden = !fits([columns[k]], task); });
        }
        if (row.dataset.method !== undefined) row.hidden = !fits([row.dataset.method], method);
      }
      const rows = [...block.querySelectorAll("table:not(.cost) tbody tr")];
      block.hidden = !fits(columns, task) || rows.every((row) => row.hidden);
    }
    for (const part of document.querySelectorAll("[data-methods]")) {
      part.hidden = !fits(words(part.dataset.methods), method) || !fits(words(part.dataset.tasks), task);
    }
  }

  for (const select of Object.values(chosen)) select.addEventListener("change", filter);
  filter();
})();
