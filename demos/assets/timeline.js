// Moments under a player. Value: {player: id of its element, duration, cuts: [t], rows: [{label, status, 
// moments: [{start, end, score?, text?, kind?: good|bad}], relevance: [[t, value]]}], play: [start, end] to play at once}.
// A moment seeks the player and plays to its end; the track seeks where it is clicked.
let stop = null;
let played = "";
const video = () => document.querySelector("#" + (props.value?.player || "none") + " video");
const ticks = (duration) => {
  const step = [0.25, 0.5, 1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 1200].find((s) => duration / s <= 8) || 3600;
  return Array.from({ length: Math.floor(duration / step + 1e-9) + 1 }, (_, i) => i * step);
};
const seek = (start, end) => {
  const film = video();
  if (!film) return;
  stop = end ?? null;
  film.loop = false;
  film.currentTime = start;
  if (end !== undefined) film.play().catch(() => {});
};
const share = (t, duration) => (100 * Math.min(Math.max(t / duration, 0), 1)).toFixed(3) + "%";
const curve = (points, duration) => {
  if (!points?.length) return null;
  const at = ([t, value]) => (1000 * Math.min(t / duration, 1)).toFixed(1) + " " + (100 - 96 * value).toFixed(1);
  const path = "M" + points.map(at).join(" L");
  const [first, last] = [points[0][0], points[points.length - 1][0]].map((t) => (1000 * Math.min(t / duration, 1)).toFixed(1));
  return h("svg", { viewBox: "0 0 1000 100", preserveAspectRatio: "none", "aria-hidden": "true" },
    h("path", { class: "area", d: path + ` L${last} 100 L${first} 100 Z` }), h("path", { class: "line", d: path }));
};
const draw = () => {
  const value = props.value;
  if (!value?.rows?.length || !(value.duration > 0)) return body.replaceChildren();
  const { duration } = value;
  const words = { not_found: "not found", parse_error: "no readable answer" };
  const rows = value.rows.map((row) => {
    const track = h("div", { class: "track" }, curve(row.relevance, duration),
      (value.cuts || []).map((t) => h("i", { class: "cut", style: "left:" + share(t, duration) })),
      row.moments.map((m, rank) => h("button", {
        type: "button", class: "moment " + (m.kind || "") + (rank || m.score < 0.5 ? " lesser" : ""),
        style: `left:${share(m.start, duration)};width:calc(${share(m.end, duration)} - ${share(m.start, duration)})`,
        title: `${seconds(m.start)} – ${seconds(m.end)} s` + (m.score === undefined ? "" : `, score ${m.score.toFixed(2)}`),
        "aria-label": `${row.label}: play from ${seconds(m.start)} to ${seconds(m.end)} seconds`,
        onclick: (event) => { event.stopPropagation(); seek(m.start, m.end); } },
        m.text || (m.score === undefined ? "" : m.score.toFixed(2)))),
      h("b", { class: "playhead" }));
    track.addEventListener("click", (event) => {
      const box = track.getBoundingClientRect();
      seek(duration * (event.clientX - box.left) / box.width);
    });
    return h("div", { class: "row" },
      h("div", { class: "label", title: row.label }, row.label,
        words[row.status] ? h("em", {}, words[row.status]) : null), track);
  });
  body.replaceChildren(h("div", { class: "timeline", role: "group", "aria-label": "Moments found in the film" }, rows,
    h("div", { class: "row axis", "aria-hidden": "true" }, h("div", { class: "label" }),
      h("div", { class: "scale" }, ticks(duration).map((t) =>
        h("span", { style: "left:" + share(t, duration) }, seconds(t) + (t === 0 ? " s" : "")))))));
  const wanted = JSON.stringify(value.play || null) + JSON.stringify(value.rows);
  if (value.play && wanted !== played) setTimeout(() => seek(...value.play), 400);
  played = wanted;
};
const follow = () => {
  if (!element.isConnected) return clearInterval(timer);
  const film = video(), duration = props.value?.duration;
  if (!film || !duration) return;
  if (stop !== null && film.currentTime >= stop) { film.pause(); stop = null; }
  body.querySelectorAll(".playhead").forEach((head) => { head.style.left = share(film.currentTime, duration); });
};
const timer = setInterval(follow, 60);
draw();
watch("value", draw);
