"use strict";
(() => {
  const $ = (id) => document.getElementById(id);

  // Theme: that of the system until the button is pressed
  const root = document.documentElement, theme = $("theme");
  const store = { get: () => { try { return localStorage.getItem("robust-lr-theme"); } catch { return null; } },
                  set: (value) => { try { localStorage.setItem("robust-lr-theme", value); } catch { /* not kept */ } } };
  const dark = () => root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  const label = () => { theme.textContent = dark() ? "Light" : "Dark"; theme.setAttribute("aria-pressed", String(dark())); };
  if (["light", "dark"].includes(store.get())) root.dataset.theme = store.get();
  theme.hidden = false;
  theme.addEventListener("click", () => { root.dataset.theme = dark() ? "light" : "dark"; store.set(root.dataset.theme); label(); });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", label);
  label();

  // Print in light colors, with everything unfolded
  let kept = null;
  addEventListener("beforeprint", () => {
    kept = [root.dataset.theme, [...document.querySelectorAll("details:not([open])")]];
    root.dataset.theme = "light";
    kept[1].forEach((each) => { each.open = true; });
  });
  addEventListener("afterprint", () => {
    if (!kept) return;
    if (kept[0]) root.dataset.theme = kept[0]; else delete root.dataset.theme;
    kept[1].forEach((each) => { each.open = false; });
  });

  // Sortable tables: the first click on a column of numbers sorts it in descending order
  const key = (row, at) => {
    const cell = row.cells[at], value = cell.dataset.sort;
    if (value === undefined) return cell.textContent.trim().toLowerCase();
    return value.trim() === "" || Number.isNaN(Number(value)) ? value : Number(value);
  };
  const compare = (a, b) => typeof a === typeof b ? (a < b ? -1 : a > b ? 1 : 0) : typeof a === "number" ? -1 : 1;
  document.querySelectorAll("main thead th").forEach((heading) => {
    heading.querySelector("button").addEventListener("click", () => {
      const at = heading.cellIndex, body = heading.closest("table").tBodies[0], before = heading.ariaSort;
      const down = before ? before === "ascending" : heading.classList.contains("num");
      heading.parentNode.querySelectorAll("th").forEach((each) => each.removeAttribute("aria-sort"));
      heading.setAttribute("aria-sort", down ? "descending" : "ascending");
      const rows = [...body.rows].sort((a, b) => (down ? -1 : 1) * compare(key(a, at), key(b, at)));
      body.append(...rows);
    });
  });

  // Copy buttons
  const copy = async (text, button) => {
    const words = button.textContent;
    try { await navigator.clipboard.writeText(text); }
    catch {
      const area = document.createElement("textarea");
      area.value = text;
      button.after(area);
      area.select();
      document.execCommand("copy");
      area.remove();
    }
    button.textContent = "Copied";
    setTimeout(() => { button.textContent = words; }, 1500);
  };
  document.querySelectorAll(".copy").forEach((button) => {
    button.hidden = false;
    button.addEventListener("click", () => copy(button.closest("figure").querySelector("pre").textContent, button));
  });

  // Rows behind a number
  const STEP = 200;
  let evaluations = null, shown = [], limit = STEP;
  const load = () => (evaluations ??= JSON.parse($("rows-data").textContent));
  const among = (all, at) => all.about.targeted ? at("clean") !== at("target") : at("clean") === at("label");
  const FILTERS = {
    all: () => true,
    clean: (at) => at("clean") === at("label"),
    wrong: (at) => at("clean") !== at("label"),
    robust: (at) => at("robust") === 1,
    worst: (at) => at("robust_worst_seen") === 1,
    success: (at, rest, all) => at("success") === 1 && among(all, at),
    class: (at, [label]) => at("label") === Number(label) && at("robust") === 1,
    pair: (at, [label, other]) => at("label") === Number(label) && at("adversarial") === Number(other),
    part: (at, rest) => at("broken_by") === rest.join(":"),
  };
  const WORDS = { all: "all images", clean: "right when clean", wrong: "wrong when clean", robust: "robust", worst: "right at every iterate seen",
                  success: "attack successful", class: "robust images of class ", pair: "misclassified: ", part: "broken by ", only: "robust only here" };
  const select = (all, name, rest) => {
    const rows = all.rows, count = rows.id.length, found = [];
    if (name === "only") {
      const other = load()[Number(rest[0])];
      if (!other?.rows) return null;
      const robust = new Map(other.rows.id.map((id, i) => [id, other.rows.robust[i]]));
      for (let i = 0; i < count; i += 1) if (rows.robust[i] === 1 && robust.get(rows.id[i]) === 0) found.push(i);
      return found;
    }
    for (let i = 0; i < count; i += 1) if (FILTERS[name]((column) => rows[column]?.[i] ?? null, rest, all)) found.push(i);
    return found;
  };
  const write = () => {
    const [names, rows] = shown;
    $("rows-table").tHead.replaceChildren(line(names, "th"));
    $("rows-table").tBodies[0].replaceChildren(...rows.slice(0, limit).map((row) => line(row, "td")));
    $("rows-more").hidden = rows.length <= limit;
  };
  const line = (values, kind) => {
    const row = document.createElement("tr");
    values.forEach((value) => { const cell = document.createElement(kind); cell.textContent = value ?? ""; row.append(cell); });
    return row;
  };
  const open = () => {
    const match = /^#rows=(.+)$/.exec(location.hash);
    if (!match) { if ($("rows").open) $("rows").close(); return; }
    const [number, name = "all", ...rest] = decodeURIComponent(match[1]).split(":");
    const all = load()[Number(number)];
    if (!all || !(name in WORDS)) return;
    const about = all.about;
    $("rows-title").textContent = `${about.model}, ${about.protocol}, ${about.data}, seed ${about.seed}`;
    const found = all.rows ? select(all, name, rest) : null;
    const words = WORDS[name] + (name === "pair" ? rest.join(" as ") : name === "only" ? "" : rest.join(":"));
    $("rows-copy").hidden = !found;
    if (found) {
      const names = Object.keys(all.rows);
      limit = STEP;
      shown = [names, found.map((i) => names.map((column) => all.rows[column][i]))];
      const n = name === "class" || name === "pair" ? all.rows.label.filter((label) => label === Number(rest[0])).length
        : name === "success" ? all.rows.id.filter((_, i) => among(all, (column) => all.rows[column]?.[i] ?? null)).length : about.n;
      $("rows-count").textContent = `${found.length.toLocaleString("en")} of ${n.toLocaleString("en")} images: ${words}. Ledger: ${about.folder}`;
    } else {
      shown = [[], []];
      $("rows-count").textContent = `${about.n.toLocaleString("en")} rows are too many for this page: robust-lr rows ${about.folder}`;
    }
    write();
    if (!$("rows").open) $("rows").showModal();
  };
  const csv = ([names, rows]) => [names, ...rows].map((row) => row.map((value) => value ?? "").join(",")).join("\n");
  $("rows-more").addEventListener("click", () => { limit += 5 * STEP; write(); });
  $("rows-close").addEventListener("click", () => $("rows").close());
  $("rows-copy").addEventListener("click", () => copy(csv(shown), $("rows-copy")));
  $("rows").addEventListener("close", () => { if (location.hash.startsWith("#rows=")) history.replaceState(null, "", location.pathname + location.search); });
  addEventListener("hashchange", open);
  open();
})();
