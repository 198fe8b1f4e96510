// Each word comes with a map, a byte for each of its numbers. The picture is dimmed and glows where the map of the
// chosen words is strong; a word under the pointer, or with the keyboard's focus, is shown instead of those chosen.

const SIDE = 512 // pixels of the canvas along the longer side
const SHOWN = 4 // words that are said of a place

export default function ({ data, parentElement }) {
    const view = (parentElement.view ??= new View(parentElement))
    view.open(data)
}

class View {
    constructor(root) {
        this.line = root.querySelector(".line")
        this.canvas = root.querySelector("canvas")
        this.said = root.querySelector(".said")
        this.context = this.canvas.getContext("2d")
        this.small = document.createElement("canvas")
        this.image = new Image()
        this.chosen = null // the places of words; null until there are words
        this.looked = null // the place of the word that is looked at
        this.image.addEventListener("load", () => this.draw())
        const look = (event) => this.look(event.target.closest?.("button"))
        const leave = () => this.look(null)
        for (const name of ["pointerover", "focusin"]) this.line.addEventListener(name, look)
        for (const name of ["pointerleave", "focusout"]) this.line.addEventListener(name, leave)
        this.line.addEventListener("click", (event) => this.choose(event.target.closest("button")))
        this.line.addEventListener("keydown", (event) => this.step(event))
        this.canvas.addEventListener("pointermove", (event) => this.point(event))
        this.canvas.addEventListener("pointerleave", () => this.say())
    }

    open(data) {
        const [width, height] = data.size
        const scale = SIDE / Math.max(width, height)
        this.data = data
        this.maps = data.words.map((word) => Uint8Array.from(atob(word.map), (sign) => sign.charCodeAt(0)))
        this.canvas.width = Math.round(width * scale)
        this.canvas.height = Math.round(height * scale)
        ;[this.small.width, this.small.height] = data.shape
        this.chosen ??= new Set([data.start])
        this.colours = colours(data.glow)
        if (this.buttons?.map((button) => button.textContent).join(" ") !== data.words.map((w) => w.text).join(" ")) {
            this.spell(data.words)
        }
        if (this.image.src !== data.picture) this.image.src = data.picture
        this.draw()
    }

    spell(words) {
        this.line.replaceChildren()
        this.buttons = words.map((word, place) => {
            if (place && word.part !== words[place - 1].part) {
                const and = document.createElement("span")
                and.className = "and"
                and.textContent = "AND"
                this.line.append(and)
            }
            const button = document.createElement("button")
            button.type = "button"
            button.textContent = word.text
            this.line.append(button)
            return button
        })
    }

    // --- What is shown: the word that is looked at, else those that are chosen

    look(button) {
        const place = button ? this.buttons.indexOf(button) : null
        if (place === this.looked) return
        this.looked = place
        this.draw()
    }

    choose(button) {
        if (!button) return
        const place = this.buttons.indexOf(button)
        if (!this.chosen.delete(place)) this.chosen.add(place)
        this.looked = null
        this.draw()
    }

    step(event) {
        const by = { ArrowLeft: -1, ArrowRight: 1 }[event.key]
        const next = by && this.buttons[this.buttons.indexOf(event.target) + by]
        if (!next) return
        event.preventDefault()
        next.focus()
    }

    get places() {
        return this.looked === null ? [...this.chosen].sort((a, b) => a - b) : [this.looked]
    }

    // --- Drawing

    draw() {
        this.buttons.forEach((button, place) => button.setAttribute("aria-pressed", this.chosen.has(place)))
        this.say()
        if (!this.image.complete || !this.image.naturalWidth) return
        const { canvas, context, data, places } = this
        context.globalAlpha = 1
        if (!places.length) {
            context.drawImage(this.image, 0, 0, canvas.width, canvas.height)
            return
        }
        context.fillStyle = "#000"
        context.fillRect(0, 0, canvas.width, canvas.height)
        context.globalAlpha = data.dimmed
        context.filter = "grayscale(1)"
        context.drawImage(this.image, 0, 0, canvas.width, canvas.height)
        context.filter = "none"
        context.globalAlpha = 1
        const [width, height] = data.shape
        const layer = this.small.getContext("2d")
        const pixels = layer.createImageData(width, height)
        for (let i = 0; i < width * height; i++) {
            const heat = places.reduce((sum, place) => sum + this.maps[place][i], 0) / places.length
            pixels.data.set([...this.colours[Math.round(heat)], heat * data.strength], 4 * i)
        }
        layer.putImageData(pixels, 0, 0)
        context.imageSmoothingQuality = "high"
        context.drawImage(this.small, 0, 0, canvas.width, canvas.height)
    }

    // --- Words about it

    say() {
        const { places, data } = this
        const names = places.map((place) => `“${data.words[place].text}”`).join(", ")
        this.canvas.setAttribute("aria-label", names ? `The picture, lit where ${names} acts` : "The picture")
        if (!places.length) this.said.textContent = "Choose a word to see where it acts."
        else if (places.length > 1) this.said.textContent = `${names} together, each relative to its own strongest place.`
        else {
            const { high, low } = data.words[places[0]]
            this.said.textContent = high
                ? `${names} gets ${percent(high)} of the attention where it is strongest, ${percent(low)} where it is weakest.`
                : `${names} is not in the prompt at these steps.`
        }
    }

    point(event) {
        const box = this.canvas.getBoundingClientRect()
        const [width, height] = this.data.shape
        const x = Math.min(width - 1, Math.max(0, Math.floor(((event.clientX - box.left) / box.width) * width)))
        const y = Math.min(height - 1, Math.max(0, Math.floor(((event.clientY - box.top) / box.height) * height)))
        const here = this.data.words.map((word, place) => {
            return [word.low + (this.maps[place][y * width + x] / 255) * (word.high - word.low), word.text]
        })
        here.sort((a, b) => b[0] - a[0])
        const first = here.slice(0, SHOWN).map(([share, text]) => `${text} ${percent(share)}`)
        this.said.textContent = `Here: ${first.join(", ")}.`
    }
}

function percent(share) {
    return share < 0.001 ? "less than 0.1 %" : `${(100 * share).toPrecision(share < 0.1 ? 2 : 3)} %`
}

function colours(stops) {
    return Array.from({ length: 256 }, (_, i) => {
        const at = (i / 255) * (stops.length - 1)
        const first = Math.min(stops.length - 2, Math.floor(at))
        return stops[first].map((from, channel) => from + (at - first) * (stops[first + 1][channel] - from))
    })
}
