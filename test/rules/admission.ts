/**
 * Rules for a published batch: which of its messages are duplicates or replace others, and which messages are evicted to
 * make room for it. Pure functions, which share no code with the server.
 */
import type { QueueOptions } from '@sluice/protocol'
import type { Message, MessageOptions } from './message.js'

type IdRule = Pick<QueueOptions, 'unique' | 'dedupWindowMs' | 'dedupMaxIds'>

export function remembersIds({ unique, dedupWindowMs }: Pick<IdRule, 'unique' | 'dedupWindowMs'>): boolean {
  return unique === 'pending' || dedupWindowMs > 0
}

/** The effect of the ids of a batch. */
export interface IdPlan {
  /** Index in the batch → offset of the message with that id; for a message that replaces another one, its own offset. */
  readonly duplicates: ReadonlyMap<number, number>
  /** Offsets of the messages that are replaced. */
  readonly replaced: ReadonlySet<number>
  /** Number of ids that the queue does not know yet. */
  readonly newIds: number
}

const NO_IDS: IdPlan = { duplicates: new Map(), replaced: new Set(), newIds: 0 }

/**
 * `next` is the offset of the first message of the batch. `offsetOf` returns the offset of the message that makes a new
 * message with this id a duplicate; `isWaiting` returns whether that message can be replaced.
 */
export function planIds(
  contents: readonly MessageOptions[],
  next: number,
  options: Pick<IdRule, 'unique' | 'dedupWindowMs'>,
  offsetOf: (id: string) => number | undefined,
  isWaiting: (offset: number) => boolean,
): IdPlan {
  if (!remembersIds(options)) return NO_IDS
  // `accepted`: index of the accepted message in the batch; undefined if all are duplicates of the known message.
  const byId = new Map<string, { accepted: number | undefined; readonly known: number | undefined }>()
  const replaced = new Set<number>()
  let newIds = 0
  for (const [index, { id, replaces }] of contents.entries()) {
    if (id === undefined) continue
    const earlier = byId.get(id)
    if (earlier !== undefined) {
      // If several messages of a batch replace, the last of them is accepted.
      if (replaces && earlier.accepted !== undefined) earlier.accepted = index
      continue
    }
    const known = offsetOf(id)
    if (known === undefined) newIds++
    const isReplaced = known !== undefined && replaces && isWaiting(known)
    if (isReplaced) replaced.add(known)
    byId.set(id, { accepted: known === undefined || isReplaced ? index : undefined, known })
  }
  const duplicates = new Map<number, number>()
  for (const [index, { id }] of contents.entries()) {
    if (id === undefined) continue
    const { accepted, known } = byId.get(id)!
    if (accepted !== index) duplicates.set(index, accepted === undefined ? known! : next + accepted)
    else if (known !== undefined) duplicates.set(index, next + index)
  }
  return { duplicates, replaced, newIds }
}

/**
 * Whether the message at this index is accepted: either no other message has its id, or it replaces the message that
 * has this id.
 */
export function isAccepted({ duplicates }: Pick<IdPlan, 'duplicates'>, next: number, index: number): boolean {
  return (duplicates.get(index) ?? next + index) === next + index
}

/** Whether the new ids are too many for the queue; `known` is the number of ids that the queue remembers. */
export function isDedupFull(
  known: number,
  newIds: number,
  { dedupMaxIds }: Pick<IdRule, 'dedupMaxIds'>,
): boolean {
  return newIds > 0 && known + newIds > dedupMaxIds
}

type Occupant = Pick<Message, 'offset' | 'content' | 'bytes' | 'state'>

export interface RoomPlan<O extends Occupant> {
  readonly isFull: boolean
  /** Messages that are evicted: those of the lowest priority first, and of these the oldest first. */
  readonly evicted: readonly O[]
  /** Number of messages at the end of `evicted` that are evicted only because the queue was already over its limits. */
  readonly excess: number
}

/**
 * Decides which messages are evicted for new ones of these sizes. `occupants` are the messages that count towards the
 * limits: neither dead messages nor those that leave in the same step. A leased message cannot be evicted. A queue that
 * is already over its limits loses as many messages as it gets, and at most `excessMax` more.
 */
export function planRoom<O extends Occupant>(
  occupants: readonly O[],
  sizes: readonly number[],
  { maxMessages, maxBytes, overflow }: Pick<QueueOptions, 'maxMessages' | 'maxBytes' | 'overflow'>,
  excessMax: number,
): RoomPlan<O> {
  if (sizes.length === 0) return { isFull: false, evicted: [], excess: 0 }
  const sum = (all: readonly number[]): number => all.reduce((total, one) => total + one, 0)
  const allBytes = sum(occupants.map(({ bytes }) => bytes))
  const evictable = occupants
    .filter(({ state }) => overflow !== 'reject' && state !== 'leased')
    .toSorted((a, b) => a.content.priority - b.content.priority || a.offset - b.offset)
  // Number of messages in `evictable` that must leave so that these limits are met; undefined if there is no room even
  // after all of them leave.
  const neededFor = (messagesMax: number, bytesMax: number): number | undefined => {
    for (let count = 0; count <= evictable.length; count++) {
      const messages = occupants.length - count + sizes.length
      const bytes = allBytes - sum(evictable.slice(0, count).map((one) => one.bytes)) + sum(sizes)
      if ((maxMessages === 0 || messages <= messagesMax) && (maxBytes === 0 || bytes <= bytesMax))
        return count
    }
    return undefined
  }
  const needed = neededFor(maxMessages, maxBytes)
  if (needed === undefined) return { isFull: true, evicted: [], excess: 0 }
  const own = neededFor(Math.max(maxMessages, occupants.length), Math.max(maxBytes, allBytes))!
  const count = Math.min(needed, own + excessMax)
  return { isFull: false, evicted: evictable.slice(0, count), excess: count - own }
}
