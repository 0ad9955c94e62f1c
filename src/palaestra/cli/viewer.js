// The report's trajectory viewer: filters, a list, and one episode with its tokens. Texts go into the page as text
// nodes alone, never as HTML: what a policy wrote is untrusted.
"use strict";
(function () {
  const data = JSON.parse(document.getElementById("episodes-data").textContent);
  const root = document.getElementById("viewer");
  const byId = (id) => document.getElementById("viewer-" + id);
  const state = { shown: [], at: -1, view: "text", token: -1, tokens: [] };
  const SOURCES = JSON.parse(root.dataset.sources);
  const REWARD_DIGITS = 2;

  // ------------------------------------------------------------------------------------------------- elements
  function make(tag, className, text, attributes) {
    const element = document.createElement(tag);
    if (className) element.className = className;
    if (text !== undefined && text !== null) element.textContent = text;
    for (const [name, value] of Object.entries(attributes || {})) element.setAttribute(name, value);
    return element;
  }
  function signed(value, digits) {
    return (value < 0 ? "−" : "+") + Math.abs(value).toFixed(digits === undefined ? 2 : digits);
  }
  function plain(value, digits) {
    return String(value.toFixed(digits)).replace("-", "−");
  }

  // ------------------------------------------------------------------------------------------------- figures
  function advantageOf(episode) {
    if (!episode.v) return null;
    let sum = 0, count = 0;
    for (const runs of episode.v) for (const [start, stop, value] of runs) { sum += value * (stop - start); count += stop - start; }
    return count ? sum / count : null;
  }
  function turnAdvantage(episode, turn) {
    if (!episode.v || turn.g === undefined) return null;
    let sum = 0, count = 0;
    for (const [start, stop, value] of episode.v[turn.g]) {
      const n = Math.min(stop, turn.c) - Math.max(start, turn.b);
      if (n > 0) { sum += value * n; count += n; }
    }
    return count ? sum / count : null;
  }
  function surpriseOf(episode) {
    let sum = 0, count = 0;
    for (const segment of episode.s || []) for (const value of segment.l) if (value !== null) { sum -= value; count += 1; }
    return count ? sum / count / 1000 : null;
  }
  let largest = 0;
  data.episodes.forEach((episode, number) => {
    episode.number = number;
    episode.adv = advantageOf(episode);
    episode.surprise = surpriseOf(episode);
    episode.errors = episode.t.filter((turn) => turn.e).length;
    for (const runs of episode.v || []) for (const [, , value] of runs) largest = Math.max(largest, Math.abs(value));
  });
  function textOf(episode) {
    if (episode.text === undefined) {
      const parts = [episode.id, episode.end, episode.fail || ""];
      for (const [, text] of episode.m) parts.push(text);
      for (const turn of episode.t) parts.push(turn.a, turn.o, turn.e || "");
      episode.text = parts.join("\n").toLowerCase();
    }
    return episode.text;
  }

  // ------------------------------------------------------------------------------------------------- filters
  const KINDS = {
    all: () => true,
    failed: (episode) => episode.fail !== null,
    wrong: (episode) => episode.fail === null && !episode.ok,
    right: (episode) => Boolean(episode.ok),
    parse: (episode) => episode.errors > 0,
    cut: (episode) => episode.cut,
  };
  const missingLast = (key, sign) => (a, b) =>
    (a[key] === null) - (b[key] === null) || sign * (a[key] - b[key]) || a.number - b.number;
  const ORDERS = {
    stored: (a, b) => a.number - b.number,
    worst: missingLast("adv", 1),
    best: missingLast("adv", -1),
    surprise: missingLast("surprise", -1),
    long: (a, b) => b.t.length - a.t.length || a.number - b.number,
    reward: missingLast("r", 1),
  };
  function option(select, value, label) { select.append(make("option", "", label, { value: value })); }
  function fill() {
    const sources = new Set(data.episodes.map((episode) => episode.f));
    const levels = new Set(data.episodes.map((episode) => episode.fam + "/" + episode.lvl));
    const steps = new Set(data.episodes.map((episode) => episode.step).filter((step) => step !== null));
    for (const name of sources) option(byId("source"), name, SOURCES[name] || name);
    for (const name of [...levels].sort()) option(byId("level"), name, name);
    for (const step of [...steps].sort((a, b) => a - b)) option(byId("step"), step, "step " + step);
    byId("step").disabled = steps.size === 0;
    for (const choice of byId("kind").options) {
      const count = data.episodes.filter(KINDS[choice.value]).length;
      choice.textContent += " (" + count + ")";
      choice.disabled = count === 0;
    }
    const advantages = data.episodes.some((episode) => episode.adv !== null);
    for (const choice of byId("order").options) {
      if (choice.value === "worst" || choice.value === "best") choice.disabled = !advantages;
    }
  }
  function apply(event) {
    const words = byId("search").value.toLowerCase().split(/\s+/).filter(Boolean);
    const source = byId("source").value, level = byId("level").value, step = byId("step").value;
    const kind = KINDS[byId("kind").value];
    const kept = state.at >= 0 ? state.shown[state.at] : null;
    state.shown = data.episodes.filter((episode) =>
      kind(episode) && (!source || episode.f === source) && (!level || episode.fam + "/" + episode.lvl === level) &&
      (!step || String(episode.step) === step) && words.every((word) => textOf(episode).includes(word)));
    state.shown.sort(ORDERS[byId("order").value]);
    byId("count").textContent = state.shown.length + " of " + data.episodes.length + " episodes";
    list();
    const ordered = event && event.target === byId("order");  // who asks for the worst wants to see the worst
    const again = ordered ? -1 : state.shown.indexOf(kept);
    select(again >= 0 ? again : state.shown.length ? 0 : -1);
  }

  // ---------------------------------------------------------------------------------------------------- list
  function verdict(episode) {
    if (episode.fail !== null) return ["failed", "warn"];
    return episode.ok ? ["right", "good"] : ["wrong", "bad"];
  }
  function list() {
    const rows = state.shown.map((episode, at) => {
      const row = make("div", "row", null, { role: "option", id: "viewer-row-" + at, "aria-selected": "false" });
      const head = make("span", "row-head");
      const [word, tone] = verdict(episode);
      head.append(make("span", "chip " + tone, word), make("span", "row-level", episode.fam + "/" + episode.lvl));
      if (episode.step !== null) head.append(make("span", "soft", "step " + episode.step));
      if (episode.errors) head.append(make("span", "chip bad", "parse error"));
      if (episode.cut) head.append(make("span", "chip warn", "cut off"));
      if (episode.adv !== null) head.append(make("span", "figure " + (episode.adv < 0 ? "down" : "up"), signed(episode.adv)));
      const prompt = episode.m.length ? episode.m[episode.m.length - 1][1] : episode.id;
      row.append(head, make("span", "row-text", prompt.slice(0, 160)));
      row.addEventListener("click", () => select(at));
      return row;
    });
    byId("list").replaceChildren(...rows);
    byId("list").hidden = rows.length === 0;
    byId("none").hidden = rows.length > 0;
  }
  function select(at) {
    const before = document.getElementById("viewer-row-" + state.at);
    if (before) before.setAttribute("aria-selected", "false");
    state.at = at;
    const row = document.getElementById("viewer-row-" + at);
    if (!row) {
      byId("list").removeAttribute("aria-activedescendant");
      byId("detail").replaceChildren();
      return;
    }
    row.setAttribute("aria-selected", "true");
    byId("list").setAttribute("aria-activedescendant", row.id);
    const box = byId("list"), top = row.offsetTop - box.offsetTop;
    if (top < box.scrollTop) box.scrollTop = top;
    if (top + row.offsetHeight > box.scrollTop + box.clientHeight) box.scrollTop = top + row.offsetHeight - box.clientHeight;
    detail();
  }
  function move(by) {
    if (state.shown.length) select(Math.min(state.shown.length - 1, Math.max(0, state.at + by)));
  }

  // -------------------------------------------------------------------------------------------------- detail
  function detail() {
    const episode = state.shown[state.at];
    const parts = [heading(episode)];
    if (state.view === "text" || !episode.s) {
      if (state.view !== "text") parts.push(make("p", "soft", missing(episode)));
      for (const [role, text] of episode.m) parts.push(message(role, text));
      episode.t.forEach((turn, number) => parts.push(...turnParts(episode, turn, number)));
      if (episode.fail !== null) parts.push(make("p", "parse", "infrastructure failed here: " + episode.fail));
      state.tokens = [];
    } else parts.push(...stream(episode));
    byId("detail").replaceChildren(...parts);
    byId("detail").scrollTop = 0;
    legend(episode);
  }
  function missing(episode) {
    return episode.t.length ? "This episode has no tokens to colour: they were not recorded, or left out for want of room."
      : "This episode has no turns.";
  }
  function heading(episode) {
    const head = make("div", "detail-head");
    const [word, tone] = verdict(episode);
    head.append(make("span", "chip " + tone, word));
    if (episode.r !== null) head.append(make("span", "chip", "reward " + plain(episode.r, REWARD_DIGITS)));
    head.append(make("span", "chip", episode.end));
    if (episode.adv !== null) head.append(make("span", "chip", "advantage " + signed(episode.adv)));
    if (episode.surprise !== null) head.append(make("span", "chip", "−log p " + episode.surprise.toFixed(2) + " a token"));
    const name = make("p", "kicker", episode.id + " · " + (SOURCES[episode.f] || episode.f));
    const command = make("p", "kicker");
    command.append("again: ", make("code", "", "palaestra replay " + data.folder + " --file " + episode.f + " --episode " + episode.n));
    const box = make("div", "about");
    box.append(name, head, command);
    return box;
  }
  function message(role, text) {
    const box = make(role === "system" ? "details" : "div", "turn prompt");
    box.append(make(role === "system" ? "summary" : "span", "who", role === "user" ? "task" : role + " message"));
    box.append(make("pre", "", text));
    return box;
  }
  function turnParts(episode, turn, number) {
    const action = make("div", "turn policy");
    const who = make("span", "who", "policy, turn " + (number + 1) + (number < (episode.fork || 0) ? " (another's)" : ""));
    const advantage = turnAdvantage(episode, turn);
    if (advantage !== null) who.append(" ", make("span", "chip", "advantage " + signed(advantage)));
    if (turn.l !== undefined && turn.l !== null) who.append(" ", make("span", "chip", "log p " + plain(turn.l, 2) + " a token"));
    if (turn.r) who.append(" ", make("span", "chip", "reward " + plain(turn.r, REWARD_DIGITS)));
    action.append(who, make("pre", "", turn.a));
    if (turn.e) action.append(make("p", "parse", "not a valid action: " + turn.e.replace(/^error: /, "")));
    if (!turn.o) return [action];
    const answer = make("div", "turn world");
    answer.append(make("span", "who", "environment"), make("pre", "", turn.o));
    return [action, answer];
  }

  // -------------------------------------------------------------------------------------------------- tokens
  function stream(episode) {
    state.tokens = [];
    const boxes = episode.s.map((segment, number) => {
      const box = make("pre", "stream", null, { tabindex: "0", role: "group",
        "aria-label": "Tokens" + (episode.s.length > 1 ? " of segment " + (number + 1) : "") + "; arrow keys move from one to the next" });
      box.addEventListener("keydown", tokenKeys);
      box.addEventListener("focus", () => { if (!segmentOfToken(state.token, number)) inspect(firstOf(number)); });
      return fillStream(box, episode, segment, number);
    });
    return boxes;
  }
  function fillStream(box, episode, segment, number) {
    const places = expanded(segment.i), sampled = new Set(expanded(segment.k));
    const logprobs = new Map(), advantages = new Map();
    let next = 0;
    for (const place of places) if (sampled.has(place)) logprobs.set(place, segment.l[next++]);
    for (const [start, stop, value] of (episode.v || [])[number] || []) for (let i = start; i < stop; i++) advantages.set(i, value);
    let at = 0;
    for (const text of segment.t) {
      if (text === -1) { box.append(make("span", "gap", " … ")); continue; }
      const place = places[at++];
      const token = { place: place, text: data.texts[text], sampled: sampled.has(place), segment: number,
        logprob: logprobs.has(place) ? logprobs.get(place) : null, advantage: advantages.has(place) ? advantages.get(place) : null };
      token.element = make("span", "tok" + (token.sampled ? " sampled" : ""), token.text, { "data-token": state.tokens.length });
      colour(token);
      state.tokens.push(token);
      box.append(token.element);
    }
    box.addEventListener("pointerover", (event) => hover(event));
    box.addEventListener("click", (event) => hover(event));
    return box;
  }
  function expanded(runs) {
    const places = [];
    for (const [start, stop] of runs) for (let i = start; i < stop; i++) places.push(i);
    return places;
  }
  function colour(token) {
    const style = token.element.style;
    if (!token.sampled || state.view === "mask") return;
    if (state.view === "logprob" && token.logprob !== null) {
      style.setProperty("--share", Math.round(100 * Math.min(1, -token.logprob / 5000)) + "%");
      token.element.classList.add("surprise");
    }
    if (state.view === "advantage" && token.advantage !== null) {
      style.setProperty("--share", Math.round(100 * Math.abs(token.advantage) / (largest || 1)) + "%");
      token.element.classList.add(token.advantage < 0 ? "minus" : "plus");
    }
  }
  function describe(token) {
    const parts = ["token " + token.place + " " + JSON.stringify(token.text)];
    parts.push(token.sampled ? "sampled by the policy" : "not sampled: context");
    if (token.logprob !== null) {
      const nats = token.logprob / 1000;
      parts.push("log p " + plain(nats, 3) + " (p " + Math.exp(nats).toPrecision(2) + ")");
    }
    if (token.advantage !== null) parts.push("advantage " + signed(token.advantage, 3));
    return parts.join(" · ");
  }
  function hover(event) {
    const number = event.target.dataset ? event.target.dataset.token : undefined;
    if (number !== undefined) inspect(Number(number));
  }
  function firstOf(segment) { return state.tokens.findIndex((token) => token.segment === segment); }
  function segmentOfToken(number, segment) { return number >= 0 && state.tokens[number] && state.tokens[number].segment === segment; }
  function inspect(number) {
    const before = state.tokens[state.token], token = state.tokens[number];
    if (before) before.element.classList.remove("current");
    if (!token) return;
    state.token = number;
    token.element.classList.add("current");
    token.element.title = describe(token);
    byId("inspector").textContent = describe(token);
  }
  function tokenKeys(event) {
    const by = { ArrowRight: 1, ArrowLeft: -1, Home: -Infinity, End: Infinity }[event.key];
    if (by === undefined) return;
    event.preventDefault();
    inspect(Math.min(state.tokens.length - 1, Math.max(0, state.token + by)));
    state.tokens[state.token].element.scrollIntoView({ block: "nearest" });
  }
  function legend(episode) {
    state.token = -1;
    byId("inspector").textContent = state.tokens.length ? "Point at a token, or move over them with the arrow keys." : "";
    for (const name of ["text", "mask", "logprob", "advantage"]) byId("legend-" + name).hidden = name !== state.view;
    byId("scale").textContent = signed(-largest) + " to " + signed(largest);
    byId("noadvantage").hidden = episode.v !== null;
  }

  // -------------------------------------------------------------------------------------------------- wiring
  for (const name of ["source", "level", "step", "kind", "order"]) byId(name).addEventListener("change", apply);
  let timer = 0;
  byId("search").addEventListener("input", () => { clearTimeout(timer); timer = setTimeout(() => apply(), 120); });
  for (const radio of root.querySelectorAll("input[name=viewer-view]")) {
    radio.addEventListener("change", () => { state.view = radio.value; if (state.at >= 0) detail(); });
  }
  byId("list").addEventListener("keydown", (event) => {
    const by = { ArrowDown: 1, j: 1, ArrowUp: -1, k: -1, PageDown: 10, PageUp: -10, Home: -1e9, End: 1e9 }[event.key];
    if (by === undefined || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    move(by);
  });
  document.addEventListener("keydown", (event) => {
    if (event.key !== "/" || /^(INPUT|SELECT|TEXTAREA)$/.test(event.target.tagName)) return;
    event.preventDefault();
    byId("search").focus();
  });
  root.hidden = false;
  fill();
  apply();
  window.palaestraViewer = { state: state, apply: apply, select: select, data: data };
})();
