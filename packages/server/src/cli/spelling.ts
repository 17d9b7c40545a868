/** Suggests a known word for a mistyped one. */

/** Words up to this length match with one edit only, because two edits would change half of the word. */
const SHORT = 4

/**
 * Returns the known word that needs the fewest edits. If every known word is too different: the only one that begins with
 * `word` and a hyphen, such as `data-dir` for `data`; otherwise undefined.
 */
export function nearest(word: string, known: Iterable<string>): string | undefined {
  let best: string | undefined
  let bestDistance = Infinity
  const words = [...known]
  for (const candidate of words) {
    const distance = editDistance(word.toLowerCase(), candidate.toLowerCase())
    if (distance < bestDistance) {
      best = candidate
      bestDistance = distance
    }
  }
  if (best === undefined) return undefined
  if (bestDistance <= (best.length <= SHORT ? 1 : Math.ceil(best.length / 3))) return best
  const longer = words.filter((candidate) => candidate.startsWith(`${word.toLowerCase()}-`))
  return longer.length === 1 ? longer[0] : undefined
}

/** The number of letters that must be inserted, deleted, replaced, or swapped with a neighbour. */
export function editDistance(from: string, to: string): number {
  let beforeLast: number[] = []
  let last = Array.from({ length: to.length + 1 }, (_, index) => index)
  for (let i = 1; i <= from.length; i++) {
    const row = [i]
    for (let j = 1; j <= to.length; j++) {
      const same = from[i - 1] === to[j - 1]
      row[j] = Math.min(last[j]! + 1, row[j - 1]! + 1, last[j - 1]! + (same ? 0 : 1))
      const swapped = i > 1 && j > 1 && from[i - 1] === to[j - 2] && from[i - 2] === to[j - 1]
      if (swapped) row[j] = Math.min(row[j]!, beforeLast[j - 2]! + 1)
    }
    beforeLast = last
    last = row
  }
  return last[to.length]!
}
