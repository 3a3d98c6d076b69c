// Small helpers of the studio's own components. Every text goes in as text, so a caption is never read as HTML.
const h = (tag, attributes, ...children) => {
  const svg = ["svg", "path", "line"].includes(tag);
  const node = svg ? document.createElementNS("http://www.w3.org/2000/svg", tag) : document.createElement(tag);
  for (const [name, value] of Object.entries(attributes || {})) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (["value", "checked", "muted", "loop"].includes(name)) node[name] = value;
    else node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== false));
  return node;
};
const base = () => (window.gradio_config?.root || "") + (window.gradio_config?.api_prefix || "/gradio_api");
const fileURL = (path) => base() + "/file=" + path.split("/").map(encodeURIComponent).join("/");
const seconds = (value) => (Math.round(value * 100) / 100).toString();
const clock = (value) => {
  const whole = Math.max(0, Math.round(value));
  return whole < 60 ? whole + " s" : Math.floor(whole / 60) + " min " + String(whole % 60).padStart(2, "0") + " s";
};
const body = element.querySelector(".body");
