/** Rules of a change of queue options. Pure functions, which share no code with the server. */
import type { QueueOptions } from '@sluice/protocol'

export interface OptionChange {
  /** Age from which accepted ids are forgotten; undefined: none are forgotten. */
  readonly forgetsAfterMs: number | undefined
  /** Whether the rules of keys change. */
  readonly changesRules: boolean
  /** Whether the rate of the queue changes. */
  readonly changesRate: boolean
  /** Whether dead messages may now have a dead-letter queue. */
  readonly routesDead: boolean
}

export function changeOf(before: QueueOptions, after: QueueOptions): OptionChange {
  // An id that a shorter window has forgotten stays forgotten under a longer one.
  const windowsMs = [before.dedupWindowMs, after.dedupWindowMs]
  return {
    forgetsAfterMs: windowsMs[0] === windowsMs[1] ? undefined : Math.min(...windowsMs),
    changesRules: (['onFail', 'keyConcurrency', 'keyRateMessages', 'keyRatePerMs'] as const).some(
      (name) => before[name] !== after[name],
    ),
    changesRate: before.rateMessages !== after.rateMessages || before.ratePerMs !== after.ratePerMs,
    routesDead: before.deadLetter !== after.deadLetter,
  }
}
