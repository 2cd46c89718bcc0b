(() => {
  "use strict";
  const report = JSON.parse(document.getElementById("report-data").textContent);
  const root = document.documentElement;
  const systemDark = matchMedia("(prefers-color-scheme: dark)");
  const narrow = matchMedia("(max-width: 560px)");
  const coarse = matchMedia("(pointer: coarse)").matches;
  const redraws = [];

  const theme = () => root.dataset.theme || (systemDark.matches ? "dark" : "light");
  const isColourKey = (key) => /color(scale)?$/.test(key);

  // Colours are the only theme tokens, and only at keys that hold a colour: text is never replaced.
  function paint(value, key = "") {
    if (typeof value === "string") {
      if (!isColourKey(key) || !value.startsWith("theme:")) return value;
      const role = value.slice(6);
      return key === "colorscale" ? report.scales[theme()][role] : report.themes[theme()][role];
    }
    if (Array.isArray(value)) {
      return value.length && typeof value[0] === "object" && value[0] !== null && !Array.isArray(value[0])
        ? value.map((item) => paint(item)) : value;
    }
    if (value === null || typeof value !== "object") return value;
    return Object.fromEntries(Object.entries(value).map(([name, item]) => [name, paint(item, name)]));
  }

  const config = {
    responsive: true, displaylogo: false, showTips: false, doubleClick: "reset",
    displayModeBar: coarse ? false : "hover",
    modeBarButtonsToRemove: ["sendChartToCloud", "select2d", "lasso2d", "autoScale2d", "zoomIn2d", "zoomOut2d"],
  };

  function fit(view, hidden) {
    const data = paint(view.data).map((trace) => ({
      ...trace,
      mode: narrow.matches && trace.mode === "markers+text" ? "markers" : trace.mode,
      visible: !hidden.has(trace.legendgroup),
    }));
    const layout = paint(view.layout);
    layout.dragmode = coarse ? false : "zoom";
    if (narrow.matches) {
      layout.height = Math.min(layout.height, 320);
      layout.xaxis.title.text = layout.xaxis.title.text.replace(", ", ",<br>");
    }
    return { data, layout };
  }

  function drawChart(plot) {
    const views = report.charts[plot.dataset.chart];
    const figure = plot.closest("figure");
    const hidden = new Set();
    let current = 0;
    const draw = () => {
      const { data, layout } = fit(views[current], hidden);
      return Plotly.react(plot, data, layout, config);
    };
    for (const button of figure.querySelectorAll("[data-view]")) {
      button.addEventListener("click", () => {
        current = Number(button.dataset.view);
        for (const other of figure.querySelectorAll("[data-view]")) {
          other.setAttribute("aria-pressed", String(other === button));
        }
        draw();
      });
    }
    for (const button of figure.querySelectorAll("[data-group]")) {
      button.addEventListener("click", () => {
        const group = button.dataset.group;
        if (!hidden.delete(group)) hidden.add(group);
        button.setAttribute("aria-pressed", String(!hidden.has(group)));
        draw();
      });
    }
    redraws.push(draw);
    return draw();
  }

  function sortable(table) {
    const body = table.tBodies[0];
    const order = [...body.rows];
    const heads = [...table.tHead.rows[table.tHead.rows.length - 1].cells];
    heads.forEach((head, column) => {
      const button = head.querySelector("button");
      if (!button) return;
      button.addEventListener("click", () => {
        const down = head.getAttribute("aria-sort") === "ascending";
        for (const other of heads) other.removeAttribute("aria-sort");
        head.setAttribute("aria-sort", down ? "descending" : "ascending");
        const compare = (a, b) => {
          const fixed = (row) => row.hasAttribute("data-last");
          if (fixed(a) !== fixed(b)) return fixed(a) - fixed(b);
          const [x, y] = [a, b].map((row) => (fixed(row) ? undefined : row.cells[column].dataset.value));
          if (!x || !y) return (x ? 0 : 1) - (y ? 0 : 1);
          const sign = down ? -1 : 1;
          return head.dataset.kind === "text" ? sign * x.localeCompare(y) : sign * (Number(x) - Number(y));
        };
        body.append(...order.slice().sort(compare));
      });
    });
  }

  function markEdges(box) {
    const update = () => {
      box.classList.toggle("more", box.scrollLeft + box.clientWidth < box.scrollWidth - 2);
      box.classList.toggle("moved", box.scrollLeft > 2);
    };
    box.addEventListener("scroll", update, { passive: true });
    new ResizeObserver(update).observe(box);
  }

  const toggle = document.getElementById("theme");
  function showTheme() {
    const dark = theme() === "dark";
    toggle.textContent = dark ? "Light" : "Dark";
    toggle.setAttribute("aria-label", dark ? "Switch to the light theme" : "Switch to the dark theme");
    toggle.setAttribute("aria-pressed", String(dark));
  }
  function redrawAll() {
    showTheme();
    for (const redraw of redraws) redraw();
  }
  toggle.addEventListener("click", () => {
    root.dataset.theme = theme() === "dark" ? "light" : "dark";
    redrawAll();
  });
  systemDark.addEventListener("change", redrawAll);
  narrow.addEventListener("change", redrawAll);
  showTheme();

  document.querySelectorAll("table.sortable").forEach(sortable);
  document.querySelectorAll(".scroll").forEach(markEdges);

  // Further scripts add drawings here; one at a time, so that the page stays responsive while it draws.
  const jobs = [...document.querySelectorAll("[data-chart]")].map((plot) => () => drawChart(plot));
  window.regardReport = { report, paint, redraws, jobs, config, coarse };
  addEventListener("load", async () => {
    for (const job of jobs) {
      await job();
      await new Promise((resolve) => setTimeout(resolve));
    }
    root.dataset.ready = "true";
  });
})();
