"use strict";
(() => {
  const root = document.documentElement;
  const data = JSON.parse(document.getElementById("page-data").textContent);

  // ---- light and dark: the reader's system decides until the reader does
  const button = document.querySelector(".theme");
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const mode = () => root.dataset.theme || (dark.matches ? "dark" : "light");
  const say = () => { button.textContent = mode() === "dark" ? "Light mode" : "Dark mode"; };
  try { const kept = localStorage.getItem("netsmith-theme"); if (kept) root.dataset.theme = kept; } catch { /* no storage here */ }
  button.hidden = false;
  button.addEventListener("click", () => {
    root.dataset.theme = mode() === "dark" ? "light" : "dark";
    try { localStorage.setItem("netsmith-theme", root.dataset.theme); } catch { /* no storage here */ }
    say();
  });
  dark.addEventListener("change", say);
  say();

  // ---- texts under the pointer
  const tip = document.getElementById("tip");
  const show = (text, x, y) => {
    tip.textContent = text;
    tip.classList.add("on");
    const box = tip.getBoundingClientRect();
    const left = x + 14 + box.width > innerWidth ? x - 14 - box.width : x + 14;
    const top = y + 14 + box.height > innerHeight ? y - 14 - box.height : y + 14;
    tip.style.transform = `translate(${Math.max(8, left)}px,${Math.max(8, top)}px)`;
  };
  document.addEventListener("pointermove", (event) => {
    const mark = event.target instanceof Element && event.target.closest("[data-tip]");
    if (mark) show(data.tips[mark.dataset.tip], event.clientX, event.clientY);
    else tip.classList.remove("on");
  });
  addEventListener("scroll", () => tip.classList.remove("on"), { passive: true });
  addEventListener("keydown", (event) => { if (event.key === "Escape") tip.classList.remove("on"); });

  // ---- tables that can be sorted
  for (const table of document.querySelectorAll("table.sortable")) {
    const heads = [...table.tHead.rows[0].cells];
    const value = (row, i) => {
      const cell = row.cells[i];
      const number = cell.dataset.v ?? cell.querySelector("data")?.value;
      return number === undefined ? cell.textContent.trim() : number === "" ? null : Number(number);
    };
    heads.forEach((head, i) => {
      if (!head.textContent.trim()) return; // bars have no order of their own
      const press = document.createElement("button");
      press.type = "button";
      press.append(...head.childNodes);
      head.append(press);
      press.addEventListener("click", () => {
        const down = head.getAttribute("aria-sort") === "ascending";
        heads.forEach((h) => h.removeAttribute("aria-sort"));
        head.setAttribute("aria-sort", down ? "descending" : "ascending");
        const body = table.tBodies[0];
        const empty = (v) => v === null || v === "" || v === "–";
        const rows = [...body.rows].map((row) => [value(row, i), row]);
        rows.sort(([a], [b]) => {
          if (empty(a) || empty(b)) return empty(a) - empty(b);
          const order = typeof a === "number" && typeof b === "number" ? a - b : String(a).localeCompare(String(b), undefined, { numeric: true });
          return down ? -order : order;
        });
        body.append(...rows.map(([, row]) => row));
      });
    });
  }

  // ---- the slider over width: every place of it was worked out beforehand, here it is only shown
  const dial = document.querySelector(".dial");
  if (dial && data.slider) {
    const { first, scales, stops } = data.slider;
    const input = dial.querySelector("input");
    const section = dial.closest("section");
    const reading = document.getElementById("reading");
    const shape = section.querySelector(".shape");
    const lanes = [...section.querySelectorAll(".lanes>li")].map((row) => [row.querySelector(".bar-now"), row.querySelector(".lane-count b")]);
    const cursor = section.querySelector(".cursor");
    const dot = section.querySelector(".cursor-dot");
    const jumps = [...dial.querySelectorAll("[data-at]")];
    let shown = null;
    const turn = () => {
      if (input.value === shown) return;
      shown = input.value;
      const stop = stops[shown - first];
      for (const place of section.querySelectorAll("[data-show]")) place.textContent = stop.texts[place.dataset.show];
      for (const bar of section.querySelectorAll("[data-share]")) bar.style.width = `${100 * stop.shares[bar.dataset.share]}%`;
      lanes.forEach(([bar, count], i) => {
        const width = stop.widths[i];
        bar.style.width = `${100 * (width ?? 0) / scales[i]}%`;
        if (count) count.textContent = width === null ? "–" : width.toLocaleString("en");
      });
      if (shape && stop.shape) shape.setAttribute("aria-label", stop.shape);
      reading.dataset.state = stop.state;
      input.setAttribute("aria-valuetext", stop.said);
      for (const jump of jumps) jump.setAttribute("aria-current", jump.dataset.at === shown);
      if (!cursor) return;
      const [x, y] = stop.cursor;
      cursor.setAttribute("transform", `translate(${x},0)`);
      dot.setAttribute("visibility", y === null ? "hidden" : "visible");
      dot.setAttribute("cx", x);
      dot.setAttribute("cy", y ?? 0);
    };
    input.addEventListener("input", turn);
    for (const jump of jumps) jump.addEventListener("click", () => { input.value = jump.dataset.at; turn(); });
    dial.hidden = false;
    shown = input.getAttribute("value");
    turn(); // a browser may have kept another place over a reload
  }

  // ---- the heatmap: values are read from the picture itself, a PNG of palette indices in one chunk, filter 0
  const picture = document.getElementById("heat-picture");
  if (!picture || !data.heat) return;
  const heat = data.heat;
  const columns = heat.columns || heat.rows;
  let indices = null;
  const read = async () => {
    const bytes = Uint8Array.from(atob(picture.getAttribute("href").split(",")[1]), (c) => c.charCodeAt(0));
    const view = new DataView(bytes.buffer);
    for (let at = 8; at < bytes.length;) {
      const size = view.getUint32(at);
      if (String.fromCharCode(...bytes.subarray(at + 4, at + 8)) === "IDAT") {
        const stream = new Blob([bytes.subarray(at + 8, at + 8 + size)]).stream().pipeThrough(new DecompressionStream("deflate"));
        indices = new Uint8Array(await new Response(stream).arrayBuffer());
        return;
      }
      at += size + 12;
    }
  };
  read().catch(() => { indices = null; });
  const group = (groups, i) => { let name = ""; for (const [n, start] of groups) if (start <= i) name = n; return name; };
  const value = (i, j) => {
    if (!indices) return "";
    const index = indices[i * (columns.length + 1) + 1 + j];
    return index > heat.steps ? "no value" : (heat.low + index / heat.steps * (heat.high - heat.low)).toFixed(2);
  };
  const readout = document.getElementById("readout");
  const lines = (i, j) => [[value(i, j), "big"], [`${group(heat.rowGroups, i)} · ${heat.rows[i]}`, ""], ["and", "small"], [`${group(heat.columnGroups, j)} · ${columns[j]}`, ""]];
  for (const svg of document.querySelectorAll("svg[data-heat]")) {
    const [left, top, width, height] = svg.dataset.heat.split(" ").map(Number);
    const [across, along] = svg.querySelectorAll(".cross");
    let at = [0, 0];
    const point = (i, j) => {
      at = [i, j];
      const y = top + (i + 0.5) / heat.rows.length * height;
      const x = left + (j + 0.5) / columns.length * width;
      across.setAttribute("d", `M${left},${y}h${width}`);
      along.setAttribute("d", `M${x},${top}v${height}`);
      readout.replaceChildren(...lines(i, j).map(([text, kind]) => {
        const line = document.createElement("div");
        line.className = kind;
        line.textContent = text;
        return line;
      }));
    };
    svg.addEventListener("pointermove", (event) => {
      const box = svg.getBoundingClientRect();
      const scale = svg.viewBox.baseVal.width / box.width;
      const j = Math.floor(((event.clientX - box.left) * scale - left) / width * columns.length);
      const i = Math.floor(((event.clientY - box.top) * scale - top) / height * heat.rows.length);
      if (i >= 0 && j >= 0 && i < heat.rows.length && j < columns.length) {
        point(i, j);
        if (event.pointerType === "mouse") show(lines(i, j).map(([text]) => text).filter((text) => text !== "and").join("\n"), event.clientX, event.clientY);
      }
    });
    svg.addEventListener("keydown", (event) => {
      const step = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] }[event.key];
      if (!step) return;
      event.preventDefault();
      const hold = (v, n) => Math.min(Math.max(v, 0), n - 1);
      point(hold(at[0] + step[0], heat.rows.length), hold(at[1] + step[1], columns.length));
    });
  }
})();
