// Where trajectories come from: from this file, or from the server that sent the page. Both answer the same questions.

const data = JSON.parse(document.getElementById("data").textContent);

const fromFile = {
  index: async () => data.index,
  has: (name) => Object.hasOwn(data.rows, name),
  contents: async (names) => names.map((name) => (Object.hasOwn(data.rows, name) ? data.rows[name] : null)),
  picture: async (file, key) => (Object.hasOwn(data.pictures, key) ? data.pictures[key] : null),

  // Names of the trajectories in which a text stands. They are kept as HTML: what is searched for is escaped likewise.
  search: async (text) => {
    const entities = { "&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&quot;", "'": "&#x27;" };
    const escaped = text.replace(/[&<>"']/g, (character) => entities[character]).toLowerCase();
    const words = (row) => (row.question + row.card).replace(/<[^>]*>/g, "").toLowerCase();
    return Object.keys(data.rows).filter((name) => words(data.rows[name]).includes(escaped));
  },
};

const ask = async (what, parameters) => {
  const answer = await fetch(`${what}?${new URLSearchParams(parameters)}`);
  if (!answer.ok) throw new Error(`${what}: ${answer.status} ${answer.statusText}`);
  return answer.json();
};

const fromServer = {
  index: () => ask("index", {}),
  has: () => true,
  contents: (names) => ask("contents", names.map((name) => ["row", name])),
  picture: (file, key) => ask("picture", { file, key }),
  search: (text) => ask("search", { text }),
};

const source = data.about.live ? fromServer : fromFile;
