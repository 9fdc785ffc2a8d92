// Reads the same page again and changes what differs, so that nothing flickers and focus, scroll and pictures stay.
(() => {
  const seconds = Number(document.body.dataset.seconds);
  const button = document.getElementById("pause"), told = document.getElementById("told");
  let paused = false, timer, last = new Date();

  function say(before, lost = false) {
    told.textContent = before + "as of " + last.toLocaleTimeString([], { timeZoneName: "short" });
    told.classList.toggle("lost", lost);
  }

  function morph(old, fresh) {
    if (old.nodeName !== fresh.nodeName) return old.replaceWith(fresh);
    if (old.nodeType !== Node.ELEMENT_NODE) {
      if (old.data !== fresh.data) old.data = fresh.data;
      return;
    }
    for (const name of old.getAttributeNames()) if (name !== "open" && !fresh.hasAttribute(name)) old.removeAttribute(name);
    for (const name of fresh.getAttributeNames()) {
      const value = fresh.getAttribute(name);
      if (name !== "open" && old.getAttribute(name) !== value) old.setAttribute(name, value);
    }
    const before = [...old.childNodes], after = [...fresh.childNodes];
    after.forEach((child, place) => place < before.length ? morph(before[place], child) : old.append(child));
    before.slice(after.length).forEach(child => child.remove());
  }

  async function refresh() {
    clearTimeout(timer);
    try {
      const answer = await fetch(location.href, { cache: "no-store" });
      if (!answer.ok) throw new Error(answer.status === 404 ? "not there any more" : "the server refuses");
      const fresh = new DOMParser().parseFromString(await answer.text(), "text/html");
      if (paused) return;
      morph(document.querySelector("main"), fresh.querySelector("main"));
      document.title = fresh.title;
      last = new Date();
      say("");
    } catch (error) {
      const why = error instanceof TypeError ? "no answer" : error.message;
      say(why + "; ", true);
    }
    schedule();
  }

  function schedule() {
    clearTimeout(timer);
    if (!paused && !document.hidden) timer = setTimeout(refresh, 1000 * seconds);
  }

  button.hidden = false;
  button.addEventListener("click", () => {
    paused = !paused;
    button.textContent = paused ? "Go on" : "Pause";
    if (paused) {
      clearTimeout(timer);
      say("paused; ");
    } else refresh();
  });
  document.addEventListener("visibilitychange", () => document.hidden || paused ? clearTimeout(timer) : refresh());
  say("");
  schedule();
})();
