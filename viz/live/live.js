"use strict";
/* Asks the page's own server about once a second what is new, and says how things stand. */
(() => {
  const PERIOD = 1000, LONGEST = 15000, PATIENCE = 60000, PICTURES = 5000, UNSEEN = 5000;
  const pageOf = JSON.parse(document.getElementById("data").textContent);
  const players = (content) => JSON.stringify(content.runs.map((run) => Object.keys(run.meta.players)));

  const bar = document.createElement("p");
  const link = document.createElement("b");
  const words = document.createElement("span");
  bar.id = "live";
  bar.className = "quiet";
  link.setAttribute("role", "status");
  bar.append(link, " ", words);
  const note = document.createElement("p");
  note.textContent = "Nothing is recorded yet. This page fills by itself as soon as the training writes its first records.";
  Object.assign(bar.style, { position: "sticky", top: 0, zIndex: 2, margin: 0, padding: ".4rem 0", maxWidth: "none",
    background: "var(--paper)" });
  document.querySelector("header").after(bar);
  document.querySelector('section[id^="run-"] > p.quiet')?.remove(); // what it says of the run's status ages

  const ago = (seconds) => {
    if (seconds < 60) return `${Math.floor(seconds)} s`;
    const minutes = Math.floor(seconds / 60);
    return minutes < 120 ? `${minutes} min` : `${Math.floor(minutes / 60)} h`;
  };

  const count = (number) => number.toLocaleString("en");

  let state = null, asked = 0, lost = 0, again = false;
  const say = () => {
    const since = (performance.now() - asked) / 1000;
    const said = [];
    if (lost) said.push(`since ${ago((performance.now() - lost) / 1000)}; what is below is the last that came`);
    if (state) {
      said.push(state.standing);
      if (state.records) said.push(`step ${count(state.step)}`, `${count(state.records)} record${state.records === 1 ? "" : "s"}`);
      else if (state.begun) said.push("no records yet");
      if (state.age !== null) said.push(`last record ${ago(state.age + since)} ago`);
      if (state.problem) said.push(state.problem);
    }
    const now = lost ? "○ Connection lost" : again ? "● Live again" : state ? "● Live" : "○ Connecting";
    if (link.textContent !== now) link.textContent = now;
    link.style.color = `var(--${lost || (state && state.problem) ? "bad" : "good"})`;
    words.textContent = said.join(" · ");
    if (state && !state.records) bar.after(note);
    else note.remove();
    document.documentElement.dataset.live = lost ? "lost" : "on";
  };

  /* Figures without an interactive version are drawn by the server, at its own pace. */
  const place = (figure) => {
    const id = `figure-${figure.id}`;
    let home = document.getElementById(id);
    if (!home) {
      home = document.createElement("figure");
      home.id = id;
      document.querySelector(`[data-figures="${CSS.escape(figure.place)}"]`)?.append(home);
    }
    const still = document.createElement(figure.missing ? "p" : "div");
    still.className = "static";
    if (figure.missing) still.textContent = `This figure cannot be drawn: ${figure.missing}.`;
    for (const width of figure.missing ? [] : ["wide", "narrow"]) {
      const drawing = document.createElement("div");
      drawing.className = width;
      drawing.append(...new DOMParser().parseFromString(figure[width], "text/html").body.childNodes);
      still.append(drawing);
    }
    const caption = document.createElement("figcaption");
    caption.textContent = figure.caption;
    const plot = document.createElement("div"); // for the page's script, should it come to draw this figure
    plot.className = "plot";
    plot.hidden = true;
    home.replaceChildren(still, plot, caption);
  };
  let known = null, pictured = "", fetched = -PICTURES;
  const redraw = async () => {
    if (!known || pictured === known.version.split("-")[1] || performance.now() - fetched < PICTURES) return;
    fetched = performance.now();
    const drawn = (id) => window.Plotly && known.data.runs[0].figures.some((figure) => figure.id === id);
    if (known.figures.every(drawn)) return;
    const answer = await fetch("figures.json", { signal: AbortSignal.timeout(PATIENCE), cache: "no-store" });
    if (!answer.ok) return;
    const found = await answer.json();
    found.figures.filter(({ id }) => !drawn(id)).forEach(place); // it may be older than what the script has drawn
    pictured = found.version;
    order();
  };

  /* As in the report, in whichever order they came. */
  const order = () => {
    // What a picture showed ages, and would be what is printed.
    document.querySelectorAll("figure.drawn > .static").forEach((picture) => picture.remove());
    const present = known.figures.map((id) => document.getElementById(`figure-${id}`)).filter((figure) => figure);
    for (let i = 1; i < present.length; i++) {
      const [before, after] = [present[i - 1], present[i]];
      if (before.parentNode === after.parentNode && before.nextElementSibling !== after) before.after(after);
    }
  };

  const ask = async (path) => {
    const answer = await fetch(path, { signal: AbortSignal.timeout(PATIENCE), cache: "no-store" });
    if (!answer.ok) throw new Error(`status ${answer.status}`);
    return answer.json();
  };

  /* All of a long run takes the server seconds: meanwhile the curves grow at their ends. */
  let version = "", drawing = Promise.resolve();
  const ends = new Map(); // of each figure the ends of its curves, as text
  const key = ({ name, yaxis, fillcolor, meta }) => JSON.stringify([name, yaxis, fillcolor, meta]);
  const longer = (trace, end) => {
    if (!end) return trace;
    const [first, last] = trace.fill ? [Infinity, Infinity] : [end.x[0], end.x.at(-1)]; // areas stand beside each other
    const before = trace.x.filter((x) => x < first || trace.fill).length;
    const after = trace.fill ? before : trace.x.findIndex((x) => x > last);
    const joined = (name) => [...trace[name].slice(0, before), ...end[name], ...(after < 0 ? [] : trace[name].slice(after))];
    return { ...trace, ...Object.fromEntries(["x", "y", "text"].filter((name) => trace[name]).map((name) => [name, joined(name)])) };
  };
  const continued = (figure) => {
    const fresh = new Map(JSON.parse(ends.get(figure.id) || "[]").map((trace) => [key(trace), trace]));
    return { ...figure, traces: figure.traces.map((trace) => longer(trace, fresh.get(key(trace)))) };
  };
  const paint = (later, after, found) => (drawing = drawing.then(async () => {
    if (found) {
      [version, known] = [found.version, found];
      ends.clear();
    }
    if (after !== version) return;
    const grown = new Set();
    for (const { id, traces } of later) {
      const text = JSON.stringify(traces);
      if (ends.get(id) !== text) grown.add(id);
      ends.set(id, text);
    }
    const figures = known.data.runs[0].figures.filter(({ id }) => found || grown.has(id));
    if (figures.length) again = false;
    await window.losscope.update({ runs: [{ figures: figures.map(continued) }] }, found && found.fragment);
    order();
  }));

  let fetching = false;
  const whole = async () => {
    if (fetching) return;
    fetching = true;
    try {
      const found = await ask(`data.json?after=${version}`);
      if (!found.data) return;
      if (players(found.data) !== players(pageOf)) return location.reload();
      const { later } = await ask(`news.json?after=${found.version}`);
      await paint(later, found.version, found);
    } finally {
      fetching = false;
    }
  };

  let pause = PERIOD, timer = 0, busy = false;
  const poll = async () => {
    if (busy) return;
    busy = true;
    clearTimeout(timer);
    try {
      const after = version, news = await ask(`news.json?after=${after}`);
      if (state && state.generation !== news.state.generation) return location.reload();
      [state, asked, pause] = [news.state, performance.now(), PERIOD];
      if (lost) [lost, again] = [0, true];
      if (news.stale) whole().catch(() => {});
      if (news.later.length) await paint(news.later, after);
      redraw().catch(() => {});
    } catch {
      lost = lost || performance.now();
      pause = Math.min(pause * 1.5, LONGEST);
    } finally {
      busy = false;
      say();
      timer = setTimeout(poll, document.hidden ? Math.max(pause, UNSEEN) : pause);
    }
  };

  document.addEventListener("visibilitychange", () => document.hidden || poll());
  window.addEventListener("online", poll);
  setInterval(say, 1000);
  say();
  window.losscope.ready.then(poll, poll);
})();
