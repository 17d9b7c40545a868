/**
 * EXPLAIN { name, offset? } → { reasons }: why a message, or any message of a queue, is not delivered. It changes nothing.
 *
 * A reason is a map of `code` and the values that its code has. The first reason is the one to look at first: what holds the
 * message itself, then what holds the queue, then the consumers.
 */
import type { DeathName } from './managing.js'
import { addressName, type QueueName } from './names.js'
import { onlyFields, whole, type Body } from './queues.js'

/** What each code means, and the values that it has. */
export const EXPLAIN_CODES = {
  deliverable: 'Nothing holds it back: it is delivered now.',
  unpublished: 'No message has this offset yet; the next one gets the offset `next`.',
  gone: 'There is no such message any more: it was acknowledged, expired, cancelled, dropped or purged.',
  expired: 'Its time to live passed at `sinceMs`; it is removed soon.',
  dead: 'It is a dead letter since `sinceMs`, by `death`, after `attempts` attempts; `text` has the error.',
  leased: 'The consumer `consumer` of the client `client` has it since `sinceMs`.',
  scheduled: 'It is due at `untilMs`.',
  retry: 'It failed, and its retry is due at `untilMs`; `attempts` attempts were counted.',
  keyLeased:
    'Its key is held by the message `offset`, which the consumer `consumer` of the client `client` has since `sinceMs`.',
  keyRetry: 'Its key is held by the failed message `offset`, whose retry is due at `untilMs`.',
  keyRate: 'Its key has used up `keyRate` until `untilMs`.',
  keyPaused: 'A retry paused its key until `untilMs`.',
  keyLine:
    'It waits behind `count` messages of its key; the first of them is `offset`. At `countMax`, there are more.',
  empty: 'No message is ready. If one is scheduled, the next is due at `untilMs`.',
  keys: 'Every message that is ready waits for its key. The oldest of them is `offset`, unless too many other messages precede it; the next reasons are about it.',
  paused: 'The queue is paused.',
  noConsumer: 'The queue has no consumer.',
  queueRate: 'The queue has used up `rate` until `untilMs`.',
  single: 'The queue has `single`: only the consumer `consumer` of the client `client` gets messages.',
  noCredit:
    'The consumer `consumer` of the client `client` takes no more: it has `leased` messages of `credit`, and `leasedBytes` bytes of `creditBytes`.',
  limit: 'The consumer `consumer` of the client `client` asked for no more messages than it has received.',
  suspect:
    'The consumer `consumer` of the client `client` handles a message that may have crashed another one, and gets no other.',
  alone: 'The message may have crashed a consumer, so it waits for one that has no other message.',
  connection: 'The consumer `consumer` of the client `client` does not read from its connection.',
  due: 'Messages whose time has come are made ready first.',
  diskBehind: 'The disk is full, or behind: more waits to be written than the memory for it allows.',
  reading: 'The message to deliver next is being read from the disk.',
  line: 'Other messages precede it; the next one is `offset`.',
} as const

export type ExplainCode = keyof typeof EXPLAIN_CODES

/** A reason in the answer to EXPLAIN. Its code decides which of the values it has. */
export interface ExplainReason {
  readonly code: ExplainCode
  readonly offset?: number
  readonly next?: number
  readonly sinceMs?: number
  readonly untilMs?: number
  readonly attempts?: number
  readonly count?: number
  readonly countMax?: number
  readonly death?: DeathName
  readonly text?: string
  readonly consumer?: number
  readonly client?: string
  readonly leased?: number
  readonly credit?: number
  readonly leasedBytes?: number
  readonly creditBytes?: number
}

export interface ExplainRequest {
  readonly name: QueueName
  /** Undefined: why the queue delivers nothing. */
  readonly offset: number | undefined
}

/** @throws SluiceError INVALID_ARGUMENT, INVALID_NAME */
export function explainRequest(body: Body): ExplainRequest {
  onlyFields('EXPLAIN', body, ['name', 'offset'])
  const { offset } = body
  return {
    name: addressName(body['name']),
    offset: offset === undefined ? undefined : whole('offset', offset, Number.MAX_SAFE_INTEGER),
  }
}
