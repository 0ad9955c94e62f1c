// The report's viewer on a page that is as small as can be: reads {"data", "script", "acts"} from stdin, does what the
// acts say, and prints what the viewer shows after each. Whatever would parse text as HTML is an error here.
"use strict";
const { data, script, sources, acts } = JSON.parse(require("fs").readFileSync(0, "utf8"));
const known = new Map();

class Element {
  constructor(tag) {
    Object.assign(this, { tagName: tag.toUpperCase(), children: [], own: "", attributes: {}, dataset: {}, hidden: false,
      value: "", listeners: {}, scrollTop: 0, offsetTop: 0, offsetHeight: 10, clientHeight: 100, disabled: false });
    const element = this, classes = new Set();
    this.style = { setProperty: (name, value) => { this[name] = value; } };
    this.classList = { add: (name) => classes.add(name), remove: (name) => classes.delete(name) };
    this.classes = classes;
    for (const name of ["innerHTML", "outerHTML"]) {
      Object.defineProperty(this, name, { set() { throw new Error(name + " parses text as HTML: " + element.tagName); } });
    }
  }
  insertAdjacentHTML() { throw new Error("insertAdjacentHTML parses text as HTML"); }
  set className(names) { names.split(" ").filter(Boolean).forEach((name) => this.classes.add(name)); }
  get textContent() { return this.own + this.children.map((child) => child.textContent).join(""); }
  set textContent(text) { this.own = String(text); this.children = []; }
  get options() { return this.children; }
  setAttribute(name, value) {
    this.attributes[name] = value;
    if (name === "id") known.set(value, this);
    if (name === "value") this.value = String(value);
    if (name.startsWith("data-")) this.dataset[name.slice(5)] = String(value);
  }
  removeAttribute(name) { delete this.attributes[name]; }
  append(...items) { for (const item of items) this.children.push(item instanceof Element ? item : text(item)); }
  replaceChildren(...items) { this.children = []; this.own = ""; this.append(...items); }
  addEventListener(kind, act) { (this.listeners[kind] = this.listeners[kind] || []).push(act); }
  fire(kind, fields) {
    const event = { target: this, preventDefault() {}, ...fields };
    for (const act of this.listeners[kind] || []) act(event);
  }
  scrollIntoView() {}
  focus() { document.activeElement = this; this.fire("focus"); }
  querySelectorAll() { return radios; }
  find(test) { return [...(test(this) ? [this] : []), ...this.children.flatMap((child) => child.find(test))]; }
}
function text(value) { const node = new Element("#text"); node.own = String(value); return node; }
function element(id) {
  if (!known.has(id)) {
    if (id.startsWith("viewer-row-")) return null;
    known.set(id, new Element("div"));
  }
  return known.get(id);
}
function choices(id, values) {
  for (const value of values) { const option = new Element("option"); option.value = value; element(id).append(option); }
  element(id).value = values[0];
}

const radios = ["text", "mask", "logprob", "advantage"].map((value) => { const radio = new Element("input"); radio.value = value; return radio; });
global.document = { getElementById: element, createElement: (tag) => new Element(tag), listeners: {}, activeElement: null,
  addEventListener(kind, act) { this.listeners[kind] = act; } };
global.window = global;
element("episodes-data").textContent = data;
element("viewer").dataset.sources = JSON.stringify(sources);
element("viewer").hidden = true;
choices("viewer-kind", ["all", "failed", "wrong", "right", "parse", "cut"]);
choices("viewer-order", ["stored", "worst", "best", "surprise", "reward", "long"]);
for (const id of ["source", "level", "step"]) choices("viewer-" + id, [""]);
(0, eval)(script);

const doing = {
  set([id, value]) { element("viewer-" + id).value = value; element("viewer-" + id).fire("change"); },
  search([words]) { element("viewer-search").value = words; window.palaestraViewer.apply(); },
  view([value]) { radios.find((radio) => radio.value === value).fire("change"); },
  press([id, key]) { element("viewer-" + id).fire("keydown", { key: key }); },
  step([key]) { streams()[0].focus(); streams()[0].fire("keydown", { key: key }); },
  page([key]) { document.listeners.keydown({ key: key, target: { tagName: "BODY" }, preventDefault() {} }); },
  look() {},
};
function streams() { return element("viewer-detail").find((one) => one.classes.has("stream")); }
const shown = acts.map(([name, ...values]) => {
  doing[name](values);
  return {
    count: element("viewer-count").textContent,
    rows: element("viewer-list").children.map((row) => row.textContent),
    at: window.palaestraViewer.state.at,
    detail: element("viewer-detail").textContent,
    tokens: streams().flatMap((one) => one.children).map((token) => ({ text: token.textContent, classes: [...token.classes], share: token["--share"] || "" })),
    inspector: element("viewer-inspector").textContent,
    kinds: element("viewer-kind").children.map((option) => option.textContent + (option.disabled ? " disabled" : "")),
    focus: document.activeElement === element("viewer-search"),
    hidden: element("viewer").hidden,
  };
});
console.log(JSON.stringify(shown));
