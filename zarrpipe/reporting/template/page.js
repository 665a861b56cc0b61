"use strict";
(() => {
  if (matchMedia("(max-width: 900px)").matches) document.querySelector("nav details").open = false;
  const list = document.querySelector("#list tbody");
  if (!list) return;
  const rows = [...list.rows];
  const message = document.getElementById("viewer-message");
  const panel = document.getElementById("viewer");
  let arrows = "";
  let viewer = null; // promise of chemiscope's visualizer, from the first time it is wanted

  // The list: its order, and the row that is shown.

  function arrange(ordered) {
    const first = new Set(ordered);
    list.append(...ordered, ...rows.filter((row) => !first.has(row)));
    list.closest(".scroll").scrollTop = 0;
  }

  function mark(place) {
    for (const row of rows) row.removeAttribute("aria-current");
    const row = rows[place];
    row.setAttribute("aria-current", "true");
    const box = list.closest(".scroll");
    const top = row.offsetTop - list.offsetTop;
    const room = box.clientHeight - list.offsetTop;
    if (top < box.scrollTop || top + row.offsetHeight > box.scrollTop + room) box.scrollTop = top;
    const caption = document.getElementById("viewer-caption");
    if (caption) caption.textContent = `Sample ${row.cells[0].textContent}. ${arrows}`;
  }

  const orders = [...document.querySelectorAll("[data-order]")];
  const heads = [...document.querySelectorAll("[data-column]")];

  function unsorted() {
    for (const button of orders) button.setAttribute("aria-pressed", "false");
    for (const head of heads) head.closest("th").removeAttribute("aria-sort");
  }

  function inOrder(button) {
    unsorted();
    button.setAttribute("aria-pressed", "true");
    const places = button.dataset.order.split(",").filter(Boolean);
    arrange(places.map((place) => rows[Number(place)]));
  }

  function byColumn(head) {
    const cell = head.closest("th");
    const numbers = cell.classList.contains("number");
    const down = numbers ? cell.getAttribute("aria-sort") !== "descending" : cell.getAttribute("aria-sort") === "ascending";
    const key = (row) => row.cells[Number(head.dataset.column)].dataset.key;
    const sign = down ? -1 : 1;
    unsorted();
    cell.setAttribute("aria-sort", down ? "descending" : "ascending");
    const compare = (one, other) => {
      if (!numbers) return sign * key(one).localeCompare(key(other));
      const [a, b] = [one, other].map((row) => Number(key(row).replace("inf", "Infinity")));
      if (Number.isNaN(a) || Number.isNaN(b)) return Number.isNaN(a) - Number.isNaN(b);
      return a === b ? 0 : sign * (a < b ? -1 : 1);
    };
    arrange([...rows].sort(compare));
  }

  for (const button of orders) button.addEventListener("click", () => inOrder(button));
  for (const head of heads) head.addEventListener("click", () => byColumn(head));
  if (orders.length) inOrder(orders[0]);
  let chosen = Number(list.rows[0].dataset.place);
  mark(chosen);

  // The viewer: unpacked and run when it comes near the window.

  async function unpacked(id) {
    const bytes = Uint8Array.from(atob(document.getElementById(id).textContent), (one) => one.charCodeAt(0));
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
    return new Response(stream).text();
  }

  function run(text) {
    return new Promise((resolve, reject) => {
      const script = document.createElement("script");
      script.src = URL.createObjectURL(new Blob([text], { type: "text/javascript" }));
      script.onload = resolve;
      script.onerror = () => reject(new Error("the script of chemiscope did not run"));
      document.head.append(script);
    });
  }

  function hasWebGL() {
    const context = document.createElement("canvas").getContext("webgl2");
    return context !== null;
  }

  async function start() {
    if (!hasWebGL()) throw new Error("this browser has no WebGL 2");
    panel.hidden = false;
    await run(await unpacked("packed-script"));
    const data = JSON.parse(await unpacked("packed-data"), (_, value) => (value === null ? NaN : value));
    const settings = data.settings;
    if (data.shapes) arrows = "Arrows are forces, each structure to its own scale.";
    const places = { meta: "viewer-meta", structure: "viewer-structure", info: "viewer-info", map: "viewer-map" };
    const withMap = Object.keys(data.properties).length > 1;
    const kind = withMap ? "DefaultVisualizer" : "StructureVisualizer";
    if (!withMap) document.getElementById("viewer-map").closest(".panel").hidden = true;
    const warnings = new Chemiscope.Warnings();
    warnings.addHandler((text) => { message.textContent = text; });
    settings.pinned = [chosen];
    const visualizer = await Chemiscope[kind].load({ ...places, settings }, { ...data, settings }, warnings);
    const show = visualizer.info.show.bind(visualizer.info);
    visualizer.info.show = (indexes) => { show(indexes); chosen = indexes.structure; mark(chosen); };
    mark(chosen);
    message.textContent = "";
    document.documentElement.dataset.viewer = "ready";
    return visualizer;
  }

  function wanted() {
    if (!panel) return Promise.resolve(null);
    viewer ??= start().catch((error) => {
      panel.hidden = true;
      message.textContent = `The structures cannot be drawn: ${error.message}. All else is shown.`;
      document.documentElement.dataset.viewer = "failed";
      return null;
    });
    return viewer;
  }

  async function choose(place) {
    chosen = place;
    mark(place);
    const visualizer = await wanted();
    if (visualizer && chosen === place) visualizer.select({ environment: place, structure: place, atom: undefined });
  }

  list.addEventListener("click", (event) => {
    const row = event.target.closest("tr");
    if (row) choose(Number(row.dataset.place));
  });
  list.addEventListener("keydown", (event) => {
    const row = event.target.closest("tr");
    const next = { ArrowDown: row.nextElementSibling, ArrowUp: row.previousElementSibling }[event.key];
    if (!next) return;
    event.preventDefault();
    next.querySelector("button").focus();
    choose(Number(next.dataset.place));
  });
  for (const button of document.querySelectorAll(".finding button.sample, .tables button.sample")) {
    button.addEventListener("click", () => {
      const row = rows.find((one) => one.dataset.sample === button.dataset.sample);
      document.getElementById("structures").scrollIntoView();
      choose(Number(row.dataset.place));
    });
  }
  if (panel) {
    panel.hidden = !hasWebGL(); // its room is kept, so that nothing moves when it starts
    message.textContent = panel.hidden ? message.textContent : "The viewer starts when it comes near.";
    const near = new IntersectionObserver((entries) => {
      if (!entries.some((entry) => entry.isIntersecting)) return;
      near.disconnect();
      wanted();
    }, { rootMargin: "600px" });
    near.observe(document.getElementById("structures"));
  }
})();
