// A film of pictures that may still be arriving. It never starts by itself; while frames are painted it shows the newest
// one until somebody chooses another. The same element stays from drawing to drawing, so that it plays on.

const WORDS = { waits: "waits", painting: "…", failed: "failed", missing: "not painted", finished: "" }

export default function ({ data, parentElement, setStateValue }) {
    const player = (parentElement.player ??= new Player(parentElement))
    // A state rather than a trigger, which may be lost while the page is drawn; the time tells two clicks apart.
    player.open = (index) => setStateValue("opened", [index, Date.now()])
    player.take(data)
}

class Player {
    constructor(root) {
        const find = (name) => root.querySelector(name)
        this.stage = find(".stage")
        this.image = find(".stage img")
        this.empty = find(".empty")
        this.name = find(".name")
        this.button = find(".play")
        this.slider = find(".at")
        this.speed = find(".speed")
        this.strip = find(".strip")
        this.at = 0
        this.id = null
        this.timer = 0
        this.button.addEventListener("click", () => this.toggle())
        this.slider.addEventListener("input", () => this.choose(Number(this.slider.value) - 1))
        this.slider.addEventListener("keydown", (event) => {
            if (event.key !== " ") return
            event.preventDefault()
            this.toggle()
        })
        this.strip.addEventListener("click", (event) => this.click(event.target.closest("button")))
        this.strip.addEventListener("keydown", (event) => this.step(event))
    }

    take(data) {
        this.data = data
        if (this.id !== data.id || this.buttons.length !== data.frames.length) this.begin()
        if (!this.chosen) this.at = data.active ? this.newest() : 0
        data.frames.forEach((frame, i) => this.show(this.buttons[i], frame))
        this.button.disabled = this.shown().length < 2
        this.draw()
    }

    begin() {
        this.pause()
        Object.assign(this, { id: this.data.id, at: 0, chosen: false })
        this.buttons = this.data.frames.map((_, index) => {
            const button = document.createElement("button")
            button.type = "button"
            button.dataset.index = index
            button.append(document.createElement("img"), document.createElement("span"))
            button.firstChild.alt = ""
            return button
        })
        this.strip.replaceChildren(...this.buttons)
        this.slider.max = this.buttons.length
    }

    picture(index) {
        return this.data.pictures[this.data.frames[index].picture]
    }

    // The indices of the frames that can be played.
    shown() {
        return this.buttons.map((_, index) => index).filter((index) => this.picture(index).state === "finished")
    }

    newest() {
        const painting = this.data.pictures.findIndex((picture) => picture.state === "painting" && picture.src)
        return painting < 0 ? (this.shown().at(-1) ?? 0) : this.data.frames.findIndex((f) => f.picture === painting)
    }

    // --- Drawing

    show(button, frame) {
        const { src, state } = this.data.pictures[frame.picture]
        const [image, words] = button.children
        if (image.getAttribute("src") !== src) image.src = src
        image.hidden = !src
        words.textContent = src ? "" : WORDS[state]
        button.dataset.state = state
        button.setAttribute("aria-label", `${frame.name}: ${state}`)
    }

    draw() {
        const { src } = this.picture(this.at)
        const { name } = this.data.frames[this.at]
        if (src && this.image.getAttribute("src") !== src) this.image.src = src
        if (src) this.image.alt = name
        this.image.hidden = !src
        this.empty.hidden = Boolean(src)
        this.empty.textContent = this.data.active ? "This frame is on its way." : "This frame is not painted."
        this.name.textContent = name
        this.slider.value = this.at + 1
        this.slider.setAttribute("aria-valuetext", name)
        this.buttons.forEach((button, index) => button.setAttribute("aria-current", index === this.at))
    }

    choose(index) {
        this.pause()
        this.go(index)
    }

    go(index) {
        this.at = index
        this.chosen = true
        this.draw()
    }

    // --- Playing

    toggle() {
        if (this.timer) return this.pause()
        const frames = this.shown()
        if (frames.length < 2) return
        if (!this.data.loop && this.at >= frames.at(-1)) this.at = -1 // once more from the start
        this.button.textContent = "Pause"
        this.next()
    }

    next() {
        const frames = this.shown()
        const later = frames.find((index) => index > this.at)
        if (!this.stage.isConnected || (later === undefined && !this.data.loop)) return this.pause()
        this.go(later ?? frames[0])
        this.timer = setTimeout(() => this.next(), 1000 / (this.data.fps * Number(this.speed.value)))
    }

    pause() {
        clearTimeout(this.timer)
        this.timer = 0
        this.button.textContent = "Play"
    }

    // --- The strip

    click(button) {
        if (!button) return
        const index = Number(button.dataset.index)
        this.choose(index)
        this.open(index)
    }

    step(event) {
        const by = { ArrowLeft: -1, ArrowRight: 1 }[event.key]
        const next = by && this.buttons[this.buttons.indexOf(event.target) + by]
        if (!next) return
        event.preventDefault()
        next.focus()
    }
}
