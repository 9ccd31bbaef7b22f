// Which trajectories are listed, and in which order: a pass over the index, which has a few numbers for each.

const CORRECT = 1;
const FORMAT_OK = 2;
const MAX_CHOICES = 60; // of a menu
const MAX_BESIDE = 24; // trajectories side by side

class Trajectories {
  constructor(index) {
    Object.assign(this, index); // files, names, columns
    this.size = this.columns.reward.length;
    this.fileOf = new Int32Array(this.size);
    this.rowOf = new Int32Array(this.size);
    this.byName = new Map();
    let row = 0;
    this.files.forEach((file, number) => {
      file.start = row;
      this.byName.set(file.name, number);
      for (let own = 0; own < file.rows; own++, row++) {
        this.fileOf[row] = number;
        this.rowOf[row] = own;
      }
    });
  }

  file(row) {
    return this.files[this.fileOf[row]];
  }

  name(row) {
    return `${this.file(row).name}/${this.rowOf[row]}`;
  }

  find(name) {
    const cut = name.lastIndexOf("/");
    const file = this.files[this.byName.get(name.slice(0, cut))];
    const own = Number(name.slice(cut + 1));
    return file && own >= 0 && own < file.rows ? file.start + own : -1;
  }

  sample(row) {
    return this.names.sample[this.columns.sample[row]];
  }

  calls(row) {
    return this.names.calls[this.columns.calls[row]];
  }

  end(row) {
    return this.names.end[this.columns.end[row]];
  }

  verdict(row) {
    if (this.columns.reward[row] === null || this.end(row) === "aborted") return "none";
    return this.columns.flags[row] & CORRECT ? "right" : "wrong";
  }

  group(row) {
    const { group } = this.columns;
    const { start, rows } = this.file(row);
    const members = [];
    for (let other = start; other < start + rows; other++) if (group[other] === group[row]) members.push(other);
    return members.sort((one, two) => this.columns.index[one] - this.columns.index[two]);
  }

  // The same sample, judged by other checkpoints or at other steps: the first of each file, but of its own the row itself. Where there
  // are too many to look at, some from all over the run.
  elsewhere(row) {
    const { sample } = this.columns;
    const found = new Map([[this.fileOf[row], row]]);
    for (let other = 0; other < this.size; other++) {
      const file = this.fileOf[other];
      if (sample[other] === sample[row] && !found.has(file)) found.set(file, other);
    }
    const rows = [...found.values()].sort((one, two) => one - two);
    const every = (rows.length - 1) / (MAX_BESIDE - 1);
    return every <= 1 ? rows : rows.filter((one, place) => one === row || Math.floor(place / every) > Math.floor((place - 1) / every));
  }

  // Shares of right judgments of each sample in a file.
  accuracy(fileName) {
    const counts = new Map();
    const file = this.files[this.byName.get(fileName)];
    if (!file) return counts;
    for (let row = file.start; row < file.start + file.rows; row++) {
      const verdict = this.verdict(row);
      if (verdict === "none") continue;
      const count = counts.get(this.columns.sample[row]) ?? [0, 0];
      counts.set(this.columns.sample[row], [count[0] + (verdict === "right"), count[1] + 1]);
    }
    return new Map([...counts].map(([sample, [right, all]]) => [sample, right / all]));
  }

  // Rows that pass, sorted. `found`: names of those that say the searched text, or null; sample ids are searched here.
  matching(wanted, found) {
    const { columns, names } = this;
    const isWanted = (key) => wanted[key] !== undefined && wanted[key] !== "";
    const tests = [];
    if (isWanted("stage")) tests.push((row) => this.file(row).stage === wanted.stage);
    if (isWanted("step")) tests.push((row) => this.file(row).step === Number(wanted.step));
    for (const key of ["track", "end"]) {
      if (isWanted(key)) {
        const number = names[key].indexOf(wanted[key]);
        tests.push((row) => columns[key][row] === number);
      }
    }
    if (isWanted("verdict")) tests.push((row) => this.verdict(row) === wanted.verdict);
    if (isWanted("format")) tests.push((row) => Boolean(columns.flags[row] & FORMAT_OK) === (wanted.format === "ok"));
    if (isWanted("from")) tests.push((row) => columns.reward[row] !== null && columns.reward[row] >= Number(wanted.from));
    if (isWanted("to")) tests.push((row) => columns.reward[row] !== null && columns.reward[row] <= Number(wanted.to));
    if (isWanted("tool") || isWanted("status")) {
      const passes = names.calls.map((calls) =>
        wanted.tool === "-"
          ? calls.length === 0
          : calls.some(([tool, status]) => (!isWanted("tool") || tool === wanted.tool) && (!isWanted("status") || status === wanted.status)),
      );
      tests.push((row) => passes[columns.calls[row]]);
    }
    if (isWanted("changed")) {
      const before = this.accuracy(wanted.before);
      const after = this.accuracy(wanted.after);
      const change = (sample) => (before.has(sample) && after.has(sample) ? after.get(sample) - before.get(sample) : 0);
      const signs = { any: (by) => by !== 0, better: (by) => by > 0, worse: (by) => by < 0 };
      const last = this.byName.get(wanted.after);
      tests.push((row) => this.fileOf[row] === last && signs[wanted.changed](change(columns.sample[row])));
    }
    if (isWanted("held")) tests.push((row) => source.has(this.name(row)));
    if (found) {
      const rows = new Set(found.map((name) => this.find(name)));
      const text = wanted.text.trim().toLowerCase();
      const named = names.sample.map((sample) => sample.toLowerCase().includes(text));
      tests.push((row) => rows.has(row) || named[columns.sample[row]]);
    }
    const rows = [];
    for (let row = 0; row < this.size; row++) if (tests.every((test) => test(row))) rows.push(row);
    return this.sorted(rows, wanted.sort);
  }

  // The newest first: of a later file before those of an earlier one, but within a file as they were written.
  sorted(rows, order) {
    const reward = (row) => this.columns.reward[row] ?? -Infinity;
    const orders = {
      oldest: (one, two) => one - two,
      highest: (one, two) => reward(two) - reward(one) || one - two,
      lowest: (one, two) => reward(one) - reward(two) || one - two,
      newest: (one, two) => this.fileOf[two] - this.fileOf[one] || one - two,
    };
    return rows.sort(orders[order] ?? orders.newest);
  }

  // What the menus offer; the steps are those of the stage that was chosen.
  choices(stage) {
    const tools = new Map();
    const statuses = new Set();
    const times = new Map();
    for (const number of this.columns.calls) times.set(number, (times.get(number) ?? 0) + 1);
    for (const [number, count] of times) {
      for (const [tool, status] of this.names.calls[number]) {
        tools.set(tool, (tools.get(tool) ?? 0) + count);
        statuses.add(status);
      }
    }
    const steps = this.files.filter((file) => !stage || file.stage === stage).map((file) => file.step);
    const evaluations = this.files.filter((file) => file.evaluation);
    return {
      stage: [...new Set(this.files.map((file) => file.stage))],
      step: [...new Set(steps)].sort((one, two) => one - two),
      track: this.names.track,
      end: this.names.end,
      tool: [...tools].sort((one, two) => two[1] - one[1]).map(([tool]) => tool).slice(0, MAX_CHOICES),
      status: [...statuses],
      before: evaluations,
      after: evaluations,
    };
  }
}
