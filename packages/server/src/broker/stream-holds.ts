/**
 * Reports that retention of a stream waits for a group, or has removed messages that a group missed. Called by `Turn`
 * after a stream was advanced.
 *
 * Invariant: of each stream, each of the two is reported at most once an hour.
 */
import type { Hold, Queue } from '../queue/index.js'

/** Minimum time between two reports of one kind about a stream. */
const REPORT_MS = 3_600_000

export interface StreamHoldsOptions {
  readonly onNotice?: ((event: string, details: object) => void) | undefined
}

interface Reported {
  waitsMs: number
  exceededMs: number
}

export class StreamHolds {
  readonly #onNotice: StreamHoldsOptions['onNotice']
  readonly #reported = new WeakMap<Queue, Reported>()

  constructor({ onNotice }: StreamHoldsOptions) {
    this.#onNotice = onNotice
  }

  note(stream: Queue, { group, isExceeded }: Hold, nowMs: number): void {
    let reported = this.#reported.get(stream)
    if (reported === undefined)
      this.#reported.set(stream, (reported = { waitsMs: -Infinity, exceededMs: -Infinity }))
    const time = isExceeded ? 'exceededMs' : 'waitsMs'
    if (nowMs < reported[time] + REPORT_MS) return
    reported[time] = nowMs
    const event = isExceeded
      ? 'retention removed messages that a group missed'
      : 'retention waits for a group'
    const details = { stream: stream.name, group, bytes: Math.round(stream.retainedBytes) }
    this.#onNotice?.(event, { ...details, bytesMax: stream.stream!.waitForGroupsBytes })
  }
}
