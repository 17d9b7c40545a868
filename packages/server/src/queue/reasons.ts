/**
 * The texts of why messages died, of all queues together. A text that several messages have is kept once. Short ones are
 * always kept; long ones whole for as long as all of them take less than a fixed amount, and from then on only their
 * beginning: dead letters can be as many as a queue takes, and what is said of each can be 4 KiB.
 *
 * Invariant: `#bytes` is the sum of what the entries of `#long` take, and each is used by that many dead messages.
 */
import { clipText } from '@sluice/protocol'

/** What is kept of any text. */
export const REASON_HEAD_BYTES = 64
/** What long texts may take, all together. */
export const REASONS_BYTES_MAX = 16 << 20
/** An entry, beside its text. */
const ENTRY_BYTES = 96
/** Short texts that are looked up before another one is kept. */
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

  /** What long texts take now. */
  get bytes(): number {
    return this.#bytes
  }

  /** Another dead message has this text; returns what is kept of it. `forget` follows with that when it is dead no more. */
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

// Characters beyond Latin-1 make all of a text two bytes wide.
function costOf(text: string): number {
  return ENTRY_BYTES + 2 * text.length
}
