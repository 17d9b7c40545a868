/**
 * A run: consecutive messages of one batch that are delivered together. They have the same priority, attempt and
 * redelivery mark. The line fills one, and the dispatch of the broker delivers it.
 */
import { emptyLocation, type Location } from './location.js'

export interface Run extends Location {
  count: number
  attempt: number
  redelivered: boolean
  /** Whether the run is a suspect: its consumer gets no other message until this one is settled. */
  alone: boolean
  /** Time from which the messages have been eligible; -1 if they come from the plain line. */
  sinceMs: number
  /** Whether the time to live is over. Then the run is one message, which must not be delivered. */
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
    sinceMs: -1,
    expired: false,
    ungated: false,
  }
}
