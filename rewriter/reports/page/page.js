'use strict';
// The maps of a report page: the drawings come ready laid out in JSON; here they are shown, moved, searched and told of.
(() => {
  const INPUT = 0, OUTPUT = 1, NATIVE = 2, ISLAND = 3, ENGINE = 4, MEMBER = 5;
  const LISTED = 50, ENGINES = 24, NEAR = 14, CLOSEST = 4;
  const dark = matchMedia('(prefers-color-scheme: dark)');

  // Strings come sorted, each as the number of characters that it shares with the one before, and the rest.
  const strings = (flat) => {
    const found = [];
    let last = '';
    for (let i = 0; i < flat.length; i += 2) found.push((last = last.slice(0, flat[i]) + flat[i + 1]));
    return found;
  };
  const shorter = (text, most) => (text.length <= most ? text : '…' + text.slice(1 - most));
  const lastPart = (name) => shorter(name.replace(/\/+$/, '').split('/').pop() || name, 28);
  const rounded = (value) => String(Number(value.toPrecision(4)));
  const element = (tag, className, text) => {
    const made = document.createElement(tag);
    if (className) made.className = className;
    if (text !== undefined) made.textContent = text;
    return made;
  };
  const button = (className, text, act) => {
    const made = element('button', className, text);
    made.type = 'button';
    made.addEventListener('click', act);
    return made;
  };
  const mixed = (colour, share) => {
    // A colour brought nearer to white, for dark pages.
    const parts = [1, 3, 5].map((i) => parseInt(colour.slice(i, i + 2), 16));
    return `rgb(${parts.map((part) => Math.round(part + (255 - part) * share)).join(',')})`;
  };

  class GraphMap {
    constructor(root) {
      this.root = root;
      const data = JSON.parse(document.getElementById(root.dataset.map).textContent);
      this.strings = strings(data.strings);
      this.data = data;
      this.canvas = root.querySelector('canvas');
      this.context = this.canvas.getContext('2d', {alpha: false});
      this.tip = root.querySelector('.tip');
      this.about = root.querySelector('.about');
      this.found = root.querySelector('.found');
      this.find = root.querySelector('input');
      this.choose = root.querySelector('select');
      this.pointers = new Map();
      this.marked = null;
      this.selected = -1;
      data.drawings.forEach((drawing, number) => {
        this.prepare(drawing);
        const option = element('option', '', this.title(drawing));
        option.value = number;
        this.choose.append(option);
      });
      this.choose.closest('label').hidden = data.drawings.length < 2;
      this.legend();
      this.listen();
      this.resize();
      this.show(0);
      new ResizeObserver(() => this.resize()).observe(this.canvas.parentElement);
      dark.addEventListener('change', () => this.ask());
    }

    title(drawing) {
      if (drawing.title) return 'inside ' + drawing.title;
      if (!this.data.engines.length) return 'every node';
      return drawing.expanded ? 'every node' : 'engines as one box each';
    }

    // What is drawn again and again is made once: colours, whole lines, the rectangle around each.
    prepare(drawing) {
      const count = drawing.kind.length;
      drawing.fill = [], drawing.border = [];
      for (let i = 0; i < count; i++) {
        const engine = this.data.engines[drawing.engine[i]];
        const pair = engine ? [engine[3], engine[4]] : this.data.kinds[drawing.kind[i]];
        drawing.fill.push(pair[0]), drawing.border.push(pair[1]);
      }
      drawing.order = [...Array(count).keys()].sort((a, b) => (drawing.fill[a] < drawing.fill[b] ? -1 : drawing.fill[a] > drawing.fill[b] ? 1 : a - b));
      drawing.bounds = new Float32Array(4 * drawing.lines.length);
      drawing.into = [...Array(count)].map(() => []);
      drawing.from = [...Array(count)].map(() => []);
      drawing.byType = this.data.dtypes.map(() => []);
      drawing.lines = drawing.lines.map(([source, target, type, ...bends]) => {
        const [s, t, box] = [4 * source, 4 * target, drawing.box];
        // From the middle of the one's lower side to the middle of the other's upper side.
        return [source, target, type >> 1, type & 1, box[s] + box[s + 2] / 2, box[s + 1] + box[s + 3], ...bends, box[t] + box[t + 2] / 2, box[t + 1]];
      });
      drawing.lines.forEach((line, i) => {
        let [left, top, right, bottom] = [Infinity, Infinity, -Infinity, -Infinity];
        for (let p = 4; p < line.length; p += 2) {
          left = Math.min(left, line[p]), right = Math.max(right, line[p]);
          top = Math.min(top, line[p + 1]), bottom = Math.max(bottom, line[p + 1]);
        }
        drawing.bounds.set([left, top, right, bottom], 4 * i);
        drawing.from[line[0]].push(i), drawing.into[line[1]].push(i);
        drawing.byType[line[2]].push(i);
      });
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

    // ---- where things are on the screen: place * scale + (x, y)

    resize() {
      const {clientWidth: width, clientHeight: height} = this.canvas.parentElement;
      if (!width || !height) return;
      this.ratio = Math.min(devicePixelRatio || 1, 2);
      const before = this.width;
      [this.width, this.height] = [width, height];
      this.canvas.width = Math.round(width * this.ratio), this.canvas.height = Math.round(height * this.ratio);
      if (!before && this.drawing) this.fit();
      this.ask(true);
    }

    fit(box) {
      const [left, top, right, bottom] = box || [0, 0, ...this.drawing.size];
      const scale = Math.min(this.width / (right - left), this.height / (bottom - top), box ? 1.2 : 1.5);
      this.scale = Math.max(scale, this.least());
      this.x = (this.width - (left + right) * this.scale) / 2;
      this.y = (this.height - (top + bottom) * this.scale) / 2;
      this.ask();
    }

    least() {
      const [width, height] = this.drawing.size;
      return Math.min(1, this.width / width, this.height / height) / 2;
    }

    zoom(factor, x = this.width / 2, y = this.height / 2) {
      const scale = Math.min(Math.max(this.scale * factor, this.least()), CLOSEST);
      this.x = x - ((x - this.x) * scale) / this.scale;
      this.y = y - ((y - this.y) * scale) / this.scale;
      this.scale = scale;
      this.ask();
    }

    move(dx, dy) {
      this.x += dx, this.y += dy;
      this.ask();
    }

    at(x, y, reach = 0) {
      const px = (x - this.x) / this.scale, py = (y - this.y) / this.scale;
      let best = -1, nearest = reach / this.scale + 1e-6;
      const boxes = this.drawing.box;
      for (let i = 0, b = 0; b < boxes.length; i++, b += 4) {
        const dx = Math.max(boxes[b] - px, 0, px - boxes[b] - boxes[b + 2]);
        const dy = Math.max(boxes[b + 1] - py, 0, py - boxes[b + 1] - boxes[b + 3]);
        const away = Math.hypot(dx, dy);
        if (away < nearest) best = i, nearest = away;
      }
      return best;
    }

    // ---- drawing

    ask(now) {
      if (now && this.drawing) return this.draw();
      if (this.asked || !this.drawing) return;
      this.asked = true;
      requestAnimationFrame(() => this.draw());
    }

    draw() {
      this.asked = false;
      if (!this.width) return;
      const {context: c, drawing, scale} = this;
      const style = getComputedStyle(this.root);
      this.ink = style.getPropertyValue('--mark').trim();
      c.setTransform(1, 0, 0, 1, 0, 0);
      c.fillStyle = style.getPropertyValue('--map').trim();
      c.fillRect(0, 0, this.canvas.width, this.canvas.height);
      const s = scale * this.ratio;
      c.setTransform(s, 0, 0, s, this.x * this.ratio, this.y * this.ratio);
      this.view = [-this.x / scale, -this.y / scale, (this.width - this.x) / scale, (this.height - this.y) / scale];
      this.drawLines(c, drawing);
      if (scale < 0.3) this.drawFar(c, drawing);
      else this.drawNear(c, drawing);
      this.drawChosen(c, drawing);
      Object.assign(this.canvas.dataset, {scale, x: this.x, y: this.y});
    }

    drawLines(c, drawing) {
      const [left, top, right, bottom] = this.view, {bounds, lines} = drawing;
      c.globalAlpha = this.marked ? 0.25 : this.scale < 0.3 ? 0.55 : 0.85;
      c.lineWidth = Math.max(1.4, 0.8 / this.scale);
      // From afar lines that are hardly longer than a pixel are left out: there are thousands.
      const curved = this.scale >= 0.2, shortest = 3 / this.scale;
      drawing.byType.forEach((members, type) => {
        const colour = this.data.dtypes[type][1];
        c.strokeStyle = dark.matches ? mixed(colour, 0.4) : colour;
        c.beginPath();
        for (const i of members) {
          const b = 4 * i;
          if (bounds[b] > right || bounds[b + 2] < left || bounds[b + 1] > bottom || bounds[b + 3] < top) continue;
          if (!curved && bounds[b + 2] - bounds[b] + bounds[b + 3] - bounds[b + 1] < shortest) continue;
          this.trace(c, lines[i], curved);
        }
        c.stroke();
      });
      c.globalAlpha = 1;
    }

    trace(c, line, curved) {
      c.moveTo(line[4], line[5]);
      for (let p = 6; p < line.length; p += 2) {
        const ax = line[p - 2], ay = line[p - 1], bx = line[p], by = line[p + 1];
        if (!curved || line[3] || Math.abs(ax - bx) < 1) c.lineTo(bx, by);
        else c.bezierCurveTo(ax, (ay + by) / 2, bx, (ay + by) / 2, bx, by);
      }
    }

    seen(b) {
      const [left, top, right, bottom] = this.view, boxes = this.drawing.box;
      return boxes[b] < right && boxes[b] + boxes[b + 2] > left && boxes[b + 1] < bottom && boxes[b + 1] + boxes[b + 3] > top;
    }

    dimmed(i) {
      return this.marked && i !== this.selected && !this.marked.has(i);
    }

    // From afar a box is a spot, in the stronger of its colours and at least one pixel large.
    drawFar(c, drawing) {
      const boxes = drawing.box, least = 1.5 / this.scale;
      let last = '';
      for (const i of drawing.order) {
        const b = 4 * i;
        if (!this.seen(b)) continue;
        c.globalAlpha = this.dimmed(i) ? 0.2 : 1;
        const colour = this.strong(drawing, i);
        if (colour !== last) c.fillStyle = last = colour;
        c.fillRect(boxes[b], boxes[b + 1], Math.max(boxes[b + 2], least), Math.max(boxes[b + 3], least));
      }
      c.globalAlpha = 1;
    }

    strong(drawing, i) {
      const kind = drawing.kind[i];
      if (kind === NATIVE) return dark.matches ? '#f3f4f6' : '#1f2937';
      return kind === INPUT || kind === OUTPUT ? '#9ca3af' : mixed(drawing.border[i], 0.25);
    }

    drawNear(c, drawing) {
      const boxes = drawing.box, words = this.scale >= 0.45;
      c.textAlign = 'center', c.textBaseline = 'middle';
      for (let i = 0; i < drawing.kind.length; i++) {
        const b = 4 * i, kind = drawing.kind[i];
        if (!this.seen(b)) continue;
        const [x, y, w, h] = [boxes[b], boxes[b + 1], boxes[b + 2], boxes[b + 3]];
        const engine = this.data.engines[drawing.engine[i]];
        c.globalAlpha = this.dimmed(i) ? 0.25 : 1;
        c.fillStyle = drawing.fill[i], c.strokeStyle = drawing.border[i];
        c.lineWidth = kind === ENGINE ? 2 : kind === NATIVE ? 1.8 : 1.2;
        c.setLineDash(engine && !engine[2] ? [5, 3] : []);
        c.beginPath();
        (c.roundRect || c.rect).call(c, x, y, w, h, kind < NATIVE ? h / 2 : kind === ENGINE || kind === ISLAND ? 10 : 5);
        c.fill(), c.stroke();
        if (!words) continue;
        const label = shorter(this.strings[drawing.label[i]], 32), detail = shorter(this.detail(drawing, i), 28);
        c.fillStyle = '#111827', c.font = '600 12px system-ui, sans-serif';
        c.fillText(label, x + w / 2, y + h / 2 - (detail ? 6 : 0), w - 8);
        c.fillStyle = '#4b5563', c.font = '10px system-ui, sans-serif';
        if (detail) c.fillText(detail, x + w / 2, y + h / 2 + 8, w - 8);
      }
      c.setLineDash([]);
      c.globalAlpha = 1;
    }

    drawChosen(c, drawing) {
      const i = this.selected;
      if (i < 0) return;
      const [x, y, w, h] = drawing.box.slice(4 * i, 4 * i + 4);
      c.strokeStyle = this.ink, c.lineWidth = Math.max(2.5, 2 / this.scale);
      c.beginPath();
      for (const line of [...drawing.into[i], ...drawing.from[i]]) this.trace(c, drawing.lines[line], true);
      c.stroke();
      c.lineWidth = Math.max(3.5, 3 / this.scale);
      c.strokeRect(x - c.lineWidth, y - c.lineWidth, w + 2 * c.lineWidth, h + 2 * c.lineWidth);
    }

    detail(drawing, i) {
      const kind = drawing.kind[i];
      return kind === NATIVE || kind === MEMBER ? lastPart(this.strings[drawing.name[i]]) : this.strings[drawing.detail[i]];
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

    // ---- mouse, fingers, keys

    listen() {
      const {canvas, root} = this;
      canvas.addEventListener('pointerdown', (event) => this.down(event));
      canvas.addEventListener('pointermove', (event) => this.drag(event));
      for (const name of ['pointerup', 'pointercancel']) canvas.addEventListener(name, (event) => this.up(event));
      canvas.addEventListener('pointerleave', () => { this.tip.hidden = true; });
      canvas.addEventListener('wheel', (event) => this.wheel(event), {passive: false});
      canvas.addEventListener('keydown', (event) => this.key(event));
      canvas.addEventListener('dblclick', (event) => this.zoom(2, event.offsetX, event.offsetY));
      root.addEventListener('keydown', (event) => { if (event.key === 'Escape') this.full(false); });
      this.find.addEventListener('input', () => this.search(this.find.value));
      this.find.addEventListener('keydown', (event) => {
        if (event.key === 'Enter' && this.pairs && this.pairs.length) this.go(this.pairs[0]);
      });
      this.choose.addEventListener('change', () => this.show(Number(this.choose.value)));
      const acts = {in: () => this.zoom(1.5), out: () => this.zoom(1 / 1.5), fit: () => this.fit(), full: () => this.full()};
      for (const [name, act] of Object.entries(acts)) root.querySelector(`[data-act=${name}]`).addEventListener('click', act);
    }

    full(on = !this.root.classList.contains('full')) {
      if (on === this.root.classList.contains('full')) return;
      this.root.classList.toggle('full', on);
      document.documentElement.classList.toggle('still', on);
      this.root.querySelector('[data-act=full]').setAttribute('aria-pressed', on);
      this.resize();
      this.fit();
    }

    down(event) {
      this.canvas.focus({preventScroll: true});
      this.canvas.setPointerCapture(event.pointerId);
      this.pointers.set(event.pointerId, [event.offsetX, event.offsetY]);
      this.still = this.pointers.size === 1 ? [event.offsetX, event.offsetY] : null;
      this.tip.hidden = true;
    }

    drag(event) {
      const {offsetX: x, offsetY: y} = event, before = this.pointers.get(event.pointerId);
      if (!before) return event.pointerType === 'mouse' && this.hover(x, y);
      if (this.still && Math.hypot(x - this.still[0], y - this.still[1]) < 5) return;
      this.still = null;
      const other = [...this.pointers].find(([id]) => id !== event.pointerId);
      if (other) {
        const [ox, oy] = other[1];
        const factor = Math.max(Math.hypot(x - ox, y - oy), 1) / Math.max(Math.hypot(before[0] - ox, before[1] - oy), 1);
        this.zoom(factor, (x + ox) / 2, (y + oy) / 2);
        this.move((x - before[0]) / 2, (y - before[1]) / 2);
      } else {
        this.move(x - before[0], y - before[1]);
      }
      this.pointers.set(event.pointerId, [x, y]);
    }

    up(event) {
      this.pointers.delete(event.pointerId);
      if (this.still && event.type === 'pointerup') {
        this.select(this.at(event.offsetX, event.offsetY, event.pointerType === 'mouse' ? 4 : NEAR));
      }
      this.still = null;
    }

    // A wheel scrolls the page until the map is clicked, so that nobody is caught in it.
    wheel(event) {
      if (!event.ctrlKey && document.activeElement !== this.canvas && !this.root.classList.contains('full')) return;
      event.preventDefault();
      const lines = event.deltaMode ? 20 : 1;
      const turn = Math.max(-120, Math.min(120, event.deltaY * lines));
      this.zoom(Math.exp(-turn * (event.ctrlKey ? 0.008 : 0.003)), event.offsetX, event.offsetY);
      this.tip.hidden = true;
    }

    key(event) {
      if (event.ctrlKey || event.metaKey || event.altKey) return;
      const acts = {
        ArrowLeft: () => this.move(60, 0), ArrowRight: () => this.move(-60, 0), ArrowUp: () => this.move(0, 60), ArrowDown: () => this.move(0, -60),
        '+': () => this.zoom(1.25), '=': () => this.zoom(1.25), '-': () => this.zoom(0.8), 0: () => this.fit(), Home: () => this.fit(),
      };
      if (!acts[event.key]) return;
      event.preventDefault();
      acts[event.key]();
    }
  }

  const start = (part) => {
    const root = part.querySelector('.map');
    if (root && !root.graphMap) root.graphMap = new GraphMap(root);
    return root && root.graphMap;
  };
  const parts = [...document.querySelectorAll('.signature')];
  const choices = [...document.querySelectorAll('[data-signature]')];
  const choose = (number) => {
    parts.forEach((part, i) => { part.hidden = i !== number; });
    choices.forEach((choice, i) => choice.setAttribute('aria-pressed', i === number));
    start(parts[number]);
  };
  choices.forEach((choice, i) => choice.addEventListener('click', () => choose(i)));
  if (parts.length) choose(0);
  // Names in the tables lead to the map.
  document.addEventListener('click', (event) => {
    const link = event.target.closest('[data-node], [data-engine]');
    if (!link) return;
    const map = start(link.closest('.signature'));
    if (!map) return;
    if (link.dataset.node !== undefined) map.jump(link.dataset.node);
    else map.engine(Number(link.dataset.engine));
    map.root.scrollIntoView({block: 'start'});
    map.canvas.focus({preventScroll: true});
  });
})();
