"use strict";
/* Asks the page's own server about once a second what is new, and says how things stand. */
(() => {
  const PERIOD = 1000, LONGEST = 15000, PATIENCE = 60000, STATIC = 20000;
  const pageOf = JSON.parse(document.getElementById("data").textContent);
  const players = (content) => JSON.stringify(content.runs.map((run) => Object.keys(run.meta.players)));

  const bar = document.createElement("p");
  const link = document.createElement("b");
  const words = document.createElement("span");
  bar.id = "live";
  bar.className = "quiet";
  link.setAttribute("role", "status");
  bar.append(link, " ", words);
  document.querySelector("header").append(bar);
  document.querySelector('section[id^="run-"] > p.quiet')?.remove(); // what it says of the run's status ages

  const ago = (seconds) => {
    if (seconds < 60) return `${Math.floor(seconds)} s`;
    const minutes = Math.floor(seconds / 60);
    return minutes < 120 ? `${minutes} min` : `${Math.floor(minutes / 60)} h`;
  };

  let state = null, asked = 0, lost = 0, again = false;
  const say = () => {
    const since = (performance.now() - asked) / 1000;
    const said = [];
    if (lost) said.push(`since ${ago((performance.now() - lost) / 1000)}; what is below is the last that came`);
    if (state) {
      said.push(state.status === "waiting" ? "waiting for the run to begin" : state.status);
      if (state.records) said.push(`step ${state.step.toLocaleString("en")}`, `${state.records.toLocaleString("en")} records`);
      else if (state.status !== "waiting") said.push("no records yet");
      if (state.age !== null) said.push(`last record ${ago(state.age + since)} ago`);
      if (state.problem) said.push(state.problem);
    }
    const now = lost ? "○ Connection lost" : again ? "● Live again" : state ? "● Live" : "○ Connecting";
    if (link.textContent !== now) link.textContent = now;
    link.style.color = `var(--${lost || (state && state.problem) ? "bad" : "good"})`;
    words.textContent = said.join(" · ");
    document.documentElement.dataset.live = lost ? "lost" : "on";
  };

  /* Figures without an interactive version are drawn by the server, at its own pace. */
  let drawn = performance.now();
  const redraw = async () => {
    const still = [...document.querySelectorAll("figure:not(.drawn)")].filter((each) => each.id);
    if (!still.length || performance.now() - drawn < STATIC) return;
    drawn = performance.now();
    const answer = await fetch("/", { signal: AbortSignal.timeout(PATIENCE) });
    if (!answer.ok) return;
    const fresh = new DOMParser().parseFromString(await answer.text(), "text/html");
    for (const figure of still) {
      const found = fresh.getElementById(figure.id);
      if (found && found.innerHTML !== figure.innerHTML) figure.replaceChildren(...[...found.childNodes].map((each) => document.adoptNode(each)));
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
        redraw().catch(() => {});
      }
    } catch {
      lost = lost || performance.now();
      pause = Math.min(pause * 1.5, LONGEST);
    } finally {
      busy = false;
      say();
      timer = setTimeout(poll, pause);
    }
  };

  document.addEventListener("visibilitychange", () => document.hidden || poll());
  window.addEventListener("online", poll);
  setInterval(say, 1000);
  say();
  window.losscope.ready.then(poll, poll);
})();
