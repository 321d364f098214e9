function fillPanel(stage, row) {
  const fact = stages[stage].rows[row], panel = byId("panel");
  const all = (fact.makes ?? []).map((made) => made[0]);
  const names = all.slice(0, 4).join(", ") + (all.length > 4 ? ", …" : "");
  const title = element("div", { class: "title" }, element("h2", {}, `${fact.op} `, names),
    ...badges(stage, row),
    element("button", { type: "button", class: "close", title: "Escape", onclick: close },
      "close"));
  const first = element("div", {}, facts(stage, fact), ...tables(stage, fact));
  const second = element("div", {}, ...body(fact), ...code(fact));
  panel.replaceChildren(title, element("div", { class: "columns" }, first, second));
  panel.hidden = false;
  panel.scrollTop = 0;
}

function badges(stage, row) {
  const found = comparison(state.left, state.right);
  const shown = [];
  for (const side of ["left", "right"]) {
    const difference = stages[state[side]].same === stage && found[side].get(row);
    if (!difference || shown.length) continue;
    const [left, right] = [stages[state.left].name, stages[state.right].name];
    const fields = difference.fields.map((name) => COMPARED[name]).join(", ");
    const what = {
      added: `not in ${left}`, removed: `not in ${right}`,
      changed: `${fields} changed from ${left} to ${right}`,
      moved: `moved from ${left} to ${right}`,
    }[difference.kind];
    shown.push(element("span", { class: `badge ${difference.kind}` },
      `${MARKS[difference.kind]} ${what}`));
  }
  return shown;
}

function facts(stage, fact) {
  const list = element("dl", {});
  const say = (name, ...content) => {
    if (content.length) list.append(element("dt", {}, name), element("dd", {}, ...content));
  };
  if (fact.line) say("line", element("span", { class: "at" }, fact.line));
  if (fact.source) say("source", element("code", { class: "source" }, fact.source));
  if (fact.scope) say("scope", fact.scope);
  if (fact.origin) say("made by", fact.origin.join(", "));
  if (last) {
    const first = stages.find((each) => each.rows.some((other) => other.number === fact.number));
    say("since", first.name);
  }
  for (const [name, value] of fact.attrs ?? []) say(name, value);
  if (fact.inside) say("inside", link(stage, fact.inside[0]));
  const readers = stages[stage].rows.flatMap((other, row) =>
    other.reads?.some((read) => read[2] === stages[stage].rows.indexOf(fact)) ? [row] : []);
  const links = readers.slice(0, 12).flatMap((row) => [link(stage, row), " "]);
  if (readers.length > 12) links.push(`and ${readers.length - 12} more`);
  say("read by", ...links);
  return list;
}

function link(stage, row) {
  const fact = stages[stage].rows[row];
  const text = fact.leaf ? fact.makes[0][0] : `${fact.op} ${fact.makes[0][0]}`;
  return element("button", { type: "button", onclick: () => pick(stage, row) }, text);
}

function tables(stage, fact) {
  const found = [];
  // What a leaf of a body is called inside says little: what it stands for is named too.
  const named = (name, from) => {
    const makes = rowsOf(stage)[from].makes;
    return makes.length > 1 || makes[0][0] === name ? name : `${name} = ${makes[0][0]}`;
  };
  const table = (heading, values, more) => {
    if (!values?.length) return;
    const rows = values.map(([name, type, from]) => element("tr", {},
      element("td", {}, from === undefined ? name
        : element("button", { type: "button", onclick: () => pick(stage, from) },
          named(name, from))),
      element("td", {}, type), element("td", { class: "bytes" }, data.bytes[type])));
    if (more) rows.push(element("tr", {}, element("td", {}, `and ${more} more`)));
    found.push(element("h3", {}, heading), element("table", {}, element("tr", {},
      element("th", {}, "name"), element("th", {}, "type"), element("th", {}, "bytes")), ...rows));
  };
  table("reads", fact.reads, fact.more);
  table("makes", fact.makes, 0);
  return found;
}

function body(fact) {
  const heading = fact.leaf ? "made when weights are loaded" : "what it stands for";
  return (fact.body ?? []).flatMap((text) => [element("h3", {}, heading),
    element("pre", { class: "definition" }, data.texts[text])]);
}

// The code of the node as it is after all passes, or of the fused node that holds it.
function code(fact) {
  if (data.codeNote) return [element("p", { class: "note" }, data.codeNote)];
  const row = findRow(last, fact.number), rows = rowsOf(last);
  if (row === undefined || rows[row].leaf) return [];
  let holder = rows[row];
  while (!holder.code && holder.inside) holder = rows[holder.inside[0]];
  if (!holder.code) return [element("p", { class: "note" }, "no generated code of its own")];
  const heading = holder === rows[row] ? "generated code"
    : `generated code, of the ${holder.op} that it is a part of`;
  return [element("h3", {}, heading), ...holder.code.map((text) =>
    element("pre", { class: "generated" }, data.texts[text].replace(/\n+$/, "")))];
}
