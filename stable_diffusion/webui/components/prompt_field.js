// The field belongs to the browser: Python's text replaces what is in it only with a new `turn`. Python gets the text
// when the field is left, with Ctrl+Enter, and, if it is `live`, when typing pauses. A change of pages may be faster
// than that, so the window keeps what Python may have missed. Edits go through the browser's own undo.

const PAUSE = 300 // milliseconds without a key after which a live field sends its text
const PATIENCE = 2000 // milliseconds that a change of pages may take
const KEPT = Symbol.for("prompt fields")
const WORDS = Symbol.for("prompt words")
const MAX_SHOWN = 160 // characters of an earlier prompt
const GAP = 4 // pixels between the field and what it offers

export default function ({ data, parentElement, setStateValue }) {
    const field = (parentElement.field ??= new PromptField(parentElement))
    field.tell = (value) => setStateValue("typed", value)
    field.open(data)
    return field.listen()
}

class PromptField {
    constructor(root) {
        this.root = root.querySelector(".prompt-field")
        this.area = root.querySelector("textarea")
        this.list = root.querySelector("ul")
        this.said = root.querySelector(".prompt-said")
        this.label = root.querySelector("label")
        this.keys = root.querySelector(".prompt-keys")
        this.buttons = Object.fromEntries([...root.querySelectorAll("button")].map((b) => [b.dataset.do, b]))
        this.offer = null // what is offered: {title, eager, items}
        this.active = -1
        this.past = -1 // which earlier prompt is shown; -1: the one that was being written
    }

    get words() {
        return window[WORDS] ?? {}
    }

    // --- The text, which Python and the browser both know

    open(data) {
        const { area } = this
        this.data = data
        area.id = this.label.htmlFor = `prompt-field-${data.key}`
        this.list.id = `${area.id}-offers`
        this.label.textContent = data.label
        area.setAttribute("aria-label", data.label)
        area.setAttribute("aria-description", data.help)
        area.placeholder = data.placeholder
        area.disabled = this.buttons.earlier.disabled = data.disabled
        area.style.setProperty("--rows", `${1.4 * data.rows + 1.15}rem`)
        const all = (window[KEPT] ??= {})
        if (data.turn === this.turn) return
        const missed = all[data.key]?.turn === data.turn && all[data.key].text !== data.value
        this.turn = data.turn
        this.sent = data.value
        this.show(missed ? all[data.key].text : data.value)
        if (missed) this.send()
        else this.keep()
    }

    show(text) {
        if (this.composing) this.waiting = text
        else if (this.area.value !== text) this.area.value = text
        this.past = -1
        this.close()
        this.grow()
    }

    keep() {
        window[KEPT][this.data.key] = { turn: this.turn, text: this.area.value }
    }

    send() {
        clearTimeout(this.timer)
        if (this.composing || !this.data || this.area.value === this.sent) return
        this.sent = this.area.value
        this.keep()
        this.tell({ text: this.sent, turn: this.turn })
    }

    typed() {
        this.keep()
        this.grow()
        clearTimeout(this.timer)
        if (this.data.live && !this.composing) this.timer = setTimeout(() => this.send(), PAUSE)
    }

    // Replaces a part of the text as if it had been typed, so that Ctrl+Z takes it back.
    write({ from, to, text, select }) {
        const { area } = this
        const after = area.value.slice(0, from) + text + area.value.slice(to)
        this.writing = true
        area.focus()
        area.setSelectionRange(from, to)
        document.execCommand(text ? "insertText" : "delete", false, text)
        if (area.value !== after) {
            area.value = after
            area.dispatchEvent(new InputEvent("input", { bubbles: true }))
        }
        area.setSelectionRange(...(select ?? [from + text.length, from + text.length]))
        this.writing = false
    }

    grow() {
        if (CSS.supports("field-sizing", "content")) return
        this.area.style.height = "auto"
        this.area.style.height = `${this.area.scrollHeight + 2}px`
    }

    listen() {
        this.listening?.abort()
        const { signal } = (this.listening = new AbortController())
        const on = (target, names, does, more) => {
            for (const name of names.split(" ")) target.addEventListener(name, does, { signal, ...more })
        }
        on(this.area, "input", (event) => this.input(event))
        on(this.area, "keydown", (event) => this.key(event))
        on(this.area, "click", () => this.close())
        on(this.area, "compositionstart", () => (this.composing = true))
        on(this.area, "compositionend", () => this.composed())
        on(this.area, "blur", (event) => this.leave(event))
        on(this.buttons.earlier, "click", () => (this.offer ? this.close() : this.offerEarlier()))
        on(this.buttons.keys, "click", () => this.showKeys())
        // A press on the list would take the focus, and so close it.
        on(this.list, "pointerdown", (event) => event.preventDefault())
        on(this.buttons.earlier, "pointerdown", (event) => event.preventDefault())
        on(this.list, "click", (event) => this.take([...this.list.children].indexOf(event.target.closest("li"))))
        on(window, "scroll resize", () => this.place(), { capture: true, passive: true })
        // Before Streamlit's own listener, which presses Generate.
        on(window, "keydown", (event) => generates(event) && this.send(), { capture: true })
        on(window, "pagehide", () => this.send())
        return () => this.listening.abort()
    }

    input() {
        this.typed()
        if (this.writing) return
        this.past = -1
        if (!this.composing) this.complete()
    }

    composed() {
        this.composing = false
        if (this.waiting !== undefined) this.show(this.waiting)
        else this.typed()
        this.waiting = undefined
    }

    // To a link: the answer to a text that is sent now would bring this page back. The next page's field sends it.
    leave(event) {
        this.composing = false
        this.close()
        if (!event.relatedTarget?.closest?.("a[href]")) return this.send()
        this.timer = setTimeout(() => this.root.isConnected && this.send(), PATIENCE)
    }

    // --- Keys

    key(event) {
        if (event.isComposing || this.composing) return
        const { key, altKey, shiftKey } = event
        const command = event.ctrlKey || event.metaKey
        const vertical = { ArrowUp: 1, ArrowDown: -1 }[key]
        if (generates(event)) return this.close()
        if (vertical && command && !altKey && !shiftKey) this.weigh(vertical > 0)
        else if (vertical && altKey && !command && !shiftKey) this.recall(vertical)
        else if (key === " " && command) this.complete(true)
        else if (!this.offer || command || altKey) return
        else if (vertical) this.choose(this.active - vertical)
        else if (key === "Escape") this.close()
        else if ((key === "Enter" || key === "Tab") && this.active >= 0 && !shiftKey) this.take(this.active)
        else return
        event.preventDefault()
        event.stopPropagation()
    }

    weigh(up) {
        const edit = weighed(this.area.value, this.area.selectionStart, this.area.selectionEnd, up)
        if (!edit) return
        this.close()
        this.write(edit)
        this.said.textContent = edit.words
    }

    showKeys() {
        this.keys.hidden = !this.keys.hidden
        this.buttons.keys.setAttribute("aria-expanded", !this.keys.hidden)
    }

    // --- Earlier prompts

    get earlier() {
        return this.words.earlier?.[this.data.earlier] ?? []
    }

    recall(by) {
        const { earlier } = this
        if (this.past < 0) this.begun = this.area.value
        let past = this.past + by
        if (earlier[past] === this.area.value) past += by // it is there already
        if (past < -1 || past >= earlier.length) return
        this.close()
        const text = past < 0 ? this.begun : earlier[past]
        this.write({ from: 0, to: this.area.value.length, text })
        this.past = past
        this.said.textContent = past < 0 ? "The newest text" : `Earlier prompt ${past + 1} of ${earlier.length}`
    }

    offerEarlier() {
        const to = this.area.value.length
        const items = this.earlier.map((text) => ({ name: shortened(text), note: "", from: 0, to, text }))
        this.area.focus()
        if (items.length) this.offers({ title: "Earlier prompts", items }, 0)
        else this.said.textContent = "There are no earlier prompts yet."
    }

    // --- What is offered

    complete(asked = false) {
        const { area } = this
        const offer =
            area.selectionStart === area.selectionEnd && completions(area.value, area.selectionStart, this.words)
        if (offer) this.offers(offer, offer.eager || asked ? 0 : -1)
        else this.close()
    }

    offers(offer, active) {
        const { area, list } = this
        this.offer = offer
        list.setAttribute("aria-label", offer.title)
        list.replaceChildren(...offer.items.map((item, i) => option(item, `${list.id}-${i}`)))
        const about = { role: "combobox", "aria-autocomplete": "list", "aria-expanded": true, "aria-controls": list.id }
        for (const [name, value] of Object.entries(about)) area.setAttribute(name, value)
        this.said.textContent = `${offer.title}: ${offer.items.length}`
        list.showPopover?.()
        list.scrollTop = 0
        this.place()
        this.choose(active)
    }

    choose(i) {
        const options = [...this.list.children]
        this.active = i < 0 ? -1 : Math.min(i, options.length - 1)
        options.forEach((each, place) => each.setAttribute("aria-selected", place === this.active))
        const chosen = options[this.active]
        if (!chosen) return this.area.removeAttribute("aria-activedescendant")
        this.area.setAttribute("aria-activedescendant", chosen.id)
        chosen.scrollIntoView({ block: "nearest" })
    }

    take(i) {
        const item = this.offer?.items[i]
        this.close()
        if (item) this.write(item)
    }

    close() {
        if (!this.offer) return
        this.offer = null
        this.active = -1
        for (const name of ["role", "autocomplete", "expanded", "controls", "activedescendant"]) {
            this.area.removeAttribute(name === "role" ? name : `aria-${name}`)
        }
        this.list.hidePopover?.()
        this.list.replaceChildren()
    }

    // Under the field; over it where there is more room.
    place() {
        if (!this.offer) return
        const box = this.area.getBoundingClientRect()
        const { style, offsetHeight } = this.list
        const below = window.innerHeight - box.bottom
        const over = below < offsetHeight + GAP && box.top > below
        style.left = `${box.left}px`
        style.width = `${box.width}px`
        style.top = `${over ? box.top - offsetHeight - GAP : box.bottom + GAP}px`
    }
}

function generates(event) {
    return (event.ctrlKey || event.metaKey) && !event.shiftKey && event.key === "Enter"
}

function option({ name, note }, id) {
    const element = document.createElement("li")
    element.id = id
    element.setAttribute("role", "option")
    element.append(...[name, note].filter(Boolean).map((text) => {
        return Object.assign(document.createElement("span"), { textContent: text })
    }))
    return element
}

function shortened(text) {
    const line = text.replace(/\s+/g, " ").trim()
    return line.length > MAX_SHOWN ? `${line.slice(0, MAX_SHOWN)}…` : line
}
