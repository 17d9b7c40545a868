/**
 * The answer to `queues.explain`: why a message, or any message of a queue, is not delivered, in values and in plain
 * sentences.
 */
import {
  EXPLAIN_CODES,
  durationText,
  isGroupName,
  type DeathName,
  type ExplainCode,
  type ExplainReason,
} from '@sluice/protocol'
import type { Body } from './requests.js'
import { malformed } from './selection.js'

/** Why something is not delivered. Its code decides which of the values it has. */
export interface Reason {
  readonly code: ExplainCode
  /** The reason as a sentence. */
  readonly text: string
  /** What to do about it, if anything can be done. */
  readonly hint?: string
  /** Offset of the message that is in the way, or that comes next. */
  readonly offset?: number
  readonly since?: Date
  readonly until?: Date
  readonly attempts?: number
  /** Number of messages that precede it in the line of its key; `isMore` if there are more. */
  readonly count?: number
  readonly isMore?: boolean
  readonly death?: DeathName
  /** The error of a dead message. */
  readonly error?: string
  /** Id and client of the consumer that is concerned, what it holds, and its credit. */
  readonly consumer?: number
  readonly client?: string
  readonly leased?: number
  readonly credit?: number
  readonly leasedBytes?: number
  readonly creditBytes?: number
}

/** The answer to `queues.explain`. */
export interface Explanation {
  /** Whether nothing is in the way: the message, or the next message of the queue, is delivered now. */
  readonly deliverable: boolean
  /** The reasons, the most important one first. There is at least one. */
  readonly reasons: readonly Reason[]
}

/** @throws SluiceError if the answer is malformed */
export function explanationOf(queue: string, { reasons }: Body, nowMs = Date.now()): Explanation {
  if (!Array.isArray(reasons)) throw malformed('EXPLAIN')
  const read = reasons.map((reason: unknown) => reasonOf(queue, reason, nowMs))
  return { deliverable: read[0]?.code === 'deliverable', reasons: read }
}

function reasonOf(queue: string, value: unknown, nowMs: number): Reason {
  if (typeof value !== 'object' || value === null) throw malformed('EXPLAIN')
  const reason = value as ExplainReason
  if (!Object.hasOwn(EXPLAIN_CODES, reason.code)) throw malformed('EXPLAIN')
  const { sinceMs, untilMs, next, countMax, text: error, ...same } = reason
  const [text, hint] = SENTENCES[reason.code]({ ...reason, queue, nowMs })
  return {
    ...same,
    text,
    ...(hint === undefined ? {} : { hint }),
    ...(next === undefined ? {} : { offset: next }),
    ...(sinceMs === undefined ? {} : { since: new Date(sinceMs) }),
    ...(untilMs === undefined ? {} : { until: new Date(untilMs) }),
    ...(countMax === undefined ? {} : { isMore: true }),
    ...(error === undefined ? {} : { error }),
  }
}

interface Told extends ExplainReason {
  readonly queue: string
  readonly nowMs: number
}

type Sentence = (reason: Told) => readonly [text: string, hint?: string]

/** A sentence for each code, and what to do about it. */
const SENTENCES: Readonly<Record<ExplainCode, Sentence>> = {
  deliverable: () => ['Nothing holds it back: it is delivered now.'],
  unpublished: ({ next }) => [`No message has this offset yet; the next one gets the offset ${next}.`],
  gone: ({ queue }) =>
    isGroupName(queue)
      ? ['The message is gone: the group acknowledged, cancelled or missed it, or began after it.']
      : [
          'The message is gone: it was acknowledged, expired, cancelled, dropped or purged.',
          `If the queue has --retain-age, \`sluice history ${queue} OFFSET\` shows what happened to it.`,
        ],
  expired: (reason) => [`The message expired ${since(reason)}; the broker removes it soon.`],
  dead: ({ queue, death, attempts, text, ...reason }) => [
    `The message is a dead letter ${since(reason)} (${death}, ${attempts} attempts)${text === '' || text === undefined ? '' : `: ${text}`}.`,
    `Return it with \`sluice dead redrive ${queue}\`.`,
  ],
  leased: (reason) => [
    `The message is with the consumer ${consumerOf(reason)} ${since(reason)}.`,
    `If its handler hangs, \`sluice queue close-consumer ${reason.queue} ${reason.consumer}\` takes the message back.`,
  ],
  scheduled: (reason) => [
    `The message is scheduled: it waits ${until(reason)}.`,
    `Make it due earlier with \`sluice reschedule ${reason.queue}\`.`,
  ],
  retry: (reason) => [
    `The message failed, and waits for its retry ${until(reason)}. Failed attempts so far: ${reason.attempts}.`,
    `Make it due earlier with \`sluice reschedule ${reason.queue}\`.`,
  ],
  keyLeased: (reason) => [
    reason.offset === undefined
      ? 'Its key is held: as many messages of the key are being handled as `keyConcurrency` allows.'
      : `Its key is held by message ${reason.offset}, which the consumer ${consumerOf(reason)} has ${since(reason)}.`,
    'A higher --key-concurrency lets more messages of a key be handled at the same time.',
  ],
  keyRetry: (reason) => [
    reason.offset === undefined
      ? 'Its key is held by a failed message that waits for its retry.'
      : `Its key is held by message ${reason.offset}, which failed and waits for its retry ${until(reason)}.`,
    'With --on-fail skip, later messages of the key pass a failed one.',
  ],
  keyRate: (reason) => [
    `Its key has used up the rate of keys ${until(reason)}.`,
    `Change it with \`${changing(reason.queue)} --key-rate\`.`,
  ],
  keyPaused: (reason) => [
    `A handler paused its key ${until(reason)}, because it threw Retry with \`pauseKey\`.`,
  ],
  keyLine: ({ count, countMax, offset }) => [
    count === 1
      ? `Message ${offset} of its key precedes it.`
      : `${countMax === undefined ? count : `More than ${countMax}`} messages of its key precede it; the first is message ${offset}.`,
  ],
  empty: (reason) => [
    reason.untilMs === undefined
      ? 'No message is ready.'
      : `No message is ready; the next scheduled one waits ${until(reason)}.`,
  ],
  keys: ({ queue, offset }) => [
    offset === undefined
      ? 'Every ready message waits for its key.'
      : `Every ready message waits for its key. The oldest is message ${offset}; the next lines are about it.`,
    `Ask about ${offset === undefined ? 'one' : 'another one'} with \`sluice explain ${queue} OFFSET\`.`,
  ],
  paused: ({ queue }) => [
    `The ${kindOf(queue)} is paused.`,
    `Resume it with \`sluice queue resume ${queue}\`.`,
  ],
  noConsumer: ({ queue }) => [
    `The ${kindOf(queue)} has no consumer.`,
    isGroupName(queue)
      ? `Start one; \`sluice group get ${queue}\` shows how far behind the group is.`
      : `Start one, or look at messages with \`sluice peek ${queue}\`.`,
  ],
  queueRate: (reason) => [
    `The ${kindOf(reason.queue)} has used up its rate ${until(reason)}.`,
    `Change it with \`${changing(reason.queue)} --rate\`.`,
  ],
  single: (reason) => [
    `The ${kindOf(reason.queue)} has one active consumer at a time, and this is the consumer ${consumerOf(reason)}.`,
  ],
  noCredit: (reason) => [
    `The consumer ${consumerOf(reason)} takes no more: it has ${reason.leased} of ${reason.credit} messages and ${reason.leasedBytes} of ${reason.creditBytes} bytes.`,
    'Add consumers, or raise `concurrency`, `prefetch` or `prefetchBytes`.',
  ],
  limit: (reason) => [
    `The consumer ${consumerOf(reason)} has received as many messages as it asked for.`,
    'It is a pull that is over, or a `consume --max`; start another consumer.',
  ],
  suspect: (reason) => [
    `The consumer ${consumerOf(reason)} handles a message that may have crashed another consumer, and gets no other until it is done.`,
  ],
  alone: () => [
    'The message may have crashed a consumer, so it waits for a consumer that has no other message.',
  ],
  connection: (reason) => [
    `The consumer ${consumerOf(reason)} does not read from its connection.`,
    'Its process may be busy or suspended, or its network slow.',
  ],
  due: () => ['The broker is making messages ready whose time has come; this takes a moment.'],
  diskBehind: () => [
    'The disk of the broker is full or too slow, so nothing is delivered at the moment.',
    'Make room on the disk; the log of the broker reports the state of the disk.',
  ],
  reading: () => ['The broker is reading the next message from the disk.'],
  line: ({ offset }) => [`Other messages precede it; the next one is message ${offset}.`],
}

function kindOf(name: string): 'queue' | 'group' {
  return isGroupName(name) ? 'group' : 'queue'
}

// The command that changes options.
function changing(name: string): string {
  return isGroupName(name) ? `sluice group ensure ${name} --update` : `sluice queue edit ${name}`
}

function consumerOf({ consumer, client }: Pick<Told, 'consumer' | 'client'>): string {
  return client === undefined || client === '' ? String(consumer) : `${consumer} (${client})`
}

function since({ sinceMs, nowMs }: Pick<Told, 'sinceMs' | 'nowMs'>): string {
  return sinceMs === undefined ? '' : `since ${shownTime(sinceMs)}, ${rounded(nowMs - sinceMs)} ago`
}

function until({ untilMs, nowMs }: Pick<Told, 'untilMs' | 'nowMs'>): string {
  return untilMs === undefined ? '' : `until ${shownTime(untilMs)}, in ${rounded(untilMs - nowMs)}`
}

function shownTime(ms: number): string {
  return new Date(ms).toISOString()
}

// A duration in whole seconds, or in milliseconds if it is short. The clocks of client and broker can differ.
function rounded(ms: number): string {
  const passed = Math.max(0, ms)
  return durationText(passed < 10_000 ? passed : Math.round(passed / 1_000) * 1_000)
}
