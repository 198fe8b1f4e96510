// Tables of buttons. They are made once for a grid; later only what changed is set, so that nothing blinks and the
// focus stays. The arrow keys move it from cell to cell.

const WORDS = { waits: "waits", painting: "…", failed: "failed", missing: "not painted", finished: "" }

export default function ({ data, parentElement, setStateValue }) {
    const kept = (parentElement.kept ??= {})
    const shape = JSON.stringify([data.id, data.columns, data.tables.map((t) => [t.title, t.rows.map((r) => r.title)])])
    if (kept.shape !== shape) {
        kept.root?.remove()
        Object.assign(kept, { shape, ...build(data) })
        parentElement.append(kept.root)
    }
    // A state rather than a trigger, which may be lost while the page is drawn; the time tells two clicks apart.
    kept.open = (index) => setStateValue("opened", [index, Date.now()])
    for (const table of data.tables) {
        for (const row of table.rows) {
            for (const cell of row.cells) show(kept.buttons[cell.index], cell)
        }
    }
    const open = (event) => {
        const button = event.target.closest("button")
        if (button) kept.open(Number(button.dataset.index))
    }
    const move = (event) => step(event, kept.buttons, data)
    kept.root.addEventListener("click", open)
    kept.root.addEventListener("keydown", move)
    return () => {
        kept.root.removeEventListener("click", open)
        kept.root.removeEventListener("keydown", move)
    }
}

function build(data) {
    const root = document.createElement("div")
    const buttons = []
    root.className = "grid"
    for (const table of data.tables) {
        const element = root.appendChild(document.createElement("table"))
        if (table.title) element.createCaption().textContent = table.title
        const rows = table.rows.some((row) => row.title)
        const n = table.rows[0].cells.length
        const beside = rows ? "6.5rem" : "0.5rem"
        element.style.minWidth = `calc(${beside} + ${n} * 4.5rem)`
        element.style.maxWidth = `calc(${beside} + ${n} * ${data.side + 4}px)`
        const head = element.createTHead().insertRow()
        if (rows) head.insertCell().className = "corner"
        for (const title of data.columns) head.append(heading(title, "col"))
        if (!data.columns.length) head.insertCell()
        const body = element.createTBody()
        for (const row of table.rows) {
            const line = body.insertRow()
            if (rows) line.append(heading(row.title, "row"))
            for (const cell of row.cells) {
                const button = line.insertCell().appendChild(document.createElement("button"))
                button.type = "button"
                button.dataset.index = cell.index
                button.append(document.createElement("img"), document.createElement("span"))
                buttons[cell.index] = button
            }
        }
    }
    return { root, buttons }
}

function heading(title, scope) {
    const element = document.createElement("th")
    element.scope = scope
    element.textContent = title
    return element
}

function show(button, cell) {
    const [image, words] = button.children
    if (image.getAttribute("src") !== cell.src) image.src = cell.src
    image.hidden = !cell.src
    image.alt = ""
    words.textContent = cell.src ? "" : WORDS[cell.state]
    button.dataset.state = cell.state
    button.setAttribute("aria-label", `${cell.name}: ${cell.state}`)
}

function step(event, buttons, data) {
    const at = buttons.indexOf(event.target.closest("button"))
    const columns = data.tables[0].rows[0].cells.length
    const by = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -columns, ArrowDown: columns }[event.key]
    const next = buttons[at + (by ?? 0)]
    if (at < 0 || !by || !next) return
    event.preventDefault()
    next.focus()
}
