// A map that tells of its boxes and finds them.
class ToldMap extends MapView {
  constructor(root) {
    super(root);
    this.tip = root.querySelector('.tip');
    this.about = root.querySelector('.about');
    this.found = root.querySelector('.found');
    this.find = root.querySelector('input');
    this.choose = root.querySelector('select');
    this.data.drawings.forEach((drawing, number) => {
      const option = element('option', '', this.title(drawing));
      option.value = number;
      this.choose.append(option);
    });
    this.choose.closest('label').hidden = this.data.drawings.length < 2;
  }

  title(drawing) {
    if (drawing.title) return 'inside ' + drawing.title;
    if (!this.data.engines.length) return 'every node';
    return drawing.expanded ? 'every node' : 'engines as one box each';
  }

  show(number, keep) {
    this.number = number;
    this.drawing = this.data.drawings[number];
    this.choose.value = number;
    if (keep) this.light();
    else this.list(null);
    this.select(-1);
    this.fit();
  }

  // ---- telling of a box

  words(i, drawing = this.drawing) {
    return {label: this.strings[drawing.label[i]], name: this.strings[drawing.name[i]], notes: drawing.notes[i].map((n) => this.strings[n])};
  }

  select(i, center) {
    this.selected = i;
    this.about.replaceChildren();
    if (i >= 0) this.tell(i);
    if (i >= 0 && center) {
      const [x, y, w, h] = this.drawing.box.slice(4 * i, 4 * i + 4);
      this.scale = Math.max(this.scale, 0.9);
      // On a narrow screen what is told covers the lower part of the map.
      const covered = this.about.offsetWidth > 0.6 * this.width ? this.about.offsetHeight : 0;
      this.x = this.width / 2 - (x + w / 2) * this.scale, this.y = (this.height - covered) / 2 - (y + h / 2) * this.scale;
    }
    this.ask();
  }

  tell(i) {
    const {drawing, about} = this, {label, name, notes} = this.words(i);
    const heading = element('h3', '', label);
    heading.prepend(this.swatch(drawing.fill[i], drawing.border[i]));
    const close = button('close', '\u00d7', () => { this.select(-1); this.canvas.focus({preventScroll: true}); });
    close.setAttribute('aria-label', 'Close');
    about.append(close, heading);
    about.scrollTop = 0;
    if (name !== label) about.append(element('p', 'code', name));
    for (const note of notes) about.append(element('p', drawing.kind[i] === NATIVE ? 'reason' : '', note));
    const results = drawing.results[i];
    for (let r = 0; r < results.length; r += 2) {
      const range = this.data.ranges[results[r]];
      const text = `${this.strings[results[r]]}: ${this.strings[results[r + 1]] || 'of unknown type'}`;
      about.append(element('p', 'soft', 'gives ' + text + (range ? `, from ${rounded(range[0])} to ${rounded(range[1])}` : '')));
    }
    const ends = [['reads from', drawing.into[i], 0], ['read by', drawing.from[i], 1]];
    for (const [title, lines, end] of ends) {
      if (!lines.length) continue;
      const row = element('p', 'near', title + ' ');
      for (const line of lines.slice(0, LISTED)) {
        const other = drawing.lines[line][end], told = this.words(other);
        const near = button('', told.label, () => this.select(other, true));
        near.title = told.name;
        row.append(near, ' ');
      }
      if (lines.length > LISTED) row.append(` and ${lines.length - LISTED} more`);
      about.append(row);
    }
  }

  swatch(fill, border) {
    const made = element('span', 'swatch');
    made.style.background = fill, made.style.borderColor = border;
    return made;
  }

  hover(x, y) {
    const i = this.pointers.size ? -1 : this.at(x, y);
    this.tip.hidden = i < 0;
    this.canvas.style.cursor = i < 0 ? 'grab' : 'pointer';
    if (i < 0 || this.tipped === i) return this.place(x, y);
    this.tipped = i;
    const {label, name, notes} = this.words(i);
    this.tip.replaceChildren(element('strong', '', label), ...[name === label ? '' : name, ...notes].filter(Boolean).map((text) => element('div', '', text)));
    this.place(x, y);
  }

  place(x, y) {
    if (this.tip.hidden) return;
    this.tip.style.left = Math.max(0, Math.min(x + 14, this.width - this.tip.offsetWidth - 4)) + 'px';
    this.tip.style.top = (y + 18 + this.tip.offsetHeight > this.height ? Math.max(0, y - 14 - this.tip.offsetHeight) : y + 18) + 'px';
  }

  // ---- finding

  // Lists nodes, [number of the drawing, number of the box] each, and leaves only them bright; null for no list.
  list(pairs, title) {
    this.pairs = pairs;
    this.light();
    this.found.replaceChildren();
    this.found.hidden = !pairs;
    if (!pairs) return;
    const head = element('p', '', `${title}: ${pairs.length || 'none'} found `);
    head.append(button('plain', 'clear', () => { this.find.value = ''; this.list(null); }));
    const list = element('ul');
    for (const pair of pairs.slice(0, LISTED)) {
      const [number, i] = pair, drawing = this.data.drawings[number], {label, name, notes} = this.words(i, drawing);
      const item = element('li'), entry = button('', '', () => this.go(pair));
      const place = number === this.number ? '' : ` (${this.title(drawing)})`;
      entry.append(this.swatch(drawing.fill[i], drawing.border[i]), element('b', '', label), (name === label ? '' : ' ' + name) + place);
      entry.title = notes.join('\n');
      item.append(entry);
      list.append(item);
    }
    if (pairs.length > LISTED) list.append(element('li', 'soft', `and ${pairs.length - LISTED} more`));
    this.found.append(head, list);
  }

  light() {
    const here = (this.pairs || []).filter((pair) => pair[0] === this.number).map((pair) => pair[1]);
    this.marked = here.length ? new Set(here) : null;
    this.ask();
  }

  go([number, i]) {
    if (number !== this.number) this.show(number, true);
    this.select(i, true);
  }

  // Boxes for which test(drawing, i) holds: in this drawing and in those that show as much of the engines; where there
  // is none, in the others.
  pairsOf(test) {
    const {drawings} = this.data;
    const all = drawings.flatMap((drawing, number) => [...drawing.kind.keys()].filter((i) => test(drawing, i)).map((i) => [number, i]));
    const alike = all.filter(([number]) => drawings[number].expanded === this.drawing.expanded);
    return (alike.length ? alike : all).sort((a, b) => (b[0] === this.number) - (a[0] === this.number));
  }

  search(text) {
    const wanted = text.trim().toLowerCase();
    if (!wanted) return this.list(null);
    this.small = this.small || this.strings.map((word) => word.toLowerCase());
    const has = this.small.map((word) => word.includes(wanted));
    const test = (d, i) => has[d.name[i]] || has[d.label[i]] || d.results[i].some((result, k) => k % 2 === 0 && has[result]);
    this.list(this.pairsOf(test), `“${text.trim()}”`);
  }

  // Shows one node by its whole name, in whichever drawing has it.
  jump(name) {
    const [pair] = this.pairsOf((d, i) => this.strings[d.name[i]] === name && d.kind[i] > OUTPUT);
    if (pair) this.go(pair);
    else this.search(name);
  }

  group(test, title) {
    const pairs = this.pairsOf(test);
    if (pairs.length && pairs[0][0] !== this.number) this.show(pairs[0][0]);
    this.select(-1);
    this.list(pairs, title);
    if (!this.marked) return;
    const {box} = this.drawing, [left, top, right, bottom] = [Infinity, Infinity, -Infinity, -Infinity].map((start, side) => {
      const better = side < 2 ? Math.min : Math.max;
      return [...this.marked].reduce((best, i) => better(best, box[4 * i + (side % 2)] + (side < 2 ? 0 : box[4 * i + side])), start);
    });
    this.fit([left - 40, top - 40, right + 40, bottom + 40]);
  }

  engine(number) {
    this.group((drawing, i) => drawing.engine[i] === number, this.data.engines[number][0]);
  }

  legend() {
    const legend = this.root.querySelector('.legend'), {engines, drawings, kinds} = this.data;
    for (const [kind, text] of [[NATIVE, 'native'], [ISLAND, 'TensorFlow']]) {
      const count = drawings.filter((d) => d.expanded === drawings[0].expanded).flatMap((d) => d.kind).filter((k) => k === kind).length;
      if (!count) continue;
      const entry = button('', `${text}: ${count}`, () => this.group((d, i) => d.kind[i] === kind, text));
      entry.prepend(this.swatch(...kinds[kind]));
      legend.append(entry);
    }
    engines.slice(0, ENGINES).forEach((engine, number) => {
      const entry = button(engine[2] ? '' : 'dashed', engine[0], () => this.engine(number));
      entry.title = engine[1];
      entry.prepend(this.swatch(engine[3], engine[4]));
      legend.append(entry);
    });
    if (engines.length > ENGINES) legend.append(element('span', 'soft', `and ${engines.length - ENGINES} more engines`));
    if (this.data.dtypes.length < 2) return;
    for (const [name, colour] of this.data.dtypes) {
      const entry = element('span', 'dtype soft', name), line = element('span', 'line');
      line.style.background = colour;
      entry.prepend(line);
      legend.append(entry);
    }
  }
}
