/** The order of a run's history: what the log accepted against the calls of the producers. */
import type { HistoryEvent } from '../checker/history.js'
import { Violation } from './trace.js'

/**
 * Messages of a producer to a queue are accepted in the order of its calls, whatever was refused or lost. `accepted` has
 * their names by queue, in the order of the log. Returns how many were compared.
 */
export function checkOrder(
  history: readonly HistoryEvent[],
  accepted: ReadonlyMap<number, readonly string[]>,
  decidedAgain: ReadonlySet<string>,
): number {
  let checked = 0
  const calls = new Map<string, { readonly producer: string; readonly sequence: number }>()
  for (const event of history) {
    if (event.kind !== 'attempt' || event.sequence === undefined) continue
    // A message that was refused alone, and whose refusal was lost, is decided again behind later ones.
    if (decidedAgain.has(event.message)) continue
    calls.set(event.message, { producer: event.producer, sequence: event.sequence })
  }
  for (const [queueId, names] of accepted) {
    const last = new Map<string, number>()
    for (const name of names) {
      const call = calls.get(name)
      if (call === undefined) continue
      const before = last.get(call.producer) ?? -1
      if (call.sequence <= before)
        throw new Violation(
          'order',
          `queue ${queueId} has ${name} behind message ${before} of ${call.producer}, which was sent later`,
        )
      last.set(call.producer, call.sequence)
      checked++
    }
  }
  return checked
}

/**
 * The history as the checker judges it: a batch that was refused and decided again is behind later ones of its producer,
 * and a rescheduled message waits for a time of its own.
 */
export function ordered(
  history: readonly HistoryEvent[],
  decidedAgain: ReadonlySet<string>,
  rescheduledNames: ReadonlySet<string>,
): HistoryEvent[] {
  return history.map((event) => {
    if (event.kind !== 'attempt') return event
    const { sequence, ...rest } = event
    if (rescheduledNames.has(event.message)) return { ...rest, lane: null }
    return decidedAgain.has(event.message) || sequence === undefined ? rest : event
  })
}
