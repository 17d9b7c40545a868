/** Notices of the log for the operator, and the limit on how often a notice is repeated. */

/** The log continues after every notice except `failed`. */
export interface LogNotice {
  readonly kind: 'meta-rebuilt' | 'cut' | 'disk-low' | 'disk-ok' | 'no-segment' | 'read-failed' | 'failed'
  readonly text: string
}

export type Notify = (kind: LogNotice['kind'], text: string) => void

/** Minimum interval between two notices. On a full disk, space can be freed and used up many times a second. */
const NOTICE_INTERVAL_MS = 10_000

/** Passes one notice per interval and counts the events since the last notice. */
export class NoticeLimit {
  #count = 0
  #passedMs = -Infinity

  /** Counts one event. */
  add(): void {
    this.#count++
  }

  /** Returns the number of events since the last notice if another notice may be given now; otherwise 0. */
  take(nowMs: number): number {
    const sinceMs = nowMs - this.#passedMs
    const count = this.#count
    if (count === 0 || (sinceMs >= 0 && sinceMs < NOTICE_INTERVAL_MS)) return 0
    this.#passedMs = nowMs
    this.#count = 0
    return count
  }
}

/** The last sentence of a notice about `count` events. */
export function repeated(count: number): string {
  return count === 1 ? '' : ` It happened ${count} times since the last notice.`
}
