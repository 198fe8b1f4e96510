// The mask is a byte for each pixel of the picture, 255 where painted: no antialiasing, and nothing is ever scaled. The
// canvas over the picture only shows it. Python gets it a moment after each change, and at once when something outside
// is touched, so that a click on Generate loses nothing. A change of pages may be faster still, so the window keeps the
// newest painting with its history, and sends it again if Python has missed it.

const QUIET = 200 // milliseconds without a change before the mask is sent
const PACE = 10_000 // pixels that add one more: larger masks are sent less often
const HISTORY = { steps: 200, bytes: 96 << 20 }
const STRIPE = 5 // CSS pixels; the mask is shown in two colours, so that one of them stands out from any picture
const COLOURS = [
    [59, 91, 219, 175],
    [255, 255, 255, 135],
]

const KEPT = Symbol.for("mask painter")

export default function ({ data, parentElement, setStateValue }) {
    const painter = (parentElement.painter ??= new Painter(parentElement))
    painter.tell = (value) => setStateValue("painted", value)
    painter.open(data)
    return painter.listen()
}

class Painter {
    constructor(root) {
        const find = (selector) => root.querySelector(selector)
        this.root = find(".painter")
        this.stage = find(".stage")
        this.image = find("img")
        this.canvas = find("canvas")
        this.context = this.canvas.getContext("2d")
        this.ring = find(".ring")
        this.slider = find(".size input")
        this.file = find(".file")
        this.words = find(".words")
        this.buttons = Object.fromEntries([...this.root.querySelectorAll("button")].map((b) => [b.dataset.do, b]))
        this.pointers = new Map()
        this.erasing = false
    }

    // --- The picture that Python gives, and listening

    async open({ token, width, height, picture, mask, turn }) {
        if (token === this.token) return
        this.flush()
        const kept = window[KEPT]?.token === token ? window[KEPT] : { token, turn, past: [], future: [] }
        window[KEPT] = kept
        Object.assign(this, { token, width, height, kept, stroke: null, ready: false })
        this.image.src = picture
        this.canvas.width = width
        this.canvas.height = height
        this.stage.style.aspectRatio = `${width} / ${height}`
        this.stage.style.width = `min(100%, max(20rem, 70vh) * ${width / height})`
        this.mask = kept.mask ?? new Uint8Array(width * height)
        this.before = new Uint8Array(width * height)
        this.place = [width / 2, height / 2]
        this.slider.max = Math.max(8, Math.round(Math.max(width, height) / 2))
        this.resize(Math.max(width, height) / 8)
        if (!kept.mask && mask) {
            const given = await this.read(mask)
            if (token !== this.token) return
            this.mask.set(given)
        }
        kept.mask = this.mask
        this.ready = true
        this.striped = 0
        this.stripe()
        this.changed(kept.turn !== turn)
    }

    listen() {
        this.listening?.abort()
        const listening = (this.listening = new AbortController())
        const { signal } = listening
        const on = (target, names, does, more) => {
            for (const name of names.split(" ")) target.addEventListener(name, does, { signal, ...more })
        }
        on(this.canvas, "pointerdown", (event) => this.down(event))
        on(this.canvas, "pointermove", (event) => this.move(event))
        on(this.canvas, "pointerup pointercancel lostpointercapture", (event) => this.up(event))
        on(this.canvas, "pointerleave blur", () => this.showRing(false))
        on(this.canvas, "contextmenu", (event) => this.stroke && event.preventDefault())
        on(this.root, "click", (event) => this.press(event.target.closest("button")?.dataset.do))
        on(this.root, "keydown", (event) => this.key(event))
        on(this.slider, "input", () => this.resize(Number(this.slider.value), true))
        on(this.slider, "change blur", () => this.showRing(false))
        on(this.file, "change", () => this.upload())
        const outside = (event) => event.composedPath().includes(this.root) || this.flush()
        on(window, "pointerdown keydown", outside, { capture: true })
        on(window, "keydown", (event) => event.ctrlKey && event.key === "Enter" && this.flush(), { capture: true })
        on(window, "pagehide", () => this.flush())
        const resized = new ResizeObserver(() => this.stripe())
        resized.observe(this.stage)
        return () => {
            this.flush()
            resized.disconnect()
            listening.abort()
        }
    }

    // --- Pointers: one paints; a second one means a pinch, and takes back what the first began

    down(event) {
        if (!this.ready || (event.pointerType === "mouse" && event.button !== 0)) return
        this.pointers.set(event.pointerId, event)
        if (this.pointers.size > 1) return this.abandon()
        this.canvas.focus({ preventScroll: true })
        this.canvas.setPointerCapture(event.pointerId)
        const value = this.erasing || event.buttons & 32 ? 0 : 255 // 32: the other end of a pen
        this.begin(value)
        this.line(this.where(event), this.where(event))
        this.follow(event)
        event.preventDefault()
    }

    move(event) {
        this.follow(event)
        if (!this.stroke || !this.pointers.has(event.pointerId)) return
        const events = event.getCoalescedEvents?.() ?? []
        for (const one of events.length ? events : [event]) this.line(this.stroke.at, this.where(one))
    }

    up(event) {
        if (!this.pointers.delete(event.pointerId)) return
        if (event.pointerType === "touch") this.showRing(false)
        if (event.type === "pointercancel") this.abandon()
        else this.end()
    }

    where(event) {
        const box = this.canvas.getBoundingClientRect()
        const x = ((event.clientX - box.left) / box.width) * this.width
        return [x, ((event.clientY - box.top) / box.height) * this.height]
    }

    // --- Strokes and steps, each of which can be undone

    begin(value) {
        this.stroke = { value, at: null, rectangle: null }
        this.before.set(this.mask)
    }

    line(from, to) {
        const { mask, width, height, stroke } = this
        const radius = Math.max(this.size / 2, 0.71) // at least one pixel's middle lies within
        const [x0, y0] = from
        const [dx, dy] = [to[0] - x0, to[1] - y0]
        const along = dx * dx + dy * dy || 1
        const far = radius * radius
        const { value } = stroke
        const left = Math.max(0, Math.floor(Math.min(x0, to[0]) - radius))
        const right = Math.min(width, Math.ceil(Math.max(x0, to[0]) + radius))
        const top = Math.max(0, Math.floor(Math.min(y0, to[1]) - radius))
        const bottom = Math.min(height, Math.ceil(Math.max(y0, to[1]) + radius))
        stroke.at = this.place = to
        if (left >= right || top >= bottom) return
        for (let y = top; y < bottom; y++) {
            const py = y + 0.5 - y0
            for (let x = left; x < right; x++) {
                const px = x + 0.5 - x0
                const share = Math.min(1, Math.max(0, (px * dx + py * dy) / along))
                const ex = px - share * dx
                const ey = py - share * dy
                if (ex * ex + ey * ey <= far) mask[y * width + x] = value
            }
        }
        const touched = { left, top, right, bottom }
        stroke.rectangle = union(stroke.rectangle, touched)
        this.draw(touched)
    }

    end() {
        const { stroke } = this
        this.stroke = null
        if (!stroke?.rectangle) return
        const pixels = cut(this.before, this.width, stroke.rectangle)
        if (same(pixels, cut(this.mask, this.width, stroke.rectangle))) return
        const { past } = this.kept
        past.push({ rectangle: stroke.rectangle, pixels })
        this.kept.future = []
        let bytes = 0
        const tooOld = past.findLastIndex((step) => (bytes += step.pixels.length) > HISTORY.bytes)
        past.splice(0, Math.max(tooOld + 1, past.length - HISTORY.steps))
        this.kept.turn++
        this.changed(true)
    }

    abandon() {
        const { stroke } = this
        this.stroke = null
        if (!stroke?.rectangle) return
        this.mask.set(this.before)
        this.draw(stroke.rectangle)
    }

    step(change) {
        if (!this.ready || this.stroke) return
        this.begin()
        change(this.mask)
        this.stroke.rectangle = this.whole()
        this.draw(this.whole())
        this.end()
    }

    back(from, to) {
        const step = this.stroke ? null : from.pop()
        if (!step) return
        const pixels = cut(this.mask, this.width, step.rectangle)
        paste(this.mask, this.width, step.rectangle, step.pixels)
        to.push({ rectangle: step.rectangle, pixels })
        this.draw(step.rectangle)
        this.kept.turn++
        this.changed(true)
    }

    // --- Buttons and keys

    press(what) {
        if (what === "brush" || what === "eraser") this.choose(what)
        else if (what === "undo") this.back(this.kept.past, this.kept.future)
        else if (what === "redo") this.back(this.kept.future, this.kept.past)
        else if (what === "clear") this.step((mask) => mask.fill(0))
        else if (what === "invert") this.step(invert)
        else if (what === "upload") this.file.click()
        else if (what === "download") this.download()
    }

    choose(tool) {
        this.erasing = tool === "eraser"
        for (const name of ["brush", "eraser"]) this.buttons[name].setAttribute("aria-pressed", name === tool)
    }

    key(event) {
        const name = event.key.toLowerCase()
        const undo = (event.ctrlKey || event.metaKey) && !event.altKey
        const arrow = { arrowleft: [-1, 0], arrowright: [1, 0], arrowup: [0, -1], arrowdown: [0, 1] }[name]
        const onCanvas = event.composedPath()[0] === this.canvas
        if (undo && name === "z") event.shiftKey ? this.press("redo") : this.press("undo")
        else if (undo && name === "y") this.press("redo")
        else if (undo) return
        else if (event.key === "[") this.resize(Math.min(this.size - 1, this.size / 1.25), true)
        else if (event.key === "]") this.resize(Math.max(this.size + 1, this.size * 1.25), true)
        else if (name === "b") this.choose("brush")
        else if (name === "e") this.choose("eraser")
        else if (onCanvas && arrow) this.walk(arrow)
        else if (onCanvas && name === " ") this.dab()
        else return
        event.preventDefault()
        event.stopPropagation()
    }

    walk([dx, dy]) {
        const far = Math.max(1, this.size / 4)
        const [x, y] = this.place
        this.place = [Math.min(this.width, Math.max(0, x + dx * far)), Math.min(this.height, Math.max(0, y + dy * far))]
        this.showRing(true)
    }

    dab() {
        if (!this.ready || this.stroke) return
        this.begin(this.erasing ? 0 : 255)
        this.line(this.place, this.place)
        this.end()
        this.showRing(true)
    }

    resize(size, show = false) {
        this.size = Math.min(Number(this.slider.max), Math.max(1, Math.round(size)))
        this.slider.value = this.size
        this.slider.setAttribute("aria-valuetext", `${this.size} pixels`)
        if (show) this.showRing(true)
    }

    // --- What is shown

    follow(event) {
        this.place = this.where(event)
        this.showRing(true)
    }

    showRing(shown) {
        this.ring.hidden = !shown
        const part = (value, of) => `${(100 * value) / of}%`
        Object.assign(this.ring.style, {
            left: part(this.place[0], this.width),
            top: part(this.place[1], this.height),
            width: part(this.size, this.width),
            height: part(this.size, this.height),
        })
    }

    stripe() {
        const scale = this.width / (this.stage.clientWidth || this.width)
        this.canvas.style.imageRendering = scale < 1 ? "pixelated" : "auto" // hard where a pixel can be seen
        const striped = Math.max(1, Math.round(STRIPE * scale))
        if (striped === this.striped) return
        this.striped = striped
        this.draw(this.whole())
    }

    draw({ left, top, right, bottom }) {
        const { mask, width, striped } = this
        const shown = new ImageData(right - left, bottom - top)
        const [first, second] = COLOURS.map(([r, g, b, a]) => new Uint32Array(Uint8Array.of(r, g, b, a).buffer)[0])
        const pixels = new Uint32Array(shown.data.buffer)
        for (let y = top, i = 0; y < bottom; y++) {
            for (let x = left; x < right; x++, i++) {
                if (mask[y * width + x]) pixels[i] = ((x + y) / striped) & 1 ? second : first
            }
        }
        this.context.putImageData(shown, left, top)
    }

    whole() {
        return { left: 0, top: 0, right: this.width, bottom: this.height }
    }

    changed(tell) {
        const { mask } = this
        let painted = 0
        for (let i = 0; i < mask.length; i++) if (mask[i]) painted++
        const share = (100 * painted) / mask.length
        this.painted = painted
        const percent = share < 1 ? "Less than 1" : Math.round(share)
        this.say(painted ? `${percent} % painted` : "Nothing painted yet")
        this.buttons.undo.disabled = !this.kept.past.length
        this.buttons.redo.disabled = !this.kept.future.length
        this.buttons.clear.disabled = this.buttons.download.disabled = !painted
        if (!tell) return
        this.untold = true
        clearTimeout(this.timer)
        this.timer = setTimeout(() => this.stroke || this.flush(), QUIET + mask.length / PACE)
    }

    say(words) {
        this.words.textContent = words
    }

    // --- Masks in and out

    flush() {
        clearTimeout(this.timer)
        if (!this.untold) return
        this.untold = false
        const mask = this.painted ? this.asPicture().toDataURL("image/png") : ""
        this.tell({ token: this.token, turn: this.kept.turn, mask })
    }

    asPicture() {
        const shown = new ImageData(this.width, this.height)
        const pixels = new Uint32Array(shown.data.buffer)
        const [black, white] = [0, 255].map((v) => new Uint32Array(Uint8Array.of(v, v, v, 255).buffer)[0])
        for (let i = 0; i < pixels.length; i++) pixels[i] = this.mask[i] ? white : black
        const canvas = Object.assign(document.createElement("canvas"), { width: this.width, height: this.height })
        canvas.getContext("2d").putImageData(shown, 0, 0)
        return canvas
    }

    async read(url) {
        const image = new Image()
        image.src = url
        await image.decode()
        const canvas = Object.assign(document.createElement("canvas"), { width: this.width, height: this.height })
        const context = canvas.getContext("2d", { willReadFrequently: true })
        context.fillRect(0, 0, this.width, this.height) // what is see-through is not painted
        context.imageSmoothingEnabled = false
        context.drawImage(image, 0, 0, this.width, this.height)
        const { data } = context.getImageData(0, 0, this.width, this.height)
        const mask = new Uint8Array(this.width * this.height)
        for (let i = 0; i < mask.length; i++) {
            mask[i] = 0.299 * data[4 * i] + 0.587 * data[4 * i + 1] + 0.114 * data[4 * i + 2] >= 128 ? 255 : 0
        }
        return mask
    }

    async upload() {
        const [file] = this.file.files
        this.file.value = ""
        if (!file) return
        const url = URL.createObjectURL(file)
        const { token } = this
        try {
            const given = await this.read(url)
            if (token === this.token) this.step((mask) => mask.set(given))
        } catch {
            this.say("The browser cannot read that file. A mask is a PNG, JPEG or WebP, white where painted.")
        } finally {
            URL.revokeObjectURL(url)
        }
    }

    download() {
        const link = document.createElement("a")
        link.href = this.asPicture().toDataURL("image/png")
        link.download = "mask.png"
        link.click()
    }
}

function cut(mask, width, { left, top, right, bottom }) {
    const pixels = new Uint8Array((right - left) * (bottom - top))
    for (let y = top; y < bottom; y++) {
        pixels.set(mask.subarray(y * width + left, y * width + right), (y - top) * (right - left))
    }
    return pixels
}

function paste(mask, width, { left, top, right, bottom }, pixels) {
    const across = right - left
    for (let y = top; y < bottom; y++) {
        mask.set(pixels.subarray((y - top) * across, (y - top + 1) * across), y * width + left)
    }
}

function same(one, other) {
    for (let i = 0; i < one.length; i++) if (one[i] !== other[i]) return false
    return true
}

function invert(mask) {
    for (let i = 0; i < mask.length; i++) mask[i] = 255 - mask[i]
}

function union(one, other) {
    if (!one) return other
    return {
        left: Math.min(one.left, other.left),
        top: Math.min(one.top, other.top),
        right: Math.max(one.right, other.right),
        bottom: Math.max(one.bottom, other.bottom),
    }
}
