// A heading sorts its column; a second click turns it round. Cells without a number stay last.
for (const hint of document.querySelectorAll(".script")) hint.hidden = false;
for (const table of document.querySelectorAll("table.sortable")) {
  const heads = [...table.tHead.rows[0].cells], body = table.tBodies[0];
  heads.forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const first = column ? "descending" : "ascending", other = column ? "ascending" : "descending";
      const order = head.ariaSort === first ? other : first, sign = order === "ascending" ? 1 : -1;
      const compare = (a, b) => {
        const [x, y] = [a.cells[column], b.cells[column]];
        if (!column) return sign * x.textContent.localeCompare(y.textContent);
        const [p, q] = [x.dataset.value, y.dataset.value];
        if (p === undefined || q === undefined) return (p === undefined) - (q === undefined);
        return sign * (p - q);
      };
      for (const each of heads) each.ariaSort = each === head ? order : null;
      body.append(...[...body.rows].sort(compare));
    });
  });
}
