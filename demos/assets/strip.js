// Films to choose from. Value: {items: [{id, title, detail, badge, film: path, poster: path}], chosen: id, empty: text}.
// Event: "select" ({id}).
const draw = () => {
  const value = props.value || {}, items = value.items || [];
  if (!items.length) return body.replaceChildren(value.empty ? h("p", { class: "empty" }, value.empty) : "");
  const before = document.activeElement?.dataset?.take;
  body.replaceChildren(h("ul", { class: "strip" }, items.map((item) => {
    const film = item.film ? h("video", { src: fileURL(item.film) + "#t=0.05", muted: true, loop: true, playsinline: true,
      preload: "metadata", tabindex: "-1", "aria-hidden": "true" }) : h("span", { class: "nofilm" }, item.badge || "");
    const play = () => film.play?.().catch(() => {}), rest = () => film.pause?.();
    return h("li", {}, h("button", { type: "button", class: "film" + (item.id === value.chosen ? " chosen" : ""),
      "data-take": item.id, "aria-pressed": String(item.id === value.chosen), "aria-label": item.title,
      onclick: () => trigger("select", { id: item.id }), onmouseenter: play, onfocus: play, onmouseleave: rest, onblur: rest },
      h("span", { class: "frame" }, film, item.badge && item.film ? h("span", { class: "badge" }, item.badge) : null),
      h("span", { class: "title" }, item.title), h("span", { class: "detail" }, item.detail || "")));
  })));
  if (before) [...body.querySelectorAll("button")].find((b) => b.dataset.take === before)?.focus();
};
draw();
watch("value", draw);
