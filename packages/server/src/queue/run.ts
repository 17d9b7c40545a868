/**
 * A run: consecutive messages of one batch that are delivered together. They have the same priority, attempt and
 * redelivery mark. The line fills a run, and the dispatch of the broker delivers it.
 */
import { emptyLocation, type Location } from './location.js'

/** Value of `sinceMs` for messages of the plain line: no fact put them there, and they are ordered by their offsets. */
export const FROM_PLAIN_LINE = -1

export interface Run extends Location {
  count: number
  attempt: number
  redelivered: boolean
  /** Whether the run is one suspect: its consumer gets no other message until this one is settled. */
  alone: boolean
  /** Time from which the messages have been eligible, or FROM_PLAIN_LINE. */
  sinceMs: number
  /** Whether the time to live has passed. In that case the run is one message, which must not be delivered. */
  expired: boolean
  /**
   * Whether the delivery need not wait at the gate, because everything on which it depends is already on disk. The
   * caller sets this field, because only the caller knows what is on disk.
   */
  ungated: boolean
}

export function emptyRun(): Run {
  return {
    ...emptyLocation(),
    count: 0,
    attempt: 0,
    redelivered: false,
    alone: false,
    sinceMs: FROM_PLAIN_LINE,
    expired: false,
    ungated: false,
  }
}
