// What may be completed at the caret: LoRAs after "<", wildcards after "__", and from two letters on embeddings and the
// trigger words of the LoRAs that the text names. `words` is what prompt_words.js leaves.

const MAX_OFFERED = 50
const TAG_BEFORE = /<(?:(?:lora|lyco):)?([^<>:\n]*)$/i
const TAG_AFTER = /^[^<>:\n]*(?=[:>])/
const WORD_BEFORE = /[^\s,()[\]{}|:<>"\\]{2,}$/
const WORD_AFTER = /^[^\s,()[\]{}|:<>"\\]/
const TAG_NAMES = /<(?:lora|lyco):([^<>:]*)/gi

// {title, eager, items: [{name, note, from, to, text}]}; null if there is nothing to offer. `eager`: Enter takes the
// first one at once, since no one types such a sign by chance.
function completions(text, caret, words) {
    const [before, after] = [text.slice(0, caret), text.slice(caret)]
    return tags(before, after, words) ?? wildcards(before, after, words) ?? plainWords(text, before, after, words)
}

function tags(before, after, words) {
    const found = TAG_BEFORE.exec(before)
    if (!found) return null
    const typed = "lora".startsWith(found[1].toLowerCase()) && !found[0].includes(":") ? "" : found[1]
    const rest = TAG_AFTER.exec(after)?.[0]
    const to = before.length + (rest ?? "").length
    const items = matching(words.loras ?? [], typed, ([name, note]) => {
        const text = rest === undefined ? `<lora:${name}:1>` : `<lora:${name}`
        return { name, note, from: found.index, to, text }
    })
    return offered("LoRAs", true, items)
}

function wildcards(before, after, words) {
    const pieces = before.slice(before.lastIndexOf("\n") + 1).split("__")
    const typed = pieces.at(-1)
    if (pieces.length % 2 || /[\s,{}|]/.test(typed)) return null
    const rest = /^[^\s,{}|]*?__/.exec(after)?.[0] ?? ""
    const from = before.length - typed.length - 2
    const items = matching(words.wildcards ?? [], typed, ([name, note]) => {
        return { name, note, from, to: before.length + rest.length, text: `__${name}__` }
    })
    return offered("Wildcards", true, items)
}

function plainWords(text, before, after, words) {
    const typed = WORD_BEFORE.exec(before)?.[0]
    if (!typed || WORD_AFTER.test(after)) return null
    const named = new Set([...text.matchAll(TAG_NAMES)].map((tag) => tag[1].trim().toLowerCase()))
    const used = (words.loras ?? []).filter(([name]) => named.has(name.toLowerCase()))
    const triggers = used.flatMap(([name, , each]) => each.map((word) => [word, `trigger word of ${name}`]))
    const embeddings = (words.embeddings ?? []).map((name) => [name, "embedding"])
    const begun = [...triggers, ...embeddings].filter(([name]) => {
        return name.toLowerCase().startsWith(typed.toLowerCase()) && name !== typed
    })
    const items = begun.slice(0, MAX_OFFERED).map(([name, note]) => {
        return { name, note, from: before.length - typed.length, to: before.length, text: name }
    })
    return offered("Words", false, items)
}

// The names that hold what was typed, those that begin with it first.
function matching(listed, typed, item) {
    const wanted = typed.trim().toLowerCase()
    const found = listed.filter(([name]) => name.toLowerCase().includes(wanted))
    const first = found.filter(([name]) => name.toLowerCase().startsWith(wanted))
    return [...new Set([...first, ...found])].slice(0, MAX_OFFERED).map(item)
}

function offered(title, eager, items) {
    return items.length ? { title, eager, items } : null
}
