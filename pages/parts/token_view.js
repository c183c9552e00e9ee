// Tokens as text. What a model wrote goes through textContent only, so nothing in it can become HTML.
// A token is [text, id, probability or null, rank or null, [[text, id, probability, rank], ...], special].

const LEVELS = [0.9, 0.5, 0.1, 0.01]; // above the first: level 0, no colour
const LABELS = ["over 90%", "50 to 90%", "10 to 50%", "1 to 10%", "under 1%"];
const MARGIN = 8; // pixels between the panel and the window's edge

export default function ({ data, parentElement }) {
  const root = parentElement.querySelector(".root");
  const view = (root.view ??= new View(root)); // called again with each new data, for the same element
  view.show(data);
  return () => root.view.leave();
}

class View {
  constructor(root) {
    this.drawn = [];
    this.current = 0;
    this.legend = add(root, "div", "legend");
    this.tokens = add(root, "div", "tokens");
    this.tokens.setAttribute("role", "group");
    this.panel = add(root, "div", "panel");
    this.panel.setAttribute("popover", "auto"); // above everything, closed by Escape or a click elsewhere
    this.panel.setAttribute("role", "dialog");
    this.panel.addEventListener("toggle", (event) => event.newState === "closed" && this.closed());
    this.tokens.addEventListener("click", (event) => this.clicked(event));
    this.tokens.addEventListener("keydown", (event) => this.pressed(event));
    this.scrolled = (event) => event.target !== this.panel && this.close();
    window.addEventListener("scroll", this.scrolled, { capture: true, passive: true });
  }

  leave() {
    window.removeEventListener("scroll", this.scrolled, { capture: true });
    this.close();
  }

  show(data) {
    this.data = data;
    this.tokens.classList.toggle("probability", data.kind === "probability");
    this.tokens.setAttribute("aria-label", data.label);
    this.showLegend();
    const same = sameStart(this.drawn, data.tokens);
    if (same < this.drawn.length || data.gap) { // not a text that only grew: draw it anew
      this.close();
      this.tokens.replaceChildren();
      this.drawn = [];
    }
    const added = document.createDocumentFragment();
    for (let index = this.drawn.length; index < data.tokens.length; index++) {
      if (data.gap && index === data.gap.at) {
        const gap = add(added, "span", "gap");
        gap.textContent = data.gap.text;
      }
      added.append(this.token(data.tokens[index], index));
    }
    this.tokens.append(added);
    this.drawn = data.tokens;
    this.current = Math.min(this.current, Math.max(0, this.drawn.length - 1));
    this.spans()[this.current]?.setAttribute("tabindex", "0");
  }

  showLegend() {
    this.legend.replaceChildren();
    this.legend.style.display = this.data.legend ? "" : "none";
    for (const [name, text] of this.data.kind === "probability" ? LABELS.map((label, level) => [`level${level}`, label]) : [["even", "a token"], ["odd", "the next"], ["special", "special token"]]) {
      const entry = add(this.legend, "span");
      add(entry, "i", name);
      entry.append(text);
    }
  }

  token(token, index) {
    const [text, id, probability, rank, , special] = token;
    const span = document.createElement("span");
    const look = probability === null ? (index % 2 ? "odd" : "even") : `level${level(probability)}`;
    span.className = `token ${special ? "special" : look}`;
    span.setAttribute("role", "button");
    span.setAttribute("tabindex", "-1");
    span.setAttribute("aria-haspopup", "dialog");
    const figures = probability === null ? `id ${id}` : `${percent(probability)}, place ${rank}`;
    span.title = special && probability === null ? `special token, id ${id}` : figures;
    span.setAttribute("aria-label", `${visible(text)}, ${span.title}`);
    for (const part of text.split(/(\n)/)) {
      if (part === "\n") add(span, "span", "mark").textContent = "↵";
      span.append(part);
    }
    if (!text) add(span, "span", "mark").textContent = "∅";
    return span;
  }

  spans() {
    return this.tokens.getElementsByClassName("token");
  }

  clicked(event) {
    const span = event.target.closest(".token");
    if (span) this.open(Array.prototype.indexOf.call(this.spans(), span));
  }

  pressed(event) {
    const moves = { ArrowRight: 1, ArrowLeft: -1, Home: -Infinity, End: Infinity };
    const isOpen = this.panel.matches(":popover-open");
    if (event.key === "Escape" && isOpen) {
      this.close();
    } else if (event.key === "Enter" || event.key === " ") {
      this.open(this.current);
    } else if (event.key in moves) {
      this.go(this.current + moves[event.key], isOpen);
    } else if (event.key === "ArrowUp" || event.key === "ArrowDown") {
      this.go(this.lineAway(event.key === "ArrowUp" ? -1 : 1), isOpen);
    } else {
      return;
    }
    event.preventDefault();
    event.stopPropagation(); // Escape must not close the dialog around it as well
  }

  // the token nearest below or above the current one
  lineAway(direction) {
    const spans = this.spans();
    const here = spans[this.current].getClientRects()[0];
    let best = this.current;
    let line = null;
    for (let index = this.current + direction; index >= 0 && index < spans.length; index += direction) {
      const there = spans[index].getClientRects()[0];
      if (!there || Math.abs(there.top - here.top) < here.height / 2) continue;
      line ??= there.top;
      if (Math.abs(there.top - line) > there.height / 2) break;
      if (best === this.current || distance(there, here) < distance(spans[best].getClientRects()[0], here)) best = index;
    }
    return best;
  }

  go(index, andOpen) {
    const spans = this.spans();
    spans[this.current]?.setAttribute("tabindex", "-1");
    this.current = Math.max(0, Math.min(index, spans.length - 1));
    const span = spans[this.current];
    span.setAttribute("tabindex", "0");
    span.focus({ preventScroll: false });
    if (andOpen) this.open(this.current);
  }

  open(index) {
    const spans = this.spans();
    this.mark(null);
    spans[this.current]?.setAttribute("tabindex", "-1");
    this.current = index;
    spans[index].setAttribute("tabindex", "0");
    this.fill(this.drawn[index], index);
    if (!this.panel.matches(":popover-open")) this.panel.showPopover();
    this.place(spans[index].getClientRects()[0]);
    this.mark(spans[index]);
  }

  place(token) {
    const { offsetWidth: width, offsetHeight: height } = this.panel;
    const below = token.bottom + 6;
    const top = below + height + MARGIN > window.innerHeight ? token.top - height - 6 : below;
    const left = Math.min(token.left, window.innerWidth - width - MARGIN);
    this.panel.style.left = `${Math.max(MARGIN, left)}px`;
    this.panel.style.top = `${Math.max(MARGIN, top)}px`;
  }

  fill([text, id, probability, rank, alternatives, special], index) {
    this.panel.replaceChildren();
    this.panel.setAttribute("aria-label", visible(text));
    add(this.panel, "div", "head").textContent = visible(text);
    const about = add(this.panel, "div", "about");
    const place = this.data.gap && index >= this.data.gap.at ? index + this.data.gap.left_out : index;
    about.textContent = [
      `Token ${place + 1}`,
      `id ${id}`,
      special ? "special" : "",
      probability === null ? "" : `probability ${percent(probability)}`,
      rank === null ? "" : `place ${rank}`,
    ].filter(Boolean).join(" · ");
    if (probability === null) return;
    const all = alternatives.some((other) => other[1] === id) ? alternatives : [...alternatives, [text, id, probability, rank]];
    all.forEach((other) => this.row(visible(other[0]), other[2], other[1] === id ? "row taken" : "row"));
    const rest = 1 - all.reduce((sum, other) => sum + other[2], 0);
    if (rest > 0.0005) this.row("all other tokens", rest, "row rest");
  }

  row(name, share, look) {
    const row = add(this.panel, "div", look);
    add(row, "span", "name").textContent = name;
    add(add(row, "span", "bar"), "i").style.width = `${Math.min(100, share * 100)}%`;
    add(row, "span", "share").textContent = percent(share);
  }

  mark(span) {
    this.marked?.classList.remove("open");
    this.marked = span;
    span?.classList.add("open");
  }

  close() {
    if (this.panel.isConnected && this.panel.matches(":popover-open")) this.panel.hidePopover();
  }

  closed() {
    this.mark(null);
  }
}

function add(parent, tag, look = "") {
  const child = document.createElement(tag);
  child.className = look;
  parent.append(child);
  return child;
}

function level(probability) {
  const found = LEVELS.findIndex((least) => probability > least);
  return found < 0 ? LEVELS.length : found;
}

function percent(share) {
  if (share < 0.001) return "< 0.1%";
  if (share > 0.999 && share < 1) return "> 99.9%";
  return `${(share * 100).toFixed(share < 0.0995 || share > 0.9949 && share < 1 ? 1 : 0)}%`;
}

// white space as something to see
function visible(text) {
  if (!text) return "∅ (no text)";
  return text.replace(/ /g, "␣").replace(/\n/g, "↵").replace(/\t/g, "⇥");
}

function sameStart(before, now) {
  let index = 0;
  while (index < before.length && index < now.length && before[index][1] === now[index][1] && before[index][2] === now[index][2]) index++;
  return index;
}

function distance(one, other) {
  return Math.abs(one.left - other.left);
}
