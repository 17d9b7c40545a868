/** Compares the order in which the log accepted messages with the order of the producers' calls. */
import type { HistoryEvent } from '../checker/history.js'
import { Violation } from './trace.js'

/**
 * Checks that each queue accepts the messages of a producer in the order of the producer's calls, whatever was refused
 * or lost. `accepted` has the names of the accepted messages by queue, in the order of the log. Returns the number of
 * compared messages.
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
    // A message that was refused alone, and whose refusal was lost, is decided again after later messages.
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
          `queue ${queueId} has ${name} after message ${before} of ${call.producer}, which was sent later`,
        )
      last.set(call.producer, call.sequence)
      checked++
    }
  }
  return checked
}

/**
 * The history for the checker. It sets no order for messages that can lose their place: those that were refused and
 * decided again after later messages of their producer, and those that were rescheduled.
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
