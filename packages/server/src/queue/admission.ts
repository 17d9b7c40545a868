/**
 * An admission collects what arrives at a queue in one step: a batch, or the acknowledgements and batches of an atomic
 * step. It decides whether the queue accepts the step, based on the limits of the queue and the ids that the queue
 * knows.
 *
 * Order of the calls, after `catchUp`: `look` for each batch, `check` once for the whole step, `replace`, `makeRoom`.
 * Then the batches can be appended. Only `replace` and `makeRoom` change the queue, except that `look` and `check` may
 * remove expired messages. A batch whose messages have no delivery options needs no admission, unless the options of
 * its queue require one (`checksBatches`).
 *
 * A turn removes a limited number of expired messages. While some are left, the step removes as many of them as it needs
 * room, but not more messages and bytes than it brings. That is enough in a queue within its limits.
 */
import { SluiceError } from '@sluice/protocol'
import type { Traits } from './chunk.js'
import { ID_WORDS, isId } from './hash.js'
import type { Queue } from './queue.js'

/** A batch that has not changed the queue yet. Its fields are final after `check`. */
export interface AdmittedBatch {
  /** Offset of the first message of the batch. */
  readonly base: number
  /** The duplicates, each with the message to which its id belongs. `check` sorts them by index. */
  later: { readonly index: number; readonly first: First }[] | undefined
  /** The duplicates: index → offset of the message to which the id belongs. */
  duplicates: Map<number, number> | undefined
  /** Messages that replace a waiting message: index → offset of the waiting message. */
  replaced: Map<number, number> | undefined
  /** Number and bytes of the messages, without duplicates. */
  messages: number
  bytes: number
}

/** The message to which an id belongs for the rest of the step. Any other message with that id is a duplicate. */
interface First {
  /** Offset of the message. The message arrives in this step or was known before. */
  offset: number
  /** The batch of the arriving message; undefined if the message was known before. */
  batch: AdmittedBatch | undefined
  /** Size of the record; 0 if the queue does not need the sizes of single records. */
  bytes: number
  /** Offset of the message that this one replaces; -1 if it replaces no message. */
  readonly replaced: number
}

/** Minimum cost of one search for expired messages; see `Queue.sweep`. */
const SWEEP_STEP = 256

export class Admission {
  readonly #queue: Queue
  readonly #nowMs: number
  /** The batches, in the order of the calls of `look`. */
  readonly batches: AdmittedBatch[] = []
  /** Number of offsets that the batches take. */
  taken = 0
  /** Number of messages that are acknowledged in the same step. They count as gone. */
  #messagesLeaving = 0
  #bytesLeaving = 0
  /** Offsets of the messages that are acknowledged in the same step; undefined if there are none. */
  #leaving: Set<number> | undefined
  /** For each id in the batches, the message to which the id belongs; undefined while no message has an id. */
  #firsts: Map<string, First> | undefined
  /** The entries of `#firsts` that replace a waiting message. */
  #replacing: First[] | undefined
  /** Number of ids in the batches that are new to the queue. */
  #freshIds = 0

  constructor(queue: Queue, nowMs: number) {
    this.#queue = queue
    this.#nowMs = nowMs
  }

  /** Notes that the leased message at `offset` is acknowledged in the same step. */
  leaves(offset: number, bytes: number): void {
    this.#messagesLeaving++
    this.#bytesLeaving += bytes
    this.#leaving ??= new Set()
    this.#leaving.add(offset)
  }

  /** Adds a batch of `count` messages that needs no check. */
  pass(count: number): void {
    this.taken += count
  }

  /** Adds a batch and finds its duplicates. @throws SluiceError DEDUP_FULL */
  look(count: number, recordsBytes: number, traits: Traits | undefined): AdmittedBatch {
    const { unique, dedupWindowMs } = this.#queue.options
    const batch: AdmittedBatch = {
      base: this.#queue.next + this.taken,
      later: undefined,
      duplicates: undefined,
      replaced: undefined,
      messages: count,
      bytes: recordsBytes,
    }
    this.batches.push(batch)
    this.taken += count
    if (traits?.hasIds === true && (unique === 'pending' || dedupWindowMs > 0))
      this.#findDuplicates(count, traits, batch)
    return batch
  }

  // Looks each id up once, even if several messages have it.
  #findDuplicates(count: number, traits: Traits, batch: AdmittedBatch): void {
    const { ids, options } = this.#queue
    const leaving = this.#leaving
    const firsts = (this.#firsts ??= new Map())
    const isPending = options.unique === 'pending'
    const stays = leaving === undefined ? undefined : (offset: number): boolean => !leaving.has(offset)
    let fresh = 0
    for (let index = 0; index < count; index++) {
      const at = index * ID_WORDS
      if (!isId(traits.ids, at)) continue
      const id = traits.ids.subarray(at, at + ID_WORDS).join()
      const replaces = traits.replaces[index] === 1
      const offset = batch.base + index
      const bytes = traits.sizes?.[index] ?? 0
      const first = firsts.get(id)
      if (first === undefined) {
        const known = isPending ? this.#findPending(traits.ids, at, stays) : ids.find(traits.ids, at)
        if (known === -1) fresh++
        const isAccepted = known === -1 || (replaces && this.#isReplaceable(known))
        const made = isAccepted
          ? { offset, batch, bytes, replaced: known }
          : { offset: known, batch: undefined, bytes: 0, replaced: -1 }
        firsts.set(id, made)
        if (!isAccepted) addLater(batch, index, bytes, made)
        else if (known !== -1) (this.#replacing ??= []).push(made)
      } else if (replaces && first.batch !== undefined) {
        // If several messages replace the same one, the last of them is accepted, even if they are in different batches.
        addLater(first.batch, first.offset - first.batch.base, first.bytes, first)
        first.offset = offset
        first.batch = batch
        first.bytes = bytes
      } else addLater(batch, index, bytes, first)
    }
    this.#freshIds += fresh
    if (fresh > 0) this.#checkIds()
  }

  // Offset of a pending message with this id; -1 if there is none. Messages that have expired are removed.
  #findPending(ids: Uint32Array, at: number, stays?: (offset: number) => boolean): number {
    const { pending } = this.#queue
    let known = pending.find(ids, at, stays)
    while (known !== -1 && this.#queue.removeIfExpired(known, this.#nowMs))
      known = pending.find(ids, at, stays)
    return known
  }

  #isReplaceable(offset: number): boolean {
    const state = this.#queue.stateAt(offset, this.#nowMs)
    return state === 'scheduled' || state === 'ready'
  }

  // @throws SluiceError DEDUP_FULL
  #checkIds(): void {
    const { ids, pending, options, name } = this.#queue
    const count = (): number =>
      options.unique === 'pending' ? pending.count - this.#idsLeaving() : ids.count
    if (options.unique === 'pending')
      this.#sweepWhile(() => count() + this.#freshIds > options.dedupMaxIds, this.#freshIds, 0)
    const known = count()
    if (known + this.#freshIds <= options.dedupMaxIds) return
    throw new SluiceError(
      'DEDUP_FULL',
      `The queue ${name} remembers ${known} ids, and ${this.#freshIds} more arrived; it remembers at most ${options.dedupMaxIds}.`,
      { retryAfterMs: 1_000 },
    )
  }

  // Number of ids that are forgotten in this step, because all messages that have them are acknowledged.
  #idsLeaving(): number {
    const leaving = this.#leaving
    if (leaving === undefined) return 0
    let ids = 0
    const stays = (offset: number): boolean => !leaving.has(offset)
    const seen = new Set<string>()
    for (const offset of leaving) {
      const chunk = this.#queue.chunkAt(offset)!
      const words = chunk.idAt(offset - chunk.base)
      const id = words.join()
      if (!isId(words, 0) || seen.has(id)) continue
      seen.add(id)
      if (this.#queue.pending.find(words, 0, stays) === -1) ids++
    }
    return ids
  }

  /**
   * Checks the whole step against the limits, and completes each batch. Does not change the queue.
   * @throws SluiceError QUEUE_FULL
   */
  check(): void {
    for (const batch of this.batches) {
      if (batch.later === undefined) continue
      batch.later.sort((a, b) => a.index - b.index)
      batch.duplicates = new Map(batch.later.map(({ index, first }) => [index, first.offset]))
    }
    for (const { batch, offset, replaced } of this.#replacing ?? [])
      (batch!.replaced ??= new Map()).set(offset - batch!.base, replaced)
    const { maxMessages, maxBytes } = this.#queue.options
    if (maxMessages > 0 || maxBytes > 0) this.#checkLimits()
  }

  // Removes expired messages while `isFull` returns true, at most about `messages` messages with `bytes` bytes.
  #sweepWhile(isFull: () => boolean, messages: number, bytes: number): void {
    const queue = this.#queue
    const [liveBefore, bytesBefore] = [queue.live, queue.bytes]
    while (
      queue.hasMoreExpired &&
      isFull() &&
      (liveBefore - queue.live < messages || bytesBefore - queue.bytes < bytes)
    )
      queue.sweep(this.#nowMs, Math.max(messages, SWEEP_STEP))
  }

  // Number and bytes of the messages that stay in the queue, without dead ones.
  #staying(): { messages: number; bytes: number } {
    const queue = this.#queue
    let messages = queue.live - queue.deadCount - this.#messagesLeaving
    let bytes = queue.bytes - queue.deadBytes - this.#bytesLeaving
    for (const { replaced } of this.batches) {
      for (const offset of replaced?.values() ?? []) {
        const chunk = queue.chunkAt(offset)!
        messages--
        bytes -= chunk.bytesAt(offset - chunk.base)
      }
    }
    return { messages, bytes: Math.round(bytes) }
  }

  #checkLimits(): void {
    const queue = this.#queue
    const { maxMessages, maxBytes, overflow } = queue.options
    let moreMessages = 0
    let moreBytes = 0
    for (const batch of this.batches) {
      moreMessages += batch.messages
      moreBytes += batch.bytes
    }
    if (moreMessages === 0) return
    const isFull = (): boolean => {
      const staying = this.#staying()
      return (
        (maxMessages > 0 && staying.messages + moreMessages > maxMessages) ||
        (maxBytes > 0 && staying.bytes + moreBytes > maxBytes)
      )
    }
    this.#sweepWhile(isFull, moreMessages, moreBytes)
    const { messages, bytes } = this.#staying()
    // Number of messages that cannot be dropped: all messages if `overflow` is `reject`, otherwise those that stay
    // leased.
    const firmMessages = overflow === 'reject' ? messages : queue.leased - this.#messagesLeaving
    let firmBytes = bytes
    if (overflow !== 'reject') {
      firmBytes = -this.#bytesLeaving
      for (const subscription of queue.subscriptions) firmBytes += subscription.unsettledBytes
    }
    if (maxMessages > 0 && firmMessages + moreMessages > maxMessages)
      throw this.#full('messages', messages, moreMessages, maxMessages)
    if (maxBytes > 0 && Math.round(firmBytes) + moreBytes > maxBytes)
      throw this.#full('bytes', bytes, moreBytes, maxBytes)
  }

  #full(what: string, has: number, more: number, most: number): SluiceError {
    return new SluiceError(
      'QUEUE_FULL',
      `The queue ${this.#queue.name} holds ${has} ${what}, and ${more} more arrived; it holds at most ${most}.`,
      // A step that does not fit even in an empty queue will never fit.
      more > most ? { retryable: false } : { retryAfterMs: 100 },
    )
  }

  /** Cancels the messages that are replaced. */
  replace(nowMs: number): void {
    for (const { replaced } of this.batches)
      if (replaced !== undefined) for (const offset of replaced.values()) this.#queue.cancel(offset, nowMs)
  }

  /**
   * Drops messages until the step fits. If the queue already exceeds its limits because they were lowered, the step
   * makes room only for itself, and at most `excessMax` more messages are dropped. Returns the number of these
   * additional messages.
   */
  makeRoom(nowMs: number, excessMax: number): number {
    const queue = this.#queue
    const { maxMessages, maxBytes, overflow } = queue.options
    if ((maxMessages === 0 && maxBytes === 0) || overflow === 'reject') return 0
    // If expired messages are left, `check` has removed enough of them.
    if (queue.hasMoreExpired) return 0
    let messages = 0
    let bytes = 0
    for (const batch of this.batches) {
      messages += batch.messages
      bytes += batch.bytes
    }
    if (messages === 0) return 0
    const mostMessages = (maxMessages || Infinity) - messages
    const mostBytes = (maxBytes || Infinity) - bytes
    // With these limits the queue is not larger after the step than before it.
    const ownMessages = Math.max(mostMessages, queue.live - queue.deadCount - messages)
    const ownBytes = Math.max(mostBytes, Math.round(queue.bytes - queue.deadBytes) - bytes)
    evict(queue, ownMessages, ownBytes, Infinity, nowMs)
    return evict(queue, mostMessages, mostBytes, excessMax, nowMs)
  }
}

// Evicts messages until at most `mostMessages` messages with `mostBytes` bytes are left, not counting dead ones, or until
// `max` messages are evicted. Returns the number of evicted messages.
function evict(queue: Queue, mostMessages: number, mostBytes: number, max: number, nowMs: number): number {
  let evicted = 0
  while (
    evicted < max &&
    (queue.live - queue.deadCount > mostMessages || Math.round(queue.bytes - queue.deadBytes) > mostBytes) &&
    queue.evictOldest(nowMs)
  )
    evicted++
  return evicted
}

function addLater(batch: AdmittedBatch, index: number, bytes: number, first: First): void {
  ;(batch.later ??= []).push({ index, first })
  batch.messages--
  batch.bytes -= bytes
}
