function fillStrip() {
  for (const button of document.querySelectorAll("#strip button")) {
    const stage = Number(button.dataset.stage);
    const shown = button.querySelector(".counts");
    if (stage === 0) {
      const nodes = rowsOf(0).filter((fact) => !fact.leaf).length;
      shown.textContent = `${nodes} ${nodes === 1 ? "node" : "nodes"}`;
    } else if (stages[stage].same === stage) {
      for (const [kind, count] of Object.entries(counts(stage - 1, stage))) {
        if (count) {
          const mark = element("i", { class: "mark" }, MARKS[kind]);
          shown.append(element("span", { class: kind, title: kind }, mark, String(count)));
        }
      }
    }
    button.addEventListener("click", () => choose(before(stage), stage));
  }
}

// The stage whose graph a pass was given.
const before = (stage) => stages[Math.max(0, stage - 1)].same;

function choose(left, right) {
  state.left = left;
  state.right = right;
  byId("left").value = left;
  byId("right").value = right;
  for (const button of document.querySelectorAll("#strip button")) {
    const stage = Number(button.dataset.stage);
    button.classList.toggle("left", stage === left);
    button.classList.toggle("right", stage === right);
  }
  document.querySelector("#strip .right").scrollIntoView({ block: "nearest", inline: "nearest" });
  showStages();
  const picked = state.picked;
  if (picked && stages[left].same !== picked.stage && stages[right].same !== picked.stage) {
    const number = stages[picked.stage].rows[picked.row].number;
    const row = findRow(right, number) ?? findRow(left, number);
    const stage = findRow(right, number) === undefined ? left : right;
    if (row === undefined) close();
    else pick(stages[stage].same, row);
  } else if (picked) {
    pick(picked.stage, picked.row);
  }
}

function showStages() {
  const sides = { left: stages[state.left].same, right: stages[state.right].same };
  const alike = sides.left === sides.right;
  document.querySelector("main").classList.toggle("single", alike);
  byId("nothing").hidden = !alike || state.left === state.right;
  const [from, to] = [state.left, state.right].sort((a, b) => a - b);
  byId("nothing").textContent =
    `no change: ${stages[to].name} has the graph of ${stages[from].name}`;
  for (const section of document.querySelectorAll(".stage")) {
    const number = Number(section.id.slice("stage".length));
    const left = number === sides.left, right = number === sides.right;
    section.classList.toggle("shown", left || right);
    section.classList.toggle("on-left", left);
    section.classList.toggle("on-right", right && !left);
    section.style.order = left ? 0 : 1;
    if (!left && !right) continue;
    const side = stages[left ? state.left : state.right];
    section.querySelector("h2").textContent =
      side.name + (side.same === number && stages[number].name !== side.name
        ? `: no change since ${stages[number].name}` : "");
    showView(section);
  }
  markRows();
}

// Every element that stands for a row of a stage: its line and, once drawn, its box.
function standIns(section, row) {
  return section.querySelectorAll(`[data-row="${row}"]`);
}

function markRows() {
  const found = comparison(state.left, state.right);
  for (const side of ["left", "right"]) {
    const section = byId(`stage${stages[state[side]].same}`);
    if (side === "right" && section.classList.contains("on-left")) continue;
    for (const each of section.querySelectorAll("[data-row]")) {
      const difference = found[side].get(Number(each.dataset.row));
      each.classList.remove("added", "removed", "changed", "moved");
      if (difference) each.classList.add(difference.kind);
      setMark(each, difference?.kind);
    }
    for (const group of section.querySelectorAll(".leaves")) markGroup(group);
  }
}

// What differs among leaves shows even while they are folded.
function markGroup(group) {
  const shown = group.querySelector(".counts");
  shown.replaceChildren();
  for (const [kind, mark] of Object.entries(MARKS)) {
    const count = group.querySelectorAll(`.row.${kind}`).length;
    if (count) {
      shown.append(element("span", { class: kind }, element("i", { class: "mark" }, mark),
        String(count)));
    }
  }
}

function setMark(each, kind) {
  let mark = each.querySelector(":scope > .mark");
  if (!mark) {
    mark = document.createElementNS("http://www.w3.org/2000/svg", "text");
    mark.setAttribute("class", "mark");
    mark.setAttribute("x", Number(each.querySelector("rect").getAttribute("width")) - 6);
    mark.setAttribute("y", 17);
    each.append(mark);
  }
  mark.textContent = kind ? MARKS[kind] : "";
}

function showView(section) {
  if (state.drawing && !section.querySelector(".canvas")) addCanvas(section);
  const canvas = section.querySelector(".canvas");
  if (canvas) canvas.hidden = !state.drawing;
  section.querySelector(".list").hidden = state.drawing;
  const report = section.querySelector(".report");
  if (report) report.hidden = state.drawing;
}

function setView(drawing) {
  state.drawing = drawing;
  byId("as-list").setAttribute("aria-pressed", String(!drawing));
  byId("as-drawing").setAttribute("aria-pressed", String(drawing));
  showStages();
  if (state.picked) pick(state.picked.stage, state.picked.row);
}

// Stages that lie below each other scroll as one: only what was chosen comes into sight.
const beside = matchMedia("(min-width: 801px)");

function pick(stage, row) {
  state.picked = { stage, row };
  const fact = stages[stage].rows[row];
  unmark();
  fillPanel(stage, row);
  for (const side of ["left", "right"]) {
    const number = stages[state[side]].same;
    const section = byId(`stage${number}`);
    const twin = number === stage ? row : findRow(number, fact.number);
    if (twin !== undefined) {
      for (const each of standIns(section, twin)) {
        each.classList.add(number === stage ? "picked" : "near");
        if (number === stage || beside.matches) reveal(each);
      }
    } else if (fact.line) {
      markLine(section, number, fact.line);
    }
  }
}

function markLine(section, stage, line) {
  let first = null;
  stages[stage].rows.forEach((fact, row) => {
    if (fact.line !== line) return;
    for (const each of section.querySelectorAll(`.row[data-row="${row}"]`)) {
      each.classList.add("alike");
      first ??= each;
    }
  });
  if (first && beside.matches) reveal(first);
}

function reveal(each) {
  const canvas = each.closest(".canvas");
  if (canvas) {
    canvas.view.reveal(each);
    return;
  }
  const folded = each.closest("details");
  if (folded) folded.open = true;
  each.scrollIntoView({ block: "nearest", inline: "nearest" });
}

function close() {
  state.picked = null;
  byId("panel").hidden = true;
  unmark();
}

function unmark() {
  for (const old of document.querySelectorAll(".picked, .near, .alike")) {
    old.classList.remove("picked", "near", "alike");
  }
}

function fromEvent(event) {
  const each = event.target.closest("[data-row]");
  const section = each?.closest(".stage");
  return section ? { each, stage: Number(section.id.slice(5)), row: Number(each.dataset.row) }
    : null;
}

function onKey(event) {
  const at = fromEvent(event);
  if (event.key === "Escape") close();
  else if (event.target.closest("select, input")) return;
  else if (at && (event.key === "Enter" || event.key === " ")) pick(at.stage, at.row);
  else if (at && (event.key === "ArrowDown" || event.key === "ArrowUp")) step(at, event.key);
  else if (event.key === "ArrowLeft") earlier();
  else if (event.key === "ArrowRight") later();
  else return;
  event.preventDefault();
}

function step(at, key) {
  const rows = [...at.each.closest(".stage").querySelectorAll(
    at.each.closest("svg") ? "svg [data-row]" : ".row")].filter(
    (each) => each.getClientRects().length);
  rows[rows.indexOf(at.each) + (key === "ArrowDown" ? 1 : -1)]?.focus();
}

// Stages that changed nothing are stepped over.
function later() {
  let next = state.right + 1;
  while (next < last && stages[next].same !== next) next += 1;
  if (next <= last && stages[next].same === next) choose(before(next), next);
}

function earlier() {
  let next = state.right - 1;
  while (next > 0 && stages[next].same !== next) next -= 1;
  if (next >= 0) choose(before(next), next);
}

document.body.classList.add("scripted");
fillStrip();
document.querySelector("main").addEventListener("click", (event) => {
  const at = fromEvent(event);
  if (at) pick(at.stage, at.row);
});
document.addEventListener("keydown", onKey);
byId("left").addEventListener("change", (event) => choose(Number(event.target.value), state.right));
byId("right").addEventListener("change", (event) => choose(state.left, Number(event.target.value)));
byId("back").addEventListener("click", earlier);
byId("on").addEventListener("click", later);
byId("as-list").addEventListener("click", () => setView(false));
byId("as-drawing").addEventListener("click", () => setView(true));
byId("only").addEventListener("change", (event) =>
  document.querySelector("main").classList.toggle("only", event.target.checked));
choose(0, 0);
later();
