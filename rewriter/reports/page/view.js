// A map that is drawn: the drawings come ready laid out in JSON.
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

class MapView {
  constructor(root) {
    this.root = root;
    this.data = JSON.parse(document.getElementById(root.dataset.map).textContent);
    this.strings = strings(this.data.strings);
    this.data.drawings.forEach((drawing) => this.prepare(drawing));
    this.canvas = root.querySelector('canvas');
    this.context = this.canvas.getContext('2d', {alpha: false});
    this.marked = null;
    this.selected = -1;
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
}
