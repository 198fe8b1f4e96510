// Shows an SVG; a click, Enter or space on an element with data-lesson sends that lesson's key.
export default function (component) {
    const { data, parentElement, setTriggerValue } = component
    const place = parentElement.querySelector(".drawing")
    if (place.dataset.svg !== data.svg) {
        const focused = place.getRootNode().activeElement?.dataset?.lesson
        place.innerHTML = data.svg
        if (focused) place.querySelector(`[data-lesson="${focused}"]`)?.focus()
        place.dataset.svg = data.svg
        place.setAttribute("aria-label", data.alt)
    }
    const lessonOf = event => event.target.closest("[data-lesson]")?.dataset.lesson
    place.onclick = event => {
        const lesson = lessonOf(event)
        if (lesson) setTriggerValue("lesson", lesson)
    }
    place.onkeydown = event => {
        const lesson = lessonOf(event)
        if (lesson && (event.key === "Enter" || event.key === " ")) {
            event.preventDefault()
            setTriggerValue("lesson", lesson)
        }
    }
}
