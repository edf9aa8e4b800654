// A piece of markup that the server made (all text in it escaped there), renewed in place: focus, hover and selection stay.
function same(old, young) {
  if (old.nodeType !== young.nodeType || old.nodeName !== young.nodeName) return old.replaceWith(young);
  if (old.nodeType !== Node.ELEMENT_NODE) {
    if (old.data !== young.data) old.data = young.data;
    return;
  }
  for (const { name } of [...old.attributes]) if (!young.hasAttribute(name)) old.removeAttribute(name);
  for (const { name, value } of young.attributes) if (old.getAttribute(name) !== value) old.setAttribute(name, value);
  const was = [...old.childNodes], is = [...young.childNodes];
  is.forEach((child, index) => (was[index] ? same(was[index], child) : old.append(child)));
  was.slice(is.length).forEach((child) => child.remove());
}

function begin(place, part) {
  const slot = document.createElement("div");
  place.append(slot);
  let heard = false;
  const draw = (markup) => {
    const young = document.createElement("div");
    young.innerHTML = markup;
    same(slot, young);
  };
  const end = stream.listen(part, (markup) => { heard = true; draw(markup); });
  return { end, first: (markup) => { if (!heard) draw(markup); } };
}

export default function ({ parentElement, data }) {
  const slot = once(parentElement, () => begin(parentElement, data.part));
  slot.first(data.first);
  return slot.end;
}
