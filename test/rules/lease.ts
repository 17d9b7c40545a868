/**
 * Rules of a lease: its deadline, and what happens to its message when the connection of its consumer dies. Pure
 * functions, which share no code with the server.
 *
 * A deadline is undefined while nothing handles the message, and Infinity while its handling is only announced.
 */
import type { Message } from './message.js'

export type Deadline = number | undefined

/** Deadline after a STARTED that names the message. A deadline that is already running does not change. */
export function deadlineAfterStarted(deadlineMs: Deadline, nowMs: number, timeoutMs: number): number {
  return deadlineMs === undefined || deadlineMs === Infinity ? nowMs + timeoutMs : deadlineMs
}

/**
 * Deadline after a STARTING that names the message. The handling of the message is announced unless it has already
 * started.
 */
export function deadlineAfterStarting(deadlineMs: Deadline): number {
  return deadlineMs ?? Infinity
}

/** Deadline after a later STARTED or STARTING, which ends the earlier announcements. */
export function deadlineAfterAnnouncement(deadlineMs: Deadline): Deadline {
  return deadlineMs === Infinity ? undefined : deadlineMs
}

/** Deadline after the lease is extended. A message that is not being handled has no deadline that could be moved. */
export function deadlineAfterExtension(
  deadlineMs: Deadline,
  nowMs: number,
  durationMs: number,
  timeoutMs: number,
): Deadline {
  return deadlineMs === undefined ? undefined : nowMs + (durationMs || timeoutMs)
}

export type EndReason = 'started' | 'suspects' | 'alone' | 'unattributed'

/** The end reason of a connection that held `held` messages and was handling `started` of them. */
export function endReasonFor(started: number, held: number): EndReason {
  if (started > 0) return started === 1 ? 'started' : 'suspects'
  return held === 1 ? 'alone' : 'unattributed'
}

export type LeaseEnd = 'charged' | 'suspected' | 'unattributed' | 'released'

/** The end of one lease of a connection that died. `isAlone`: the message was delivered alone, as a suspect. */
export function leaseEndFor(endReason: EndReason, isStarted: boolean, isAlone: boolean): LeaseEnd {
  if (endReason === 'started') return isStarted ? 'charged' : 'released'
  if (endReason === 'suspects') return isStarted ? 'suspected' : 'released'
  return endReason === 'alone' && isAlone ? 'charged' : 'unattributed'
}

/** Number of unattributed deaths after which a message is a suspect. */
const UNATTRIBUTED_MAX = 3

type Suspicion = Pick<Message, 'isSuspect' | 'unattributedDeaths'>

/** The suspicion after an ack, a retry, a death or a charge, which clear it; a release does not clear it. */
export const CLEARED: Suspicion = { isSuspect: false, unattributedDeaths: 0 }

export function suspicionAfter(end: LeaseEnd, before: Suspicion): Suspicion {
  if (end === 'charged') return CLEARED
  if (end === 'suspected') return { isSuspect: true, unattributedDeaths: 0 }
  if (end === 'released' || before.isSuspect) return before
  const unattributedDeaths = before.unattributedDeaths + 1
  return unattributedDeaths < UNATTRIBUTED_MAX
    ? { isSuspect: false, unattributedDeaths }
    : { isSuspect: true, unattributedDeaths: 0 }
}
