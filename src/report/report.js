"use strict";
// The page's views, from the data in it. Plain DOM calls; whatever comes from the bank becomes
// text or an attribute, never markup.
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const categories = data.figures.categories;
  const mosaics = data.mosaics;
  const byId = new Map(mosaics.map((m) => [m.id, m]));
  // Cards that are made at once; the next ones come when the end of the list comes near.
  const CHUNK = 60;
  const COLOURS = 7;
  const SVG = "http://www.w3.org/2000/svg";
  const number = new Intl.NumberFormat("en");
  const bands = { r: "rare", c: "common", f: "frequent" };

  const add = (node, children) => {
    for (const child of children.flat(Infinity)) {
      if (child !== null && child !== undefined) node.append(child);
    }
    return node;
  };
  const element = (name, attributes, ...children) => {
    const node = document.createElement(name);
    for (const [key, value] of Object.entries(attributes ?? {})) {
      if (value !== null && value !== undefined) node.setAttribute(key, value);
    }
    return add(node, children);
  };
  const svg = (name, attributes, ...children) => {
    const node = document.createElementNS(SVG, name);
    for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
    return add(node, children);
  };
  const $ = (selector, root = document) => root.querySelector(selector);
  const plural = (n, word) => `${number.format(n)} ${word}${n === 1 ? "" : "s"}`;
  const used = (n) => (n === 0 ? "never used" : n === 1 ? "used once" : `used ${number.format(n)} times`);
  const nameOf = (category) => categories[category]?.name ?? `category ${category}`;
  const source = (base64) => `data:image/jpeg;base64,${base64}`;
  const facts = (rows) =>
    element("dl", { class: "facts" }, rows.map(([key, value]) => [element("dt", {}, key), element("dd", {}, value)]));
  const categoryLink = (category) => element("a", { href: `#/category/${category}` }, nameOf(category));

  for (const time of document.querySelectorAll("time[data-time]")) {
    const when = new Date(1000 * Number(time.dataset.time));
    time.dateTime = when.toISOString();
    time.textContent = when.toLocaleString("en-GB", { dateStyle: "medium", timeStyle: "short" });
  }

  // --- pictures ---------------------------------------------------------------------------

  // A mosaic with everything that can be shown on it; what is, the toggles say.
  const picture = (m, description) => {
    const { width, height } = m.size;
    const marks = svg("svg", { viewBox: `0 0 ${width} ${height}`, "aria-hidden": "true" });
    for (const [x0, y0, x1, y1] of m.regions.map((r) => r.box)) {
      for (const kind of ["region under", "region"]) {
        marks.append(svg("rect", { class: kind, x: x0, y: y0, width: x1 - x0, height: y1 - y0 }));
      }
    }
    m.objects.forEach((o, i) => {
      const [x0, y0, x1, y1] = o.box;
      const colour = `k${i % COLOURS}`;
      marks.append(svg("path", { class: `mask ${colour}`, d: o.outline }));
      marks.append(svg("rect", { class: `box ${colour}`, x: x0, y: y0, width: x1 - x0, height: y1 - y0 }));
    });
    const image = element("img", { src: source(m.picture), alt: description, width, height, decoding: "async", loading: "lazy" });
    return element("span", { class: "picture" }, image, marks);
  };

  const contentOf = (m) => {
    const names = [...new Set((m.objects.length ? m.objects : m.regions).map((o) => nameOf(o.category)))];
    return names.length ? names.join(", ") : "nothing";
  };

  const mosaicCard = (m) => {
    const rejected = m.regions.filter((r) => r.reason !== null).length;
    const words = [plural(m.regions.length, "region")];
    if (rejected) words.push(`${rejected} rejected`);
    words.push(used(m.uses));
    return element("li", { class: "card" },
      element("a", { href: `#/mosaic/${m.id}` },
        picture(m, ""),
        element("span", { class: "words" }, contentOf(m), element("small", {}, words.join(", ")))));
  };

  const instanceCard = (i) => {
    const { width, height } = i.size;
    const outside = `M0 0h${width}v${height}h${-width}z${i.outline}`;
    const shown = element("span", { class: "picture" },
      element("img", { src: source(i.picture), alt: "", width, height, decoding: "async", loading: "lazy" }),
      svg("svg", { viewBox: `0 0 ${width} ${height}`, "aria-hidden": "true" }, svg("path", { class: "outside", d: outside })));
    const from = i.mosaic === "" ? i.source || "imported" : byId.has(i.mosaic) ? "from a mosaic" : "from a mosaic not on this page";
    const scores = [["score", i.score], ...Object.entries(i.scores)].map(([name, value]) => `${name} ${value.toFixed(2)}`);
    const words = element("span", { class: "words" }, `${number.format(i.area)} px, ${scores.join(", ")}`,
      element("small", {}, `${from}, ${used(i.uses)}`));
    const linked = byId.has(i.mosaic);
    const href = linked ? `#/mosaic/${i.mosaic}` : null;
    return element("li", { class: "card" }, element(linked ? "a" : "div", { href }, shown, words));
  };

  // Fills a list piece by piece, as its end comes into view.
  const fill = (list, items, card) => {
    list.filling?.disconnect();
    list.replaceChildren();
    let next = 0;
    const end = element("li", { "aria-hidden": "true", class: "end" });
    const more = () => {
      const piece = document.createDocumentFragment();
      for (const item of items.slice(next, next + CHUNK)) piece.append(card(item));
      next += CHUNK;
      end.remove();
      list.append(piece);
      if (next < items.length) {
        list.append(end);
        list.filling.unobserve(end);
        list.filling.observe(end);
      }
    };
    list.filling = new IntersectionObserver((seen) => seen.some((s) => s.isIntersecting) && more(), { rootMargin: "1500px" });
    more();
  };

  // --- toggles ----------------------------------------------------------------------------

  const shown = [["masks", "Masks"], ["boxes", "Boxes"], ["regions", "Regions"]];
  const setShown = (what, on) => {
    document.body.classList.toggle(`no-${what}`, !on);
    for (const button of document.querySelectorAll(`button[data-shows=${what}]`)) {
      button.setAttribute("aria-pressed", String(on));
    }
  };
  const toggles = (whats) => whats.map((what) => {
    const on = !document.body.classList.contains(`no-${what}`);
    const label = shown.find(([key]) => key === what)[1];
    const button = element("button", { type: "button", "data-shows": what, "aria-pressed": String(on) }, label);
    button.addEventListener("click", () => setShown(what, button.getAttribute("aria-pressed") !== "true"));
    return button;
  });
  const togglesOf = (whats) => element("div", { class: "toggles", role: "group", "aria-label": "Shown on pictures" }, toggles(whats));
  document.body.classList.add("no-regions");
  $("#gallery .toggles").append(...toggles(["masks", "boxes", "regions"]));

  // --- gallery ----------------------------------------------------------------------------

  const filters = $("#gallery form");
  const galleryFields = ["category", "band", "reason", "regions", "used"];
  // What the last gallery showed, for the pages of single mosaics.
  let inGallery = mosaics;
  let galleryShown = null;

  {
    const present = new Set(mosaics.flatMap((m) => [...m.objects, ...m.regions].map((o) => o.category)));
    const names = [...present].map(nameOf).sort();
    $("#category-names").append(...names.map((name) => element("option", { value: name })));
    const reasons = new Map();
    const counts = new Set();
    for (const m of mosaics) {
      counts.add(m.regions.length);
      for (const r of m.regions) if (r.reason !== null) reasons.set(r.reason, (reasons.get(r.reason) ?? 0) + 1);
    }
    const sorted = [...reasons].sort((a, b) => b[1] - a[1]);
    filters.elements.reason.append(...sorted.map(([reason]) => element("option", { value: reason }, reason)));
    const regions = [...counts].sort((a, b) => a - b);
    filters.elements.regions.append(...regions.map((n) => element("option", { value: n }, n)));
  }

  // The categories that a name and a band mean; null: any.
  const wantedCategories = (name, band) => {
    const words = name.trim().toLowerCase();
    if (words === "" && band === "") return null;
    const names = categories.map((c) => c.name.toLowerCase());
    // A whole name means this category; a part of one, all that contain it.
    const whole = names.includes(words);
    const named = (n) => words === "" || (whole ? n === words : n.includes(words));
    return new Set([...names.keys()].filter((i) => named(names[i]) && (band === "" || categories[i].frequency === band)));
  };

  const matches = (m, f, wanted) => {
    const reasons = m.regions.map((r) => r.reason).filter((r) => r !== null);
    return (
      (wanted === null || [...m.objects, ...m.regions].some((o) => wanted.has(o.category))) &&
      (f.reason === "" || (f.reason === "*" ? reasons.length > 0 : f.reason === "-" ? reasons.length === 0 : reasons.includes(f.reason))) &&
      (f.regions === "" || m.regions.length === Number(f.regions)) &&
      (f.used === "" || (f.used === "yes") === m.uses > 0)
    );
  };

  const showGallery = () => {
    const f = Object.fromEntries(galleryFields.map((name) => [name, filters.elements[name].value]));
    const key = JSON.stringify(f);
    if (key === galleryShown) return;
    galleryShown = key;
    const wanted = wantedCategories(f.category, f.band);
    inGallery = mosaics.filter((m) => matches(m, f, wanted));
    fill($("#cards"), inGallery, mosaicCard);
    $("#gallery .count").textContent =
      `${plural(inGallery.length, "mosaic")} of ${number.format(mosaics.length)}` +
      (mosaics.length < data.figures.mosaics ? ` on this page (the bank has ${number.format(data.figures.mosaics)})` : "");
  };

  const galleryHash = () => {
    const parameters = new URLSearchParams();
    for (const name of galleryFields) {
      const value = filters.elements[name].value;
      if (value !== "") parameters.set(name, value);
    }
    const text = parameters.toString();
    return text === "" ? "#/gallery" : `#/gallery?${text}`;
  };
  let galleryAt = "#/gallery";
  const filtered = () => {
    galleryAt = galleryHash();
    now = galleryAt;
    history.replaceState(null, "", galleryAt);
    showGallery();
  };
  let typing = 0;
  filters.addEventListener("input", () => {
    clearTimeout(typing);
    typing = setTimeout(filtered, 120);
  });
  filters.addEventListener("reset", () => setTimeout(filtered));
  filters.addEventListener("submit", (event) => event.preventDefault());

  const openGallery = (parameters) => {
    for (const name of galleryFields) {
      const field = filters.elements[name];
      field.value = parameters.get(name) ?? "";
      // An unknown choice: any.
      if (field.selectedIndex === -1) field.value = "";
    }
    galleryAt = galleryHash();
    showGallery();
  };

  // --- categories -------------------------------------------------------------------------

  const columns = [
    ["Category", "name"], ["Rarity", "frequency"], ["Mosaics", "mosaics"], ["unused", "unused_mosaics"],
    ["Instances", "instances"], ["unused", "unused_instances"], ["Asked", "asked"], ["Fresh", "served_fresh"],
    ["Again", "served_again"], ["Missed", "missed"], ["Weight", "weight"], ["Size", "size_factor"],
    ["Regions", "regions"], ["Rejected", "rejected"],
  ];
  const isText = (key) => key === "name" || key === "frequency";
  const table = $("#category-table");
  const listFilters = $("#categories form");
  let order = ["name", 1];

  const cell = (c, index, key) => {
    if (key === "name") return element("th", { scope: "row" }, categoryLink(index));
    if (key === "frequency") return element("td", {}, bands[c.frequency] ?? "");
    const value = c[key] ?? 0;
    return element("td", { class: "n", "data-figure": key }, Number.isInteger(value) ? number.format(value) : value.toFixed(2));
  };

  const showCategories = () => {
    const [key, sign] = order;
    const words = listFilters.elements.name.value.trim().toLowerCase();
    const band = listFilters.elements.band.value;
    const show = listFilters.elements.show.value;
    const wanted = (c) =>
      c.name.toLowerCase().includes(words) &&
      (band === "" || c.frequency === band) &&
      (show === "" ||
        (show === "stock" && c.mosaics + c.instances + c.asked > 0) ||
        (show === "none" && c.mosaics + c.instances === 0) ||
        (show === "missed" && c.missed > 0));
    const rows = categories.map((c, index) => [c, index]).filter(([c]) => wanted(c));
    rows.sort(([a, i], [b, j]) => {
      const [x, y] = [a[key] ?? (isText(key) ? "" : 0), b[key] ?? (isText(key) ? "" : 0)];
      return sign * (isText(key) ? x.localeCompare(y) : x - y) || i - j;
    });
    const body = $("tbody", table);
    body.replaceChildren(...rows.map(([c, index]) => element("tr", {}, columns.map(([, field]) => cell(c, index, field)))));
    for (const head of table.tHead.rows[0].cells) {
      const direction = head.dataset.key === key ? (sign > 0 ? "ascending" : "descending") : "none";
      head.setAttribute("aria-sort", direction);
    }
    $("#categories .count").textContent = `${number.format(rows.length)} of ${number.format(categories.length)} categories`;
  };

  const buildCategories = () => {
    const head = columns.map(([label, key]) => {
      const button = element("button", { type: "button" }, label);
      if (label === "unused") button.setAttribute("aria-label", `Unused ${key.split("_")[1]}`);
      button.addEventListener("click", () => {
        // Figures are first wanted the largest first.
        order = [key, order[0] === key ? -order[1] : isText(key) ? 1 : -1];
        showCategories();
      });
      return element("th", { scope: "col", "data-key": key, class: isText(key) ? null : "n" }, button);
    });
    table.tHead.append(element("tr", {}, head));
    listFilters.addEventListener("input", showCategories);
    listFilters.addEventListener("reset", () => setTimeout(showCategories));
    listFilters.addEventListener("submit", (event) => event.preventDefault());
  };

  const openCategory = (index) => {
    const c = categories[index];
    const own = data.instances.filter((i) => i.category === index);
    const within = mosaics.filter((m) => [...m.objects, ...m.regions].some((o) => o.category === index));
    const section = $("#category");
    $("h1", section).textContent = c.name;
    const row = (label, value) => [label, value];
    const rate = (part, all) => (all > 0 ? ` (${((100 * part) / all).toFixed(0)} %)` : "");
    const target = data.figures.target;
    const body = $(".body", section);
    const instances = element("ul", { class: "cards small" });
    const pictures = element("ul", { class: "cards" });
    body.replaceChildren(
      facts([
        row("Dataset's id", c.id),
        row("Rarity", bands[c.frequency] ?? "not said"),
        row("Mosaics", `${number.format(c.mosaics)}, ${number.format(c.unused_mosaics)} never used` + (target === null ? "" : `; target ${number.format(target)}`)),
        row("Instances", `${number.format(c.instances)}, ${number.format(c.unused_instances)} never used`),
        row("Uses", `${number.format(c.mosaic_uses)} of mosaics, ${number.format(c.instance_uses)} of instances`),
        row("Requests", `${number.format(c.asked)}: ${number.format(c.served_fresh)} fresh, ${number.format(c.served_again)} again, ${number.format(c.missed)} missed`),
        row("Regions", `${number.format(c.regions)}, ${number.format(c.rejected)} rejected${rate(c.rejected, c.regions)}`),
        row("Feedback", `weight ${c.weight.toFixed(2)}, size ${c.size_factor.toFixed(2)}`),
      ]),
      togglesOf(["masks", "boxes", "regions"]),
      element("h2", {}, "Instances"),
      element("p", { class: "sub" }, `${number.format(own.length)} of ${number.format(c.instances)} on this page.`),
      instances,
      element("h2", {}, "Mosaics"),
      element("p", { class: "sub" },
        within.length ? element("a", { href: `#/gallery?${new URLSearchParams({ category: c.name })}` }, `${plural(within.length, "mosaic")} in the gallery`) : "None on this page."),
      pictures,
    );
    fill(instances, own, instanceCard);
    fill(pictures, within, mosaicCard);
    return c.name;
  };

  // --- one mosaic -------------------------------------------------------------------------

  // A rectangle of a mosaic's picture, with an outline on it when there is one.
  const cut = (m, [x0, y0, x1, y1], ...marks) =>
    svg("svg", { class: "cut", viewBox: `${x0} ${y0} ${x1 - x0} ${y1 - y0}`, "aria-hidden": "true" },
      svg("image", { href: source(m.picture), x: 0, y: 0, width: m.size.width, height: m.size.height, preserveAspectRatio: "none" }),
      marks);

  const step = (title, ...content) => element("li", {}, element("p", { class: "title" }, title), content);

  // Dark blue over green to yellow, as viridis goes; straight lines in between.
  const HEAT = [[68, 1, 84], [59, 82, 139], [33, 145, 140], [94, 201, 98], [253, 231, 37]];
  const heat = (value) => {
    const at = Math.min(Math.max(value, 0), 1) * (HEAT.length - 1);
    const i = Math.min(Math.floor(at), HEAT.length - 2);
    return HEAT[i].map((c, k) => Math.round(c + (at - i) * (HEAT[i + 1][k] - c)));
  };
  const paint = (width, height, value) => {
    const canvas = element("canvas", { width, height });
    const context = canvas.getContext("2d");
    const image = context.createImageData(width, height);
    for (let i = 0; i < width * height; i++) image.data.set([...heat(value(i)), 255], 4 * i);
    context.putImageData(image, 0, 0);
    return canvas;
  };

  const attention = (region, trace, index) => {
    const { width, height } = trace.cells;
    const levels = Uint8Array.from(atob(trace.levels), (c) => c.charCodeAt(0));
    const share = levels.filter((level) => level > 255 * trace.threshold).length / levels.length;
    const [low, high] = [Math.min(...levels) / 255, Math.max(...levels) / 255];
    const map = element("span", {
      class: "heat", role: "img",
      "aria-label": `Attention map of region ${index + 1}: ${low.toFixed(2)} to ${high.toFixed(2)}; ${(100 * share).toFixed(0)} percent is above the threshold of ${trace.threshold.toFixed(2)}`,
    }, paint(width, height, (i) => levels[i] / 255),
    svg("svg", { viewBox: `0 0 ${width} ${height}`, preserveAspectRatio: "none", "aria-hidden": "true" },
      svg("path", { class: "level under", d: trace.above }), svg("path", { class: "level", d: trace.above })));
    const [x0, y0, x1, y1] = region.box;
    map.style.aspectRatio = `${x1 - x0} / ${y1 - y0}`;
    const scale = element("span", { class: "heat scale" }, paint(64, 1, (i) => i / 63),
      svg("svg", { viewBox: "0 0 100 1", preserveAspectRatio: "none", "aria-hidden": "true" },
        svg("path", { class: "level under", d: `M${100 * trace.threshold} 0v1` }),
        svg("path", { class: "level", d: `M${100 * trace.threshold} 0v1` })));
    return step("Attention and threshold", map, scale,
      element("p", {}, `Threshold ${trace.threshold.toFixed(2)}: the line. ${(100 * share).toFixed(0)} % of the map is above it.`),
      element("p", { class: "sub" }, `Scale from 0 to 1; this map has ${low.toFixed(2)} to ${high.toFixed(2)}.`));
  };

  const refined = (m, region, trace) => {
    const [x0, y0] = region.box;
    const [a, b, c, d] = trace.own;
    const own = ["own under", "own"].map((kind) => svg("rect", { class: kind, x: a, y: b, width: c - a, height: d - b }));
    const mask = svg("path", { class: "shape k1", d: trace.refined, transform: `translate(${x0} ${y0})` });
    return step("Refined mask", cut(m, region.box, mask, own),
      element("p", {}, trace.refined === "" ? "Empty." : "Before the filter."),
      element("p", { class: "sub" }, "Dashed: the part of the picture that is the region's own."));
  };

  // A prompt with the words marked whose attention is the map.
  const promptOf = (region) => {
    if (region.prompt === "") return ["No prompt is recorded."];
    const letters = [...region.prompt];
    const [from, to] = region.trace?.subject ?? [0, 0];
    const part = (a, b) => letters.slice(a, b).join("");
    return ["“", part(0, from), to > from ? element("mark", {}, part(from, to)) : null, part(to), "”"];
  };

  const traceOf = (m, region, index) => {
    const objects = m.objects.map((o, i) => [o, i]).filter(([o]) => o.region === index);
    const kept = region.reason === null;
    const steps = [
      step("Region and prompt", cut(m, region.box),
        element("p", {}, promptOf(region)),
        element("p", { class: "sub" }, `x ${region.box[0]}–${region.box[2]}, y ${region.box[1]}–${region.box[3]} px`,
          typeof region.trace?.guidance === "number" ? `; guidance ${region.trace.guidance}` : null)),
    ];
    if (region.trace) steps.push(attention(region, region.trace, index), refined(m, region, region.trace));
    const masks = objects.map(([o, i]) => svg("path", { class: `shape k${i % COLOURS}`, d: o.outline }));
    const words = objects.map(([o]) =>
      element("p", { class: "sub" }, `${nameOf(o.category)}: ${number.format(o.area)} px, score ${o.score.toFixed(2)}`));
    steps.push(step("Verdict",
      objects.length ? cut(m, region.box, masks) : null,
      element("p", { class: kept ? "kept" : "rejected" }, kept ? "Kept" : `Rejected: ${region.verdict}`), words));
    return element("section", { class: "trace", "aria-label": `Region ${index + 1}` },
      element("h3", {}, `Region ${index + 1}: `, categoryLink(region.category)),
      element("ol", { class: "steps" }, steps));
  };

  const again = (m) => {
    if (m.made_on === null) return [element("p", {}, "Its record does not say how to make it again: it was imported, or made by an older version.")];
    // The command takes the embedded model where none is named.
    const embedded = m.model === "embedded";
    const command = `mosaicbank reproduce --bank ${data.bank} --id ${m.id}${embedded ? "" : " --model DIR"}`;
    const button = element("button", { type: "button" }, "Copy");
    const said = element("span", { role: "status", class: "sub" });
    button.addEventListener("click", async () => {
      try {
        await navigator.clipboard.writeText(command);
        said.textContent = " copied";
      } catch {
        said.textContent = " could not be copied: select it instead";
      }
    });
    return [element("p", {}, "The same mosaic again:"), element("pre", {}, element("code", {}, command)), button, said,
      embedded ? null : element("p", { class: "sub" }, `DIR: the directory of the model ${m.model}`)];
  };

  const openMosaic = (m) => {
    const section = $("#mosaic");
    const title = `Mosaic of ${contentOf(m)}`;
    $("h1", section).textContent = title;
    const at = inGallery.indexOf(m);
    const neighbour = (offset, label) => {
      const other = at < 0 ? undefined : inGallery[at + offset];
      return other ? element("a", { href: `#/mosaic/${other.id}`, rel: offset < 0 ? "prev" : "next" }, label) : null;
    };
    const objects = m.objects.map((o, i) =>
      element("li", {}, element("span", { class: `chip k${i % COLOURS}` }), categoryLink(o.category),
        ` ${number.format(o.area)} px, score ${o.score.toFixed(2)}`));
    $(".body", section).replaceChildren(
      element("nav", { class: "pager", "aria-label": "Mosaics" },
        element("a", { href: galleryAt }, "Gallery"), neighbour(-1, "Previous"), neighbour(1, "Next"),
        at < 0 ? null : element("span", { class: "sub" }, `${number.format(at + 1)} of ${number.format(inGallery.length)}`)),
      element("div", { class: "mosaic-view" },
        element("div", {},
          picture(m, title),
          togglesOf(["masks", "boxes", "regions"])),
        element("div", {},
          element("h2", {}, "Objects"),
          objects.length ? element("ul", { class: "objects" }, objects) : element("p", {}, "None was kept."),
          element("h2", {}, "Provenance"),
          facts([
            ["Id", element("code", {}, m.id)],
            ["Size", `${m.size.width} x ${m.size.height} px`],
            ["Used", used(m.uses)],
            ["Seed", element("code", {}, m.seed)],
            ["Model", m.model || "not recorded"],
            ["Made on", m.made_on ?? "not recorded"],
            ["Weights", element("code", {}, m.weights || "not recorded")],
            ["Recipe", element("code", {}, m.recipe || "not recorded")],
          ]),
          again(m))),
      element("h2", {}, "From region to verdict"),
      ...m.regions.map((r, i) => traceOf(m, r, i)),
    );
    return title;
  };

  // --- which view -------------------------------------------------------------------------

  const sections = [...document.querySelectorAll("main > section")];
  const scrolled = new Map();
  let now = null;

  const show = (id, title, hash, first) => {
    if (now !== null) scrolled.set(now, window.scrollY);
    for (const section of sections) section.hidden = section.id !== id;
    for (const link of document.querySelectorAll("header nav a")) {
      const target = link.getAttribute("href").slice(2) || "overview";
      const mine = target === id || (target === "gallery" && id === "mosaic") || (target === "categories" && id === "category");
      if (mine) link.setAttribute("aria-current", "page");
      else link.removeAttribute("aria-current");
    }
    document.title = `${title}: ${$(".brand a").textContent}, mosaicbank report`;
    now = hash;
    if (first) return;
    // The new view is read from its heading on; one that was seen before is where it was left.
    $(`#${id} h1`).focus({ preventScroll: true });
    window.scrollTo(0, scrolled.get(hash) ?? 0);
  };

  const route = (first) => {
    const hash = location.hash;
    const [path, query] = hash.slice(1).split("?");
    const [, view, id] = path.split("/");
    if (view === "gallery") {
      openGallery(new URLSearchParams(query));
      show("gallery", "Gallery", galleryAt, first);
    } else if (view === "categories") {
      showCategories();
      show("categories", "Categories", hash, first);
    } else if (view === "category" && categories[Number(id)] && id !== "") {
      show("category", openCategory(Number(id)), hash, first);
    } else if (view === "mosaic" && byId.has(id)) {
      show("mosaic", openMosaic(byId.get(id)), hash, first);
    } else {
      show("overview", "Overview", "#/", first);
    }
  };
  $(".skip").addEventListener("click", (event) => {
    event.preventDefault();
    $("#main").focus();
  });
  history.scrollRestoration = "manual";
  buildCategories();
  window.addEventListener("hashchange", () => route(false));
  route(true);
})();
