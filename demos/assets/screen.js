// What a render is doing. Value: {state: idle|queued|running|done|failed|cancelled, text, share: 0..1, left: seconds,
// previews: [picture] over the film in order}.
const draw = () => {
  const value = props.value || { state: "idle" };
  const busy = ["queued", "running"].includes(value.state);
  const left = busy && value.left !== null && value.left !== undefined ? "about " + clock(value.left) + " left" : "";
  const percent = Math.round(100 * (value.share || 0));
  body.replaceChildren(...(value.state === "idle" ? [] : [h("div", { class: "screen " + value.state },
    value.previews?.length ? h("div", { class: "previews" }, value.previews.map((src, i) =>
      h("img", { src, alt: "The film so far, picture " + (i + 1) }))) : null,
    h("div", { class: "line", role: value.state === "failed" ? "alert" : "status" },
      h("span", { class: "dot", "aria-hidden": "true" }), h("span", {}, value.text || ""),
      h("span", { class: "remaining" }, left)),
    busy ? h("div", { class: "bar" + (value.state === "queued" ? " waiting" : ""), role: "progressbar",
      "aria-label": "Progress", "aria-valuemin": 0, "aria-valuemax": 100, "aria-valuenow": percent },
      h("i", { style: "width:" + percent + "%" })) : null)]));
};
draw();
watch("value", draw);
