// The browser of trajectories: filters, the list, the one that is open, the keyboard. What a model wrote comes as escaped HTML or as text.

const PAGE = 50; // rows of the list at a time
const VIEWS = ["reading", "logprob", "mask", "advantage"];
const BESIDE = ["one", "group", "elsewhere"];
const FULL_COLOUR = 2; // an advantage so far from 0 has the fullest colour
const element = (id) => document.getElementById(id);
const form = element("filters");
const state = { all: null, rows: [], place: 0, open: false, view: "reading", beside: "one", found: null, before: new Map() };
const isNarrow = () => matchMedia("(max-width: 899px)").matches;

const make = (tag, attributes = {}, ...children) => {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children);
  return made;
};

// Pictures and folds of whatever HTML was put into the page.

const putPictures = async (root) => {
  for (const image of root.querySelectorAll("img[data-key]:not([src])")) {
    const picture = await source.picture(image.closest("[data-file]").dataset.file, image.dataset.key);
    const figure = image.closest("figure");
    if (picture === null) {
      figure.replaceWith(make("p", { class: "note" }, `${image.alt}: the image was not kept`));
      continue;
    }
    image.width = picture.width; // with the height it holds its place before it is decoded
    image.height = picture.height;
    image.src = picture.uri;
    figure.style.setProperty("--width", `${picture.width}px`);
    figure.classList.toggle("small", Math.max(picture.width, picture.height) < 300);
    figure.querySelector("figcaption").append(` · ${picture.width} × ${picture.height}`);
  }
};

document.addEventListener("click", (event) => {
  const button = event.target.closest(".unfold");
  if (button) {
    button.previousElementSibling.hidden = false;
    button.remove();
  }
});

// The list.

const MARKS = { right: "✓", wrong: "✗", none: "–" };

const rowItem = (row, place) => {
  const { all } = state;
  const file = all.file(row);
  const reward = all.columns.reward[row];
  const verdict = all.verdict(row);
  const calls = all.calls(row);
  const name = (text) => text.replace(/^image_|_tool$/g, "").replaceAll("_", " ");
  const first = calls.length ? name(calls[0][0]) + (calls.length > 1 ? ` +${calls.length - 1}` : "") : "no call";
  const failed = calls.filter(([, status]) => status !== "ok").length;
  const link = make(
    "a",
    { href: `#open=${encodeURIComponent(all.name(row))}`, "data-place": place, class: source.has(all.name(row)) ? "" : "absent" },
    make("span", { class: `mark ${verdict}`, role: "img", "aria-label": verdict === "none" ? "not judged" : verdict }, MARKS[verdict]),
    make("span", { class: "sample" }, all.sample(row)),
    make("span", { class: "reward" }, reward === null ? "–" : reward.toFixed(2)),
    make(
      "span",
      { class: "facts" },
      make("span", {}, `${file.stage.replace(/-evaluation$/, " · held out")} · step ${file.step}`),
      make("span", { class: "what" }, failed ? `${first}, ${failed} failed` : first),
    ),
  );
  if (form.changed.value) {
    const share = state.before.get(all.columns.sample[row]);
    link.append(make("span", { class: "change" }, `${share >= 0.5 ? "right" : "wrong"} → ${verdict}`));
  }
  if (place === state.place) link.setAttribute("aria-current", "true");
  return make("li", {}, link);
};

const drawList = () => {
  const first = Math.floor(state.place / PAGE) * PAGE;
  const last = Math.min(first + PAGE, state.rows.length);
  const rows = state.rows.slice(first, last).map((row, number) => rowItem(row, first + number));
  element("rows").replaceChildren(...rows);
  element("rows").start = first + 1;
  const { all } = state;
  const of = state.rows.length === all.size ? "" : ` of ${all.size.toLocaleString("en")}`;
  element("count").textContent = `${state.rows.length.toLocaleString("en")}${of} trajectories`;
  element("range").textContent = state.rows.length ? `${first + 1}–${last}` : "";
  element("earlier").disabled = first === 0;
  element("later").disabled = last >= state.rows.length;
  const item = element("rows").querySelector("[aria-current]");
  const list = element("rows"); // it alone scrolls, not the page
  if (item && item.offsetTop < list.scrollTop) list.scrollTop = item.offsetTop;
  if (item) list.scrollTop = Math.max(list.scrollTop, item.offsetTop + item.offsetHeight - list.clientHeight);
};

// What is open.

const wash = (name, share) => `color-mix(in srgb, var(${name}) ${(share * 100).toFixed(1)}%, transparent)`;

const colour = (view, kind, logprob, advantage) => {
  if (kind !== "turn") return "";
  if (view === "mask") return "var(--masked)";
  if (view === "logprob") return logprob == null ? "" : wash("--surprise", (1 - Math.exp(logprob)) * 0.75);
  if (advantage === null) return "";
  const strength = Math.min(Math.abs(advantage) / FULL_COLOUR, 1) * 0.6;
  return wash(advantage < 0 ? "--worse" : "--better", strength);
};

const reads = (kind, logprob, count, advantage) => {
  const facts = count > 1 ? [`${count} tokens`] : [];
  if (kind !== "turn") return [...facts, "no loss: not sampled by the policy"].join(" · ");
  if (logprob != null) facts.push(`log-probability ${logprob.toFixed(3)}`, `probability ${Math.exp(logprob).toPrecision(3)}`);
  if (advantage !== null) facts.push(`advantage ${advantage.toFixed(2)}`);
  return facts.join(" · ");
};

const tokenPart = (part, content, view) => {
  const title = { prompt: "Prompt", turn: `Turn ${part.number}`, observation: `Observation ${part.number}` }[part.kind];
  const total = part.pieces.reduce((sum, piece) => sum + (piece[2] ?? 1), 0);
  const text = make("p", { class: "pieces" });
  for (const [written, logprob, count = 1] of part.pieces) {
    const span = make("span", { title: reads(part.kind, logprob, count, content.advantage) }, written.replaceAll("\n", "↵\n"));
    span.style.backgroundColor = colour(view, part.kind, logprob, content.advantage);
    if (part.kind !== "turn" && count > 1) span.append(make("b", {}, `× ${count}`));
    text.append(span);
  }
  const fold = make("details", { class: part.kind }, make("summary", {}, `${title} · ${total} tokens`), text);
  fold.open = part.kind !== "prompt";
  return fold;
};

const LEGENDS = {
  logprob: "The fuller the colour, the less probable the token was to the policy that sampled it; tokens without loss are plain.",
  mask: "Coloured tokens carry loss: the policy sampled them. The prompt and the observations carry none.",
  advantage: "Blue: better than the rest of its group; orange: worse. All tokens of a trajectory share its advantage. Held-out samples have none.",
};

const showTokens = (card, content) => {
  const tokens = card.querySelector(".tokens");
  const reading = state.view === "reading";
  tokens.hidden = reading;
  for (const part of card.querySelectorAll(".turns, .card > .pictures")) part.hidden = !reading;
  if (reading) return;
  if (content.tokens === null) {
    tokens.replaceChildren(make("p", { class: "note" }, "The run's tokenizer was not found: make the report with --tokenizer FOLDER."));
    return;
  }
  tokens.replaceChildren(...content.tokens.map((part) => tokenPart(part, content, state.view)));
};

const shownRows = (row) => {
  if (state.beside === "group") return state.all.group(row);
  return state.beside === "elsewhere" ? state.all.elsewhere(row) : [row];
};

const worth = (row, { advantage }) => {
  const reward = state.all.columns.reward[row];
  if (reward === null) return "no reward";
  return `reward ${reward}` + (advantage === null ? "" : ` (${advantage < 0 ? "−" : "+"}${Math.abs(advantage).toFixed(2)})`);
};

let drawing = 0; // counts what was asked for: a late answer is dropped

const drawOpen = async () => {
  const mine = ++drawing;
  const row = state.rows[state.place];
  const shown = element("shown");
  document.body.classList.toggle("is-open", state.open && row !== undefined);
  element("detail").hidden = row === undefined;
  if (row === undefined || (isNarrow() && !state.open)) return;
  const rows = shownRows(row);
  const names = rows.map((one) => state.all.name(one));
  shown.setAttribute("aria-busy", "true");
  const contents = await source.contents(names);
  if (mine !== drawing) return;
  const file = state.all.file(row);
  element("title").textContent = state.all.sample(row);
  element("subtitle").textContent = [
    `${file.stage} · step ${file.step}`,
    state.beside === "one" ? "" : `${rows.length} side by side`,
    `${state.place + 1} of ${state.rows.length.toLocaleString("en")}`,
  ].filter(Boolean).join(" · ");
  element("legend").textContent = LEGENDS[state.view] ?? "";
  const question = contents.find((content) => content)?.question ?? "";
  const cards = make("div", { class: rows.length > 1 ? "cards beside" : "cards single" });
  if (rows.length > 1) cards.tabIndex = 0;
  shown.innerHTML = question; // escaped where it was made; the page's policy lets no script of it run
  shown.append(cards);
  contents.forEach((content, number) => {
    if (content === null) {
      const text = `${names[number]} is not in this file. python -m jobs.report RUN --serve shows all trajectories.`;
      cards.append(make("article", { class: "card note" }, text));
      return;
    }
    const holder = make("template");
    holder.innerHTML = content.card;
    const card = holder.content.firstElementChild;
    card.classList.toggle("chosen", rows.length > 1 && rows[number] === row);
    if (state.beside === "group") card.querySelector("h4").textContent = `${number + 1} of ${rows.length}, ${worth(rows[number], content)}`;
    showTokens(card, content);
    cards.append(card);
  });
  shown.setAttribute("aria-busy", "false");
  await putPictures(shown);
};

const open = async (place, { focus = false } = {}) => {
  if (!state.rows.length) {
    await drawOpen();
    return;
  }
  state.place = Math.max(0, Math.min(place, state.rows.length - 1));
  state.open = true;
  drawList();
  remember();
  if (focus) element("rows").querySelector("[aria-current]")?.focus({ preventScroll: true });
  await drawOpen();
  element("detail").scrollTop = 0;
  if (focus) show();
};

const show = () => (isNarrow() ? element("browser").scrollIntoView() : element("panes").scrollIntoView({ block: "nearest" }));

const close = () => {
  state.open = false;
  document.body.classList.remove("is-open");
  drawList();
  remember();
  const item = element("rows").querySelector("[aria-current]");
  item?.focus({ preventScroll: true });
  if (isNarrow()) item?.scrollIntoView({ block: "center" });
};

// Filters; they and what is open stand in the address, so that it can be passed on.

const wanted = () => Object.fromEntries([...new FormData(form)].filter(([, value]) => value !== ""));

const remember = () => {
  const { before, after, ...parameters } = wanted();
  if (parameters.changed) Object.assign(parameters, { before, after });
  if (state.view !== "reading") parameters.view = state.view;
  if (state.beside !== "one") parameters.beside = state.beside;
  if (state.open && state.rows.length) parameters.open = state.all.name(state.rows[state.place]);
  history.replaceState(null, "", `#${new URLSearchParams(parameters)}`);
};

const fillMenu = (name, choices, label = String, value = String) => {
  const menu = form.elements[name];
  const kept = menu.value;
  const fixed = [...menu.querySelectorAll("[data-fixed]")];
  menu.replaceChildren(...fixed, ...choices.map((choice) => make("option", { value: value(choice) }, label(choice))));
  menu.value = [...menu.options].some((option) => option.value === kept) ? kept : menu.options[0]?.value ?? "";
};

const fillMenus = () => {
  const choices = state.all.choices(form.stage.value);
  for (const name of ["stage", "step", "track", "end", "tool", "status"]) {
    fillMenu(name, choices[name], (choice) => String(choice).replaceAll("_", " "));
  }
  const label = (file) => `${file.stage.replace(/-evaluation$/, "")}, step ${file.step}`;
  for (const name of ["before", "after"]) fillMenu(name, choices[name], label, (file) => file.name);
  element("change").hidden = choices.before.length < 2;
};

let filtering = 0;

const filter = async ({ keep = null } = {}) => {
  const mine = ++filtering;
  const text = form.text.value.trim();
  state.found = null;
  if (text) {
    element("count").textContent = "searching …";
    const found = await source.search(text);
    if (mine !== filtering) return;
    state.found = found;
  }
  for (const name of ["before", "after"]) form.elements[name].disabled = !form.changed.value;
  state.before = form.changed.value ? state.all.accuracy(form.before.value) : new Map();
  state.rows = state.all.matching(wanted(), state.found);
  state.place = Math.max(keep === null ? 0 : state.rows.indexOf(keep), 0);
  const active = Object.keys(wanted()).filter((name) => !["text", "sort", "held", "before", "after"].includes(name)).length;
  element("active").textContent = active ? `(${active})` : "";
  drawList();
  remember();
  await drawOpen();
};

let typing = 0;
form.addEventListener("input", (event) => {
  if (event.target.name === "stage") fillMenus();
  clearTimeout(typing);
  typing = setTimeout(filter, event.target.name === "text" ? 300 : 0);
});
form.addEventListener("submit", (event) => event.preventDefault());
form.addEventListener("reset", () => setTimeout(() => (fillMenus(), setDefaults(), filter())));
element("rows").addEventListener("click", (event) => {
  const link = event.target.closest("a");
  if (!link || event.ctrlKey || event.metaKey) return;
  event.preventDefault();
  open(Number(link.dataset.place), { focus: true });
});
const turnPage = (by) => {
  const place = (Math.floor(state.place / PAGE) + by) * PAGE;
  if (place < 0 || place >= state.rows.length) return;
  state.place = place;
  drawList();
  if (!isNarrow()) open(place, { focus: true });
  else element("panes").scrollIntoView();
};
element("earlier").addEventListener("click", () => turnPage(-1));
element("later").addEventListener("click", () => turnPage(1));
element("back").addEventListener("click", close);
element("previous").addEventListener("click", () => open(state.place - 1).then(show));
element("next").addEventListener("click", () => open(state.place + 1).then(show));
element("show-help").addEventListener("click", () => element("help").showModal());

const choose = (name, value) => {
  state[name] = value;
  for (const radio of document.querySelectorAll(`input[name="${name}"]`)) radio.checked = radio.value === value;
  remember();
  return drawOpen();
};
for (const radio of document.querySelectorAll('input[name="view"], input[name="beside"]')) {
  radio.addEventListener("change", () => choose(radio.name, radio.value));
}

// The keyboard.

const KEYS = {
  j: () => open(state.place + 1, { focus: true }),
  k: () => open(state.place - 1, { focus: true }),
  "]": () => turnPage(1),
  "[": () => turnPage(-1),
  "/": () => (close(), element("browser").scrollIntoView(), form.text.focus()),
  "?": () => element("help").showModal(),
  g: () => choose("beside", state.beside === "group" ? "one" : "group"),
  e: () => choose("beside", state.beside === "elsewhere" ? "one" : "elsewhere"),
  u: close,
  Escape: () => (state.beside === "one" ? close() : choose("beside", "one")),
};
VIEWS.forEach((view, number) => (KEYS[number + 1] = () => choose("view", view)));

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || element("help").open) return;
  if (event.target.matches("input:not([type=radio]):not([type=checkbox]), select, textarea")) {
    if (event.key === "Escape") event.target.blur();
    return;
  }
  const inList = element("rows").contains(event.target);
  const key = inList ? { ArrowDown: "j", ArrowUp: "k" }[event.key] ?? event.key : event.key;
  if (!Object.hasOwn(KEYS, key)) return;
  event.preventDefault();
  KEYS[key]();
});

// The start.

const setDefaults = () => {
  form.elements.held.checked = !data.about.live && data.about.total > Object.keys(data.rows).length;
  const evaluations = form.after.options;
  if (evaluations.length) form.after.value = evaluations[evaluations.length - 1].value;
};

const start = async () => {
  putPictures(element("followed"));
  state.all = new Trajectories(await source.index());
  fillMenus();
  setDefaults();
  const kept = Object.fromEntries(new URLSearchParams(location.hash.slice(1)));
  if (kept.stage) {
    form.stage.value = kept.stage;
    fillMenus();
  }
  for (const [name, value] of Object.entries(kept)) {
    const control = form.elements[name];
    if (control?.type === "checkbox") control.checked = true;
    else if (control) control.value = value;
  }
  if (BESIDE.includes(kept.beside)) choose("beside", kept.beside);
  if (VIEWS.includes(kept.view)) choose("view", kept.view);
  const count = (number) => number.toLocaleString("en");
  const { live, total, listed } = data.about;
  const held = live ? total : Object.keys(data.rows).length;
  element("total").textContent = held < total ? `${count(held)} of ${count(total)} in this file` : count(total);
  element("rest").hidden = held >= total;
  element("held").hidden = live || held >= total;
  if (listed < total) element("rest").prepend(`${count(total - listed)} of older steps are not even listed. `);
  element("more").open = !isNarrow();
  const keep = kept.open ? state.all.find(kept.open) : -1;
  state.open = keep >= 0;
  await filter({ keep: keep >= 0 ? keep : null });
  if (state.open) show();
  document.documentElement.dataset.ready = "";
};

if (element("browser")) start();
