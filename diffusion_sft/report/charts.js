/* Draws the charts of #charts-data when they come near the window, and sets them by their legends and lists. */
"use strict";
(() => {
const source = document.getElementById("charts-data");
if (!source || typeof vegaEmbed === "undefined") return;
const specs = JSON.parse(source.textContent);
// ast: expressions are interpreted, so that the page's policy can forbid eval
const options = { ast: true, actions: false, renderer: "svg", mode: "vega-lite" };

async function drawn(element) {
  const { view } = await vegaEmbed(element, specs[element.dataset.chart], options);
  view.addEventListener("click", (_, item) => {
    const page = item?.datum?.page;
    if (/^#concept\/\d+$/.test(page ?? "")) location.hash = page;
  });
  return view;
}

async function draw(group) {
  const views = await Promise.all([...group.querySelectorAll(".chart")].map(drawn));
  const buttons = [...group.querySelectorAll("button[data-label]")], list = group.querySelector("select");
  const set = () => {
    const hidden = buttons.filter((button) => button.getAttribute("aria-pressed") === "false").map((button) => button.dataset.label);
    for (const view of views) {
      if (buttons.length) view.signal("hidden", hidden);
      if (list) view.signal("shown", Number(list.value));
      view.runAsync();
    }
  };
  for (const button of buttons) {
    button.addEventListener("click", () => {
      button.setAttribute("aria-pressed", String(button.getAttribute("aria-pressed") === "false"));
      set();
    });
  }
  list?.addEventListener("change", set);
  if (list && list.value !== "0") set();
  group.classList.add("drawn");
}

const watcher = new IntersectionObserver((seen) => {
  for (const { isIntersecting, target } of seen) {
    if (!isIntersecting) continue;
    watcher.unobserve(target);
    draw(target);
  }
}, { rootMargin: "600px" });
for (const group of document.querySelectorAll(".chart-group")) {
  group.hidden = false;
  watcher.observe(group);
}
})();
