"use strict";
(() => {
  const one = (query, from = document) => from.querySelector(query);
  const all = (query, from = document) => [...from.querySelectorAll(query)];
  const data = (key) => JSON.parse(one("#data-" + key).textContent);
  const number = (value, digits = 2) => (value === null || value === undefined ? "\u2013" : value.toFixed(digits).replace("-", "\u2212"));

  // Builds an element; texts go in as text nodes only, so no text of a campaign can become markup.
  function el(tag, attributes = {}, ...children) {
    const node = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) {
      if (name === "on") for (const [event, act] of Object.entries(value)) node.addEventListener(event, act);
      else if (value === true) node.setAttribute(name, "");
      else if (value !== false && value !== null) node.setAttribute(name, value);
    }
    node.append(...children.flat().filter((child) => child !== null && child !== undefined));
    return node;
  }

  // Light and dark
  const root = document.documentElement;
  const remember = (theme) => { try { localStorage.setItem("theme", theme); } catch { /* a page from a file may have no storage */ } };
  try { if (localStorage.getItem("theme")) root.dataset.theme = localStorage.getItem("theme"); } catch { /* as above */ }
  one("#theme").addEventListener("click", () => {
    const dark = root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
    root.dataset.theme = dark ? "light" : "dark";
    remember(root.dataset.theme);
  });

  // Where the reader is
  const links = new Map(all("nav a").map((link) => [link.hash.slice(1), link]));
  const watcher = new IntersectionObserver((entries) => {
    for (const entry of entries) {
      if (!entry.isIntersecting) continue;
      for (const link of links.values()) link.removeAttribute("aria-current");
      links.get(entry.target.id)?.setAttribute("aria-current", "true");
    }
  }, { rootMargin: "-10% 0px -75% 0px" });
  all("main section").forEach((section) => watcher.observe(section));

  // Tooltips of charts: the nearest mark, or the nearest point of a curve without marks
  const tip = one("#tip");
  function showTip(text, x, y) {
    tip.textContent = text;
    tip.hidden = false;
    const box = tip.getBoundingClientRect();
    tip.style.left = Math.max(6, Math.min(x + 12, innerWidth - box.width - 8)) + "px";
    tip.style.top = (y - box.height - 12 < 4 ? y + 18 : y - box.height - 12) + "px";
  }
  const short = (value) => (Math.abs(value) >= 1000 || (value && Math.abs(value) < 0.001) ? value.toExponential(2) : String(+value.toPrecision(4))).replace("-", "\u2212");
  function pointsOf(chart) {
    if (chart.points) return chart.points;
    const marks = all(".pt", chart).map((mark) => {
      const box = mark.getBBox();
      return { x: box.x + box.width / 2, y: box.y + box.height / 2, text: mark.dataset.t || mark.parentNode.dataset.name, mark };
    });
    if (!marks.length && chart.dataset.scale) {
      const [ox, fx, oy, fy] = chart.dataset.scale.split(" ").map(Number);
      for (const line of all(".line", chart)) {
        for (const p of line.points) marks.push({ x: p.x, y: p.y, text: `${chart.dataset.x} ${short(Math.round((p.x - ox) / fx))}: ${short((p.y - oy) / fy)}` });
      }
    }
    return (chart.points = marks.sort((a, b) => a.x - b.x || a.y - b.y));
  }
  function point(chart, index) {
    const points = pointsOf(chart);
    all(".cursor", chart).forEach((node) => node.remove());
    if (!points.length || index < 0) { tip.hidden = true; return; }
    chart.at = Math.max(0, Math.min(points.length - 1, index));
    const { x, y, text } = points[chart.at];
    const ring = document.createElementNS("http://www.w3.org/2000/svg", "circle");
    for (const [name, value] of Object.entries({ class: "cursor", cx: x, cy: y, r: 5.5 })) ring.setAttribute(name, value);
    chart.append(ring);
    const place = new DOMPoint(x, y).matrixTransform(chart.getScreenCTM());
    showTip(text, place.x, place.y);
  }
  for (const chart of all(".chart")) {
    chart.addEventListener("pointermove", (event) => {
      const here = new DOMPoint(event.clientX, event.clientY).matrixTransform(chart.getScreenCTM().inverse());
      let best = -1, least = 40 * 40;
      pointsOf(chart).forEach((p, i) => {
        const far = (p.x - here.x) ** 2 + ((p.y - here.y) ** 2) * 0.4;
        if (far < least) { least = far; best = i; }
      });
      point(chart, best);
    });
    chart.addEventListener("pointerleave", () => point(chart, -1));
    chart.addEventListener("blur", () => point(chart, -1));
    chart.addEventListener("keydown", (event) => {
      const step = { ArrowRight: 1, ArrowLeft: -1, Home: -1e9, End: 1e9 }[event.key];
      if (step) { event.preventDefault(); point(chart, Math.max(0, (chart.at ?? (step > 0 ? -1 : 1)) + step)); }
      if (event.key === "Escape") point(chart, -1);
    });
  }

  // Tooltips of coloured tables: the cell that is pointed at, or that the arrow keys have reached
  for (const table of all(".heat")) {
    const grid = [...table.tBodies[0].rows].map((row) => [...row.cells].slice(1));
    let at = null;
    function read(cell) {
      all(".read", table).forEach((other) => other.classList.remove("read"));
      tip.hidden = true;
      if (!cell?.dataset.t) return;
      const box = cell.getBoundingClientRect();
      cell.classList.add("read");
      showTip(cell.dataset.t, box.left, box.top + 8);
    }
    table.addEventListener("pointerover", (event) => read(event.target.closest("td")));
    table.addEventListener("pointerleave", () => read(null));
    table.addEventListener("blur", () => { at = null; read(null); });
    table.addEventListener("keydown", (event) => {
      const move = { ArrowRight: [0, 1], ArrowLeft: [0, -1], ArrowDown: [1, 0], ArrowUp: [-1, 0] }[event.key];
      if (event.key === "Escape") read(null);
      if (!move) return;
      event.preventDefault();
      at = at ? [at[0] + move[0], at[1] + move[1]] : [0, 0];
      at = [Math.max(0, Math.min(grid.length - 1, at[0])), Math.max(0, Math.min(grid[0].length - 1, at[1]))];
      const cell = grid[at[0]][at[1]];
      cell.scrollIntoView({ block: "nearest", inline: "nearest" });
      read(cell);
    });
  }

  // Alternatives: buttons that show one of several tables
  for (const group of all(".alternatives")) {
    for (const button of all("button", group)) {
      button.addEventListener("click", () => {
        all("button", group).forEach((other) => other.setAttribute("aria-pressed", String(other === button)));
        all(".alternative", group).forEach((table) => { table.hidden = table.dataset.key !== button.dataset.alternative; });
      });
    }
  }

  // Lists with filters
  const search = (act) => el("input", { type: "search", placeholder: "Search the texts", "aria-label": "Search the texts", on: { input: act } });
  const choose = (label, options, act) => el("select", { "aria-label": label, on: { change: act } }, options.map(([value, text]) => el("option", { value }, text)));
  const turns = (messages) => messages.map((m) => el("p", { class: "turn" }, el("span", {}, m.role), el("q", {}, m.content)));
  const kinds = (prompts) => [["", "all categories"], ["\u0000safety", "safety prompts"], ...[...new Set(prompts.map((p) => p.category))].sort().map((c) => [c, c])];
  const inKind = (prompt, kind) => !kind || (kind === "\u0000safety" ? prompt.is_safety : prompt.category === kind);
  function marked(text, wanted) {
    if (!wanted) return [text];
    const parts = [], low = text.toLowerCase();
    let from = 0;
    for (let at = low.indexOf(wanted); at >= 0; at = low.indexOf(wanted, from)) {
      parts.push(text.slice(from, at), el("mark", {}, text.slice(at, at + wanted.length)));
      from = at + wanted.length;
    }
    return [...parts, text.slice(from)];
  }
  function paged(list, items, card, size, count, noun) {
    let shown = 0;
    list.replaceChildren();
    count.textContent = `${items.length} ${noun}${items.length === 1 ? "" : "s"}`;
    const more = el("button", { type: "button", class: "more", on: { click: add } }, "Show more");
    function add() {
      more.remove();
      list.append(...items.slice(shown, (shown += size)).map(card));
      if (shown < items.length) list.append(more);
    }
    add();
    if (!items.length) list.append(el("p", { class: "absent" }, "Nothing matches."));
  }

  function responses() {
    const found = data("responses");
    const gold = found.columns.map((name) => (name === "kl" ? "log-ratio to v0" : name.replace("gold_", "gold ")));
    const value = (prompt, version) => {
      const answer = prompt.answers[found.versions.indexOf(version)];
      const column = ["gold_safety", "gold_helpfulness", "safety", "helpfulness"].filter((c) => found.columns.includes(c) && c.endsWith("safety") === prompt.is_safety)[0];
      return answer && column ? answer[3 + found.columns.indexOf(column)] : null;
    };
    const last = found.versions.at(-1);
    const gain = (prompt) => (value(prompt, last) ?? 0) - (value(prompt, "v0") ?? 0);
    const orders = { drawn: null, gained: (a, b) => gain(b) - gain(a), lost: (a, b) => gain(a) - gain(b) };
    const text = search(draw), kind = choose("Category", kinds(found.prompts), draw);
    const order = choose("Order", [["drawn", "in the order drawn"], ["gained", `${last} gained most on v0`], ["lost", `${last} lost most on v0`]], draw);
    const boxes = found.versions.map((label) => el("label", {}, el("input", { type: "checkbox", value: label, checked: true, on: { change: draw } }), label));
    const count = el("span", { class: "count", role: "status" });
    one("#responses-filters").append(text, kind, order, el("fieldset", { "aria-label": "Versions" }, boxes), count);
    for (const prompt of found.prompts) prompt.all = (prompt.messages.map((m) => m.content).join("\n") + "\n" + prompt.answers.map((a) => (a ? a[0] : "")).join("\n")).toLowerCase();
    function answer(label, given, wanted) {
      const body = given
        ? [el("p", { class: "text" }, marked(given[0] || "(nothing)", wanted)),
           el("p", { class: "small" }, [`${given[1]} tokens`, given[2] === "eos" ? null : "no EOS", ...gold.map((name, i) => (given[3 + i] === null ? null : `${name} ${number(given[3 + i])}`))].filter(Boolean).join(" \u00b7 "))]
        : [el("p", { class: "absent" }, "no answer")];
      return el("div", {}, el("h4", {}, label), body);
    }
    function draw() {
      const wanted = text.value.trim().toLowerCase();
      const labels = boxes.map((box) => one("input", box)).filter((box) => box.checked).map((box) => box.value);
      let items = found.prompts.filter((p) => inKind(p, kind.value) && (!wanted || p.all.includes(wanted)));
      if (orders[order.value]) items = [...items].sort(orders[order.value]);
      const card = (prompt) => el("article", { class: "card" },
        el("p", { class: "kind" }, prompt.category + (prompt.is_safety ? ", safety prompt" : "")), turns(prompt.messages),
        el("div", { class: "answers" }, labels.map((label) => answer(label, prompt.answers[found.versions.indexOf(label)], wanted))));
      paged(one("#responses-list"), items, card, 6, count, "prompt");
    }
    draw();
  }

  function audit() {
    const found = data("audit"), place = Object.fromEntries(found.columns.map((name, i) => [name, i]));
    const round = choose("Selection", found.rounds.map((r, i) => [i, r.label]), renew), text = search(draw), kind = el("select", { "aria-label": "Category", on: { change: draw } });
    const count = el("span", { class: "count", role: "status" });
    round.value = String(found.rounds.length - 1);
    one("#audit-filters").append(round, text, kind, count);
    function renew() {
      kind.replaceChildren(...kinds(found.rounds[round.value].prompts).map(([value, name]) => el("option", { value }, name)));
      draw();
    }
    function decided(prompt, row) {
      if (row[place.safety] === null) return "helpfulness";
      if (prompt.is_safety) return "safety: a safety prompt";
      return row[place.branch] === 0 ? "safety: under the threshold" : "helpfulness";
    }
    function candidate(prompt, row, wanted) {
      const get = (name) => row[place[name]];
      return el("tr", { class: get("role") ? "taken" : null },
        el("th", { scope: "row" }, String(get("rank"))), el("td", { class: "role" }, get("role")), el("td", { class: "long" }, marked(get("text") || "(nothing)", wanted)),
        el("td", {}, number(get("helpfulness"))), el("td", {}, number(get("safety"))), el("td", {}, decided(prompt, row)), el("td", {}, get("source")), el("td", {}, number(get("temperature"), 1)));
    }
    const heads = ["Rank", "Taken as", "Response", "Helpfulness", "Safety", "Decided by", "Drawn in", "T"];
    function draw() {
      const wanted = text.value.trim().toLowerCase(), from = found.rounds[round.value];
      const items = from.prompts.filter((p) => inKind(p, kind.value) && (!wanted || JSON.stringify([p.messages, p.candidates]).toLowerCase().includes(wanted)));
      const card = (prompt) => el("article", { class: "card" },
        el("p", { class: "kind" }, `${prompt.category}${prompt.is_safety ? ", safety prompt" : ""}, ${prompt.candidates.length} candidates`), turns(prompt.messages),
        el("div", { class: "candidates scroll", tabindex: "0" }, el("table", {}, el("thead", {}, el("tr", {}, heads.map((name) => el("th", { scope: "col" }, name)))),
          el("tbody", {}, prompt.candidates.map((row) => candidate(prompt, row, wanted))))));
      paged(one("#audit-list"), items, card, 3, count, `of ${from.total} prompt`);
      count.textContent = `${items.length} of the selection's ${from.total} prompts`;
    }
    renew();
  }

  function lineage() {
    const found = data("lineage"), picture = one(".lineage"), panel = one("#lineage-detail");
    function ancestors(label, seen = new Set()) {
      if (!seen.has(label)) { seen.add(label); (found[label]?.inputs ?? []).forEach((input) => ancestors(input, seen)); }
      return seen;
    }
    const pretty = (title, value) => (value && Object.keys(value).length ? el("details", { class: "numbers", open: title === "Recipe" }, el("summary", {}, title), el("pre", {}, JSON.stringify(value, null, 2))) : null);
    function select(label) {
      const it = found[label], seen = ancestors(label);
      picture.classList.add("chosen");
      for (const node of all(".node", picture)) { node.classList.toggle("on", seen.has(node.dataset.node)); node.classList.toggle("self", node.dataset.node === label); }
      for (const edge of all(".edge", picture)) edge.classList.toggle("on", seen.has(edge.dataset.from) && seen.has(edge.dataset.to));
      const facts = [["Work", it.stage], ["Name", it.key], ["State", it.done ? `done in ${it.seconds}, ${it.files} files, ${it.bytes}` : "not made yet"], ["Cost", it.cost], ["Code", it.code]];
      const inputs = it.inputs.map((input) => el("button", { type: "button", class: "link", on: { click: () => select(input) } }, input));
      panel.replaceChildren(el("h3", {}, label),
        el("dl", {}, facts.filter(([, value]) => value).flatMap(([name, value]) => [el("dt", {}, name), el("dd", {}, value)]), el("dt", {}, "Made of"), el("dd", {}, inputs.length ? inputs : "nothing of this campaign")),
        ...[pretty("Recipe", it.recipe), pretty("Summary", it.summary), pretty("Numerics", it.numerics)].filter(Boolean));
    }
    for (const node of all(".node", picture)) {
      node.addEventListener("click", () => select(node.dataset.node));
      node.addEventListener("keydown", (event) => { if (event.key === "Enter" || event.key === " ") { event.preventDefault(); select(node.dataset.node); } });
    }
  }

  if (one(".lineage")) lineage();
  if (one("#responses-filters")) responses();
  if (one("#audit-filters")) audit();
})();
