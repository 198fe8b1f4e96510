// Leaves for all prompt fields what they may offer, so that these long lists do not travel with every text.

export default function ({ data }) {
    window[Symbol.for("prompt words")] = data
}
