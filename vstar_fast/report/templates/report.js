"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const form = document.getElementById("filters");
  const cards = document.getElementById("cards");
  const count = document.getElementById("count");
  const more = document.getElementById("more");
  const PAGE = 20;
  const FIELDS = ["cycle", "mode", "verdict", "label", "reason"];

  const rows = data.questions.flatMap((question) => question.samples.map((sample) => ({ question, sample })));
  const cycleName = (n) => (n < 0 ? "base" : String(n));
  const value = {
    cycle: (r) => [cycleName(r.sample.cycle)],
    mode: (r) => [r.sample.mode],
    verdict: (r) => [r.sample.passed ? "passed" : "rejected", ...(r.sample.kept ? ["kept"] : [])],
    label: (r) => r.question.labels,
    reason: (r) => (r.sample.passed ? [] : [r.sample.reason]),
  };

  function node(tag, css, text) {
    const made = document.createElement(tag);
    if (css) made.className = css;
    if (text !== undefined) made.textContent = text;
    return made;
  }

  function fillSelects() {
    for (const name of FIELDS) {
      const found = new Map();
      for (const r of rows) for (const v of value[name](r)) found.set(v, (found.get(v) || 0) + 1);
      const select = form.elements[name];
      select.append(new Option("all", ""));
      const sorted = [...found.keys()].sort((a, b) => a.localeCompare(b, "en", { numeric: true }));
      for (const v of sorted) select.append(new Option(`${v.replaceAll("_", " ")} (${found.get(v)})`, v));
    }
  }

  const wanted = () => Object.fromEntries([...FIELDS, "q"].map((n) => [n, form.elements[n].value]));

  function matching(filter) {
    const words = filter.q.toLowerCase().split(/\s+/).filter(Boolean);
    return rows.filter((r) => {
      if (FIELDS.some((n) => filter[n] && !value[n](r).includes(filter[n]))) return false;
      const text = `${r.question.text} ${r.question.video} ${r.sample.text}`.toLowerCase();
      return words.every((w) => text.includes(w));
    });
  }

  // Spans count code points, as Python does; JavaScript strings do not.
  function marked(text, spans) {
    const points = Array.from(text);
    const line = node("p", "answer");
    let at = 0;
    for (const [start, end] of spans) {
      if (start < at) continue;
      line.append(points.slice(at, start).join(""), node("mark", "", points.slice(start, end).join("")));
      at = end;
    }
    line.append(points.slice(at).join(""));
    return line;
  }

  function sampleNode(s) {
    const made = node("div", `sample ${s.passed ? "passed" : "rejected"}`);
    const where = node("div", "where");
    const verdict = s.passed ? (s.kept ? "✓ kept" : "✓ passed") : `✗ ${s.reason.replaceAll("_", " ")}`;
    where.append(node("span", "verdict", verdict));
    where.append(node("span", "", `${s.cycle < 0 ? "base" : `cycle ${s.cycle}`}, ${s.mode}`));
    const body = node("div");
    body.append(marked(s.text, s.spans));
    if (!s.passed && s.extracted.length) body.append(node("p", "read", `read as: ${s.extracted.join("; ")}`));
    made.append(where, body);
    return made;
  }

  function cardNode(question, samples) {
    const card = node("article", "card");
    const strip = node("div", "strip");
    const picture = data.strips[question.video];
    if (picture) {
      const img = node("img");
      img.src = picture;
      img.alt = `frames of ${question.video}`;
      strip.append(img);
    } else strip.append(node("div", "none", "no picture"));
    strip.append(node("p", "", [question.file, question.split].filter(Boolean).join(", ")));
    const body = node("div");
    const gold = node("p", "gold", `${question.kind}: `);
    gold.append(node("b", "", question.labels.join(" and ")));
    body.append(node("h3", "", question.text), gold, ...samples.map(sampleNode));
    card.append(strip, body);
    return card;
  }

  let groups = [];
  let shown = 0;
  function showMore() {
    for (const [question, samples] of groups.slice(shown, shown + PAGE)) cards.append(cardNode(question, samples));
    shown = Math.min(groups.length, shown + PAGE);
    more.hidden = shown >= groups.length;
  }

  function show() {
    const found = matching(wanted());
    const byQuestion = new Map();
    for (const { question, sample } of found) {
      if (!byQuestion.has(question)) byQuestion.set(question, []);
      byQuestion.get(question).push(sample);
    }
    groups = [...byQuestion];
    shown = 0;
    cards.replaceChildren();
    const rest = data.total > rows.length ? `, of ${data.total} in the run` : "";
    count.textContent = `${found.length} of ${rows.length} shown${rest}`;
    if (!groups.length) cards.append(node("p", "empty", "No sample fits these filters. “Show all” clears them."));
    showMore();
  }

  function fromHash() {
    const asked = new URLSearchParams(location.hash.slice(1));
    for (const n of [...FIELDS, "q"]) form.elements[n].value = asked.get(n) || "";
    show();
    if (asked.size) document.getElementById("samples").scrollIntoView();
  }

  function toHash() {
    const set = Object.entries(wanted()).filter(([, v]) => v);
    history.replaceState(null, "", set.length ? `#${new URLSearchParams(set)}` : location.pathname);
    show();
  }

  fillSelects();
  form.addEventListener("input", toHash);
  form.addEventListener("submit", (event) => event.preventDefault());
  form.addEventListener("reset", () => setTimeout(toHash));
  more.addEventListener("click", showMore);
  addEventListener("hashchange", fromHash);
  fromHash();
})();
