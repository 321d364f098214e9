// A drawing in a window that is dragged and zoomed; `seen` is the part of it that is in sight.
function addCanvas(section) {
  const canvas = element("div", { class: "canvas" });
  const svg = section.querySelector("template").content.querySelector("svg").cloneNode(true);
  const [x, y, width, height] = svg.getAttribute("viewBox").split(" ").map(Number);
  const seen = { x, y, scale: 1 };
  const draw = () => {
    const box = canvas.getBoundingClientRect();
    svg.setAttribute("viewBox", [seen.x, seen.y, Math.max(1, box.width / seen.scale),
      Math.max(1, box.height / seen.scale)].join(" "));
  };
  const zoom = (factor, atX, atY) => {
    const scale = Math.min(4, Math.max(0.05, seen.scale * factor));
    seen.x += atX / seen.scale - atX / scale;
    seen.y += atY / seen.scale - atY / scale;
    seen.scale = scale;
    draw();
  };
  const fit = () => {
    const box = canvas.getBoundingClientRect();
    seen.scale = Math.min(1.2, box.width / width, box.height / height);
    seen.x = x + (width - box.width / seen.scale) / 2;
    seen.y = y;
    draw();
  };
  const start = () => {
    const box = canvas.getBoundingClientRect();
    seen.scale = Math.min(1, Math.max(0.6, box.width / width));
    seen.x = x + (width - box.width / seen.scale) / 2;
    seen.y = y;
    draw();
  };
  canvas.reveal = (each) => {
    const box = canvas.getBoundingClientRect(), at = each.getBoundingClientRect();
    if (at.top >= box.top && at.bottom <= box.bottom && at.left >= box.left
        && at.right <= box.right) return;
    seen.x += (at.left + at.width / 2 - box.left - box.width / 2) / seen.scale;
    seen.y += (at.top + Math.min(at.height, 60) / 2 - box.top - box.height / 3) / seen.scale;
    draw();
  };
  const middle = (factor) => () => {
    const box = canvas.getBoundingClientRect();
    zoom(factor, box.width / 2, box.height / 2);
  };
  canvas.append(svg);
  section.append(canvas, element("div", { class: "zoom" },
    element("button", { type: "button", title: "nearer", onclick: middle(1.25) }, "+"),
    element("button", { type: "button", title: "farther", onclick: middle(0.8) }, "−"),
    element("button", { type: "button", title: "all of it", onclick: fit }, "fit")));
  addGestures(canvas, seen, draw, zoom);
  new ResizeObserver(draw).observe(canvas);
  start();
}

function addGestures(canvas, seen, draw, zoom) {
  let grip = null;
  canvas.addEventListener("wheel", (event) => {
    event.preventDefault();
    const box = canvas.getBoundingClientRect();
    zoom(Math.exp(-event.deltaY / 500), event.clientX - box.left, event.clientY - box.top);
  }, { passive: false });
  canvas.addEventListener("pointerdown", (event) => {
    grip = { x: event.clientX, y: event.clientY, far: false };
  });
  canvas.addEventListener("pointermove", (event) => {
    if (!grip || !event.buttons) return;
    const [dx, dy] = [event.clientX - grip.x, event.clientY - grip.y];
    if (!grip.far && Math.hypot(dx, dy) < 4) return;
    Object.assign(grip, { x: event.clientX, y: event.clientY, far: true });
    seen.x -= dx / seen.scale;
    seen.y -= dy / seen.scale;
    draw();
  });
  // A click that ends a drag chooses nothing.
  canvas.addEventListener("click", (event) => {
    if (grip?.far) event.stopPropagation();
    grip = null;
  }, true);
}
