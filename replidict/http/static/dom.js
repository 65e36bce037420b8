// Elements made and kept: what did not change is not touched, so that a selection or the focus stays where it is.

export const byId = (id) => document.getElementById(id);

export function element(name, properties = {}, ...children) {
  const made = document.createElement(name);
  Object.assign(made, properties);
  made.append(...children);
  return made;
}

export function setText(target, text) {
  if (target.textContent !== text) target.textContent = text;
}

export function show(target, visible) {
  if (target.hidden === visible) target.hidden = !visible;
}

// Have `parent` hold one child for each item, in order; `make(item)` makes a child, `fill(child, item)` renews it.
export function keep(parent, items, make, fill) {
  while (parent.children.length > items.length) parent.lastElementChild.remove();
  items.forEach((item, number) => {
    if (number === parent.children.length) parent.append(make(item), " "); // or what is copied, or read aloud, runs together
    fill(parent.children[number], item);
  });
}

// Rows of a table. A cell is a text, or [text, class], or {parts: [[text, class], ...]}.
export function fillTable(table, rows) {
  const labels = [...table.tHead.rows[0].cells].map((cell) => cell.textContent);
  const numbers = [...table.tHead.rows[0].cells].map((cell) => cell.classList.contains("number"));
  const makeRow = () => {
    const cells = labels.map((label, number) => {
      const cell = element("td", {className: numbers[number] ? "number" : ""});
      cell.dataset.label = label;
      cell.append(element("span"));
      return cell;
    });
    return element("tr", {}, ...cells);
  };
  keep(table.tBodies[0], rows, makeRow, (row, cells) => {
    cells.forEach((cell, number) => {
      const parts = cell.parts ?? [Array.isArray(cell) ? cell : [cell, ""]];
      keep(row.cells[number].firstElementChild, parts, () => element("span"), (part, [text, className]) => {
        setText(part, text);
        if (part.className !== className) part.className = className;
      });
    });
  });
}
