// Two pictures over each other; a line that moves with the pointer or the arrow keys parts them.

export default function ({ data, parentElement }) {
    const root = parentElement.querySelector(".compare")
    const slider = root.querySelector("input")
    const stage = root.querySelector(".stage")
    const [after, before] = [root.querySelector(".after"), root.querySelector(".before img")]
    if (after.src !== data.after) after.src = data.after
    if (before.src !== data.before) before.src = data.before
    after.alt = data.alt
    const titles = root.querySelectorAll(".words span")
    data.titles.forEach((title, i) => (titles[i].textContent = title))
    slider.setAttribute("aria-label", `How much of the picture ${data.titles[0].toLowerCase()} is shown`)
    stage.style.aspectRatio = `${data.width} / ${data.height}`
    const place = () => stage.style.setProperty("--part", `${slider.value}%`)
    const follow = (event) => {
        // The whole picture is the slider: its own thumb would lag behind the pointer near the edges.
        if (event.pointerType === "mouse" && event.buttons !== 1) return
        const box = stage.getBoundingClientRect()
        slider.value = (100 * (event.clientX - box.left)) / box.width
        place()
    }
    place()
    slider.addEventListener("input", place)
    slider.addEventListener("pointerdown", follow)
    slider.addEventListener("pointermove", follow)
    return () => {
        slider.removeEventListener("input", place)
        slider.removeEventListener("pointerdown", follow)
        slider.removeEventListener("pointermove", follow)
    }
}
