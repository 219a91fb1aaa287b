"use strict";
// Draws the charts, and writes their numbers into a table when one is opened. Names from the tape are only ever text.
{
  const charts = JSON.parse(document.getElementById("charts").textContent);
  const moment = (ms) => new Date(ms).toISOString().replace("T", " ").replace(/\.000Z$|Z$/, "");

  const rowsOf = (columns) => {
    const names = Object.keys(columns);
    const count = names.length ? columns[names[0]].length : 0;
    return Array.from({ length: count }, (_, row) =>
      Object.fromEntries(
        names.flatMap((name) => {
          const value = columns[name][row];
          return name.endsWith("_ms") ? [[name, value], [name.replace(/_ms$/, "_text"), moment(value)]] : [[name, value]];
        }),
      ),
    );
  };

  const config = {
    background: "transparent",
    font: 'system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif',
    aria: false, // the element around it is an image with a description
    view: { stroke: null },
    axis: {
      labelColor: "var(--muted)", titleColor: "var(--muted)", gridColor: "var(--grid)", domainColor: "var(--line)",
      tickColor: "var(--line)", labelFontSize: 11, titleFontSize: 11, titleFontWeight: "normal",
    },
    axisY: { tickCount: 5, domain: false, ticks: false, labelPadding: 6, labelFlush: false },
  };
  const embed = {
    logLevel: 1, // errors: Vega also warns of charts that have no width yet
    mode: "vega-lite", renderer: "svg", actions: false, ast: true, defaultStyle: false, config,
    tooltip: { theme: "page", disableDefaultStyle: true },
  };

  const draw = async () => {
    for (const { id, spec, columns } of charts) {
      const element = document.getElementById(id);
      try {
        await vegaEmbed(element, { ...spec, datasets: { rows: rowsOf(columns) } }, embed);
      } catch (error) {
        element.textContent = `This chart cannot be drawn: ${error.message}`;
      }
    }
    document.body.dataset.drawn = "yes";
  };

  const MOST_ROWS = 1000;
  const tableOf = ({ title, columns, labels }) => {
    const names = Object.keys(labels);
    const table = document.createElement("table");
    if (title) table.createCaption().textContent = title;
    const head = table.createTHead().insertRow();
    for (const name of names) {
      const cell = document.createElement("th");
      cell.scope = "col";
      cell.textContent = labels[name];
      head.append(cell);
    }
    const body = table.createTBody();
    const count = columns[names[0]].length;
    for (let row = 0; row < Math.min(count, MOST_ROWS); row += 1) {
      const line = body.insertRow();
      for (const name of names) {
        const value = columns[name][row];
        const cell = line.insertCell();
        const isTime = name.endsWith("_ms") && typeof value === "number";
        if (typeof value === "number" && !isTime) cell.className = "number";
        cell.textContent = value === null ? "" : isTime ? moment(value) : String(value);
      }
    }
    if (count > MOST_ROWS) body.insertRow().insertCell().textContent = `… and ${count - MOST_ROWS} more`;
    const wide = document.createElement("div");
    wide.className = "wide tall";
    wide.tabIndex = 0;
    wide.append(table);
    return wide;
  };

  for (const details of document.querySelectorAll("details.numbers")) {
    details.addEventListener("toggle", () => {
      if (details.open && !details.querySelector("table")) {
        const own = charts.filter(({ id }) => id.replace(/-\d+$/, "") === details.dataset.section);
        details.append(...own.map(tableOf));
      }
    });
  }
  draw();
}
