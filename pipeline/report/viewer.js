"use strict";
// The viewer: one scene at a time, a layer over its image, a swipe between the two, and zoom.
// Without this script the page shows every scene with its errors, as it does in print.
(() => {
  addEventListener("beforeprint", () => document.querySelectorAll("details").forEach((d) => { d.open = true; }));

  // A slider from the clean tile's map over the attacked one's to the erased one's.
  document.querySelectorAll(".fooled").forEach((figure) => {
    const states = [...figure.querySelectorAll("figure[data-state]")];
    const frame = document.createElement("div"), slider = document.createElement("input"), said = document.createElement("output");
    const layers = states.map((state) => state.querySelector(".map").cloneNode());
    frame.className = "fooling";
    frame.append(...layers);
    Object.assign(slider, { type: "range", min: 0, max: 100 * (states.length - 1), value: 0 });
    slider.setAttribute("aria-label", `From ${states.map((state) => state.dataset.state).join(" to ")}`);
    const draw = () => {
      layers.forEach((layer, i) => { layer.style.clipPath = i ? `inset(0 ${Math.min(100, Math.max(0, 100 * i - slider.value))}% 0 0)` : ""; });
      said.textContent = states[Math.round(slider.value / 100)].querySelector("figcaption").textContent;
    };
    slider.addEventListener("input", draw);
    figure.querySelector("figcaption").after(frame, slider, said);
    figure.classList.add("live");
    draw();
  });

  const viewer = document.getElementById("viewer");
  if (!viewer) return;
  const all = (selector) => [...viewer.querySelectorAll(selector)];
  const scenes = all(".scene"), swipe = viewer.querySelector(".swipe"), scale = viewer.querySelector(".scale");
  const layers = all("button[data-layer]").map((button) => button.dataset.layer);
  const MOST = 16;
  const state = { scene: 0, layer: "errors", zoom: 1, x: 0, y: 0 };  // x, y: the view's corner, as shares of the scene

  const thumbs = scenes.map((scene, i) => {
    const button = document.createElement("button"), image = document.createElement("img");
    image.src = scene.querySelector(".photo").src;
    image.alt = "";
    button.className = "thumb";
    button.append(image, scene.dataset.city, document.createElement("br"), scene.dataset.score);
    button.addEventListener("click", () => show(i));
    viewer.querySelector(".thumbs").append(button);
    return button;
  });

  const frame = () => scenes[state.scene].querySelector(".frame");

  function draw() {
    const room = 1 - 1 / state.zoom;
    state.x = Math.min(Math.max(state.x, 0), room);
    state.y = Math.min(Math.max(state.y, 0), room);
    scenes.forEach((scene, i) => scene.classList.toggle("shown", i === state.scene));
    thumbs.forEach((thumb, i) => thumb.setAttribute("aria-pressed", i === state.scene));
    all("button[data-layer]").forEach((b) => b.setAttribute("aria-pressed", b.dataset.layer === state.layer));
    all(".key").forEach((key) => key.classList.toggle("shown", key.dataset.layer === state.layer));
    const canvas = frame().querySelector(".canvas"), divider = frame().querySelector(".divider");
    canvas.style.transform = `scale(${state.zoom}) translate(${-100 * state.x}%, ${-100 * state.y}%)`;
    canvas.classList.toggle("close", state.zoom > 3);
    frame().classList.toggle("zoomed", state.zoom > 1);
    const cut = state.x + swipe.value / 100 / state.zoom;  // the swipe stays in place while the scene moves beneath
    frame().querySelectorAll(".layer").forEach((layer) => {
      layer.classList.toggle("shown", layer.dataset.layer === state.layer);
      layer.style.clipPath = `inset(0 0 0 ${100 * cut}%)`;
    });
    divider.style.left = `${swipe.value}%`;
    divider.classList.toggle("shown", swipe.value > 0 && state.layer !== "photo");
    viewer.style.setProperty("--ratio", frame().style.getPropertyValue("--ratio"));  // the slider is as wide as the scene
    scale.textContent = `${+state.zoom.toFixed(1)}×`;
  }

  function show(scene) {
    Object.assign(state, { scene: (scene + scenes.length) % scenes.length, zoom: 1, x: 0, y: 0 });
    draw();
    const thumb = thumbs[state.scene], row = thumb.parentElement;
    row.scrollLeft = thumb.offsetLeft - row.offsetLeft - row.clientWidth / 2 + thumb.clientWidth / 2;
  }

  function pick(layer) { state.layer = layer; draw(); }

  // Zoom so that the point at (u, v) of the frame stays under the pointer.
  function zoom(factor, u = 0.5, v = 0.5) {
    const next = Math.min(Math.max(state.zoom * factor, 1), MOST);
    state.x += u / state.zoom - u / next;
    state.y += v / state.zoom - v / next;
    state.zoom = next;
    draw();
  }

  function move(dx, dy) { state.x += dx / state.zoom; state.y += dy / state.zoom; draw(); }

  function visit(button) {
    if (!button) return;
    const [left, top, width, height] = button.dataset.spot.split(",").map(Number);
    state.zoom = Math.min(MOST, 0.9 / Math.max(width, height));
    state.x = left + width / 2 - 0.5 / state.zoom;
    state.y = top + height / 2 - 0.5 / state.zoom;
    draw();
  }

  function follow(hash = location.hash) {
    const target = hash.match(/^#scene-(\d+)$/);
    if (!target || +target[1] >= scenes.length) return;
    show(+target[1]);
    viewer.scrollIntoView();
  }

  all("button[data-layer]").forEach((b) => b.addEventListener("click", () => pick(b.dataset.layer)));
  all("button[data-step]").forEach((b) => b.addEventListener("click", () => show(state.scene + +b.dataset.step)));
  all(".spot").forEach((b) => b.addEventListener("click", () => visit(b)));
  const zooms = { in: () => zoom(1.5), out: () => zoom(1 / 1.5), fit: () => zoom(1 / MOST) };
  all("button[data-zoom]").forEach((b) => b.addEventListener("click", zooms[b.dataset.zoom]));
  swipe.addEventListener("input", draw);
  addEventListener("hashchange", () => follow());
  for (const link of document.querySelectorAll('#map a')) {  // a second click changes no hash
    link.addEventListener("click", () => follow(link.getAttribute("href")));
  }

  const keys = {
    "+": zooms.in, "=": zooms.in, "-": zooms.out, 0: zooms.fit,
    n: () => show(state.scene + 1), p: () => show(state.scene - 1),
    ArrowLeft: () => move(-0.2, 0), ArrowRight: () => move(0.2, 0), ArrowUp: () => move(0, -0.2), ArrowDown: () => move(0, 0.2),
    w: () => visit(frame().parentElement.querySelectorAll(".spot")[0]),
    b: () => visit(frame().parentElement.querySelectorAll(".spot")[1]),
  };
  layers.forEach((layer, i) => { keys[i + 1] = () => pick(layer); });

  const fingers = new Map();
  scenes.forEach((scene) => {
    const box = scene.querySelector(".frame");
    const place = (event) => {
      const r = box.getBoundingClientRect();
      return [(event.clientX - r.left) / r.width, (event.clientY - r.top) / r.height];
    };
    box.addEventListener("keydown", (event) => {
      const scrolls = event.key.startsWith("Arrow") && state.zoom === 1;
      if (!keys[event.key] || scrolls || event.ctrlKey || event.metaKey || event.altKey) return;
      event.preventDefault();
      keys[event.key]();
      frame().focus({ preventScroll: true });
    });
    box.addEventListener("wheel", (event) => {
      if (!event.ctrlKey && document.activeElement !== box) return;  // a page must scroll past an unfocused picture
      event.preventDefault();
      zoom(Math.exp(-event.deltaY / 300), ...place(event));
    }, { passive: false });
    box.addEventListener("dblclick", (event) => zoom(2, ...place(event)));
    box.addEventListener("pointerdown", (event) => {
      box.focus({ preventScroll: true });
      box.setPointerCapture(event.pointerId);
      fingers.set(event.pointerId, place(event));
    });
    box.addEventListener("pointermove", (event) => {
      const before = fingers.get(event.pointerId);
      if (!before) return;
      const now = place(event), other = [...fingers].find(([id]) => id !== event.pointerId);
      if (other) {
        const apart = (point) => Math.hypot(point[0] - other[1][0], point[1] - other[1][1]) || 1e-3;
        zoom(apart(now) / apart(before), (now[0] + other[1][0]) / 2, (now[1] + other[1][1]) / 2);
      } else move(before[0] - now[0], before[1] - now[1]);
      fingers.set(event.pointerId, now);
    });
    for (const end of ["pointerup", "pointercancel"]) box.addEventListener(end, (event) => fingers.delete(event.pointerId));
  });

  viewer.classList.add("live");
  draw();
  follow();
})();
