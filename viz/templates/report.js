"use strict";
/* Draws the page's interactive figures in the place of its static ones. Words of a run reach the page as text only:
   plotly's come with their tags escaped, fragments are escaped by the server and parsed where no script runs. */
(() => {
  const figures = new Map();
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const narrow = matchMedia("(max-width: 40rem)");

  /* "--blue" and "--blue/0.2" are the page's own colours, so that its dark scheme reaches into the figures. */
  const shade = (name) => {
    const [variable, alpha] = name.split("/");
    const hex = getComputedStyle(document.documentElement).getPropertyValue(variable).trim();
    if (!alpha) return hex;
    return `rgba(${[1, 3, 5].map((i) => parseInt(hex.slice(i, i + 2), 16)).join()},${alpha})`;
  };
  const coloured = (value, key = "") => {
    if (typeof value === "string") return /color$/.test(key) && value.startsWith("--") ? shade(value) : value;
    if (Array.isArray(value)) {
      if (key === "colorscale") return value.map(([at, name]) => [at, shade(name)]);
      return value.some((each) => each && typeof each === "object") ? value.map((each) => coloured(each)) : value;
    }
    if (value === null || typeof value !== "object") return value;
    return Object.fromEntries(Object.entries(value).map(([name, each]) => [name, coloured(each, name)]));
  };

  const dressed = (figure) => {
    const layout = coloured(figure.layout);
    const height = figure.layout.height || 380;
    for (const name of Object.keys(layout).filter((each) => /^[xy]axis/.test(each))) {
      const axis = layout[name];
      const [bottom, top] = axis.domain || [0, 1];
      const logarithmic = { tickformat: "~g", nticks: Math.min(3, Math.max(2, Math.round(((top - bottom) * height) / 55))) };
      layout[name] = { color: shade("--ink"), gridcolor: shade("--grid"), linecolor: shade("--ink"), showline: true,
        ticks: "outside", ticklen: 4, automargin: true, exponentformat: "power",
        ...(axis.type === "log" ? logarithmic : {}), ...axis };
    }
    return {
      paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", hovermode: narrow.matches ? "closest" : "x unified", uirevision: figure.id,
      modebar: { bgcolor: "rgba(0,0,0,0)", color: shade("--muted"), activecolor: shade("--ink") },
      font: { family: "system-ui, sans-serif", size: 12, color: shade("--ink") },
      hoverlabel: { bgcolor: shade("--card"), bordercolor: shade("--grid"), font: { color: shade("--ink") }, align: "left",
        namelength: narrow.matches ? 24 : 60 },
      legend: { orientation: "h", x: 0, y: 1.01, yanchor: "bottom" }, margin: { l: 60, r: 12, t: 24, b: 44 },
      ...layout, height,
    };
  };

  const element = (id) => document.getElementById(`figure-${id}`);

  /* A figure that came only after the page was made has no static one beside it. */
  const made = (figure) => {
    const found = element(figure.id);
    if (found) return found;
    const place = document.querySelector(`[data-figures="${CSS.escape(figure.place)}"]`);
    if (!place) return null;
    const fresh = document.createElement("figure");
    fresh.id = `figure-${figure.id}`;
    fresh.innerHTML = '<div class="plot"></div><figcaption></figcaption>';
    place.append(fresh);
    return fresh;
  };

  /* By name, since plotly's own choice has a button that sends a figure to a server. */
  const buttons = [["toImage"], ["zoom2d", "pan2d", "zoomIn2d", "zoomOut2d", "resetScale2d"]];
  const config = { displaylogo: false, responsive: true, modeBarButtons: buttons, showSendToCloud: false, showLink: false };

  const draw = async (figure) => {
    const home = made(figure);
    if (!home || !window.Plotly) return;
    const plot = home.querySelector(".plot");
    home.querySelector("figcaption").textContent = figure.caption;
    plot.setAttribute("role", "img");
    plot.setAttribute("aria-label", figure.title);
    plot.hidden = false;
    await window.Plotly.react(plot, figure.traces.map((trace) => coloured(trace)), dressed(figure),
      { ...config, ...(narrow.matches ? { displayModeBar: false } : {}) });
    home.classList.add("drawn");
    if (!plot.linked) {
      plot.linked = true;
      plot.on("plotly_relayout", (change) => follow(figure.id, change));
    }
  };

  /* A zoom along the steps is that of all figures of the same player. */
  let following = false;
  const follow = async (id, change) => {
    const source = figures.get(id);
    const range = change["xaxis.range"] || [change["xaxis.range[0]"], change["xaxis.range[1]"]];
    const reset = change["xaxis.autorange"] === true;
    if (following || !source.layout.meta.steps || (range[0] === undefined && !reset)) return;
    following = true;
    const others = [...figures.values()].filter(
      (each) => each.id !== id && each.place === source.place && each.layout.meta.steps,
    );
    for (const other of others) {
      const plot = element(other.id).querySelector(".plot");
      await window.Plotly.relayout(plot, reset ? { "xaxis.autorange": true } : { "xaxis.range": range });
    }
    following = false;
  };

  const place = (html) => {
    const fresh = new DOMParser().parseFromString(html, "text/html");
    for (const part of fresh.querySelectorAll("[data-fragment]")) {
      const name = CSS.escape(part.dataset.fragment);
      const old = document.querySelector(`[data-fragment="${name}"]`);
      if (old && old.innerHTML !== part.innerHTML) old.replaceWith(document.adoptNode(part));
    }
  };

  /* Figures out of sight wait until they come near: a page that is left open takes little from the training. */
  const waiting = new Set(), near = new Set();
  const watching = new IntersectionObserver((changes) => {
    for (const { target, isIntersecting } of changes) {
      const id = target.id.replace("figure-", "");
      near[isIntersecting ? "add" : "delete"](id);
      if (isIntersecting && waiting.delete(id)) draw(figures.get(id));
    }
  }, { rootMargin: "50% 0px" });

  const update = async (data, html) => {
    const content = typeof data === "string" ? JSON.parse(data) : data;
    if (html) place(html);
    for (const figure of [...(content.figures || []), ...content.runs.flatMap((run) => run.figures)]) {
      const known = figures.get(figure.id);
      figures.set(figure.id, figure);
      if (known === figure || JSON.stringify(known) === JSON.stringify(figure)) continue;
      if (known && !near.has(figure.id)) waiting.add(figure.id);
      else await draw(figure);
      if (!known && element(figure.id)) watching.observe(element(figure.id));
    }
  };

  const redraw = async () => {
    for (const figure of figures.values()) await draw(figure);
  };
  dark.addEventListener("change", redraw);
  narrow.addEventListener("change", redraw);
  addEventListener("beforeprint", () => waiting.forEach((id) => waiting.delete(id) && draw(figures.get(id))));
  const losscope = { update };
  window.losscope = losscope;
  losscope.ready = update(document.getElementById("data").textContent).then(() => {
    document.documentElement.dataset.ready = "";
  });
})();
