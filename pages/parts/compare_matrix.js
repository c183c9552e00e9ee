// Rows are prompts, columns are parameter sets. All text goes in as textContent: nothing is ever read as HTML.
// The table is made once; later data changes only the cells that differ, so that nothing jumps or loses focus.

const make = (tag, className, text) => {
  const element = document.createElement(tag)
  if (className) element.className = className
  if (text !== undefined) element.textContent = text
  return element
}

function drawAnswer(answer, several, number) {
  const box = make("div", `answer ${answer.state}`)
  if (several) box.append(make("span", "number", `${number + 1}`))
  const text = make("div", "text")
  for (const [changed, part] of answer.parts) text.append(changed ? make("mark", "", part) : document.createTextNode(part))
  if (answer.live) text.append(make("span", "cursor", "▌"))
  if (!answer.parts.length && answer.empty) text.append(make("span", "empty", answer.empty))
  box.append(text)
  const note = make("div", "note")
  for (const [kind, words] of answer.note) note.append(make("span", kind, words))
  box.append(note)
  return box
}

function drawCell(cell, answers) {
  const scrolled = [...cell.querySelectorAll(".text")].map((text) => [
    text.scrollTop,
    text.scrollHeight - text.scrollTop - text.clientHeight < 24,
  ])
  cell.replaceChildren(...answers.map((answer, number) => drawAnswer(answer, answers.length > 1, number)))
  cell.querySelectorAll(".text").forEach((text, number) => {
    // a growing answer is followed unless somebody has scrolled up in it
    const [top, atEnd] = scrolled[number] ?? [0, true]
    text.scrollTop = answers[number].live && atEnd ? text.scrollHeight : top
  })
}

function build(root, data) {
  const table = make("table")
  table.setAttribute("role", "grid")
  table.setAttribute("aria-label", "Answers: a row for each prompt, a column for each parameter set")
  const head = table.createTHead().insertRow()
  if (data.prompts) head.append(make("th", "corner", "Prompt"))
  for (const set of data.sets) {
    const cell = make("th", set.baseline ? "set baseline" : "set")
    cell.scope = "col"
    cell.append(make("div", "name", set.name), make("div", "about", set.about))
    cell.title = set.full
    head.append(cell)
  }
  const body = table.createTBody()
  data.rows.forEach((row, rowNumber) => {
    const line = body.insertRow()
    if (data.prompts) {
      const prompt = make("th", "prompt")
      prompt.scope = "row"
      const { label, text, reference } = data.prompts[rowNumber]
      prompt.append(make("div", "label", label), make("div", "asked", text))
      if (reference) prompt.append(make("div", "reference", `Right answer: ${reference}`))
      line.append(prompt)
    }
    row.forEach(() => {
      const cell = line.insertCell()
      cell.tabIndex = -1
      cell.setAttribute("role", "gridcell")
    })
  })
  const first = table.querySelector("td")
  if (first) first.tabIndex = 0
  root.replaceChildren(table)
}

function move(root, cell, rows, columns) {
  const lines = [...root.querySelectorAll("tbody tr")]
  const line = cell.closest("tr")
  const cells = [...line.querySelectorAll("td")]
  const next = lines[lines.indexOf(line) + rows]?.querySelectorAll("td")[cells.indexOf(cell) + columns]
  if (!next) return
  cell.tabIndex = -1
  next.tabIndex = 0
  next.focus({ preventScroll: true })
  next.scrollIntoView({ block: "nearest", inline: "nearest" })
}

const STEPS = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] }

export default function ({ parentElement, data, setTriggerValue }) {
  const root = parentElement.querySelector(".matrix")
  root.className = `matrix${data.live ? " live" : ""}${data.prompts ? "" : " pair"}`
  const shape = JSON.stringify([data.sets, data.prompts, data.rows.length])
  if (root.shape !== shape) {
    build(root, data)
    root.shape = shape
    root.drawn = []
  }
  const cells = root.querySelectorAll("td")
  data.rows.flat().forEach((answers, number) => {
    const drawn = JSON.stringify(answers)
    if (root.drawn[number] === drawn) return
    root.drawn[number] = drawn
    drawCell(cells[number], answers)
  })
  const open = (cell) => {
    const number = [...root.querySelectorAll("td")].indexOf(cell)
    if (number < 0 || !data.opens) return
    setTriggerValue("opened", { row: Math.floor(number / data.sets.length), set: number % data.sets.length })
  }
  root.onclick = (event) => {
    if (String(window.getSelection())) return // somebody marks words to copy them
    const cell = event.target.closest("td")
    if (cell) open(cell)
  }
  root.onkeydown = (event) => {
    const cell = event.target.closest("td")
    if (!cell || event.ctrlKey || event.metaKey || event.altKey) return
    if (event.key in STEPS) move(root, cell, ...STEPS[event.key])
    else if (event.key === "Enter") open(cell)
    else return
    event.preventDefault()
    event.stopPropagation()
  }
}
