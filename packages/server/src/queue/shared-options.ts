/**
 * Options of queues by their JSON text. Queues with the same options share one object: 100,000 copies would take 20
 * MiB, and parsing the same text again and again would take most of the time of a restart.
 */
import { QUEUE_OPTION_DEFAULTS, type QueueOptions } from '@sluice/protocol'

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

  /** Reads options from their text. */
  parse(text: string): QueueOptions {
    // A restart reads the same text for many queues one after another. Comparing is cheaper than hashing.
    if (text === this.#lastText && this.#last !== undefined) return this.#last
    let options = this.#byText.get(text)
    if (options === undefined) {
      // An older version may have written the text. Options that it did not know have their defaults.
      options = { ...QUEUE_OPTION_DEFAULTS, ...(JSON.parse(text) as Partial<QueueOptions>) }
      if (this.#byText.size === TEXTS_KEPT) this.#byText.clear()
      this.#byText.set(text, options)
    }
    this.#lastText = text
    this.#last = options
    return options
  }

  /** Returns the shared object with the values of `options`. */
  share(options: QueueOptions): QueueOptions {
    return this.parse(JSON.stringify(options))
  }
}
