/**
 * Options of queues by their JSON text. Queues with the same options share one object: 100,000 copies would take 20
 * MiB, and parsing the same text again and again would take most of the time of a restart.
 */
import type { QueueOptions } from '@sluice/protocol'

/**
 * Number of different texts that are kept. When one more would be kept, all texts are forgotten, and each is kept again
 * when it is next used.
 */
const TEXTS_KEPT = 1_024

export class SharedOptions {
  readonly #byText = new Map<string, QueueOptions>()
  /** The text that was read last, and its options. */
  #lastText = ''
  #last: QueueOptions | undefined

  /** Reads the options whose text is the rest of `text` from `start` on. */
  parse(text: string, start = 0): QueueOptions {
    // A restart reads the same text for many queues one after another. Comparing is cheaper than hashing.
    if (
      this.#last !== undefined &&
      text.length - start === this.#lastText.length &&
      text.endsWith(this.#lastText)
    )
      return this.#last
    const rest = text.slice(start)
    let options = this.#byText.get(rest)
    if (options === undefined) {
      options = JSON.parse(rest) as QueueOptions
      if (this.#byText.size === TEXTS_KEPT) this.#byText.clear()
      this.#byText.set(rest, options)
    }
    this.#lastText = rest
    this.#last = options
    return options
  }

  /** Returns the shared object with the values of `options`. */
  share(options: QueueOptions): QueueOptions {
    return this.parse(JSON.stringify(options))
  }
}
