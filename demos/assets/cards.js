// A script as a row of cards. Value: {shots: [{caption, seconds, camera, locked, take, shot, seed, poster, verdict}],
// retakes: whether a shot can be taken again now}. Events: "input" (edited), "select" ({shot}: take this one again).
const cameras = props.cameras || [], names = "cameras-" + Math.random().toString(36).slice(2);
const fresh = () => ({ caption: "", seconds: null, camera: "" });
let state = { shots: [fresh()], retakes: false };
let dragged = null;

const publish = () => {
  props.value = JSON.parse(JSON.stringify(state));
  trigger("input");
};
const change = (index, name, value) => {
  state.shots[index][name] = value;
  if (state.shots[index].verdict) {
    delete state.shots[index].verdict;
    body.querySelectorAll(".card")[index].querySelectorAll(".head .badge, .why").forEach((node) => node.remove());
  }
  body.querySelector(".sum").textContent = sum();
  publish();
};
const sum = () => {
  const total = state.shots.reduce((all, shot) => all + (Number(shot.seconds) || 0), 0);
  const open = state.shots.some((shot) => !shot.seconds);
  return state.shots.length + (state.shots.length === 1 ? " shot" : " shots")
    + (total ? ", " + seconds(total) + " s" + (open ? " and those left to the model" : "") : "");
};
const move = (from, to) => {
  if (to < 0 || to >= state.shots.length || from === to) return;
  state.shots.splice(to, 0, ...state.shots.splice(from, 1));
  draw();
  publish();
  body.querySelectorAll(".card")[to]?.querySelector("textarea")?.focus();
};
const remove = (index) => {
  state.shots.splice(index, 1);
  if (!state.shots.length) state.shots.push(fresh());
  draw();
  publish();
  body.querySelectorAll(".card")[Math.min(index, state.shots.length - 1)]?.querySelector("textarea")?.focus();
};
const add = () => {
  state.shots.push(fresh());
  draw();
  publish();
  [...body.querySelectorAll("textarea")].pop()?.focus();
};

const icon = (sign, label, act, disabled) =>
  h("button", { type: "button", class: "icon", title: label, "aria-label": label, onclick: act, disabled }, sign);

const card = (shot, index) => {
  const name = "Shot " + (index + 1), last = state.shots.length - 1, held = !!shot.locked;
  const node = h("li", { class: "card" + (held ? " held" : ""), "aria-label": name },
    h("div", { class: "head" },
      h("span", { class: "grip", draggable: "true", title: "Drag to reorder", "aria-hidden": "true",
        ondragstart: (event) => {
          dragged = index;
          event.dataTransfer.effectAllowed = "move";
          event.dataTransfer.setData("text/plain", name);
        },
        ondragend: () => { dragged = null; } }, "⠿"),
      h("strong", {}, name),
      shot.verdict ? h("span", { class: "badge " + shot.verdict.kind, title: shot.verdict.why || "as the script says" },
        shot.verdict.kind === "good" ? "✓ " : "✗ ", shot.verdict.text) : null,
      h("span", { class: "push" }),
      icon("←", name + ": move earlier", () => move(index, index - 1), index === 0),
      icon("→", name + ": move later", () => move(index, index + 1), index === last),
      icon("✕", name + ": remove", () => remove(index), last === 0 && !shot.caption)),
    shot.poster ? h("img", { class: "poster", src: shot.poster, alt: name + " as it was last taken" }) : null,
    h("label", {}, "What is seen",
      h("textarea", { rows: 3, value: shot.caption || "", placeholder: "A red cube jumps beside a blue cone.",
        maxlength: 5000, readonly: held, oninput: (event) => change(index, "caption", event.target.value) })),
    h("div", { class: "pair" },
      h("label", {}, "Seconds",
        h("input", { type: "number", min: 0.1, max: 3600, step: "any", value: shot.seconds ?? "", placeholder: "auto",
          readonly: held, oninput: (event) =>
            change(index, "seconds", event.target.value === "" ? null : Number(event.target.value)) })),
      h("label", {}, "Camera",
        h("input", { type: "text", list: names, value: shot.camera || "", placeholder: "free",
          readonly: held, oninput: (event) => change(index, "camera", event.target.value) }))),
    shot.verdict?.why ? h("p", { class: "why" }, shot.verdict.why) : null,
    shot.take ? h("div", { class: "foot" },
      h("label", { class: "lock", title: "Hold this take of the shot when the film is rendered again" },
        h("input", { type: "checkbox", checked: held,
          onchange: (event) => {
            shot.locked = event.target.checked;
            draw();
            publish();
            body.querySelectorAll(".card")[index].querySelector(".lock input").focus();
          } }),
        h("span", {}, "Lock seed", shot.seed === null ? null : h("small", {}, String(shot.seed)))),
      h("span", { class: "push" }),
      h("button", { type: "button", class: "small", disabled: held || !state.retakes,
        "aria-label": "Re-take " + name.toLowerCase(), onclick: () => trigger("select", { shot: index + 1 }) }, "↻ Re-take"))
      : null);
  node.addEventListener("dragover", (event) => {
    if (dragged === null) return;
    event.preventDefault();
    node.classList.add("over");
  });
  node.addEventListener("dragleave", () => node.classList.remove("over"));
  node.addEventListener("drop", (event) => {
    event.preventDefault();
    node.classList.remove("over");
    if (dragged !== null) move(dragged, index);
  });
  return node;
};

const draw = () => {
  const list = state.shots.map(card);
  body.replaceChildren(
    h("datalist", { id: names }, cameras.map((name) => h("option", { value: name }))),
    h("ol", { class: "cards", "aria-label": "Shots in order" }, list,
      h("li", { class: "add" },
        h("button", { type: "button", "aria-label": "Add a shot", onclick: add }, h("span", {}, "+"), "Add a shot"))),
    h("p", { class: "sum" }, sum()));
};
const take = () => {
  const given = props.value;
  if (!given || JSON.stringify(given) === JSON.stringify(state)) return;
  state = JSON.parse(JSON.stringify(given));
  if (!state.shots?.length) state.shots = [fresh()];
  draw();
};
take();
draw();
watch("value", take);
