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
      if (state.records) said.push(`step ${count(state.step)}`, `${count(state.records)} records`);
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
    const still = document.createElement("div");
    still.className = "static";
    for (const width of ["wide", "narrow"]) {
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
    const drawn = new Set(window.Plotly ? known.data.runs[0].figures.map((figure) => figure.id) : []);
    if (known.figures.every((id) => drawn.has(id))) return;
    const answer = await fetch("figures.json", { signal: AbortSignal.timeout(PATIENCE), cache: "no-store" });
    if (!answer.ok) return;
    const found = await answer.json();
    found.figures.forEach(place);
    pictured = found.version;
    order();
  };

  /* As in the report, in whichever order they came. */
  const order = () => {
    const present = known.figures.map((id) => document.getElementById(`figure-${id}`)).filter((figure) => figure);
    for (let i = 1; i < present.length; i++) {
      const [before, after] = [present[i - 1], present[i]];
      if (before.parentNode === after.parentNode && before.nextElementSibling !== after) before.after(after);
    }
  };

  let version = "", pause = PERIOD, timer = 0, busy = false;
  const poll = async () => {
    if (busy) return;
    busy = true;
    clearTimeout(timer);
    try {
      const answer = await fetch(`data.json?after=${version}`, { signal: AbortSignal.timeout(PATIENCE), cache: "no-store" });
      if (!answer.ok) throw new Error(`status ${answer.status}`);
      const news = await answer.json();
      [state, asked, pause] = [news.state, performance.now(), PERIOD];
      if (lost) [lost, again] = [0, true];
      if (news.data) {
        if (players(news.data) !== players(pageOf)) return location.reload();
        await window.losscope.update(news.data, news.fragment);
        if (version) again = false;
        version = news.version;
        known = news;
        order();
      }
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
