"use strict";
// Draws the plots of report.html from the JSON beside it. Names come from the log and are set as text, never as markup.
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const root = document.documentElement;
  const system = window.matchMedia("(prefers-color-scheme: dark)");
  const charts = [];
  const setTheme = (dark) => {
    root.dataset.theme = dark ? "dark" : "light";
    charts.forEach((chart) => chart.redraw(false));
  };
  setTheme(system.matches);
  system.addEventListener("change", (event) => setTheme(event.matches));
  document.getElementById("theme").addEventListener("click", () => setTheme(root.dataset.theme !== "dark"));

  const css = (name) => getComputedStyle(root).getPropertyValue(name).trim();
  const short = (value) => {
    const size = Math.abs(value);
    if (value === 0) return "0";
    if (size < 0.001 || size >= 1e7) return value.toExponential(1);
    return value.toLocaleString("en-US", { maximumSignificantDigits: size >= 1000 ? 6 : 3 });
  };

  // Steps of each curve joined to one axis; a value left out by another curve's steps is undefined, a null is a gap.
  const table = (plot) => uPlot.join(plot.series.map((s) => {
    const columns = [data.steps[s.x], s.y];
    return s.low ? columns.concat([s.low, s.high]) : columns;
  }));

  const draw = (holder) => {
    const plot = data.plots[Number(holder.dataset.plot)];
    const rows = table(plot);
    const height = Number(holder.dataset.height);
    const legend = holder.parentElement.querySelector(".legend");
    const items = [], series = [{}], bands = [];
    plot.series.forEach((curve) => {
      const colour = () => css(`--c${curve.colour % 8}`);
      const dash = curve.colour >= 8 ? [6, 4] : undefined;
      const at = series.length;
      // Points where the curve has so few that each one is a measurement the reader may want to see.
      series.push({ label: curve.label, stroke: colour, width: 2, dash, points: { show: curve.y.length <= 40, size: 6, fill: colour } });
      const members = [at];
      if (curve.low) {
        series.push({ stroke: null, points: { show: false } }, { stroke: null, points: { show: false } });
        bands.push({ series: [at + 2, at + 1], fill: () => colour() + "2e" });
        members.push(at + 1, at + 2);
      }
      const button = document.createElement("button"), mark = document.createElement("i"), value = document.createElement("span");
      button.type = "button";
      button.setAttribute("aria-pressed", "true");
      mark.style.borderTopColor = `var(--c${curve.colour % 8})`;
      if (dash) mark.className = "dashed";
      button.append(mark, curve.label, value);
      legend.append(button);
      items.push({ members, value, button });
    });
    const where = document.createElement("span");
    where.className = "at quiet";
    holder.parentElement.querySelector("figcaption").append(where);

    // The values under the cursor, or the last ones: each curve's newest at or before that step.
    const show = (chart) => {
      const hovered = chart.cursor.idx;
      const end = hovered ?? rows[0].length - 1;
      where.textContent = `${hovered == null ? "last" : "at"} step ${rows[0][end]}`;
      items.forEach(({ members, value }) => {
        let row = end;
        while (row > 0 && rows[members[0]][row] == null) row -= 1;
        const [main, low, high] = members.map((member) => rows[member][row]);
        value.textContent = main == null ? "none" : short(main) + (low == null ? "" : ` (${short(low)} to ${short(high)})`);
      });
    };
    const nonNegative = rows.slice(1).every((column) => column.every((value) => value == null || value >= 0));
    const range = (chart, low, high) => {
      if (low == null || (low === 0 && high === 0)) return [0, plot.top || 1];
      let [from, to] = uPlot.rangeNum(low, high, 0.08, true);
      if (nonNegative && (plot.unit || plot.top)) from = 0;
      if (plot.top) to = Math.max(plot.top, high);
      return [from, to];
    };
    const whole = [1, 2, 5, 10, 20, 50, 100, 200, 500, 1e3, 2e3, 5e3, 1e4, 2e4, 5e4, 1e5, 1e6, 1e7];
    const counts = ["rollouts", "samples", "count"].includes(plot.unit);
    const axis = { stroke: () => css("--quiet"), font: "12px system-ui, sans-serif", grid: { stroke: () => css("--grid"), width: 1 }, ticks: { show: false } };
    const chart = new uPlot({
      width: holder.clientWidth, height, legend: { show: false }, series, bands,
      cursor: { sync: { key: "step" }, y: false, points: { size: 7 }, drag: { x: true, y: false } },
      scales: { x: { time: false, range: (c, low, high) => (low === high ? [low - 1, high + 1] : [low, high]) }, y: { range } },
      axes: [{ ...axis, size: 28, space: 55, incrs: whole },
        { ...axis, size: 56, space: 34, values: (c, splits) => splits.map(short), ...(counts ? { incrs: whole } : {}) }],
      hooks: { setCursor: [show] },
    }, rows, holder);
    items.forEach(({ members, button }) => button.addEventListener("click", () => {
      const visible = button.getAttribute("aria-pressed") !== "true";
      button.setAttribute("aria-pressed", String(visible));
      members.forEach((member) => chart.setSeries(member, { show: visible }));
    }));
    show(chart);
    charts.push(chart);
    new ResizeObserver(() => {
      if (holder.clientWidth && holder.clientWidth !== chart.width) chart.setSize({ width: holder.clientWidth, height });
    }).observe(holder);
  };

  // A folded plot has no width: it is drawn when it comes into view.
  const watcher = new IntersectionObserver((entries) => entries.filter((entry) => entry.isIntersecting).forEach((entry) => {
    watcher.unobserve(entry.target);
    draw(entry.target);
  }), { rootMargin: "600px" });
  document.querySelectorAll("[data-plot]").forEach((holder) => watcher.observe(holder));
})();
