// A drawing in a window that is dragged and zoomed: `x`, `y` and `scale` say which part of it is
// in sight.
class View {
  constructor(canvas, svg) {
    Object.assign(this, { canvas, svg, x: 0, y: 0, scale: 1 });
    this.whole = svg.getAttribute("viewBox").split(" ").map(Number);
  }

  get box() {
    return this.canvas.getBoundingClientRect();
  }

  draw() {
    const box = this.box;
    this.svg.setAttribute("viewBox", [this.x, this.y, Math.max(1, box.width / this.scale),
      Math.max(1, box.height / this.scale)].join(" "));
  }

  // The top of the drawing, in the middle.
  start(scale) {
    const [x, y, width] = this.whole;
    this.scale = scale;
    this.x = x + (width - this.box.width / scale) / 2;
    this.y = y;
    this.draw();
  }

  fit() {
    const [, , width, height] = this.whole;
    this.start(Math.min(1.2, this.box.width / width, this.box.height / height));
  }

  move(dx, dy) {
    this.x += dx / this.scale;
    this.y += dy / this.scale;
    this.draw();
  }

  // What is at this point of the window stays there.
  zoom(factor, atX = this.box.width / 2, atY = this.box.height / 2) {
    const scale = Math.min(4, Math.max(0.05, this.scale * factor));
    this.x += atX / this.scale - atX / scale;
    this.y += atY / this.scale - atY / scale;
    this.scale = scale;
    this.draw();
  }

  reveal(each) {
    const box = this.box, at = each.getBoundingClientRect();
    if (at.top >= box.top && at.bottom <= box.bottom && at.left >= box.left
        && at.right <= box.right) return;
    this.move(at.left + at.width / 2 - box.left - box.width / 2,
      at.top + Math.min(at.height, 60) / 2 - box.top - box.height / 3);
  }
}

function addCanvas(section) {
  const canvas = element("div", { class: "canvas" });
  const svg = section.querySelector("template").content.querySelector("svg").cloneNode(true);
  const view = new View(canvas, svg);
  const button = (text, title, onclick) =>
    element("button", { type: "button", title, onclick }, text);
  canvas.append(svg);
  canvas.view = view;
  section.append(canvas, element("div", { class: "zoom" },
    button("+", "nearer", () => view.zoom(1.25)), button("−", "farther", () => view.zoom(0.8)),
    button("fit", "all of it", () => view.fit())));
  addGestures(canvas, view);
  new ResizeObserver(() => view.draw()).observe(canvas);
  view.start(Math.min(1, Math.max(0.6, view.box.width / view.whole[2])));
}

function addGestures(canvas, view) {
  let grip = null;
  canvas.addEventListener("wheel", (event) => {
    event.preventDefault();
    const box = view.box;
    view.zoom(Math.exp(-event.deltaY / 500), event.clientX - box.left, event.clientY - box.top);
  }, { passive: false });
  canvas.addEventListener("pointerdown", (event) => {
    grip = { x: event.clientX, y: event.clientY, far: false };
  });
  canvas.addEventListener("pointermove", (event) => {
    if (!grip || !event.buttons) return;
    const [dx, dy] = [event.clientX - grip.x, event.clientY - grip.y];
    if (!grip.far && Math.hypot(dx, dy) < 4) return;
    grip = { x: event.clientX, y: event.clientY, far: true };
    view.move(-dx, -dy);
  });
  // A click that ends a drag chooses nothing.
  canvas.addEventListener("click", (event) => {
    if (grip?.far) event.stopPropagation();
    grip = null;
  }, true);
}
