(() => {
  "use strict";
  const { report, paint, redraws, jobs, config } = window.regardReport;
  const select = document.getElementById("head");
  const readout = document.getElementById("map-readout");
  const tokens = [...document.querySelectorAll("[data-token]")];
  if (!select) return;

  function meanOf(heads) {
    return heads[0].map((row, i) => row.map((_, j) => {
      const values = heads.map((head) => head[i]?.[j]).filter((value) => typeof value === "number");
      return values.length ? values.reduce((sum, value) => sum + value, 0) / values.length : null;
    }));
  }

  function figureOf(map) {
    const axis = { visible: false, constrain: "domain", fixedrange: true };
    const data = [{
      type: "heatmap", z: map.shown, zmin: map.low, zmax: map.high, hoverinfo: "none", showscale: false,
      colorscale: map.signed ? "theme:diverging" : "theme:sequential",
    }];
    const layout = {
      autosize: true, margin: { l: 0, r: 0, t: 0, b: 0 }, dragmode: false,
      paper_bgcolor: "theme:surface", plot_bgcolor: "theme:surface",
      xaxis: { ...axis }, yaxis: { ...axis, autorange: "reversed", scaleanchor: "x" },
    };
    return { data: paint(data), layout: paint(layout) };
  }

  function choose(map) {
    if (select.value === "mean") return meanOf(map.heads);
    return map.heads[Number(select.value)] ?? [[null]];
  }

  function light(query, key) {
    tokens.forEach((token, index) => {
      token.classList.toggle("query", index === query);
      token.classList.toggle("key", index === key);
    });
  }

  function drawMap(plot) {
    const map = report.maps[Number(plot.dataset.map)];
    const note = document.querySelector(`[data-map-note="${plot.dataset.map}"]`);
    const named = (index) => `${map.labels[index] ?? "token"} (${index + 1})`;
    let listening = false;
    const draw = async () => {
      map.shown = choose(map);
      const missing = select.value !== "mean" && Number(select.value) >= map.heads.length;
      note.textContent = missing ? `only ${map.heads.length} head${map.heads.length > 1 ? "s" : ""}` : "";
      plot.dataset.head = select.value;
      const { data, layout } = figureOf(map);
      await Plotly.react(plot, data, layout, { ...config, displayModeBar: false });
      if (listening) return;
      listening = true;
      plot.on("plotly_hover", (event) => {
        const { x: key, y: query, z } = event.points[0];
        readout.textContent = `query ${named(query)} → key ${named(key)}: ${Number(z).toPrecision(3)}`;
        light(query, key);
      });
      plot.on("plotly_unhover", () => light(-1, -1));
    };
    redraws.push(draw);
    return draw();
  }

  const plots = [...document.querySelectorAll("[data-map]")];
  const drawn = [];
  for (const plot of plots) {
    jobs.push(async () => {
      await drawMap(plot);
      drawn.push(redraws[redraws.length - 1]);
    });
  }
  select.addEventListener("change", () => drawn.forEach((draw) => draw()));
})();
