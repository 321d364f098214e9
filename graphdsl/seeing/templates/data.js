"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const stages = data.stages;
const last = stages.length - 1;
const MARKS = { added: "+", removed: "−", changed: "~", moved: "→" };
const COMPARED = {
  reads: "operands", types: "types", attrs: "attributes", line: "line", scope: "scope",
  origin: "origin", body: "body", inside: "place",
};
const state = { left: 0, right: 0, drawing: false, picked: null };
const byId = (id) => document.getElementById(id);
const rowsOf = (stage) => stages[stages[stage].same].rows;

const numbered = stages.map((stage) => {
  const rows = new Map();
  stage.rows.forEach((fact, row) => rows.set(fact.number, row));
  return rows;
});
const findRow = (stage, number) => numbered[stages[stage].same].get(number);

function element(tag, properties = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name === "onclick") made.addEventListener("click", value);
    else if (name === "class") made.className = value;
    else made.setAttribute(name, value);
  }
  made.append(...children);
  return made;
}

// What a node is compared by; names are not, for they are given anew in every stage.
function compared(fact) {
  return {
    reads: fact.key ?? "", types: (fact.makes ?? []).map((made) => made[1]).join(", "),
    attrs: JSON.stringify(fact.attrs ?? []), line: fact.line ?? "", scope: fact.scope ?? "",
    origin: (fact.origin ?? []).join("+"), body: (fact.body ?? []).join(),
    inside: fact.inside ? String(fact.inside[1]) : "",
  };
}

function differences(before, after) {
  const a = compared(before), b = compared(after);
  return Object.keys(COMPARED).filter((name) => a[name] !== b[name]);
}

// The kind of every row that differs, for both sides: row -> {kind, fields}.
function comparison(left, right) {
  const found = { left: new Map(), right: new Map() };
  rowsOf(left).forEach((fact, row) => {
    const other = findRow(right, fact.number);
    if (other === undefined) {
      found.left.set(row, { kind: "removed", fields: [] });
      return;
    }
    const fields = differences(fact, rowsOf(right)[other]);
    if (!fields.length) return;
    const kind = fields.length === 1 && fields[0] === "inside" ? "moved" : "changed";
    found.left.set(row, { kind, fields });
    found.right.set(other, { kind, fields });
  });
  rowsOf(right).forEach((fact, row) => {
    if (findRow(left, fact.number) === undefined) {
      found.right.set(row, { kind: "added", fields: [] });
    }
  });
  return found;
}

function counts(left, right) {
  const found = comparison(left, right);
  const count = { added: 0, removed: found.left.size, changed: 0, moved: 0 };
  for (const { kind } of found.right.values()) count[kind] += 1;
  count.removed -= count.changed + count.moved;
  return count;
}

