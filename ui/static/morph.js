// Make one tree like another by touching only what differs: rows keep their place, forms what was typed, <details> what
// was opened, and the focus stays. Rows are matched by id or data-key.

const key = (node) => (node.nodeType === 1 ? node.id || node.dataset.key || "" : "");

export function morph(from, to) {
  const focused = document.activeElement;
  node(from, to);
  if (focused && focused !== document.activeElement && focused.isConnected) focused.focus({ preventScroll: true });
}

function node(from, to) {
  if (from.nodeType !== 1) {
    if (from.nodeValue !== to.nodeValue) from.nodeValue = to.nodeValue;
    return;
  }
  if (from.hasAttribute("data-keep") || (from.nodeName === "SELECT" && from === document.activeElement)) return;
  if (from.isEqualNode(to)) return;
  const sameTime = from.nodeName === "TIME" && from.dateTime === to.dateTime && from.dataset.rel === to.dataset.rel;
  attributes(from, to);
  if (!sameTime && from.nodeName !== "OUTPUT") children(from, to);
}

function attributes(from, to) {
  const mine = from.nodeName === "DETAILS" ? ["open"] : from.nodeName === "TIME" ? ["title", "data-local"] : [];
  for (const { name, value } of to.attributes) {
    if (mine.includes(name) || from.getAttribute(name) === value) continue;
    if (name === "class" && from.classList.contains("here")) from.setAttribute(name, `${value} here`);
    else from.setAttribute(name, value);
  }
  for (const { name } of [...from.attributes]) {
    const ours = name === "class" && from.classList.contains("here");
    if (!to.hasAttribute(name) && !mine.includes(name) && !ours) from.removeAttribute(name);
  }
}

function children(from, to) {
  const wanted = new Set([...to.children].map(key).filter(Boolean));
  const known = new Map();
  for (const child of [...from.children]) {
    const name = key(child);
    if (name && !wanted.has(name)) child.remove();
    else if (name) known.set(name, child);
  }
  let place = from.firstChild;
  for (const want of [...to.childNodes]) {
    const name = key(want);
    let have = name ? known.get(name) : null;
    if (!have && !name && place && !key(place) && place.nodeName === want.nodeName) have = place;
    if (have && have.nodeName === want.nodeName) {
      if (have === place) place = place.nextSibling;
      else from.insertBefore(have, place);
      node(have, want);
    } else {
      insert(from, want, place);
    }
  }
  while (place) {
    const next = place.nextSibling;
    place.remove();
    place = next;
  }
}

export function insert(parent, fresh, before) {
  const made = document.adoptNode(fresh);
  parent.insertBefore(made, before);
  if (made.nodeType !== 1) return;
  if (key(made)) made.classList.add("fresh");
  window.htmx?.process(made);
}
