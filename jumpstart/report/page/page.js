(async () => {
  "use strict";
  const page = JSON.parse(document.getElementById("data").textContent);
  const dashes = ["solid", "dot", "longdash", "dashdot"];
  const narrow = matchMedia("(max-width: 700px)");
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const tell = (text) => { document.getElementById("status").textContent = text; };
  const make = (tag, options = {}, ...children) => {
    const made = document.createElement(tag);
    for (const [key, value] of Object.entries(options)) {
      if (key in made && typeof value !== "string") made[key] = value;
      else made.setAttribute(key, value);
    }
    made.append(...children);
    return made;
  };
  // Plotly reads names as markup of its own: none is meant.
  const plain = (text) => text.replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;")
    .replace(/\$/g, "＄").replace(/%\{/g, "% {");
  const colour = (name) => {
    const found = page.colours[Math.max(0, everybody.indexOf(name)) % page.colours.length];
    return dark.matches && found === "#000000" ? "#ffffff" : found;
  };

  // ---- files ---------------------------------------------------------------------------------------------------

  const quoted = (value) => {
    const text = value === null || value === undefined ? "" : String(value);
    const safe = /^[=+\-@\t]/.test(text) && Number.isNaN(Number(text)) ? `'${text}` : text; // no formula of a spreadsheet
    return /[",\n]/.test(safe) ? `"${safe.replace(/"/g, '""')}"` : safe;
  };
  const download = (title, rows) => {
    const text = rows.map((row) => row.map(quoted).join(",")).join("\r\n");
    const url = URL.createObjectURL(new Blob([text], {type: "text/csv"}));
    const name = title.replace(/[^A-Za-z0-9_-]+/g, "-").replace(/^-+|-+$/g, "").slice(0, 60) || "table";
    const link = make("a", {href: url, download: `${name}.csv`});
    link.click();
    setTimeout(() => URL.revokeObjectURL(url), 1000);
    tell(`${name}.csv: ${rows.length - 1} rows.`);
  };

  // ---- tables: sorted by their headings, and as files ----------------------------------------------------------

  const valued = (cell) => "value" in cell.dataset ? Number(cell.dataset.value.replace("inf", "Infinity")) : cell.textContent;
  const order = (a, b) => {
    if (typeof a === "number" && typeof b === "number") {
      return Number.isNaN(a) ? (Number.isNaN(b) ? 0 : 1) : Number.isNaN(b) ? -1 : a - b;
    }
    return typeof a === "number" ? -1 : typeof b === "number" ? 1 : a.localeCompare(b);
  };
  for (const table of document.querySelectorAll("div.table > table")) {
    const body = table.tBodies[0], heads = [...table.tHead.rows[0].cells];
    heads.forEach((head, at) => {
      const text = head.textContent || "name";
      head.replaceChildren(make("button", {type: "button", title: "sort"}, text));
      head.firstChild.addEventListener("click", () => {
        const down = head.getAttribute("aria-sort") === "ascending";
        heads.forEach((other) => other.removeAttribute("aria-sort"));
        head.setAttribute("aria-sort", down ? "descending" : "ascending");
        const rows = [...body.rows].sort((a, b) => order(valued(a.cells[at]), valued(b.cells[at])));
        body.append(...(down ? rows.reverse() : rows));
        tell(`Sorted by ${text}, ${down ? "descending" : "ascending"}.`);
      });
    });
    const title = table.caption.textContent;
    const save = make("button", {type: "button", "aria-label": `${title} as a CSV file`}, "CSV");
    save.addEventListener("click", () => download(title, [heads, ...[...body.rows].map((row) => [...row.cells])]
      .map((row, at) => row.map((cell) => at && cell.dataset.value !== undefined ? cell.dataset.value : cell.textContent))));
    table.parentElement.before(make("p", {class: "tools"}, save));
  }

  // ---- charts --------------------------------------------------------------------------------------------------

  const sections = new Map();
  const everybody = []; // a name has one colour on the whole page
  page.charts.forEach((chart, number) => {
    chart.number = number;
    chart.box = document.getElementById(`c${number}`);
    if (!sections.has(chart.section)) {
      sections.set(chart.section, {charts: [], hidden: new Set(), side: false, log: true, across: null});
    }
    const section = sections.get(chart.section);
    section.charts.push(chart);
    for (const curve of chart.curves) if (chart.kind !== "map" && !everybody.includes(curve.name)) everybody.push(curve.name);
  });

  const axisOf = (chart, section) => section.across in chart.across ? section.across : Object.keys(chart.across)[0];
  const parted = (chart, section) => section.side && chart.kind === "lines"
    && chart.curves.some((c) => c.stepped) && chart.curves.some((c) => !c.stepped);

  const traces = (chart, section) => {
    const key = axisOf(chart, section), found = [];
    for (const curve of chart.curves) {
      if (chart.kind !== "map" && (section.hidden.has(curve.name) || !(key in curve.points))) continue;
      const at = Math.max(0, everybody.indexOf(curve.name)), side = parted(chart, section) && !curve.stepped ? "2" : "";
      const own = colour(curve.name), style = dashes[Math.floor(at / page.colours.length) % dashes.length];
      const base = {type: "scatter", name: plain(curve.name), xaxis: `x${side}`, yaxis: `y${side}`, showlegend: false,
                    hoverlabel: {namelength: -1}};
      const words = curve.words.length ? {text: curve.words.map(plain)} : {};
      const pointer = `%{x:.4g}, %{y:.4g}${curve.words.length ? "<br>%{text}" : ""}`;
      if (chart.kind === "map") {
        const values = curve.points.value, positive = chart.log && section.log;
        const shade = values.map((v) => v !== null && positive ? Math.log10(v) : v);
        const same = section.charts.filter((c) => c.kind === "map" && c.group === chart.group && c.log === chart.log)
          .flatMap((c) => c.curves.flatMap((other) => other.points.value)).filter((v) => v !== null);
        const span = same.length ? [Math.min(...same), Math.max(...same)].map((v) => positive ? Math.log10(v) : v) : [0, 1];
        found.push({...base, x: curve.points.x, y: curve.points.y, mode: "markers",
          text: values.map((v) => v === null ? "not finite" : v.toPrecision(3)), hovertemplate: "%{x:.3g}, %{y:.3g}: %{text}",
          marker: {size: values.length > 500 ? 5 : 8, color: shade, cmin: span[0], cmax: span[1], colorscale: "Cividis", showscale: true,
                   line: {width: 0.5, color: getComputedStyle(document.documentElement).getPropertyValue("--soft").trim()},
                   colorbar: {thickness: 12, title: {text: positive ? `log₁₀ ${plain(chart.label)}` : plain(chart.label), side: "right"}}}});
        continue;
      }
      found.push({...base, ...words, x: curve.points[key], y: curve.points[chart.y], connectgaps: false, hovertemplate: pointer,
        mode: chart.kind === "dots" ? "markers" : curve.points[key].length < 2 ? "markers" : "lines", opacity: curve.faint ? 0.35 : 1,
        line: {color: own, width: curve.faint ? 1 : 2, dash: style === "solid" && curve.stepped ? "dash" : style},
        marker: {color: own, size: 7, symbol: at % 8}});
      for (const kept of [true, false]) {
        const chosen = (curve.jumps.kept || []).map((v, i) => v === kept ? i : -1).filter((i) => i >= 0);
        if (!chosen.length || !(chart.y in curve.jumps) || !(key in curve.jumps)) continue;
        found.push({...base, name: `${plain(curve.name)}, jump ${kept ? "kept" : "refused"}`, mode: "markers",
          x: chosen.map((i) => curve.jumps[key][i]), y: chosen.map((i) => curve.jumps[chart.y][i]), hovertemplate: pointer,
          ...(curve.jumps.words ? {text: chosen.map((i) => plain(curve.jumps.words[i])), hovertemplate: "%{x:.4g}, %{y:.4g}<br>%{text}"} : {}),
          marker: {color: own, size: kept ? 6 : 7, symbol: kept ? "circle" : "x-thin-open", line: {width: 1.5, color: own}}});
      }
    }
    return found;
  };

  const layout = (chart, section) => {
    const style = getComputedStyle(document.documentElement), ink = style.getPropertyValue("--ink").trim();
    const grid = style.getPropertyValue("--line").trim(), key = axisOf(chart, section), across = chart.across[key];
    const axis = {gridcolor: grid, linecolor: grid, zerolinecolor: grid, automargin: true, exponentformat: "power", nticks: narrow.matches ? 5 : 8,
      minorloglabels: "complete"};
    const x = {...axis, title: {text: plain(across.label)}, type: section.log && across.log ? "log" : "linear"};
    const y = {...axis, title: {text: plain(chart.label), standoff: 8}, type: section.log && chart.log && chart.kind !== "map" ? "log" : "linear"};
    const made = {paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", font: {color: ink, size: 13, family: "system-ui, sans-serif"},
      margin: {l: 56, r: 14, t: 12, b: 46}, hovermode: "closest", dragmode: matchMedia("(pointer: coarse)").matches ? false : "zoom",
      xaxis: x, yaxis: y, shapes: [], annotations: []};
    if (chart.kind === "map") {
      const size = (key) => { const all = chart.curves[0].points[key]; return Math.max(...all) - Math.min(...all); };
      const alike = size("x") > 0 && size("y") > 0 && Math.max(size("x") / size("y"), size("y") / size("x")) < 4;
      made.xaxis = {...x, constrain: "domain"};
      made.yaxis = {...y, title: {text: "y"}, constrain: "domain", ...(alike ? {scaleanchor: "x"} : {})};
    }
    if (chart.diagonal) {
      const all = chart.curves.flatMap((c) => [...(c.points[key] || []), ...c.points[chart.y]]).filter((v) => v !== null && (!across.log || v > 0));
      const low = Math.min(...all), high = Math.max(...all);
      if (all.length) made.shapes.push({type: "line", x0: low, y0: low, x1: high, y1: high, line: {color: ink, width: 1, dash: "dot"}});
    }
    if (parted(chart, section)) {
      const stacked = narrow.matches;
      made.grid = stacked ? {rows: 2, columns: 1, pattern: "independent"} : {rows: 1, columns: 2, pattern: "independent"};
      made.xaxis2 = {...x, matches: "x"};
      made.yaxis2 = {...y, matches: "y", title: {text: stacked ? plain(chart.label) : ""}};
      made.margin.t = 30;
      ["stepped", "jumped"].forEach((text, i) => made.annotations.push({text, showarrow: false, xref: `x${i ? "2" : ""} domain`,
        yref: `y${i ? "2" : ""} domain`, x: 0, y: 1, xanchor: "left", yanchor: "bottom", font: {size: 13}}));
    }
    return made;
  };

  const draw = (chart, section) => {
    chart.box.classList.toggle("tall", parted(chart, section) && narrow.matches);
    return Plotly.react(chart.box, traces(chart, section), layout(chart, section),
      {responsive: true, displaylogo: false,
       // where nothing hovers the bar would stand on the curves for good
       displayModeBar: matchMedia("(hover: hover)").matches ? "hover" : false, modeBarButtonsToRemove: ["select2d", "lasso2d", "autoScale2d"]});
  };
  const redraw = (section) => Promise.all(section.charts.map((chart) => draw(chart, section)));

  // Numbers of a plot, made when they are asked for.
  const numbers = (chart) => {
    const section = sections.get(chart.section);
    const keys = [...(chart.kind === "map" ? ["x", "y"] : Object.keys(chart.across)), chart.kind === "map" ? "value" : chart.y];
    const labels = keys.map((key) => chart.kind !== "map" && key in chart.across ? chart.across[key].label : key === "value" || key === chart.y ? chart.label : key);
    const rows = () => chart.curves.flatMap((curve) => Object.values(curve.points)[0].map((_, i) => [curve.name, ...keys.map((key) => key in curve.points ? curve.points[key][i] : null)]));
    const details = make("details", {}, make("summary", {}, `Numbers of this plot`));
    details.addEventListener("toggle", () => {
      if (!details.open || details.children.length > 1) return;
      const all = rows(), step = Math.max(1, Math.ceil(all.length / 200));
      const save = make("button", {type: "button", "aria-label": `${chart.title} as a CSV file`}, "CSV");
      save.addEventListener("click", () => download(chart.title, [["name", ...labels], ...all]));
      const head = make("tr", {}, ...["name", ...labels].map((text) => make("th", {scope: "col"}, text)));
      const lines = all.filter((_, i) => i % step === 0 || i === all.length - 1).map((row) => make("tr", {}, ...row.map((value, i) =>
        make(i ? "td" : "th", i ? {} : {scope: "row"}, value === null ? "–" : typeof value === "number" ? String(Number(value.toPrecision(4))) : String(value)))));
      const says = step > 1 ? `Every ${step}th of ${all.length} rows; the file has all.` : `${all.length} rows.`;
      const table = make("table", {}, make("caption", {}, chart.title), make("thead", {}, head), make("tbody", {}, ...lines));
      details.append(make("p", {class: "tools"}, save, " ", says), make("div", {class: "table", role: "region", tabindex: "0", "aria-label": chart.title}, table));
    });
    document.querySelector(`.numbers[data-chart="${chart.number}"]`).append(details);
  };

  // ---- what can be switched ------------------------------------------------------------------------------------

  const toggle = (text, pressed, act) => {
    const button = make("button", {type: "button", "aria-pressed": String(pressed)}, text);
    button.addEventListener("click", () => {
      const now = button.getAttribute("aria-pressed") !== "true";
      button.setAttribute("aria-pressed", String(now));
      act(now);
    });
    return button;
  };
  const controls = (number, section) => {
    const place = document.querySelector(`.controls[data-section="${number}"]`);
    const lines = section.charts.filter((chart) => chart.kind === "lines");
    const ways = new Map(lines.flatMap((chart) => Object.entries(chart.across).map(([key, axis]) => [key, axis.label])));
    if (ways.size > 1) {
      const group = make("fieldset", {}, make("legend", {}, "Against"));
      [...ways].forEach(([key, label], i) => {
        const input = make("input", {type: "radio", name: `across${number}`, value: key, id: `x${number}-${i}`, checked: i === 0});
        input.addEventListener("change", () => { section.across = key; redraw(section); tell(`Against ${label}.`); });
        group.append(make("span", {class: "way"}, input, make("label", {for: `x${number}-${i}`}, label)));
      });
      place.append(group);
      section.across = [...ways.keys()][0];
    }
    const views = make("div", {class: "views", role: "group", "aria-label": "View"});
    if (section.charts.some((chart) => parted(chart, {...section, side: true}))) {
      views.append(toggle("Side by side", false, (on) => { section.side = on; redraw(section); tell(on ? "Stepped and jumped side by side." : "All in one plot."); }));
    }
    if (section.charts.some((chart) => chart.log || Object.values(chart.across).some((axis) => axis.log))) {
      views.append(toggle("Logarithmic", true, (on) => { section.log = on; redraw(section); tell(on ? "Logarithmic axes." : "Linear axes."); }));
    }
    if (views.children.length) place.append(views);
    const drawn = [...new Set(section.charts.filter((c) => c.kind !== "map").flatMap((c) => c.curves.map((curve) => curve.name)))];
    if (drawn.length > 1) {
      const legend = make("div", {class: "legend", role: "group", "aria-label": "Shown"});
      for (const name of drawn) {
        const curve = section.charts.flatMap((c) => c.curves).find((c) => c.name === name);
        const button = toggle("", true, (on) => { section.hidden[on ? "delete" : "add"](name); redraw(section); tell(`${name} ${on ? "shown" : "hidden"}.`); });
        const swatch = make("span", {class: curve.stepped ? "swatch dashed" : "swatch", "aria-hidden": "true"});
        const turn = Math.floor(Math.max(0, everybody.indexOf(name)) / page.colours.length) % dashes.length;
        if (turn) swatch.style.borderTopStyle = ["solid", "dotted", "dashed", "double"][turn];
        const paint = () => swatch.style.setProperty("--own", colour(name));
        paint();
        dark.addEventListener("change", paint);
        button.append(swatch, name);
        legend.append(button);
      }
      if (drawn.length > 5) {
        const own = [...legend.children];
        const all = make("button", {type: "button"}, "Hide all");
        all.addEventListener("click", () => {
          const on = section.hidden.size > 0;
          section.hidden = new Set(on ? [] : drawn);
          own.forEach((button) => button.setAttribute("aria-pressed", String(on)));
          all.textContent = on ? "Hide all" : "Show all";
          redraw(section);
          tell(on ? "All shown." : "All hidden.");
        });
        legend.append(all);
      }
      place.append(legend);
    }
  };

  // ---- begin ---------------------------------------------------------------------------------------------------

  if (!page.charts.length) return;
  if (typeof DecompressionStream === "undefined") {
    tell("This browser is too old to draw the plots (it has no DecompressionStream). The tables hold the numbers.");
    return;
  }
  const held = document.getElementById("library");
  const bytes = Uint8Array.from(atob(held.textContent), (c) => c.charCodeAt(0));
  const script = document.createElement("script");
  script.textContent = await new Response(new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"))).text();
  document.head.append(script);
  held.remove();
  for (const [number, section] of sections) {
    controls(number, section);
    section.charts.forEach(numbers);
    await redraw(section);
  }
  const again = () => { for (const section of sections.values()) redraw(section); };
  dark.addEventListener("change", again);
  narrow.addEventListener("change", again);
  document.documentElement.dataset.drawn = String(page.charts.length);
})();
