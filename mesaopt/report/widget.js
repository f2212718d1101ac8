"use strict";
// A linear layer while it trains: a slider over checkpoints, and a plane to draw a sequence of points in.
// Everything is built from numbers, by setAttribute and textContent; nothing is fetched.
(() => {
  const NAMES = { layer: "trained layer", descent: "one gradient step", ridge: "least squares" };
  const ORDER = ["layer", "descent", "ridge"];
  const SLOTS = ["current", "previous"];

  function make(parent, tag, attributes = {}, text = "") {
    const svg = "http://www.w3.org/2000/svg";
    const space = tag === "svg" || parent.namespaceURI === svg ? svg : parent.namespaceURI;
    const element = document.createElementNS(space, tag);
    for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
    element.textContent = text;
    parent.append(element);
    return element;
  }

  function words(svg, x, y, anchor, text) {
    make(svg, "text", { x, y, "text-anchor": anchor }, text);
  }

  // Numbers with three digits, or with two after the point, and with a true minus sign.
  const short = (x) => String(Number(x.toPrecision(3))).replaceAll("-", "−");
  const fixed = (x) => x.toFixed(2).replace("-", "−").replace("−0.00", "0.00");
  const mean = (values) => values.reduce((sum, x) => sum + x, 0) / values.length;

  // Red (-1) over white to blue (1), as in the other pictures of weights.
  function shade(share) {
    const size = Math.min(1, Math.abs(share)), white = [247, 247, 247];
    const [middle, end] = share < 0 ? [[178, 24, 43], [103, 0, 31]] : [[33, 102, 172], [5, 48, 97]];
    const mix = (a, b, part) => `rgb(${a.map((x, i) => Math.round(x + (b[i] - x) * part)).join(",")})`;
    return size < 0.8 ? mix(white, middle, size / 0.8) : mix(middle, end, (size - 0.8) / 0.2);
  }

  // Where the pointer is, in the units of a drawing.
  function pointed(svg, event) {
    const frame = svg.getBoundingClientRect(), box = svg.viewBox.baseVal;
    return [
      ((event.clientX - frame.left) / frame.width) * box.width,
      ((event.clientY - frame.top) / frame.height) * box.height,
    ];
  }

  // Reads values while the pointer is over a drawing.
  function onPoint(svg, act) {
    for (const kind of ["pointermove", "pointerdown"]) {
      svg.addEventListener(kind, (event) => act(...pointed(svg, event)));
    }
  }

  // ---- one picture of weights; returns what shows a step ---------------------------------------------

  function picture(parent, title, matrices, rows, dim) {
    const left = 76, top = 2, width = 280;
    const columns = 2 * dim, height = rows.length * dim, cell = width / columns;
    const bottom = top + height * cell;
    const limit = Math.max(...matrices.at(-1).map(Math.abs), 1e-12);
    const box = make(parent, "div", { class: "picture" });
    make(box, "h3", {}, title);
    const svg = make(box, "svg", {
      viewBox: `0 0 400 ${bottom + 52}`, role: "img", "aria-label": title,
    });
    const block = (x, y, w, h, fill = "none") => make(svg, "rect", { x, y, width: w, height: h, fill });
    const cells = matrices[0].map((_, i) =>
      block(left + (i % columns) * cell, top + Math.floor(i / columns) * cell, cell + 0.2, cell + 0.2));
    const middle = rows.length > 1 ? `M${left} ${top + dim * cell}h${width}` : "";
    make(svg, "path", {
      d: `M${left} ${top}h${width}V${bottom}h${-width}zM${left + width / 2} ${top}V${bottom}${middle}`,
      stroke: "#7f8690", "stroke-width": 0.7, fill: "none",
    });
    rows.forEach((name, i) => words(svg, left - 4, top + (i + 0.5) * dim * cell + 4, "end", name));
    SLOTS.forEach((name, i) => words(svg, left + (i + 0.5) * dim * cell, bottom + 15, "middle", name));
    for (let i = 0; i < 70; i++) block(left + 4 * i, bottom + 23, 4.2, 9, shade(i / 34.5 - 1));
    for (const end of [-1, 0, 1]) {
      words(svg, left + ((end + 1) * width) / 2, bottom + 47, "middle", short(end * limit));
    }
    const readout = make(box, "p", { class: "readout" }, "Point at a weight to read it.");
    let step = 0, at = null;
    function read() {
      if (at === null) return;
      const [row, column] = at;
      const name = (names, i) => `${names[Math.floor(i / dim)]} ${(i % dim) + 1}`;
      const weight = short(matrices[step][row * columns + column]);
      readout.textContent = `Row ${name(rows, row)}, column ${name(SLOTS, column)}: ${weight}`;
    }
    onPoint(svg, (x, y) => {
      const row = Math.floor((y - top) / cell), column = Math.floor((x - left) / cell);
      if (row >= 0 && column >= 0 && row < height && column < columns) at = [row, column];
      read();
    });
    return (index) => {
      step = index;
      cells.forEach((rect, i) => rect.setAttribute("fill", shade(matrices[step][i] / limit)));
      read();
    };
  }

  // ---- the losses by position; returns what shows a step ---------------------------------------------

  function chart(parent, data) {
    const width = 400, height = 400, left = 34, right = 8, top = 8, bottom = 38;
    const { layer, descent, ridge } = data.losses;
    const box = make(parent, "div", { class: "chart" });
    make(box, "h3", {}, "In-context loss by position");
    const svg = make(box, "svg", {
      viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": "In-context loss by position",
    });
    const high = 1.05 * Math.max(...layer.flat(), ...descent, ...ridge), last = ridge.length - 1;
    const x = (i) => left + (i / last) * (width - left - right);
    const y = (loss) => height - bottom - (loss / high) * (height - top - bottom);
    const stroke = (d, color) => make(svg, "path", { d, stroke: color, fill: "none" });
    const power = 10 ** Math.floor(Math.log10(high)), tick = high / power < 2.5 ? power / 2 : power;
    for (let loss = 0; loss < high; loss += tick) {
      stroke(`M${left} ${y(loss)}H${width - right}`, "var(--grid)");
      words(svg, left - 6, y(loss) + 4, "end", short(loss));
    }
    for (let i = 9; i <= last; i += 10) words(svg, x(i), height - bottom + 17, "middle", String(i + 1));
    words(svg, (left + width) / 2, height - 4, "middle", "position in the sequence");
    stroke(`M${left} ${top}V${height - bottom}H${width - right}`, "var(--ink)");
    const look = (name) => ({
      stroke: data.looks[name].color, "stroke-dasharray": data.looks[name].dashes,
      "stroke-width": name === "layer" ? 3 : 2, fill: "none",
    });
    const path = (curve) => `M${curve.map((loss, i) => [x(i).toFixed(1), y(loss).toFixed(1)]).join("L")}`;
    const line = make(svg, "path", { ...look("layer"), class: "line-layer" });
    make(svg, "path", { ...look("descent"), d: path(descent) });
    make(svg, "path", { ...look("ridge"), d: path(ridge) });
    const cursor = stroke("", "var(--soft)");
    const legend = make(box, "ul", { class: "legend" });
    for (const name of ORDER) {
      const item = make(legend, "li");
      const key = make(item, "svg", { viewBox: "0 0 36 10", width: 36, height: 10, "aria-hidden": "true" });
      make(key, "path", { ...look(name), d: "M0 5H36" });
      item.append(` ${NAMES[name]}`);
    }
    const readout = make(box, "p", { class: "readout" }, "Point at the chart to read the losses.");
    let step = 0, position = null;
    function read() {
      if (position === null) return;
      const curves = { layer: layer[step], descent, ridge };
      const values = ORDER.map((name) => `${NAMES[name]} ${short(curves[name][position])}`);
      readout.textContent = `Position ${position + 1}: ${values.join(", ")}`;
      cursor.setAttribute("d", `M${x(position)} ${top}V${height - bottom}`);
    }
    onPoint(svg, (at) => {
      const share = (at - left) / (width - left - right);
      position = Math.max(0, Math.min(last, Math.round(share * last)));
      read();
    });
    return (index) => {
      step = index;
      line.setAttribute("d", path(layer[step]));
      read();
    };
  }

  // ---- three ways to predict the next point of a plane -----------------------------------------------

  const times = (m, [x, y]) => [m[0] * x + m[1] * y, m[2] * x + m[3] * y];

  // The sum of a b' over pairs of points, row by row.
  function outer(pairs) {
    const sum = [0, 0, 0, 0];
    for (const [a, b] of pairs) for (let i = 0; i < 4; i++) sum[i] += a[i >> 1] * b[i & 1];
    return sum;
  }

  const predictors = {
    // One step from zero on the squared error of all pairs of a point and the next.
    descent(data, points) {
      const cross = outer(points.slice(1).map((next, i) => [next, points[i]]));
      return times(cross, points.at(-1)).map((x) => data.step_size * x);
    },
    ridge(data, points) {
      const known = points.slice(0, -1);
      const cross = outer(known.map((point, i) => [points[i + 1], point]));
      const gram = outer(known.map((point) => [point, point]));
      const a = gram[0] + data.ridge, b = gram[1], d = gram[3] + data.ridge, det = a * d - b * b;
      return times(cross, times([d / det, -b / det, -b / det, a / det], points.at(-1)));
    },
    // Every head adds the values of all tokens, each times its score with the last token.
    layer(data, points, step) {
      const tokens = points.map((point, i) => [...point, ...(i ? points[i - 1] : [0, 0])]);
      const query = tokens.at(-1), out = [0, 0];
      for (let head = 0; head < data.heads; head++) {
        const scored = data.toy_scored[step].slice(16 * head);
        const written = data.toy_written[step].slice(8 * head);
        for (const token of tokens) {
          let score = 0;
          for (let i = 0; i < 16; i++) score += token[i >> 2] * scored[i] * query[i & 3];
          for (let i = 0; i < 8; i++) out[i >> 2] += written[i] * token[i & 3] * score;
        }
      }
      return data.clip === null ? out : out.map((x) => Math.max(-data.clip, Math.min(data.clip, x)));
    },
  };

  // ---- the plane; returns what shows a step ----------------------------------------------------------

  const SIZE = 360, EXTENT = 3;
  const toPlane = ([x, y]) => [((x + EXTENT) / (2 * EXTENT)) * SIZE, ((EXTENT - y) / (2 * EXTENT)) * SIZE];
  const fromPlane = ([x, y]) => [(x / SIZE) * 2 * EXTENT - EXTENT, EXTENT - (y / SIZE) * 2 * EXTENT];
  const turned = (point) => times([Math.cos(0.83), -Math.sin(0.83), Math.sin(0.83), Math.cos(0.83)], point);
  const MARKS = {
    layer: "m-6 -6h12v12h-12z",
    descent: "m-7 -7l14 14m0 -14l-14 14",
    ridge: "m0 -8l8 8l-8 8l-8 -8z",
  };

  function mark(where, data, name, place) {
    make(where, "path", {
      d: `M${place}${MARKS[name]}`, stroke: data.looks[name].color, "stroke-width": 2.5, fill: "none",
    });
  }

  function drawPoints(drawn, points) {
    const places = points.map(toPlane);
    const way = places.length ? `M${places.join("L")}` : "";
    make(drawn, "path", { d: way, stroke: "var(--soft)", fill: "none" });
    places.forEach(([cx, cy], i) => {
      const r = i === places.length - 1 ? 5 : 3;
      make(drawn, "circle", { cx, cy, r, fill: "var(--ink)", class: "point" });
      if (places.length <= 12) words(drawn, cx + 7, cy - 6, "start", String(i + 1));
    });
  }

  // Draws what a predictor says, and writes it into a list.
  function predict(drawn, list, data, name, points, step) {
    const item = make(list, "li", { class: `value-${name}` });
    const key = { viewBox: "0 0 20 20", width: 16, height: 16, "aria-hidden": "true" };
    mark(make(item, "svg", key), data, name, [10, 10]);
    if (points.length < 2) {
      item.append(` ${NAMES[name]}: needs two points`);
      return;
    }
    const next = predictors[name](data, points, step);
    const outside = next.some((x) => Math.abs(x) > EXTENT);
    if (!outside) mark(drawn, data, name, toPlane(next));
    item.dataset.next = next;
    item.append(` ${NAMES[name]}: (${next.map(fixed).join(", ")})${outside ? ", outside" : ""}`);
  }

  function plane(parent, data) {
    const most = data.losses.ridge.length;
    let points = [], step = 0;
    const add = (point) => { if (points.length < most) points.push(point); };
    const rotate = (count) => {
      for (let i = 0; i < count; i++) add(points.length ? turned(points.at(-1)) : [-2, 0.4]);
    };
    rotate(6);

    const toy = make(parent, "div", { class: "toy" }), box = make(toy, "div");
    make(box, "h3", {}, "Draw a sequence of points");
    make(box, "p", {}, "Click in the plane to put the next point, or turn the last one by the same " +
      "angle again. Each predictor says where the next one will be, from these points alone. " +
      `The layer has ${data.dim} dimensions, of which all but two are zero here, and has seen ` +
      `${most} points at most.`);
    const list = make(box, "ul", { class: "legend values", "aria-live": "polite" });
    const buttons = make(box, "div", { class: "buttons" }), typed = make(box, "div", { class: "buttons" });
    const svg = make(toy, "svg", {
      viewBox: `0 0 ${SIZE} ${SIZE}`, class: "plane", role: "img", "aria-label": "Plane with the points",
    });
    make(svg, "rect", {
      x: 0.5, y: 0.5, width: SIZE - 1, height: SIZE - 1, fill: "var(--page)", stroke: "var(--soft)",
    });
    make(svg, "path", { d: `M0 ${SIZE / 2}H${SIZE}M${SIZE / 2} 0V${SIZE}`, stroke: "var(--grid)" });
    const drawn = make(svg, "g");
    function show() {
      drawn.replaceChildren();
      list.replaceChildren();
      drawPoints(drawn, points);
      for (const name of ORDER) predict(drawn, list, data, name, points, step);
    }

    const button = (where, text, act) => {
      make(where, "button", { type: "button" }, text).addEventListener("click", () => { act(); show(); });
    };
    button(buttons, "Rotate", () => rotate(1));
    button(buttons, "Rotate 10 times", () => rotate(10));
    button(buttons, "Undo", () => points.pop());
    button(buttons, "Clear", () => { points = []; });
    const inputs = ["x", "y"].map((name) => make(make(typed, "label", {}, name), "input", {
      type: "number", step: "any", value: 1, min: -EXTENT, max: EXTENT, required: "",
    }));
    button(typed, "Put point", () => {
      if (inputs.every((input) => input.reportValidity())) add(inputs.map((input) => Number(input.value)));
    });
    svg.addEventListener("click", (event) => { add(fromPlane(pointed(svg, event))); show(); });
    return (index) => { step = index; show(); };
  }

  // ---- the slider that moves all of them; without other checkpoints there is none --------------------

  function layer(place, data) {
    const controls = make(place, "div", { class: "controls" });
    const parts = make(place, "div", { class: "parts" }), weights = make(parts, "div");
    const written = "Writes: prediction (rows), values (columns)";
    const shows = [
      picture(weights, "Scores: keys (rows), queries (columns)", data.scored, SLOTS, data.dim),
      picture(weights, written, data.written, ["prediction"], data.dim),
      chart(parts, data),
      plane(parts, data),
    ];
    const label = make(controls, "label", {}, "Training step");
    const last = data.steps.length - 1;
    const slider = last > 0 ? make(label, "input", { type: "range", max: last }) : null;
    const shown = make(controls, "span", { class: "step" });
    function show(index) {
      const loss = mean(data.losses.layer[index]).toPrecision(3);
      const step = data.steps[index].toLocaleString("en");
      shown.textContent = `${step} · mean loss ${loss}`;
      slider?.setAttribute("aria-valuetext", `step ${step}, mean loss ${loss}`);
      shows.forEach((part) => part(index));
    }
    if (slider) {
      slider.value = last;
      slider.addEventListener("input", () => show(Number(slider.value)));
    }
    show(last);
  }

  for (const source of document.querySelectorAll("script.widget-data")) {
    const place = document.getElementById(source.dataset.place);
    layer(place, JSON.parse(source.textContent));
    place.hidden = false;
    place.parentElement.querySelector("details.still").open = false;
  }
})();
