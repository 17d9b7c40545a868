/**
 * The queues by name: finds, creates, changes, pauses, purges, deletes and describes them. Called for each request
 * about a queue as a whole, and to find the queue of each publish.
 *
 * Invariant: `info`, `list` and `consumers` change nothing: they write no fact and wake no queue. They count messages
 * that are due or expired in this turn, even if the queue has not processed them yet.
 */
import {
  QUEUE_OPTION_DEFAULTS,
  SluiceError,
  checkOptionsTogether,
  optionText,
  type ConsumerInfo,
  type ConsumersRequest,
  type EnsureRequest,
  type Kind,
  type QueueInfo,
  type QueueName,
  type QueueOptionName,
  type QueueOptions,
} from '@sluice/protocol'
import { FactBuffer, UNLIMITED, encodeDefinition, type Queue, type QueueDefinition } from '../queue/index.js'
import { PAGES_MAX } from '../state/directory.js'
import { kindOfQueue, sameOptions, wrongKind, type State } from '../state/state.js'
import type { Leases } from './leases.js'
import type { Moves } from './moves.js'
import type { Observer } from './observer.js'
import type { Readers } from './readers.js'
import type { Topics } from './topics.js'
import type { Turn } from './turn.js'
import type { UnusedQueues } from './unused-queues.js'
import type { Writer } from './writer.js'

const QUEUES_DEFAULT = 100_000
/**
 * Maximum number of consumers in one answer. Even with names of 255 bytes, this number of consumers fits in a control
 * frame.
 */
const PAGE_CONSUMERS = 100
/**
 * Maximum number of lease slots that one page of consumers scans, unless its first consumer has more slots. The scan
 * takes a fraction of a millisecond.
 */
const PAGE_SLOTS = 1 << 18

export interface ConsumersResult {
  readonly consumers: ConsumerInfo[]
  readonly next: number | null
}

export interface CatalogOptions {
  readonly queuesMax?: number
  readonly pagesMax?: number
  readonly observer?: Observer | undefined
}

export class Catalog {
  readonly #state: State
  readonly #writer: Writer
  readonly #moves: Moves
  readonly #turn: Turn
  readonly #unused: UnusedQueues
  readonly #queuesMax: number
  readonly #pagesMax: number
  readonly #leases: Leases
  readonly #readers: Readers
  readonly #topics: Topics
  readonly #observer: Observer | undefined
  readonly #facts = new FactBuffer()
  /** Sorted names of each kind; empty while they must be sorted again. */
  readonly #names = new Map<Kind, QueueName[]>()

  constructor(
    state: State,
    writer: Writer,
    moves: Moves,
    leases: Leases,
    readers: Readers,
    topics: Topics,
    turn: Turn,
    unused: UnusedQueues,
    { queuesMax = QUEUES_DEFAULT, pagesMax = PAGES_MAX, observer }: CatalogOptions,
  ) {
    this.#state = state
    this.#writer = writer
    this.#moves = moves
    this.#turn = turn
    this.#unused = unused
    this.#queuesMax = queuesMax
    this.#pagesMax = pagesMax
    this.#leases = leases
    this.#readers = readers
    this.#topics = topics
    this.#observer = observer
  }

  /** @throws SluiceError QUEUE_NOT_FOUND */
  queue(name: string): Queue {
    return this.#state.queue(name)
  }

  /** Returns the queue whose name is in `bytes[start, end)`; undefined if no queue has that name. */
  queueAt(bytes: Uint8Array, start: number, end: number): Queue | undefined {
    return this.#state.names.find(bytes, start, end)
  }

  /**
   * @throws SluiceError QUEUE_CONFLICT, OPTION_CONFLICT, OPTION_FIXED, DEAD_LETTER_CYCLE, QUEUE_NOT_FOUND of a
   * dead-letter queue, TOO_MANY_QUEUES
   */
  ensure(request: EnsureRequest): { created: boolean; queue: QueueInfo } {
    const existing = this.#state.queues.get(request.name)
    if (existing !== undefined && kindOfQueue(existing) !== 'queue') throw wrongKind(existing, 'queue')
    const options = { ...(existing?.options ?? QUEUE_OPTION_DEFAULTS), ...request.options }
    const differs = existing === undefined || !sameOptions(existing.options, options)
    if (existing !== undefined && differs && !request.update) {
      const named = Object.keys(request.options) as QueueOptionName[]
      const differing = named.filter((name) => existing.options[name] !== options[name])
      throw optionConflict('queue', existing.name, existing.options, options, differing)
    }
    if (differs) this.#checkOptions(request, options, existing)
    const queue = existing ?? this.make(request.name, options)
    if (existing !== undefined && differs) this.change(existing, options)
    const info = this.#info(queue)
    this.#observer?.ensured(queue, info)
    return { created: existing === undefined, queue: info }
  }

  /** Changes the options of a queue or a stream. */
  change(queue: Queue, options: QueueOptions): void {
    queue.applyOptions(this.#state.options.share(options), this.#turn.nowMs)
    this.#observer?.optionsChanged(queue, options)
    this.#turn.advance(queue)
    this.declare(queue)
    this.#moves.note(queue)
    this.#unused.watch(queue)
    this.#turn.changed(queue)
  }

  #checkOptions(request: EnsureRequest, options: QueueOptions, existing: Queue | undefined): void {
    this.checkOptions(request.name, request.options, options)
    if (existing !== undefined && existing.options.unique !== options.unique) {
      throw new SluiceError(
        'OPTION_FIXED',
        `\`unique\` of the queue ${existing.name} is "${existing.options.unique}" and cannot be changed.`,
      )
    }
  }

  /**
   * Checks the options that are set in `set`, and that are then in force, for the queue or stream that dead messages may not
   * return to.
   * @throws SluiceError OPTION_CONFLICT, DEAD_LETTER_CYCLE, QUEUE_NOT_FOUND
   */
  checkOptions(name: string, set: Partial<QueueOptions>, options: QueueOptions): void {
    checkOptionsTogether(options)
    if (set.deadLetter !== undefined) this.#checkDeadLetter(name, options.deadLetter)
  }

  #checkDeadLetter(from: string, to: string): void {
    const path: string[] = [from]
    for (let name = to; name !== '';) {
      path.push(name)
      if (name === from) {
        throw new SluiceError(
          'DEAD_LETTER_CYCLE',
          `Dead messages of the queue ${from} would return to it: ${path.join(' → ')}.`,
        )
      }
      const next = this.#state.queues.get(name)
      if (next === undefined && name === to)
        throw new SluiceError(
          'QUEUE_NOT_FOUND',
          `The dead-letter queue ${JSON.stringify(name)} does not exist.`,
        )
      name = next?.options.deadLetter ?? ''
    }
  }

  /** Creates a queue, a stream or a group. @throws SluiceError TOO_MANY_QUEUES */
  make(name: QueueName, options: QueueOptions, kind: Pick<QueueDefinition, 'stream' | 'group'> = {}): Queue {
    this.#checkRoom()
    const queue = this.#state.addQueue(this.#state.nextQueueId, {
      name,
      options: this.#state.options.share(options),
      createdAtMs: this.#turn.nowMs,
      paused: false,
      idsFrom: 0,
      ...kind,
    })
    queue.open(this.#turn.nowMs)
    this.#names.clear()
    this.declare(queue)
    this.#moves.made(queue.name)
    this.#unused.watch(queue)
    return queue
  }

  #checkRoom(): void {
    const { pages, queues } = this.#state
    if (queues.size >= this.#queuesMax) {
      throw new SluiceError(
        'TOO_MANY_QUEUES',
        `There are ${queues.size} queues; at most ${this.#queuesMax} are allowed.`,
      )
    }
    if (pages >= this.#pagesMax) {
      throw new SluiceError(
        'TOO_MANY_QUEUES',
        `The state of the ${queues.size} queues takes ${pages} pages; at most ${this.#pagesMax} are allowed.`,
      )
    }
  }

  // Writes the definition of the queue to the log, after all earlier facts of the queue: whether an acknowledged message is
  // retained depends on the options at that time, and a queue whose options no longer retain messages has released them.
  declare(queue: Queue): void {
    this.#writer.writeFactsOf(queue)
    this.#facts.ensure(encodeDefinition(queue))
    this.#writer.writeFacts(queue.id, this.#facts)
    queue.definitionChanged()
  }

  /**
   * Stops deliveries until `resume`. Returns false if the queue was already paused.
   * @throws SluiceError QUEUE_NOT_FOUND
   */
  pause(name: QueueName): boolean {
    return this.#setPaused(this.#state.consumable(name), true)
  }

  /** Resumes deliveries. Returns false if the queue was not paused. @throws SluiceError QUEUE_NOT_FOUND */
  resume(name: QueueName): boolean {
    return this.#setPaused(this.#state.consumable(name), false)
  }

  #setPaused(queue: Queue, paused: boolean): boolean {
    const differs = queue.paused !== paused
    if (differs) {
      queue.paused = paused
      this.declare(queue)
      this.#turn.changed(queue)
    }
    this.#observer?.setPaused(queue, paused, differs)
    return differs
  }

  /** @throws SluiceError QUEUE_NOT_FOUND */
  info(name: QueueName): QueueInfo {
    const info = this.#info(this.#state.consumable(name))
    this.#observer?.counted(info)
    return info
  }

  // The running time of this method depends on the number of overdue messages, but not on the number of other
  // messages or keys.
  #info(queue: Queue): QueueInfo {
    return queue.infoAt(this.#turn.nowMs)
  }

  /**
   * Returns at most `limit` queues in order of name, after the name `after`. `more` says whether other queues follow.
   */
  list(after: string, limit: number): { readonly queues: QueueInfo[]; readonly more: boolean } {
    const { names, more } = this.namesAfter('queue', after, limit)
    return { queues: names.map((name) => this.info(name)), more }
  }

  /** Returns at most `limit` names of this kind, in order, after the name `after`. */
  namesAfter(
    kind: Kind,
    after: string,
    limit: number,
  ): { readonly names: readonly QueueName[]; readonly more: boolean } {
    const names = this.#names.get(kind) ?? this.#sorted(kind)
    let from = 0
    for (let to = names.length; from < to;) {
      const middle = (from + to) >>> 1
      if (names[middle]! <= after) from = middle + 1
      else to = middle
    }
    return { names: names.slice(from, from + limit), more: from + limit < names.length }
  }

  #sorted(kind: Kind): QueueName[] {
    const names: QueueName[] = []
    for (const queue of this.#state.queues.values())
      if (kindOfQueue(queue) === kind) names.push(queue.name as QueueName)
    this.#names.set(kind, names.sort())
    return names
  }

  /**
   * Returns a page of the queue's consumers in order of id, from `request.from` on.
   * @throws SluiceError QUEUE_NOT_FOUND
   */
  consumers(request: ConsumersRequest): ConsumersResult {
    const queue = this.#state.consumable(request.name)
    const active = queue.soleSubscription
    const all = queue.subscriptions.filter(({ id }) => id >= request.from).toSorted((a, b) => a.id - b.id)
    const consumers: ConsumerInfo[] = []
    let slots = 0
    for (const subscription of all) {
      slots += subscription.slots
      if (consumers.length === PAGE_CONSUMERS || (consumers.length > 0 && slots > PAGE_SLOTS))
        return { consumers, next: subscription.id }
      consumers.push({
        id: subscription.id,
        client: subscription.consumer.label,
        peer: subscription.consumer.address,
        active: !queue.options.single || subscription === active,
        sinceMs: subscription.sinceMs,
        creditMessages: subscription.creditMessages,
        creditBytes: subscription.creditBytes,
        leased: subscription.unsettled,
        leasedBytes: subscription.unsettledBytes,
        started: subscription.startedCount,
        oldestLeaseMs: subscription.oldestLeaseMs,
        delivered: subscription.delivered,
      })
    }
    return { consumers, next: null }
  }

  /**
   * Deletes the queue and its messages, and returns the number of deleted messages.
   * @throws SluiceError QUEUE_NOT_FOUND
   */
  delete(name: string): number {
    const queue = this.#state.consumable(name)
    const messages = queue.live
    this.remove(queue)
    this.#observer?.deleted(queue, messages)
    return messages
  }

  /** Deletes a queue, a stream with its groups, or a group. */
  remove(queue: Queue): void {
    for (const group of queue.groups) this.remove(group as Queue)
    queue.facts.clear()
    this.#facts.delete()
    this.#writer.writeFacts(queue.id, this.#facts)
    const error = new SluiceError('QUEUE_DELETED', `The queue ${queue.name} was deleted.`)
    this.#leases.endSubscriptions(queue, error)
    this.#readers.closeAll(queue, error)
    this.#topics.forget(queue)
    this.#state.removeQueue(queue)
    this.#names.clear()
    this.#turn.forget(queue)
    this.#unused.forget(queue)
  }

  /**
   * Removes all scheduled, ready and leased messages, and returns the number of removed messages.
   * @throws SluiceError QUEUE_NOT_FOUND
   */
  purge(name: QueueName): number {
    const queue = this.#state.consumable(name)
    if (queue.group !== undefined)
      throw new SluiceError(
        'WRONG_KIND',
        `${name} is a group and cannot be purged: move it to the end of its stream.`,
      )
    this.#observer?.purging(queue)
    // The purge removes all messages in this turn, so all expired ones are counted before.
    this.#turn.catchUp(queue, UNLIMITED)
    this.#leases.endLeases(queue)
    const messages = queue.purge()
    this.#turn.changed(queue)
    this.#observer?.purged(queue, messages)
    return messages
  }
}

/** The refusal of an ENSURE without `update`; `differing` names the options whose values differ. */
export function optionConflict<Name extends string>(
  kind: Kind,
  name: string,
  known: Readonly<Record<Name, unknown>>,
  wanted: Readonly<Record<Name, unknown>>,
  differing: readonly Name[],
): SluiceError {
  const texts = differing.map(
    (option) =>
      `\`${option}\` is ${optionText(option, known[option])}, not ${optionText(option, wanted[option])}`,
  )
  return new SluiceError(
    'QUEUE_CONFLICT',
    `The ${kind} ${name} exists with other options: ${texts.join(', ')}.`,
  )
}
