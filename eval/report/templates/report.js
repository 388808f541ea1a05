(() => {
  const queries = [...document.querySelectorAll(".query")], filters = document.querySelector(".filters"), more = document.querySelector(".more");
  const PAGE = 4; // of each step
  let shown = PAGE;
  const value = name => filters.querySelector(`[name=${name}]`).value;
  const show = () => {
    const words = value("words").toLowerCase().split(/\s+/).filter(Boolean);
    const found = queries.filter(query =>
      ["step", "bin", "direction"].every(name => !value(name) || query.dataset[name] === value(name)) &&
      words.every(word => query.textContent.toLowerCase().includes(word)));
    const counts = {}, seen = new Set(found.filter(query => (counts[query.dataset.step] = (counts[query.dataset.step] || 0) + 1) <= shown));
    for (const query of queries) query.hidden = !seen.has(query);
    for (const step of document.querySelectorAll(".step")) step.hidden = !!value("step") && step.dataset.step !== value("step");
    document.querySelector(".found").textContent = `${seen.size} of ${found.length} queries that fit are shown`;
    more.hidden = found.length === seen.size;
  };
  if (filters) {
    filters.hidden = false;
    filters.addEventListener("input", () => { shown = PAGE; show(); });
    filters.addEventListener("submit", event => event.preventDefault());
    more.addEventListener("click", () => {
      const before = new Set(queries.filter(query => !query.hidden));
      shown += PAGE;
      show();
      const next = queries.find(query => !query.hidden && !before.has(query));
      if (next) { next.tabIndex = -1; next.focus({preventScroll: true}); }
    });
    show();
  }
  const contents = document.querySelector(".contents"), wide = matchMedia("(min-width: 70.01rem)");
  const fit = () => { contents.open = wide.matches; };
  wide.addEventListener("change", fit);
  fit();
  const unfold = () => {
    const target = document.getElementById(decodeURIComponent(location.hash.slice(1)));
    if (target && target.matches("details.fold")) { target.open = true; target.scrollIntoView(); }
  };
  addEventListener("hashchange", unfold);
  contents.addEventListener("click", event => {
    if (event.target.closest("a")) { fit(); setTimeout(unfold); }
  });
  unfold();
})();
