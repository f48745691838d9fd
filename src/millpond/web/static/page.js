// Listens to the stream of looks, and shows the last one. Nothing on the page is ever taken for markup: text goes in as
// text, since names of pools, threads and places are anybody's words.
"use strict";

const KEPT = 300; // looks: five minutes of them
const TOLD = 200; // lines of what happened
const STEPS = [-6, -5, -4, -3, -2, -1, 0, 1, 2, 3, 4].flatMap((tens) => [1, 2, 5].map((step) => step * 10 ** tens));
const LATE = 5000; // milliseconds without a look after which the page says so

const byId = (id) => document.getElementById(id);
const history = new Map(); // of each pool, by key: the rows of its charts
const before = new Map(); // of each pool, by key: what it was at the last look
let chosen = null;
let latest = null;
let looks = 0;
let charts = null;

function seconds(value) {
  if (value === null || value === undefined) return "–";
  if (value < 0.001) return `${(value * 1e6).toFixed(0)} µs`;
  if (value < 0.1) return `${(value * 1e3).toFixed(1)} ms`;
  if (value < 1) return `${(value * 1e3).toFixed(0)} ms`;
  if (value < 100) return `${value.toFixed(1)} s`;
  if (value < 6000) return `${(value / 60).toFixed(0)} min`;
  return `${(value / 3600).toFixed(0)} h`;
}

function rate(value) {
  if (value === null) return "–";
  return value < 10 ? value.toFixed(1) : Math.round(value).toLocaleString("en");
}

function count(value) {
  return value.toLocaleString("en");
}

function clock(at) {
  return new Date(at * 1000).toTimeString().slice(0, 8);
}

function title(process) {
  const program = (process.argv0 || "").split("/").pop();
  return `${process.pid} ${program}`.trim();
}

function cell(row, text, kind = "") {
  const made = row.insertCell();
  made.textContent = text;
  if (kind) made.className = kind;
  return made;
}

// What is shown of each pool

function poolsOf(look) {
  const found = [];
  for (const answer of look.processes) {
    for (const pool of answer.pools) {
      found.push({ key: `${answer.key} ${pool.id}`, process: answer.process, at: look.at, ...pool });
    }
  }
  return found;
}

function errorsOf(stats) {
  return stats.open_failures + stats.timeouts + stats.refusals;
}

function stateOf(pool) {
  if (pool.outage) return [`${pool.outage.error}, ${seconds(pool.outage.seconds)}`, "bad"];
  if (pool.stats.closed) return ["closed", "quiet"];
  if (pool.stats.paused) return ["paused", "busy"];
  return ["", ""];
}

function loansPerSecond(pool) {
  const last = before.get(pool.key);
  if (!last || pool.at <= last.at) return null;
  return Math.max(0, pool.stats.borrows - last.stats.borrows) / (pool.at - last.at);
}

function remember(pool) {
  let rows = history.get(pool.key);
  if (!rows) history.set(pool.key, (rows = [[], [], [], [], [], [], [], []]));
  const { stats, waits } = pool;
  const now = [pool.at, stats.max_size, stats.size, stats.lent, stats.idle, stats.waiting, waits.p50, waits.p99];
  now.forEach((value, index) => {
    rows[index].push(value);
    if (rows[index].length > KEPT) rows[index].shift();
  });
}

function showOverview(pools, silent) {
  const focused = document.activeElement?.dataset?.key;
  const body = byId("pools");
  const rows = document.createDocumentFragment();
  for (const pool of pools) {
    const { stats, waits } = pool;
    const row = document.createElement("tr");
    row.className = pool.key === chosen ? "chosen" : "";
    const name = document.createElement("button");
    name.type = "button";
    name.textContent = stats.name;
    name.dataset.key = pool.key;
    name.setAttribute("aria-pressed", pool.key === chosen);
    const small = document.createElement("small");
    const [state, kind] = stateOf(pool);
    small.textContent = state ? `${title(pool.process)}, ${state}` : title(pool.process);
    cell(row, "").append(name, small);
    cell(row, title(pool.process), "wide quiet");
    cell(row, count(stats.lent), "number");
    cell(row, count(stats.idle), "number");
    cell(row, `${stats.size}/${stats.max_size}`, "number");
    cell(row, count(stats.waiting), stats.waiting ? "number busy" : "number");
    cell(row, seconds(waits.p50), "number wide");
    cell(row, seconds(waits.p99), "number");
    cell(row, rate(loansPerSecond(pool)), "number wide");
    cell(row, count(stats.opens), "number wide");
    cell(row, count(errorsOf(stats)), errorsOf(stats) ? "number wide bad" : "number wide");
    cell(row, state, `wide ${kind}`);
    row.addEventListener("click", () => choose(pool.key));
    rows.append(row);
  }
  for (const answer of silent) {
    const row = document.createElement("tr");
    cell(row, answer.error || "no pools", "quiet").colSpan = 1;
    cell(row, title(answer.process), "wide quiet");
    cell(row, "").colSpan = 10;
    rows.append(row);
  }
  body.replaceChildren(rows);
  if (focused) {
    [...body.querySelectorAll("button")].find((button) => button.dataset.key === focused)?.focus({ preventScroll: true });
  }
}

function showPool(pool) {
  const { stats, settings, budget } = pool;
  byId("pool").hidden = !pool;
  byId("name").textContent = stats.name;
  const about = [title(pool.process), `Python ${pool.process.python}`, pool.kind, pool.target];
  about.push(`${settings.min_size} to ${settings.max_size} connections`);
  if (budget) about.push(`${budget.name ? `budget ${budget.name}` : "a budget"}: ${budget.used} of ${budget.limit} in use`);
  byId("about").textContent = about.join(" · ");
  byId("lent").textContent = pool.leases.length < stats.lent ? `the longest ${pool.leases.length} of ${stats.lent}` : "";
  const rows = document.createDocumentFragment();
  for (const lease of pool.leases) {
    const row = document.createElement("tr");
    cell(row, lease.connection, "number");
    cell(row, lease.owner);
    cell(row, seconds(lease.age), "number");
    cell(row, lease.borrowed_at || "–");
    cell(row, lease.now_at || "–", "wide");
    cell(row, count(lease.uses), "number wide");
    rows.append(row);
  }
  if (!pool.leases.length) {
    const row = document.createElement("tr");
    cell(row, "none", "quiet").colSpan = 6;
    rows.append(row);
  }
  byId("loans").replaceChildren(rows);
  draw(history.get(pool.key));
}

function choose(key) {
  chosen = key;
  if (latest) show(latest);
}

// Charts

function colour(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(name).trim();
}

function chart(place, series, format, steps, least) {
  const axis = { stroke: colour("--quiet"), grid: { stroke: colour("--line"), width: 1 }, ticks: { show: false } };
  return new uPlot(
    {
      width: byId(place).clientWidth,
      height: 190,
      cursor: { y: false, points: { size: 6 }, drag: { x: false, y: false } },
      legend: { live: true },
      scales: { y: { range: (_, __, most) => [0, Math.max(least, most * 1.1)] } },
      axes: [
        { ...axis, size: 30, space: 80, values: (_, splits) => splits.map(clock) },
        { ...axis, size: 62, incrs: steps, values: (_, splits) => splits.map(format) },
      ],
      series: [
        {},
        ...series.map(([label, name, dash]) => ({
          label,
          stroke: colour(name),
          width: dash ? 1 : 2,
          dash,
          points: { show: false },
          value: (self, value, index, at) => {
            const shown = at === null || at === undefined ? self.data[index]?.at(-1) : value;
            return shown === null || shown === undefined ? "–" : format(shown);
          },
        })),
      ],
    },
    [[], ...series.map(() => [])],
    byId(place),
  );
}

function makeCharts() {
  for (const made of Object.values(charts || {})) made.destroy();
  const whole = STEPS.filter((step) => step >= 1);
  charts = {
    connections: chart(
      "connections",
      [["max", "--size", [4, 4]], ["size", "--size"], ["lent", "--lent"], ["idle", "--idle"]],
      count,
      whole,
      1,
    ),
    line: chart("line", [["waiting", "--waiting"]], count, whole, 1),
    waits: chart("waits", [["p50", "--lent"], ["p99", "--waiting"]], (value) => (value ? seconds(value) : "0"), STEPS, 1e-5),
  };
}

function draw(rows) {
  if (!charts) makeCharts();
  const [at, max, size, lent, idle, waiting, p50, p99] = rows.map((row) => [...row]);
  charts.connections.setData([at, max, size, lent, idle]);
  charts.line.setData([at, waiting]);
  charts.waits.setData([at, p50, p99]);
}

function fit() {
  for (const [place, made] of Object.entries(charts || {})) {
    made.setSize({ width: byId(place).clientWidth, height: 190 });
  }
}

// What happened, as the difference of two looks

const CHANGES = [
  ["opens", (more) => `opened ${count(more)}`],
  ["open_failures", (more) => `could not open ${count(more)}`, "bad"],
  ["timeouts", (more) => `${count(more)} timed out waiting`, "bad"],
  ["refusals", (more) => `${count(more)} turned away`, "bad"],
  ["cancelled", (more) => `${count(more)} stopped waiting`],
];

function tell(at, where, what, kind = "") {
  const line = document.createElement("li");
  const time = document.createElement("time");
  time.textContent = clock(at);
  const place = document.createElement("span");
  place.className = "where";
  place.textContent = where;
  const text = document.createElement("span");
  text.textContent = what;
  if (kind) text.className = kind;
  line.append(time, place, text);
  const log = byId("log");
  log.prepend(line);
  while (log.childElementCount > TOLD) log.lastElementChild.remove();
}

function compare(pool) {
  const last = before.get(pool.key);
  const { name } = pool.stats;
  if (!last) {
    if (looks) tell(pool.at, name, `appeared in ${title(pool.process)}`);
    return;
  }
  for (const [field, say, kind] of CHANGES) {
    const more = pool.stats[field] - last.stats[field];
    if (more > 0) tell(pool.at, name, say(more), kind);
  }
  for (const [reason, all] of Object.entries(pool.stats.closes)) {
    const more = all - (last.stats.closes[reason] || 0);
    if (more > 0) tell(pool.at, name, `closed ${count(more)}: ${reason.replaceAll("_", " ")}`);
  }
  if (pool.outage && !last.outage) tell(pool.at, name, `cannot connect: ${pool.outage.error}`, "bad");
  if (!pool.outage && last.outage) tell(pool.at, name, "connects again");
  if (pool.stats.paused !== last.stats.paused) tell(pool.at, name, pool.stats.paused ? "paused" : "resumed");
  if (pool.stats.max_size !== last.stats.max_size) tell(pool.at, name, `may have ${pool.stats.max_size} connections`);
}

// Each look

function show(look) {
  const pools = poolsOf(look);
  if (!pools.some((pool) => pool.key === chosen)) chosen = pools.length ? pools[0].key : null;
  const silent = look.processes.filter((answer) => !answer.pools.length);
  byId("empty").hidden = look.processes.length > 0;
  byId("overview").hidden = !look.processes.length;
  byId("pool").hidden = !chosen;
  byId("happened").hidden = false;
  showOverview(pools, silent);
  const pool = pools.find((each) => each.key === chosen);
  if (pool) showPool(pool);
}

function take(look) {
  if (look.error) {
    say(look.error, true);
    return;
  }
  const pools = poolsOf(look);
  for (const pool of pools) {
    compare(pool);
    remember(pool);
  }
  const there = new Set(pools.map((pool) => pool.key));
  for (const [key, pool] of before) {
    if (!there.has(key)) {
      tell(look.at, pool.stats.name, `is gone, with ${title(pool.process)}`);
      before.delete(key);
      history.delete(key);
    }
  }
  latest = look;
  show(look);
  for (const pool of pools) before.set(pool.key, pool);
  looks += 1;
  const processes = look.processes.length;
  say(`${count(pools.length)} ${pools.length === 1 ? "pool" : "pools"} in ${count(processes)} ` +
    `${processes === 1 ? "process" : "processes"}, at ${clock(look.at)}`);
}

function say(text, lost = false) {
  const state = byId("state");
  state.textContent = text;
  state.className = lost ? "lost" : "";
}

let overdue;

function listen() {
  const stream = new EventSource("looks");
  stream.onmessage = (message) => {
    clearTimeout(overdue);
    overdue = setTimeout(() => say("Nothing has come for a while: is millpond web still running?", true), LATE);
    take(JSON.parse(message.data));
  };
  stream.onerror = () => say("The connection is lost: what is shown is old. Trying again…", true);
}

new ResizeObserver(fit).observe(byId("charts"));
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
  makeCharts();
  if (latest) show(latest);
});
listen();
