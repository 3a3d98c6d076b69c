// An answer. Value: {answer, chosen: index, options: [{text, score}], basis}.
const draw = () => {
  const value = props.value;
  if (!value) return body.replaceChildren();
  body.replaceChildren(h("div", { class: "answer", role: "status" },
    h("p", { class: "said" }, value.answer), h("p", { class: "basis" }, value.basis),
    value.options?.length ? h("ol", { class: "options" }, value.options.map((option, i) =>
      h("li", { class: i === value.chosen ? "chosen" : "" },
        h("span", { class: "text" }, option.text),
        option.score === null ? null : h("span", { class: "meter", "aria-hidden": "true" },
          h("i", { style: "width:" + Math.round(100 * option.score) + "%" })),
        option.score === null ? null : h("span", { class: "score" }, Math.round(100 * option.score) + " %")))) : null));
};
draw();
watch("value", draw);
