// A map that is used with mouse, fingers and keys; and what of the page is not the map.
class GraphMap extends ToldMap {
  constructor(root) {
    super(root);
    this.pointers = new Map();
    this.legend();
    this.listen();
    this.resize();
    this.show(0);
    new ResizeObserver(() => this.resize()).observe(this.canvas.parentElement);
    dark.addEventListener('change', () => this.ask());
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
