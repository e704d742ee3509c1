(() => {
  "use strict";
  const figures = JSON.parse(document.getElementById("figures").textContent);
  const canvases = [...document.querySelectorAll("[data-figure]")];
  const buttons = [...document.querySelectorAll("[data-arm]")];
  const hidden = new Set(buttons.filter((b) => b.getAttribute("aria-pressed") === "false").map((b) => b.dataset.arm));
  const color = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const touch = matchMedia("(pointer: coarse)").matches;
  const config = {
    displaylogo: false,
    displayModeBar: matchMedia("(hover: hover)").matches ? "hover" : false,
    modeBarButtonsToRemove: ["select2d", "lasso2d", "autoScale2d"],
  };

  // The margin holds the labels at the ends of the lines; a phone has no room for them, and the key above says the same.
  const labelled = (layout) => (layout.annotations || []).filter((a) => a.name);
  const pen = document.createElement("canvas").getContext("2d");
  const margin = (layout, width) => {
    pen.font = `12px ${getComputedStyle(document.body).fontFamily}`;
    const longest = Math.max(0, ...labelled(layout).map((a) => pen.measureText(a.text).width));
    return { l: 56, t: 12, b: 44, r: width < 420 || !longest ? 12 : Math.min(160, 12 + longest) };
  };

  const dressed = (figure, width, height, hidden) => {
    const axis = { gridcolor: color("--line"), linecolor: color("--muted"), };
    const layout = {
      ...figure.layout,
      width,
      height,
      margin: margin(figure.layout, width),
      font: { family: getComputedStyle(document.body).fontFamily, size: 12, color: color("--ink") },
      paper_bgcolor: "rgba(0,0,0,0)",
      plot_bgcolor: "rgba(0,0,0,0)",
      hoverlabel: { bgcolor: color("--page"), bordercolor: color("--muted"), font: { color: color("--ink") } },
      xaxis: { ...figure.layout.xaxis, ...axis, showgrid: false, showline: true, ticks: "outside", tickcolor: color("--muted") },
      yaxis: { ...figure.layout.yaxis, ...axis },
      dragmode: touch ? false : "zoom",
    };
    layout.annotations = (figure.layout.annotations || []).map((a) => ({
      ...a,
      visible: !a.name || (width >= 420 && !hidden.has(a.name)),
    }));
    const data = figure.data.map((trace) => ({ ...trace, visible: !hidden.has(trace.meta) }));
    return [data, layout];
  };

  const draw = (canvas) => {
    const figure = figures[canvas.dataset.figure];
    const absent = canvas.closest(".training") ? hidden : new Set();
    return Plotly.react(canvas, ...dressed(figure, canvas.clientWidth, canvas.clientHeight, absent), config);
  };
  const drawAll = () => Promise.all(canvases.map(draw));

  for (const button of buttons) {
    button.addEventListener("click", () => {
      const arm = button.dataset.arm;
      if (!hidden.delete(arm)) hidden.add(arm);
      for (const b of buttons) if (b.dataset.arm === arm) b.setAttribute("aria-pressed", String(!hidden.has(arm)));
      drawAll();
    });
  }
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", drawAll);
  addEventListener("resize", drawAll);
  drawAll().then(() => document.documentElement.setAttribute("data-drawn", String(canvases.length)));
})();
