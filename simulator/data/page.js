"use strict";
(() => {
  const charts = JSON.parse(document.getElementById("charts").textContent);
  const font = getComputedStyle(document.body).fontFamily;
  const axis = { zeroline: false, showline: false, ticks: "", automargin: true, fixedrange: true, ticklabelstandoff: 4,
    gridcolor: "#dddddd", tickfont: { size: 12.5 }, title: { font: { size: 12.5 }, standoff: 8 } };
  const merged = (base, more) => {
    const out = { ...base };
    for (const [key, value] of Object.entries(more || {})) {
      const isPlain = value && typeof value === "object" && !Array.isArray(value);
      out[key] = isPlain ? merged(out[key] || {}, value) : value;
    }
    return out;
  };
  const layoutOf = (chart) => {
    const layout = { paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", showlegend: false,
      font: { family: font, size: 12.5, color: "#666d78" }, height: chart.height, autosize: true,
      margin: { l: 46, r: 12, t: 12, b: 40 }, hovermode: "closest", dragmode: false,
      hoverlabel: { font: { family: font, size: 13, color: "#ffffff" }, bgcolor: "#22262e", bordercolor: "#22262e" } };
    const out = merged(layout, chart.layout);
    for (const key of Object.keys({ xaxis: 1, yaxis: 1, ...chart.layout })) {
      if (/^[xy]axis\d*$/.test(key)) out[key] = merged(axis, (chart.layout || {})[key]);
    }
    return out;
  };
  const options = { displayModeBar: false, responsive: true, scrollZoom: false };
  for (const [id, chart] of Object.entries(charts)) {
    Plotly.newPlot(id, chart.data, layoutOf(chart), options);
  }
  for (const button of document.querySelectorAll(".legend button")) {
    button.addEventListener("click", () => {
      const isShown = button.getAttribute("aria-pressed") !== "true";
      button.setAttribute("aria-pressed", String(isShown));
      for (const [id, chart] of Object.entries(charts)) {
        const rows = chart.data.flatMap((trace, i) => trace.legendgroup === button.dataset.series ? [i] : []);
        if (rows.length) Plotly.restyle(id, { visible: isShown }, rows);
      }
    });
  }
})();
