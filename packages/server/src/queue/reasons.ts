/**
 * The reasons why messages died, for all queues together. A string that several messages share is kept once. Short
 * strings are always kept. Long strings are kept in full while their total is below a limit. Beyond the limit only the
 * beginning of a long string is kept, because there can be millions of dead messages, and a reason can have 4 KiB.
 *
 * Invariant: `#bytes` is the total cost of the entries of `#long`. The `uses` of an entry is the number of dead messages with its text.
 */
import { clipText } from '@sluice/protocol'

/** Number of bytes of a reason that are always kept. */
export const REASON_HEAD_BYTES = 64
/** Maximum total cost of the long reasons. */
export const REASONS_BYTES_MAX = 16 << 20
/** Cost of an entry without its string. */
const ENTRY_BYTES = 96
/**
 * Maximum number of short strings that are remembered, so that equal ones are shared. When this number is reached, all of
 * them are forgotten.
 */
const SHORT_SHARED = 1_024

interface Long {
  readonly text: string
  uses: number
}

export class Reasons {
  readonly #bytesMax: number
  #bytes = 0
  readonly #long = new Map<string, Long>()
  readonly #short = new Map<string, string>()

  constructor(bytesMax: number = REASONS_BYTES_MAX) {
    this.#bytesMax = bytesMax
  }

  /** Total cost of the long reasons. */
  get bytes(): number {
    return this.#bytes
  }

  /**
   * Counts one more dead message with this reason. Returns the part of the reason that is kept; the later `forget`
   * takes this part.
   */
  keep(text: string): string {
    if (text.length * 3 <= REASON_HEAD_BYTES) return this.#shared(text)
    const known = this.#long.get(text)
    if (known !== undefined) {
      known.uses++
      return known.text
    }
    const head = clipText(text, REASON_HEAD_BYTES)
    if (head === text || this.#bytes + costOf(text) > this.#bytesMax) return this.#shared(head)
    this.#bytes += costOf(text)
    this.#long.set(text, { text, uses: 1 })
    return text
  }

  forget(text: string): void {
    const known = this.#long.get(text)
    if (known === undefined || --known.uses > 0) return
    this.#bytes -= costOf(text)
    this.#long.delete(text)
  }

  #shared(text: string): string {
    const known = this.#short.get(text)
    if (known !== undefined) return known
    if (this.#short.size === SHORT_SHARED) this.#short.clear()
    this.#short.set(text, text)
    return text
  }
}

// If a string has characters beyond Latin-1, each of its characters takes two bytes.
function costOf(text: string): number {
  return ENTRY_BYTES + 2 * text.length
}
