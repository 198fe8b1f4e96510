// Every text that is shown, with its contrast against what is painted behind it as WCAG 2 counts it: [ratio, text].
// Disabled controls are left out, as WCAG does, and so is what stands on pictures.
() => {
    const SLIDER_VALUE = "[data-testid=stSliderThumbValue]"  // stands above its thumb, in which it is
    const parse = (text) => {
        const [r, g, b, alpha = 1] = text.match(/[\d.]+/g).map(Number)
        return text.startsWith("color(") ? [r * 255, g * 255, b * 255, alpha] : [r, g, b, alpha]
    }
    const over = (top, alpha, under) => [0, 1, 2].map((i) => top[i] * alpha + under[i] * (1 - alpha))
    const linear = (c) => (c <= 10.31475 ? c / 3294.6 : ((c / 255 + 0.055) / 1.055) ** 2.4)
    const luminance = ([r, g, b]) => 0.2126 * linear(r) + 0.7152 * linear(g) + 0.0722 * linear(b)
    const found = []

    const measure = (element, words, style) => {
        const box = element.getBoundingClientRect()
        const shown = element.checkVisibility({ opacityProperty: true, visibilityProperty: true })
        if (!shown || box.width < 2 || box.height < 2 || element.closest("[disabled], [aria-disabled=true]")) return
        const around = []
        const from = element.closest(SLIDER_VALUE)?.closest("[data-testid=stSlider]") ?? element
        for (let node = from; node; node = node.parentElement) around.unshift(getComputedStyle(node))
        if (around.some((each) => each.backgroundImage.includes("url("))) return
        let behind = [255, 255, 255]
        let opacity = 1
        for (const each of around) {
            const colour = parse(each.backgroundColor)
            opacity *= Number(each.opacity)
            behind = over(colour, colour[3] * opacity, behind)
        }
        const colour = parse(style.color)
        const pair = [luminance(over(colour, colour[3] * opacity, behind)), luminance(behind)]
        found.push([(Math.max(...pair) + 0.05) / (Math.min(...pair) + 0.05), words])
    }

    const texts = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT)
    while (texts.nextNode()) {
        const element = texts.currentNode.parentElement
        const words = texts.currentNode.data.trim()
        if (words && !element.closest("script, style, noscript")) measure(element, words, getComputedStyle(element))
    }
    for (const field of document.querySelectorAll("textarea, input[type=text], input[type=number]")) {
        const words = field.value || field.placeholder
        if (words) measure(field, words, getComputedStyle(field, field.value ? null : "::placeholder"))
    }
    return found
}
