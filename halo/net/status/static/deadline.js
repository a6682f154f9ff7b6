// A deadline that ticks: an element with data-until and data-now (both RFC 3339), whose text becomes the time that is left.
//
// The server's clock counts, not the browser's: the page says what time it was there, and only what has passed since is measured here.
// The ticking text is hidden from screen readers, which have the moment itself beside it. Once it is over it says so, and the page's own
// renewal tells what came of it.
"use strict";

const seen = new WeakMap();

const left = (element) => {
  if (!seen.has(element)) {
    seen.set(element, { until: Date.parse(element.dataset.until) - Date.parse(element.dataset.now), from: performance.now() });
  }
  const { until, from } = seen.get(element);
  return Math.ceil((until - (performance.now() - from)) / 1000);
};

const two = (number) => String(number).padStart(2, "0");

const told = (seconds) => {
  if (seconds <= 0) return "now";
  const hours = Math.floor(seconds / 3600);
  const minutes = Math.floor(seconds / 60) % 60;
  return hours ? `${hours}:${two(minutes)}:${two(seconds % 60)}` : `${minutes}:${two(seconds % 60)}`;
};

const tick = () => {
  for (const element of document.querySelectorAll("[data-until][data-now]")) element.textContent = told(left(element));
};

tick();
setInterval(tick, 1000);
document.addEventListener("halo:renewed", tick);
