// Saves a chart of the page as an SVG file: what is drawn now, on the page's own background. Nothing leaves the browser.
const SVG = "http://www.w3.org/2000/svg";

function drawn(alt) {
  const named = [...document.querySelectorAll("[aria-label]")];
  return named.find((each) => each.getAttribute("aria-label") === alt)?.querySelector("svg");
}

function background(element) {
  for (let each = element; each; each = each.parentElement) {
    const color = getComputedStyle(each).backgroundColor;
    if (color && color !== "transparent" && color !== "rgba(0, 0, 0, 0)") return color;
  }
  return "#ffffff";
}

function text(svg) {
  const copy = svg.cloneNode(true);
  copy.setAttribute("xmlns", SVG);
  const back = document.createElementNS(SVG, "rect");
  for (const [name, value] of [["width", "100%"], ["height", "100%"], ["fill", background(svg)]]) back.setAttribute(name, value);
  copy.prepend(back);
  return new XMLSerializer().serializeToString(copy);
}

function save(content, name) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([content], { type: "image/svg+xml" }));
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
}

export default function ({ parentElement, data }) {
  let button = parentElement.querySelector("button");
  if (!button) {
    button = document.createElement("button");
    button.type = "button";
    button.className = "pl-button";
    button.textContent = "Download SVG";
    parentElement.append(button);
  }
  button.onclick = () => {
    const svg = drawn(data.alt);
    button.textContent = svg ? "Download SVG" : "Nothing is drawn yet";
    if (svg) save(text(svg), data.name);
  };
}
