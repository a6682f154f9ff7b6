// The little script of the status page. Every page works without it; with it, live parts renew themselves and grave deeds are asked about.
//
// A live part is an element with an id and data-live="<seconds>". All parts of a page are renewed by one fetch of the page's own
// address, and only while somebody can see it. The header says that no person asked, so that a page left open signs nobody's session
// on for ever; when the answer leads elsewhere (signed out), the whole page follows. After each renewal the event "halo:renewed" is
// sent to the document, for scripts that draw. While a store is away an open page keeps what it shows and says why it is not renewed; the
// page that says so itself (#away) is left for what was asked for as soon as there is an answer. A part with the focus inside is left alone, so that nothing is pulled from under a hand.
"use strict";

const parts = () => [...document.querySelectorAll("[data-live][id]")];

const renew = async () => {
  const answer = await fetch(location.href, { headers: { "X-Halo-Live": "1" }, redirect: "manual", cache: "no-store" });
  if (answer.type === "opaqueredirect") {
    location.reload();
    return;
  }
  const fresh = new DOMParser().parseFromString(await answer.text(), "text/html");
  const [away, wasAway] = [fresh, document].map((page) => page.getElementById("away"));
  if (!answer.ok && !away) throw new Error("");
  if (away && !wasAway) throw new Error(away.textContent);
  if (wasAway && (!away || away.textContent !== wasAway.textContent)) {
    location.reload();
    return;
  }
  for (const part of parts()) {
    const next = fresh.getElementById(part.id);
    if (next && !part.contains(document.activeElement)) part.replaceWith(document.adoptNode(next));
  }
  document.dispatchEvent(new CustomEvent("halo:renewed"));
};

const say = (stale, why = "") => {
  document.getElementById("why-stale").textContent = why;
  document.getElementById("stale").hidden = !stale;
};

const live = async () => {
  const seconds = Math.min(...parts().map((part) => Number(part.dataset.live)));
  if (!Number.isFinite(seconds) || seconds <= 0) return;
  if (!document.hidden) {
    try {
      await renew();
      say(false);
    } catch (trouble) {
      say(true, trouble instanceof TypeError ? "halo does not answer." : trouble.message);
    }
  }
  setTimeout(live, seconds * 1000);
};

document.addEventListener("submit", (event) => {
  const question = event.target.dataset.ask;
  if (question && !confirm(question)) {
    event.preventDefault();
    return;
  }
  if (event.target.method !== "post") return;
  // A second click while the first is under way would do it twice.
  if (event.target.dataset.sent) event.preventDefault();
  event.target.dataset.sent = "1";
  for (const button of event.target.querySelectorAll("button")) button.setAttribute("aria-disabled", "true");
});

// A page that comes back from the browser's own store may be sent again.
addEventListener("pageshow", () => {
  for (const form of document.querySelectorAll("form[data-sent]")) {
    delete form.dataset.sent;
    for (const button of form.querySelectorAll("button")) button.removeAttribute("aria-disabled");
  }
});

const first = Math.min(...parts().map((part) => Number(part.dataset.live)));
if (Number.isFinite(first) && first > 0) setTimeout(live, first * 1000);
