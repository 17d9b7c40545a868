/**
 * The counters of a queue. Most queues have counted nothing, so they share one object, `NO_COUNTS`, until `Contents.count`
 * is first called.
 */
import type { QueueCounter } from '@sluice/protocol'

export type Counts = Readonly<Record<QueueCounter, number>>

/** Never changed. */
export const NO_COUNTS: Counts = Object.freeze({
  purged: 0,
  expired: 0,
  dropped: 0,
  cancelled: 0,
  duplicates: 0,
  moved: 0,
  discarded: 0,
  redriven: 0,
  released: 0,
  redelivered: 0,
})

/** The counters that only `tally` facts record. */
export type Tally = Pick<Counts, 'released' | 'redelivered'>

/** Never changed. It has no other counters, because a page has the counters of the queue with those of its tally. */
export const NO_TALLY: Tally = Object.freeze({ released: 0, redelivered: 0 })
