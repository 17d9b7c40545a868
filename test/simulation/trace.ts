/**
 * The events of a run, in order: a checksum over all of them, so that two runs can be compared, and the text of the last
 * ones, which shows why a seed failed.
 */
import { crc32 } from 'node:zlib'

const KEPT_EVENTS = 80

export class Trace {
  count = 0
  hash = 0
  readonly #last: string[] = []

  note(event: string): void {
    this.hash = crc32(event, this.hash)
    this.last(event)
  }

  last(event: string): void {
    this.#last[this.count % KEPT_EVENTS] = event
    this.count++
  }

  /** The last events, oldest first, each with its number. */
  lines(): string[] {
    const from = Math.max(0, this.count - KEPT_EVENTS)
    return Array.from(
      { length: this.count - from },
      (_, i) => `${from + i} ${this.#last[(from + i) % KEPT_EVENTS]!}`,
    )
  }
}

/** A violated rule: the number of an invariant in ARCHITECTURE.md, or the name of another rule. */
export class Violation extends Error {
  readonly invariant: string

  constructor(invariant: string | number, what: string) {
    super(`${typeof invariant === 'number' ? `invariant ${invariant}` : invariant}: ${what}`)
    this.name = 'Violation'
    this.invariant = String(invariant)
  }
}

/** A run that failed, with everything needed to run it again. */
export class SimulationFailure extends Error {
  readonly seed: number
  override readonly cause: unknown

  constructor(seed: number, file: string, cause: unknown, trace: Trace) {
    const why = cause instanceof Error ? (cause.stack ?? cause.message) : String(cause)
    super(
      `seed ${seed} failed: ${why}\n\nlast events:\n${trace.lines().join('\n')}\n\n` +
        `again: SLUICE_SEED=${seed} npx vitest run ${file}`,
    )
    this.name = 'SimulationFailure'
    this.seed = seed
    this.cause = cause
  }
}
