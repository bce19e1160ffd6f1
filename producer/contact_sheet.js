
"use strict";
(() => {
  const by = (id) => document.getElementById(id);
  const sections = by("sections"), find = by("find"), found = by("found"), size = by("size"), groups = by("by"), tip = by("tip");
  const view = by("view"), shown = by("shown");
  const number = (card) => Number(card.dataset.n);
  let cards = [...sections.querySelectorAll(".card")].sort((a, b) => number(a) - number(b));
  const made = (tag, text) => Object.assign(document.createElement(tag), { textContent: text });
  const factsOf = (card) => JSON.parse(card.dataset.facts);
  const visible = (text) => text.replace(/[\u0000-\u0008\u000b-\u001f\u007f]/g, "\ufffd");

  // --- everything that is known about a card: open, on hover, on focus ---

  // Of one picture out of several, its own seed and file.
  const listOf = (card, link) => {
    const list = document.createElement("dl"), own = link?.dataset.seed;
    const file = own && decodeURIComponent(link.getAttribute("href")).slice(2);
    for (const [name, known] of factsOf(card)) {
      if (own && name === "file" && !known.startsWith(`${file} `)) continue;
      const text = own && name === "seed" ? own : known;
      const value = made("dd", visible(text));
      value.dir = "auto";
      list.append(made("dt", visible(name)), value);
    }
    return list;
  };
  sections.addEventListener("toggle", ({ target }) => {
    if (target.open && !target.querySelector("dl")) target.append(listOf(target.closest(".card")));
    hush();
  }, true);

  let soon = 0, told = null;
  const hush = () => {
    clearTimeout(soon);
    told?.removeAttribute("aria-describedby");
    told = null;
    tip.hidden = true;
  };
  const tell = (at) => {
    const card = at.closest(".card");
    if (!card || card.querySelector("details[open]")) return;
    hush();
    told = at;
    tip.replaceChildren(listOf(card, at));
    tip.hidden = false;
    at.setAttribute("aria-describedby", "tip");
    place();
  };
  const place = () => {
    const box = told.closest(".card").getBoundingClientRect(), { offsetWidth: width, offsetHeight: height } = tip, gap = 10;
    const fits = (left) => left >= gap && left + width <= innerWidth - gap;
    const beside = [box.right + gap, box.left - gap - width].find(fits);
    const left = beside ?? Math.max(gap, Math.min(box.left, innerWidth - width - gap));
    const below = box.bottom + gap + height < innerHeight ? box.bottom + gap : box.top - gap - height;
    const top = beside === undefined ? below : box.top;
    tip.style.transform = `translate(${left}px, ${Math.max(gap, Math.min(top, innerHeight - height - gap))}px)`;
  };
  const telling = ".pictures a, .film, .sound, summary";
  sections.addEventListener("pointerover", ({ target, pointerType }) => {
    const at = pointerType === "mouse" && target.closest(telling);
    if (at === told && at) return;
    hush();
    if (at) soon = setTimeout(tell, 350, at);
  });
  sections.addEventListener("pointerleave", hush);
  sections.addEventListener("focusin", ({ target }) => { if (target.matches(":focus-visible") && target.closest(telling)) tell(target); });
  sections.addEventListener("focusout", hush);
  // What has the focus is scrolled to; what is pointed at, scrolled away from.
  addEventListener("scroll", () => { if (told?.matches(":focus-visible")) place(); else hush(); }, { passive: true });

  // --- sift and group ---

  const texts = new WeakMap();
  const textOf = (card) => {
    if (!texts.has(card)) {
      const known = factsOf(card).map(([name, text]) => `${name}=${text}`).join("\n");
      texts.set(card, `${card.textContent}\n${known}\n`.toLowerCase());
    }
    return texts.get(card);
  };
  let status = "", typing = 0;
  const sift = () => {
    const words = find.value.toLowerCase().split(/\s+/).filter(Boolean);
    const has = (text, word) => text.includes(/=./.test(word) ? `\n${word}\n` : word);
    let fit = 0;
    for (const card of cards) {
      const fits = (!status || card.dataset.status === status) && words.every((word) => has(textOf(card), word));
      if (card.hidden === fits) card.hidden = !fits;
      fit += fits;
    }
    for (const section of sections.children) {
      const count = section.querySelectorAll(".card:not([hidden])").length, said = section.querySelector("h2 em");
      section.hidden = !count;
      if (said) said.textContent = count.toLocaleString();
    }
    found.textContent = fit === cards.length ? "" : `${fit.toLocaleString()} of ${cards.length.toLocaleString()}`;
    by("none").hidden = fit > 0;
    hush();
  };
  const groupOf = (card, name) => factsOf(card).find(([key]) => key === name)?.[1] ?? "–";
  const arrange = () => {
    const name = groups.value, parts = new Map();
    for (const card of cards) {
      const key = name ? groupOf(card, name) : "";
      if (!parts.has(key)) parts.set(key, []);
      parts.get(key).push(card);
    }
    const keys = [...parts.keys()];
    if (name && name !== "task") keys.sort((a, b) => a.localeCompare(b, undefined, { numeric: true }));
    sections.replaceChildren(...keys.map((key) => {
      const section = document.createElement("section"), grid = document.createElement("div"), of = parts.get(key);
      const pictured = of.filter((card) => card.classList.contains("pictured")).length;
      grid.className = 2 * pictured < of.length ? "grid reading" : "grid";
      grid.append(...of);
      if (name) {
        const title = document.createElement("h2");
        if (name !== "task") title.append(made("small", name));
        title.append(visible(key), " ", made("em", ""));
        section.append(title);
      }
      section.append(grid);
      return section;
    }));
  };
  const press = () => { for (const chip of by("chips").children) chip.setAttribute("aria-pressed", String(chip.dataset.status === status)); };
  find.addEventListener("input", () => { clearTimeout(typing); typing = setTimeout(sift, 90); });
  by("chips").addEventListener("click", ({ target }) => {
    const chip = target.closest(".chip");
    if (!chip) return;
    status = chip.dataset.status;
    press();
    sift();
  });
  groups.addEventListener("change", () => { arrange(); sift(); });
  const resize = () => document.documentElement.style.setProperty("--scale", size.value);
  size.addEventListener("input", resize);
  document.addEventListener("keydown", (event) => {
    if (event.key === "/" && !view.open && !/input|select|textarea/i.test(document.activeElement.tagName)) { event.preventDefault(); find.focus(); }
    if (event.key === "Escape") {
      hush();
      if (document.activeElement === find) { find.value = ""; sift(); find.blur(); }
    }
  });

  // --- one picture at a time ---

  let links = [], here = 0;
  const look = (to) => {
    here = to;
    const link = links[here], card = link.closest(".card"), picture = link.querySelector("img");
    shown.src = link.href;
    shown.alt = picture.alt;
    shown.className = picture.className;
    by("told").textContent = (card.querySelector(".prompt") ?? by("shared")).textContent;
    by("known").replaceChildren(listOf(card, link));
    by("open").href = link.href;
    by("place").textContent = `${(here + 1).toLocaleString()} of ${links.length.toLocaleString()}`;
    by("back").disabled = here === 0;
    by("on").disabled = here === links.length - 1;
    for (const near of [links[here + 1], links[here - 1]]) if (near) new Image().src = near.href;
  };
  sections.addEventListener("click", (event) => {
    const link = event.target.closest(".pictures a");
    if (!link || event.button || event.ctrlKey || event.metaKey || event.shiftKey || event.altKey) return;
    event.preventDefault();
    hush();
    links = [...sections.querySelectorAll("section:not([hidden]) .card:not([hidden]) .pictures a")];
    look(links.indexOf(link));
    document.documentElement.classList.add("viewing");
    view.showModal();
    view.focus();
  });
  const go = (step) => { if (links[here + step]) look(here + step); };
  by("back").addEventListener("click", () => go(-1));
  by("on").addEventListener("click", () => go(1));
  by("shut").addEventListener("click", () => view.close());
  document.querySelector(".stage").addEventListener("click", ({ target }) => { if (target !== shown) view.close(); });
  view.addEventListener("keydown", ({ key }) => { if (key === "ArrowLeft") go(-1); if (key === "ArrowRight") go(1); });
  view.addEventListener("close", () => {
    document.documentElement.classList.remove("viewing");
    shown.removeAttribute("src");
    const link = links[here];
    link.scrollIntoView({ block: "nearest" });
    link.focus({ preventScroll: true });
    hush();
  });

  // --- players load when they come near ---

  const near = new IntersectionObserver((seen) => {
    for (const { target, isIntersecting } of seen) if (isIntersecting) { target.preload = "metadata"; near.unobserve(target); }
  }, { rootMargin: "400px" });
  const watchPlayers = (within) => { for (const player of within.querySelectorAll("audio, video:not([poster])")) near.observe(player); };
  document.addEventListener("play", ({ target }) => {
    for (const other of document.querySelectorAll("audio, video")) if (other !== target) other.pause();
  }, true);

  // --- the place on the page, over changes and reloads ---

  const below = () => document.querySelector(".tools").getBoundingClientRect().bottom;
  const anchor = () => {
    const edge = below();
    if (scrollY < 8) return null;
    let place = null;
    for (const card of cards) {
      const { top } = card.getBoundingClientRect();
      if (top >= edge && !card.hidden && (!place || top < place.top)) place = { n: number(card), top };
    }
    return place;
  };
  const back = (place) => {
    const card = place && cards.find((each) => number(each) === place.n);
    if (card) scrollBy({ top: card.getBoundingClientRect().top - place.top, behavior: "instant" });
  };
  // Cards that come into view get their true height one frame later, and what lies below them moves once more.
  let held = null, frame = 0;
  const keep = (place, frames = 20) => {
    back(place);
    held = frames ? place : null;
    cancelAnimationFrame(frame);
    if (held) frame = requestAnimationFrame(() => keep(place, frames - 1));
  };
  const release = () => { held = null; cancelAnimationFrame(frame); };
  for (const moved of ["wheel", "touchmove", "pointerdown", "keydown"]) addEventListener(moved, release, { passive: true });
  const memory = `aigc ${location.pathname}`;
  addEventListener("pagehide", () => {
    const open = cards.filter((card) => card.querySelector("details[open]")).map(number);
    const state = { place: anchor(), find: find.value, status, by: groups.value, size: size.value, open };
    try { sessionStorage.setItem(memory, JSON.stringify(state)); } catch { /* then it begins at the top */ }
  });
  const reloaded = performance.getEntriesByType("navigation")[0]?.type === "reload";
  const remember = () => {
    let state = null;
    try { state = reloaded && JSON.parse(sessionStorage.getItem(memory)); } catch { return; }
    if (!state) return;
    history.scrollRestoration = "manual";
    find.value = state.find;
    status = state.status;
    size.value = state.size;
    if (groups.value !== state.by && [...groups.options].some(({ value }) => value === state.by)) { groups.value = state.by; arrange(); }
    for (const card of cards) if (state.open.includes(number(card))) card.querySelector("details").open = true;
    press();
    resize();
    sift();
    keep(state.place);
  };

  // --- what is new, while the batch is followed ---

  const put = (card) => {
    const at = cards.findIndex((each) => number(each) >= number(card)), old = cards[at];
    if (old && number(old) === number(card)) {
      if (old.dataset.v === card.dataset.v) return false;
      card.querySelector("details").open = old.querySelector("details").open;
      old.replaceWith(card);
      cards[at] = card;
    } else {
      cards.splice(at < 0 ? cards.length : at, 0, card);
      const key = groups.value && groupOf(card, groups.value);
      const grid = groups.value ? cards.find((each) => each !== card && each.isConnected && groupOf(each, groups.value) === key)?.parentNode : sections.querySelector(".grid");
      if (!grid) return true;
      const next = [...grid.children].find((each) => number(each) > number(card));
      grid.insertBefore(card, next ?? null);
    }
    card.classList.add("fresh");
    watchPlayers(card);
    return !card.isConnected;
  };
  const drop = (gone) => {
    for (const card of cards) if (gone(card)) card.remove();
    cards = cards.filter((card) => !gone(card));
  };
  const live = document.body.dataset.live, versions = JSON.parse(document.body.dataset.versions ?? "{}");
  let heard = 0;
  const load = (name, then, missing) => {
    const script = document.createElement("script");
    script.src = `./${live}/${name}`;
    script.onload = () => { script.remove(); then(); };
    script.onerror = () => { script.remove(); missing(); };
    document.head.append(script);
  };
  const busy = () => view.open || document.querySelector("audio, video") && [...document.querySelectorAll("audio, video")].some((player) => !player.paused);
  const again = (ms) => setTimeout(ask, ms);
  const over = () => {
    // The folder is gone: the page beside it is complete. Where it never was there, loading again does not help.
    if (!heard && reloaded) return document.body.removeAttribute("data-live");
    return busy() ? again(2000) : location.reload();
  };
  const ask = () => load(`now.js?${Date.now()}`, () => again(2000), over);
  const news = {
    now: (told, at) => {
      heard = at;
      document.body.toggleAttribute("data-stale", Date.now() / 1000 - at > 180);
      for (const name of ["about", "bar", "chips", "shared", "cut"]) if (by(name).innerHTML !== told[name]) by(name).innerHTML = told[name];
      const chosen = groups.value, first = !groups.options.length;
      if (groups.dataset.told !== told.groups) {
        groups.dataset.told = groups.innerHTML = told.groups;
        if ([...groups.options].some(({ value }) => value === chosen)) groups.value = chosen;
        else if (first) groups.value = "";
      }
      press();
      drop((card) => !(Math.floor(number(card) / told.run) in told.versions));
      for (const [chunk, version] of Object.entries(told.versions)) {
        if (versions[chunk] !== version) load(`${chunk}.js?${version}`, () => {}, () => {});
      }
    },
    cards: (chunk, run, version, html) => {
      versions[chunk] = version;
      const place = held ?? anchor(), template = document.createElement("template");
      template.innerHTML = html;
      const fresh = [...template.content.children], kept = new Set(fresh.map(number));
      drop((card) => Math.floor(number(card) / run) === chunk && !kept.has(number(card)));
      if (fresh.map(put).some(Boolean)) arrange();
      sift();
      keep(place);
    },
  };

  // ---

  if (sections.querySelector("h2")) groups.value = "task";
  watchPlayers(document);
  sift();
  remember();
  if (live) {
    Object.defineProperty(window, "aigcSheet", { value: news });
    groups.dataset.told = groups.innerHTML;
    again(2000);
  }
})();
