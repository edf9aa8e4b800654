// A piece of markup that the server made (all text in it escaped there), renewed in place: focus, hover and selection stay.
function same(old, young) {
  if (old.nodeType !== young.nodeType || old.nodeName !== young.nodeName) return old.replaceWith(young);
  if (old.nodeType !== Node.ELEMENT_NODE) {
    if (old.data !== young.data) old.data = young.data;
    return;
  }
  for (const { name } of [...old.attributes]) if (!young.hasAttribute(name)) old.removeAttribute(name);
  for (const { name, value } of young.attributes) if (old.getAttribute(name) !== value) old.setAttribute(name, value);
  children(old, young);
}

function children(old, young) {
  const was = [...old.childNodes], is = [...young.childNodes];
  is.forEach((child, index) => (was[index] ? same(was[index], child) : old.append(child)));
  was.slice(is.length).forEach((child) => child.remove());
}

function inert(markup) { // nothing in it can run, should something ever come unescaped
  const { body } = new DOMParser().parseFromString(markup, "text/html");
  body.querySelectorAll("script,iframe,object,embed,link,meta,base,form").forEach((each) => each.remove());
  for (const each of body.querySelectorAll("*"))
    for (const { name, value } of [...each.attributes])
      if (name.startsWith("on") || /^\s*javascript:/i.test(value)) each.removeAttribute(name);
  return body;
}

function begin(place, part) {
  const slot = document.createElement("div");
  place.append(slot);
  let heard = false;
  const draw = (markup) => children(slot, inert(markup));
  const end = stream.listen(part, (markup) => { heard = true; draw(markup); });
  return { end, first: (markup) => { if (!heard) draw(markup); } };
}

export default function ({ parentElement, data }) {
  const slot = once(parentElement, () => begin(parentElement, data.part));
  slot.first(data.first);
  return slot.end;
}
