// Weights in A1111's language: what Ctrl+Up and Ctrl+Down make of the word at the caret, or of what is selected.
// All of this is functions of a text; prompt_field.js types what they say.

const WEIGHT_STEP = 0.1
const TAG_STEP = 0.05 // of a LoRA's strength
const HIGHEST = 10
const BARE = 1.1 // the weight of (red)
const WORD_END = /[\s,;!?()[\]{}|:<>"\\]/
const NO_WORD = /^(?:AND|BREAK|[-+.\d]*)$/
const TAG = /<(?:lora|lyco):[^<>]*>/gi
const NUMBER = /:\s*([-+]?(?:\d+(?:\.\d*)?|\.\d+))\s*$/

// The edit that changes the weight at [start, end] by one step: {from, to, text, select, words}; null if none does.
function weighed(text, start, end, up) {
    const tag = [...text.matchAll(TAG)].find((found) => found.index < start && end < found.index + found[0].length)
    if (tag) return weighedTag(tag, start, up)
    const by = up ? WEIGHT_STEP : -WEIGHT_STEP
    const caret = start === end ? start : null
    if (caret === null) [start, end] = trimmed(text, start, end)
    const around = groups(text).filter((group) => (caret === null ? isAll(group, start, end) : surrounds(group, caret)))
    const group = around.sort((a, b) => a.close - a.open - (b.close - b.open))[0]
    if (group) {
        const { open, close, end: stop, weight } = group
        return grouped(text.slice(open + 1, stop), open, close + 1, bounded(weight + by), caret && caret - open - 1)
    }
    if (caret !== null) [start, end] = wordAt(text, caret)
    const inner = text.slice(start, end)
    if (NO_WORD.test(inner) || !balanced(inner)) return null
    return grouped(inner, start, end, bounded(1 + by), caret && caret - start)
}

// `inner` with its weight in place of what is between `from` and `to`; a weight of 1 needs no brackets. A caret stays
// where it is in `inner`, but several words without brackets are selected, so that the next step means all of them.
function grouped(inner, from, to, weight, caret) {
    const plain = weight === 1
    const first = from + (plain ? 0 : 1)
    const all = caret === null || (plain && /\s/.test(inner))
    const place = first + Math.min(inner.length, Math.max(0, caret))
    return {
        from,
        to,
        text: plain ? inner : `(${inner}:${weight})`,
        select: all ? [first, first + inner.length] : [place, place],
        words: `${inner}: ${weight}`,
    }
}

function weighedTag(found, caret, up) {
    const [kind, name, number, ...rest] = found[0].slice(1, -1).split(":")
    if (!name || (number !== undefined && !/^\s*[-+]?(?:\d+(?:\.\d*)?|\.\d+)\s*$/.test(number))) return null
    const strength = Math.round((Number(number ?? 1) + (up ? TAG_STEP : -TAG_STEP)) * 100) / 100
    const text = `<${[kind, name, strength, ...rest].join(":")}>`
    const place = Math.min(caret, found.index + text.length - 1)
    const to = found.index + found[0].length
    return { from: found.index, to, text, select: [place, place], words: `${name}: ${strength}` }
}

function bounded(weight) {
    return Math.round(Math.min(HIGHEST, Math.max(0, weight)) * 100) / 100
}

// The closed round brackets of a text; `end` is where what is in them ends: before the colon of their number.
function groups(text) {
    const found = []
    const open = []
    for (const sign of text.matchAll(/\\.|[()]/gs)) {
        if (sign[0] === "(") open.push(sign.index)
        if (sign[0] !== ")" || !open.length) continue
        const group = { open: open.pop(), close: sign.index, end: sign.index, weight: BARE }
        const number = NUMBER.exec(text.slice(group.open + 1, group.close))
        if (number) Object.assign(group, { weight: Number(number[1]), end: group.open + 1 + number.index })
        found.push(group)
    }
    return found
}

function surrounds({ open, close }, caret) {
    return open <= caret && caret <= close + 1
}

function isAll({ open, close, end }, start, stop) {
    return (start === open + 1 && stop === end) || (start === open && stop === close + 1)
}

function trimmed(text, start, end) {
    while (start < end && /\s/.test(text[start])) start++
    while (start < end && /\s/.test(text[end - 1])) end--
    return [start, end]
}

function wordAt(text, caret) {
    let [start, end] = [caret, caret]
    while (start > 0 && !WORD_END.test(text[start - 1])) start--
    while (end < text.length && !WORD_END.test(text[end])) end++
    while (end > start && text[end - 1] === ".") end--
    return [start, end]
}

function balanced(text) {
    let depth = 0
    for (const sign of text.matchAll(/\\.|[()]/gs)) {
        if (sign[0] === "(") depth++
        if (sign[0] === ")" && --depth < 0) return false
    }
    return depth === 0
}
