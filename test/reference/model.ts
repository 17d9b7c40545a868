/**
 * What a broker must do, said as plainly as it can be: lists that are searched from end to end, Maps of strings, no
 * bytes, no disk. It shares no code with the server.
 *
 * The caller moves the time, tells which messages were handed out, and asks whether that was right; everything else
 * the model decides by itself. Where the product may choose (which consumer, when expired messages are swept, in which
 * order the dead are moved) it is told the choice and judges whether it was allowed.
 */
import {
  LIMITS,
  ORIGIN_HEADERS,
  QUEUE_OPTION_DEFAULTS,
  type DeadSelection,
  type DeathName,
  type HistoryEventName,
  type MessageFilter,
  type MessageState,
  type QueueCounter,
  type QueueOptions,
} from '@sluice/protocol'

/** What a message says. Times in milliseconds. */
export interface Content {
  readonly priority: number
  readonly key: string | undefined
  readonly id: string | undefined
  /** Takes the place of a message with its id that waits. */
  readonly replaces: boolean
  readonly delayMs: number | undefined
  readonly atMs: number | undefined
  readonly ttlMs: number | undefined
  readonly headers: Readonly<Record<string, string>>
  readonly body: string
  /** Bytes of the record. */
  readonly size: number
}

/** The codes of all that is wrong with a request; the product names one of them. */
export class Refused extends Error {
  readonly codes: readonly string[]

  constructor(codes: readonly string[]) {
    super(`refused with ${codes.join(' or ')}`)
    this.codes = codes
  }
}

/** The product did what the specification does not allow. */
export class Difference extends Error {}

interface ModelLease {
  readonly subscription: ModelSubscription
  readonly tag: number
  readonly atMs: number
  readonly sinceMs: number
  readonly alone: boolean
  started: boolean
  /** When it times out; Infinity until it is started. */
  deadlineMs: number
}

export interface ModelMessage {
  readonly offset: number
  readonly content: Content
  readonly publishedMs: number
  state: MessageState
  /** By what it stands in line: publish time or due time. */
  lineMs: number
  /** 0: never. */
  expiresMs: number
  /** Since when it has been eligible; undefined while it is not. */
  sinceMs: number | undefined
  attempts: number
  /** Tries in earlier lives. */
  earlierAttempts: number
  redrives: number
  /** Whether a delivery must carry the redelivered mark. */
  marked: 'no' | 'maybe' | 'yes'
  suspect: boolean
  /** Deaths of connections that held it and had started nothing. */
  silentDeaths: number
  lease: ModelLease | undefined
  death: DeathName | undefined
  /** Its queue had a dead-letter queue when it died. */
  isMoving: boolean
  diedMs: number
  /** Undefined: the broker's own words. */
  reason: string | undefined
}

/** What HISTORY tells of a message. */
export interface ModelEvent {
  readonly event: HistoryEventName
  readonly atMs: number
  readonly attempts?: number
  readonly dueMs?: number
  /** Undefined: the broker's own words, or none. */
  readonly text?: string
}

export interface ModelSubscription {
  readonly queue: ModelQueue
  readonly client: string
  readonly processingTimeoutMs: number | undefined
  creditMessages: number
  creditBytes: number
  limit: number
  draining: boolean
  delivered: number
  readonly held: Map<number, ModelMessage>
  isOpen: boolean
}

export interface ModelQueue {
  readonly name: string
  options: QueueOptions
  paused: boolean
  /** All that is not gone, by offset. */
  messages: ModelMessage[]
  /** Acknowledged ones: what is retained can be replayed, and nothing else than these. */
  readonly done: { readonly message: ModelMessage; readonly atMs: number; readonly isRetained: boolean }[]
  /** What happened to each message, by offset, in order. */
  readonly history: Map<number, ModelEvent[]>
  /** Offset of the next message. */
  next: number
  acked: number
  /** Ids that were accepted: where and when. */
  readonly accepted: Map<string, { readonly offset: number; readonly atMs: number }>
  readonly counters: Record<QueueCounter, number>
  subscriptions: ModelSubscription[]
  /** Highest offset handed out since the broker began, + 1. */
  deliveredBelow: number
}

/** A message on its way into another queue; it is there once the product shows it. */
export interface Transfer {
  readonly kind: 'moved' | 'redriven'
  readonly from: ModelQueue
  readonly to: ModelQueue
  readonly message: ModelMessage
}

export interface ModelPlaced {
  readonly base: number
  readonly duplicates: ReadonlyMap<number, number>
}

export interface ModelBatch {
  readonly queue: string
  readonly contents: readonly Content[]
}

export interface ModelSettle {
  readonly tags: readonly number[]
  readonly outcome: 'ack' | 'retry' | 'release' | 'deadLetter'
  readonly delayMs: number | undefined
  readonly reason: string | undefined
  readonly invalid: boolean
}

export class Model {
  nowMs: number
  /** What the broker's source of chance says during this operation. */
  chance = 0.5
  readonly queues = new Map<string, ModelQueue>()
  /** Leases that ended without their consumer's doing, since this was emptied. */
  lost: { readonly subscription: ModelSubscription; readonly tag: number }[] = []
  /** Subscriptions that the broker ended, since this was emptied. */
  ended: ModelSubscription[] = []
  transfers: Transfer[] = []
  /** Dead messages that are about to begin a new life. */
  returning: { readonly queue: ModelQueue; readonly message: ModelMessage }[] = []
  /** How often each thing happened, for whoever wants to know whether a history was worth its time. */
  readonly events = new Map<string, number>()

  constructor(nowMs: number) {
    this.nowMs = nowMs
  }

  queue(name: string): ModelQueue {
    const queue = this.queues.get(name)
    if (queue === undefined) throw new Refused(['QUEUE_NOT_FOUND'])
    return queue
  }

  #note(queue: ModelQueue, offset: number, event: HistoryEventName, more: Partial<ModelEvent> = {}): void {
    const events = queue.history.get(offset) ?? []
    queue.history.set(offset, events)
    events.push({ event, atMs: this.nowMs, ...more })
  }

  #count(event: string): void {
    this.events.set(event, (this.events.get(event) ?? 0) + 1)
  }

  // --- queues ---

  ensure(name: string, named: Partial<QueueOptions>, update: boolean): boolean {
    const existing = this.queues.get(name)
    const before = existing?.options ?? QUEUE_OPTION_DEFAULTS
    const after: QueueOptions = { ...before, ...named }
    const differs = JSON.stringify(before) !== JSON.stringify(after)
    const codes: string[] = []
    if (after.retryInitialMs > after.retryMaxMs) codes.push('OPTION_CONFLICT')
    if (after.overflow !== 'reject' && after.maxMessages === 0 && after.maxBytes === 0)
      codes.push('OPTION_CONFLICT')
    if (after.unique === 'pending' && named.dedupWindowMs !== undefined) codes.push('OPTION_CONFLICT')
    if (existing !== undefined && differs && !update) codes.push('QUEUE_CONFLICT')
    if (existing !== undefined && after.unique !== before.unique) codes.push('OPTION_FIXED')
    if (this.#isCycle(name, after.deadLetter)) codes.push('DEAD_LETTER_CYCLE')
    if (named.deadLetter !== undefined && named.deadLetter !== '' && !this.queues.has(named.deadLetter))
      codes.push('QUEUE_NOT_FOUND')
    if (codes.length > 0) throw new Refused(codes)
    if (existing !== undefined) {
      existing.options = after
      // What one window has forgotten, no later one knows again.
      if (after.dedupWindowMs !== before.dedupWindowMs) {
        const windowMs = Math.min(after.dedupWindowMs, before.dedupWindowMs)
        for (const [id, { atMs }] of existing.accepted)
          if (atMs + windowMs <= this.nowMs) existing.accepted.delete(id)
      }
      if (after.onFail !== before.onFail || after.keyConcurrency !== before.keyConcurrency)
        this.#lineUp(existing)
      if (after.deadLetter !== before.deadLetter) this.#moveWaiting(existing)
      return false
    }
    this.queues.set(name, {
      name,
      options: after,
      paused: false,
      messages: [],
      done: [],
      history: new Map(),
      next: 0,
      acked: 0,
      accepted: new Map(),
      counters: {
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
      },
      subscriptions: [],
      deliveredBelow: 0,
    })
    for (const queue of this.queues.values()) if (queue.options.deadLetter === name) this.#moveWaiting(queue)
    return true
  }

  #isCycle(name: string, deadLetter: string): boolean {
    for (let at = deadLetter, steps = 0; at !== '' && steps <= this.queues.size; steps++) {
      if (at === name) return true
      at = this.queues.get(at)?.options.deadLetter ?? ''
    }
    return false
  }

  delete(name: string): number {
    const queue = this.queue(name)
    this.queues.delete(name)
    for (const subscription of queue.subscriptions) {
      subscription.isOpen = false
      subscription.held.clear()
      this.ended.push(subscription)
    }
    return queue.messages.length
  }

  /** Everything but the dead is gone; leases are lost. */
  purge(name: string): number {
    const queue = this.queue(name)
    const purged = queue.messages.filter(({ state }) => state !== 'dead')
    for (const message of purged) {
      if (message.lease !== undefined) this.#lose(message)
      this.#note(queue, message.offset, 'purged')
      this.#remove(queue, message)
    }
    queue.counters.purged += purged.length
    return purged.length
  }

  pause(name: string, paused: boolean): boolean {
    const queue = this.queue(name)
    const changed = queue.paused !== paused
    queue.paused = paused
    return changed
  }

  // --- time ---

  /**
   * What became due has arrived, and what was handled for too long was tried in vain. `expired` says how many the
   * product counts as expired, by queue: the sweep runs once a second, and not at a moment that anyone promised.
   */
  tick(expired: (queue: ModelQueue) => number): void {
    for (const queue of this.queues.values()) {
      this.arrive(queue)
      const overdue = queue.messages
        .filter((message) => message.lease !== undefined && message.lease.deadlineMs <= this.nowMs)
        .toSorted((a, b) => a.lease!.deadlineMs - b.lease!.deadlineMs || a.offset - b.offset)
      for (const message of overdue) {
        this.#count('timeout')
        this.#lose(message)
        this.#retry(queue, message, this.#backoffMs(queue, message), undefined)
      }
      this.followSweep(queue, expired(queue))
      for (const message of this.stale(queue)) {
        if (Math.max(message.expiresMs, message.lineMs) <= this.nowMs - 1000)
          throw new Difference(
            `${queue.name} still has message ${message.offset}, which expired at ${message.expiresMs}`,
          )
      }
    }
  }

  /** Everything that is due now has arrived, in order of due time, then offset. */
  arrive(queue: ModelQueue): void {
    const due = queue.messages
      .filter(({ state, lineMs }) => state === 'scheduled' && lineMs <= this.nowMs)
      .toSorted((a, b) => a.lineMs - b.lineMs || a.offset - b.offset)
    for (const message of due) this.#enter(queue, message, message.lineMs)
  }

  /** Ready messages whose time to live is over and that nobody has looked at yet. */
  stale(queue: ModelQueue): ModelMessage[] {
    return queue.messages.filter((message) => message.state === 'ready' && this.#isExpired(message))
  }

  /** If the product has swept the queue, so does the model. */
  followSweep(queue: ModelQueue, expired: number): void {
    const stale = this.stale(queue)
    if (stale.length > 0 && expired === queue.counters.expired + stale.length) this.sweep(queue)
  }

  sweep(queue: ModelQueue): void {
    const stale = this.stale(queue).toSorted(
      (a, b) => this.#overMs(a) - this.#overMs(b) || a.offset - b.offset,
    )
    for (const message of stale) this.#expire(queue, message)
  }

  #isExpired(message: ModelMessage): boolean {
    return message.expiresMs !== 0 && message.expiresMs <= this.nowMs
  }

  // It went when its time was over, or when it was due after that, whenever that is noticed.
  #expire(queue: ModelQueue, message: ModelMessage): void {
    this.#count('expired')
    this.#note(queue, message.offset, 'expired')
    queue.counters.expired++
    this.#remove(queue, message, this.#overMs(message))
  }

  #overMs({ expiresMs, lineMs, sinceMs, state }: ModelMessage): number {
    return state === 'leased' ? this.nowMs : Math.max(expiresMs, lineMs, sinceMs ?? 0)
  }

  // --- the line ---

  /** Ready messages of a key, in the order in which they may go. */
  #lineOf(queue: ModelQueue, key: string): ModelMessage[] {
    const failedFirst = (message: ModelMessage): number =>
      queue.options.onFail === 'block' && message.attempts >= 1 ? 0 : 1
    return queue.messages
      .filter(({ state, content }) => state === 'ready' && content.key === key)
      .toSorted((a, b) => failedFirst(a) - failedFirst(b) || a.lineMs - b.lineMs || a.offset - b.offset)
  }

  #isFree(queue: ModelQueue, key: string): boolean {
    const ofKey = queue.messages.filter(({ content }) => content.key === key)
    const leased = ofKey.filter(({ state }) => state === 'leased').length
    if (leased >= queue.options.keyConcurrency) return false
    return (
      queue.options.onFail === 'skip' ||
      !ofKey.some(({ state, attempts }) => state === 'scheduled' && attempts >= 1)
    )
  }

  /**
   * Something happened to the key, at `atMs`: its head, if the key is free, is eligible, and nothing else of it.
   * `newcomer` became ready just now and, where it is the head thereby, is eligible since `sinceMs`; any other new head
   * since `atMs`, but not since before it was there.
   */
  #rehead(
    queue: ModelQueue,
    key: string | undefined,
    atMs: number,
    newcomer?: ModelMessage,
    sinceMs?: number,
  ): void {
    if (key === undefined) return
    const line = this.#lineOf(queue, key)
    const head = this.#isFree(queue, key) ? line[0] : undefined
    for (const message of line) if (message !== head) message.sinceMs = undefined
    if (head !== undefined && head.sinceMs === undefined)
      head.sinceMs = head === newcomer ? sinceMs : Math.max(atMs, head.lineMs)
    if (line.length > (head === undefined ? 0 : 1)) this.#count('key held back')
  }

  /** The message becomes ready. */
  #enter(queue: ModelQueue, message: ModelMessage, sinceMs: number): void {
    message.state = 'ready'
    message.sinceMs = undefined
    if (message.content.key === undefined) message.sinceMs = sinceMs
    this.#rehead(queue, message.content.key, this.nowMs, message, sinceMs)
  }

  /** The message becomes something else than ready. */
  #leave(queue: ModelQueue, message: ModelMessage, state: MessageState, atMs = this.nowMs): void {
    this.#vacate(message)
    message.state = state
    this.#rehead(queue, message.content.key, atMs)
  }

  /** It stands nowhere, for as long as it takes to put it where it belongs. */
  #vacate(message: ModelMessage): void {
    if (message.lease !== undefined) message.lease.subscription.held.delete(message.lease.tag)
    message.lease = undefined
    message.sinceMs = undefined
  }

  /** The message comes at its line time, which may be now. */
  #comeAtLineTime(queue: ModelQueue, message: ModelMessage): void {
    this.#vacate(message)
    if (message.lineMs <= this.nowMs) this.#enter(queue, message, message.lineMs)
    else this.#leave(queue, message, 'scheduled')
  }

  /** Lines and eligibility are built anew: every head is eligible since its line time. */
  #lineUp(queue: ModelQueue): void {
    for (const message of queue.messages) if (message.state === 'ready') message.sinceMs = undefined
    const keys = new Set(queue.messages.map(({ content }) => content.key))
    for (const key of keys) {
      if (key !== undefined) {
        const head = this.#lineOf(queue, key)[0]
        this.#rehead(queue, key, this.nowMs, head, head?.lineMs)
      }
    }
    for (const message of queue.messages)
      if (message.state === 'ready' && message.content.key === undefined) message.sinceMs = message.lineMs
  }

  #remove(queue: ModelQueue, message: ModelMessage, atMs = this.nowMs): void {
    queue.messages = queue.messages.filter((other) => other !== message)
    this.#leave(queue, message, 'dead', atMs)
  }

  #lose(message: ModelMessage): void {
    const { subscription, tag } = message.lease!
    this.lost.push({ subscription, tag })
  }

  // --- producing ---

  /** @throws Refused */
  publish(name: string, contents: readonly Content[]): ModelPlaced {
    return this.#publishAll([{ queue: name, contents }], [])[0]!
  }

  /**
   * All of it or nothing.
   * @throws Refused
   */
  atomic(
    acks: readonly { readonly subscription: ModelSubscription; readonly tag: number }[],
    batches: readonly ModelBatch[],
  ): ModelPlaced[] {
    const codes: string[] = []
    const done: ModelMessage[] = []
    for (const { subscription, tag } of acks) {
      const message = subscription.held.get(tag)
      if (message === undefined) codes.push('LEASE_LOST')
      else done.push(message)
    }
    return this.#publishAll(batches, done, codes, () => {
      for (const { subscription, tag } of acks) this.#ack(subscription.queue, subscription.held.get(tag)!)
    })
  }

  /** `done` are messages that are acknowledged in the same step: they take no room, and their ids are free. */
  #publishAll(
    batches: readonly ModelBatch[],
    done: readonly ModelMessage[],
    codes: string[] = [],
    first: () => void = () => {},
  ): ModelPlaced[] {
    const byQueue = new Map<string, Content[]>()
    for (const { queue, contents } of batches)
      byQueue.set(queue, [...(byQueue.get(queue) ?? []), ...contents])
    const plans = new Map<string, Plan>()
    for (const [name, contents] of byQueue) {
      const queue = this.queues.get(name)
      if (queue === undefined) codes.push('QUEUE_NOT_FOUND')
      else plans.set(name, this.#judge(queue, contents, done, codes))
    }
    if (codes.length > 0) throw new Refused(codes)
    first()
    for (const [name, { victims, replaced }] of plans) {
      const queue = this.queue(name)
      for (const message of replaced) {
        queue.counters.cancelled++
        this.#note(queue, message.offset, 'cancelled')
        this.#remove(queue, message)
        this.#count('replaced')
      }
      for (const victim of victims) {
        if (queue.options.overflow === 'dead-letter') this.#die(queue, victim, 'overflow', '')
        else {
          queue.counters.dropped++
          this.#note(queue, victim.offset, 'dropped')
          this.#remove(queue, victim)
        }
      }
    }
    const starts = new Map<string, number>()
    return batches.map(({ queue: name, contents }) => {
      const queue = this.queue(name)
      const base = queue.next
      const start = starts.get(name) ?? 0
      starts.set(name, start + contents.length)
      const duplicates = new Map<number, number>()
      for (const [index, content] of contents.entries()) {
        const firstOffset = plans.get(name)!.duplicates.get(start + index)
        if (firstOffset === queue.next) {
          duplicates.set(index, firstOffset)
          this.#append(queue, content)
        } else if (firstOffset !== undefined) {
          duplicates.set(index, firstOffset)
          queue.counters.duplicates++
          this.#note(queue, queue.next, 'duplicate')
          queue.next++
        } else this.#append(queue, content)
      }
      return { base, duplicates }
    })
  }

  #judge(
    queue: ModelQueue,
    contents: readonly Content[],
    done: readonly ModelMessage[],
    codes: string[],
  ): Plan {
    for (const { atMs, delayMs } of contents) {
      if (atMs !== undefined && atMs < this.nowMs - LIMITS.atPastMsMax) codes.push('AT_IN_THE_PAST')
      if (atMs !== undefined && atMs > this.nowMs + LIMITS.delayMsMax) codes.push('INVALID_DELAY')
      if (delayMs !== undefined && delayMs > LIMITS.delayMsMax) codes.push('INVALID_DELAY')
    }
    // By id: which message of the batch is accepted, or which known one all of them are duplicates of.
    const byId = new Map<string, { accepted: number | undefined; known: number | undefined }>()
    const replaced = new Map<string, ModelMessage>()
    let newIds = 0
    for (const [index, { id, replaces }] of contents.entries()) {
      if (id === undefined || !this.#remembersIds(queue)) continue
      const before = byId.get(id)
      if (before !== undefined) {
        if (replaces && before.accepted !== undefined) before.accepted = index
        continue
      }
      const known = this.#firstOffset(queue, id, done)
      if (known === undefined) newIds++
      const message = queue.messages.find(({ offset }) => offset === known)
      const waits = message !== undefined && (message.state === 'scheduled' || message.state === 'ready')
      if (replaces && waits) replaced.set(id, message)
      byId.set(id, { accepted: known === undefined || (replaces && waits) ? index : undefined, known })
    }
    const duplicates = new Map<number, number>()
    const fresh: Content[] = []
    for (const [index, content] of contents.entries()) {
      const verdict = content.id === undefined ? undefined : byId.get(content.id)
      if (verdict === undefined || verdict.accepted === index) {
        fresh.push(content)
        if (content.id !== undefined && replaced.has(content.id)) duplicates.set(index, queue.next + index)
      } else
        duplicates.set(index, verdict.accepted === undefined ? verdict.known! : queue.next + verdict.accepted)
    }
    const known = this.#knownIds(queue, done)
    if (newIds > 0 && known.size + newIds > queue.options.dedupMaxIds) codes.push('DEDUP_FULL')
    const victims: ModelMessage[] = []
    const { maxMessages, maxBytes, overflow } = queue.options
    const held = queue.messages.filter(
      (message) =>
        message.state !== 'dead' && !done.includes(message) && ![...replaced.values()].includes(message),
    )
    const fits = (): boolean => {
      const left = held.filter((message) => !victims.includes(message))
      const bytes = [...left.map(({ content }) => content.size), ...fresh.map(({ size }) => size)]
      return (
        (maxMessages === 0 || left.length + fresh.length <= maxMessages) &&
        (maxBytes === 0 || bytes.reduce((sum, size) => sum + size, 0) <= maxBytes)
      )
    }
    if (fresh.length > 0 && !fits()) {
      if (overflow !== 'reject') {
        const droppable = held
          .filter(({ state }) => state !== 'leased')
          .toSorted((a, b) => a.content.priority - b.content.priority || a.offset - b.offset)
        while (!fits() && droppable.length > 0) victims.push(droppable.shift()!)
      }
      if (!fits()) codes.push('QUEUE_FULL')
      else this.#count('overflow')
    }
    return { duplicates, victims, replaced: [...replaced.values()] }
  }

  #remembersIds(queue: ModelQueue): boolean {
    return queue.options.unique === 'pending' || queue.options.dedupWindowMs > 0
  }

  /** Offset of the message that makes another one with this id a duplicate. */
  #firstOffset(queue: ModelQueue, id: string, done: readonly ModelMessage[]): number | undefined {
    if (queue.options.unique === 'pending')
      return queue.messages.find(
        (message) => message.content.id === id && message.state !== 'dead' && !done.includes(message),
      )?.offset
    const accepted = queue.accepted.get(id)
    if (accepted === undefined || accepted.atMs + queue.options.dedupWindowMs <= this.nowMs) return undefined
    return accepted.offset
  }

  /** Ids that make another message a duplicate. */
  #knownIds(queue: ModelQueue, done: readonly ModelMessage[]): Set<string> {
    const ids = [...queue.accepted.keys(), ...queue.messages.flatMap(({ content: { id } }) => id ?? [])]
    return new Set(ids.filter((id) => this.#firstOffset(queue, id, done) !== undefined))
  }

  #append(queue: ModelQueue, content: Content): ModelMessage {
    const dueMs = Math.max(this.nowMs + (content.delayMs ?? 0), content.atMs ?? 0)
    const ttlMs = content.ttlMs ?? queue.options.ttlMs
    const message: ModelMessage = {
      offset: queue.next++,
      content,
      publishedMs: this.nowMs,
      state: 'scheduled',
      lineMs: dueMs,
      expiresMs: ttlMs === 0 ? 0 : dueMs + ttlMs,
      sinceMs: undefined,
      attempts: 0,
      earlierAttempts: 0,
      redrives: 0,
      marked: 'no',
      suspect: false,
      silentDeaths: 0,
      lease: undefined,
      death: undefined,
      isMoving: false,
      diedMs: 0,
      reason: undefined,
    }
    this.#note(queue, message.offset, 'published')
    queue.messages.push(message)
    const { unique, dedupWindowMs } = queue.options
    if (content.id !== undefined && unique === 'window' && dedupWindowMs > 0)
      queue.accepted.set(content.id, { offset: message.offset, atMs: this.nowMs })
    if (dueMs <= this.nowMs) this.#enter(queue, message, dueMs)
    return message
  }

  // --- consuming ---

  subscribe(
    name: string,
    messages: number,
    bytes: number,
    limit: number | undefined,
    processingTimeoutMs: number | undefined,
    client: string,
  ): ModelSubscription {
    const queue = this.queue(name)
    const subscription: ModelSubscription = {
      queue,
      client,
      processingTimeoutMs,
      creditMessages: messages,
      creditBytes: bytes,
      limit: limit ?? Infinity,
      draining: false,
      delivered: 0,
      held: new Map(),
      isOpen: true,
    }
    queue.subscriptions.push(subscription)
    return subscription
  }

  /** Of a queue with `single`: the subscription that holds messages, or else the first that has credit left. */
  active(queue: ModelQueue): ModelSubscription | undefined {
    const { subscriptions } = queue
    return (
      subscriptions.find(({ held }) => held.size > 0) ??
      subscriptions.find(({ creditMessages, delivered, limit }) => creditMessages > 0 && delivered < limit)
    )
  }

  /** Whether the subscription takes anything at all now. */
  #hasRoom(subscription: ModelSubscription): boolean {
    const { queue, held, creditMessages, delivered, limit } = subscription
    if (queue.options.single && this.active(queue) !== subscription) return false
    if ([...held.values()].some(({ lease }) => lease!.alone)) return false
    return held.size < creditMessages && delivered < limit
  }

  /** Whether the subscription takes this message now. */
  #takes(subscription: ModelSubscription, message: ModelMessage): boolean {
    if (!this.#hasRoom(subscription)) return false
    const { held, creditBytes } = subscription
    if (held.size === 0) return true
    const bytes = [...held.values()].reduce((sum, { content }) => sum + content.size, message.content.size)
    return !message.suspect && bytes <= creditBytes
  }

  /** The eligible message that goes first. */
  head(queue: ModelQueue): ModelMessage | undefined {
    return queue.messages.filter(({ sinceMs }) => sinceMs !== undefined).toSorted(byTurn)[0]
  }

  /** Whether this message goes next, those aside whose time is over. */
  isNext(queue: ModelQueue, offset: number): boolean {
    const order = queue.messages
      .filter((message) => message.sinceMs !== undefined && !this.#isExpired(message))
      .toSorted(byTurn)
    return order[0]?.offset === offset
  }

  /** As `head`, after the expired ones that stood before it have been passed over. */
  #liveHead(queue: ModelQueue): ModelMessage | undefined {
    let head = this.head(queue)
    while (head !== undefined && this.#isExpired(head)) {
      this.#expire(queue, head)
      head = this.head(queue)
    }
    return head
  }

  /** The product handed `offset` out. @throws Difference unless it had to be this one, and be marked so */
  delivered(
    subscription: ModelSubscription,
    offset: number,
    tag: number,
    attempt: number,
    redelivered: boolean,
    alone: boolean,
  ): ModelMessage {
    const { queue } = subscription
    const what = `message ${offset} of ${queue.name}`
    if (!subscription.isOpen) throw new Difference(`${what} went to a subscription that is over`)
    if (queue.paused) throw new Difference(`${what} was delivered while the queue was paused`)
    if (!this.#hasRoom(subscription))
      throw new Difference(`${what} went to a subscription that may get nothing: ${shownOf(subscription)}`)
    const message = this.#liveHead(queue)
    if (message === undefined) throw new Difference(`${what} was delivered, and none is eligible`)
    if (message.offset !== offset) {
      const other = queue.messages.find((one) => one.offset === offset)
      throw new Difference(
        `${what} was delivered before ${message.offset}: ${shownOf(other)} before ${shownOf(message)}`,
      )
    }
    if (!this.#takes(subscription, message))
      throw new Difference(`${what} does not fit the credit: ${shownOf(subscription)} ${shownOf(message)}`)
    if (attempt !== message.attempts + 1)
      throw new Difference(`${what} came as attempt ${attempt}, not ${message.attempts + 1}`)
    if (message.marked !== 'maybe' && redelivered !== (message.marked === 'yes'))
      throw new Difference(`${what}: redelivered is ${redelivered}, it had to be ${message.marked}`)
    if (alone !== message.suspect)
      throw new Difference(`${what}: alone is ${alone}, it had to be ${message.suspect}`)
    const sinceMs = message.sinceMs!
    if (
      queue.messages.some(
        (one) =>
          one.offset < offset && one.content.priority < message.content.priority && one.state === 'ready',
      )
    )
      this.#count('priority passed')
    if (message.content.delayMs !== undefined || message.content.atMs !== undefined) this.#count('delayed')
    if (message.content.key !== undefined) this.#count('keyed')
    if (message.content.ttlMs !== undefined || queue.options.ttlMs > 0) this.#count('with ttl')
    if (attempt > 1) this.#count('further attempt')
    if (alone) this.#count('alone')
    if (queue.options.retainAgeMs > 0) this.#note(queue, offset, 'delivered', { text: subscription.client })
    message.marked = 'yes'
    message.sinceMs = undefined
    message.state = 'leased'
    message.lease = {
      subscription,
      tag,
      atMs: this.nowMs,
      sinceMs,
      alone,
      started: false,
      deadlineMs: Infinity,
    }
    this.#rehead(queue, message.content.key, this.nowMs)
    subscription.held.set(tag, message)
    subscription.delivered++
    queue.deliveredBelow = Math.max(queue.deliveredBelow, offset + 1)
    if (redelivered) queue.counters.redelivered++
    return message
  }

  /**
   * The turn is over. `expired` is how many the product counts as expired: a head whose time is over may have gone
   * unnoticed until the next sweep.
   * @throws Difference if something eligible could still go somewhere
   */
  quiet(queue: ModelQueue, expired: number): void {
    const takers = (message: ModelMessage): ModelSubscription[] =>
      queue.subscriptions.filter((subscription) => this.#takes(subscription, message))
    let head = this.head(queue)
    if (queue.paused) {
      if (head !== undefined && takers(head).length > 0) this.#count('held by pause')
      return
    }
    if (!queue.subscriptions.some((subscription) => this.#hasRoom(subscription))) return
    while (head !== undefined && this.#isExpired(head)) {
      if (queue.counters.expired >= expired) return
      this.#expire(queue, head)
      head = this.head(queue)
    }
    if (head !== undefined && takers(head).length > 0)
      throw new Difference(
        `message ${head.offset} of ${queue.name} was not delivered: ${shownOf(head)}, takers ${takers(head).map(shownOf).join(' ')}`,
      )
  }

  /** Publish or due time of the message that has been ready for longest; Infinity where none is. */
  oldestReadyMs(queue: ModelQueue): number {
    const ready = queue.messages.filter(
      ({ state, content: { key } }) => state === 'ready' && key === undefined,
    )
    for (const key of new Set(queue.messages.map(({ content }) => content.key))) {
      if (key === undefined) continue
      const line = this.#lineOf(queue, key)
      ready.push(...line)
    }
    return Math.min(...ready.map(({ lineMs }) => lineMs))
  }

  started(subscription: ModelSubscription, tags: readonly number[]): void {
    for (const tag of tags) {
      const lease = subscription.held.get(tag)?.lease
      if (lease === undefined || lease.deadlineMs !== Infinity) continue
      lease.started = true
      lease.deadlineMs = this.nowMs + this.#processingTimeoutMs(subscription)
    }
    this.#endAnnouncement(subscription)
  }

  /** Each may be the next that is handled; none has a deadline. */
  starting(subscription: ModelSubscription, tags: readonly number[]): void {
    this.#endAnnouncement(subscription)
    for (const tag of tags) {
      const lease = subscription.held.get(tag)?.lease
      if (lease !== undefined) lease.started = true
    }
  }

  // What was announced and is not named as started by now is not being handled.
  #endAnnouncement({ held }: ModelSubscription): void {
    for (const { lease } of held.values()) if (lease!.deadlineMs === Infinity) lease!.started = false
  }

  #processingTimeoutMs({ processingTimeoutMs, queue }: ModelSubscription): number {
    return processingTimeoutMs ?? queue.options.processingTimeoutMs
  }

  /** Returns the stale tags. */
  extend(subscription: ModelSubscription, tags: readonly number[], durationMs: number): number[] {
    const stale: number[] = []
    for (const tag of tags) {
      const lease = subscription.held.get(tag)?.lease
      if (lease === undefined) stale.push(tag)
      // Before it is begun with there is no deadline.
      else if (lease.started)
        lease.deadlineMs = this.nowMs + (durationMs || this.#processingTimeoutMs(subscription))
    }
    return stale
  }

  /** Returns the stale tags. */
  settle(subscription: ModelSubscription, items: readonly ModelSettle[]): number[] {
    const stale: number[] = []
    const { queue } = subscription
    for (const { tags, outcome, delayMs, reason, invalid } of items) {
      for (const tag of tags) {
        const message = subscription.held.get(tag)
        if (message === undefined) stale.push(tag)
        else if (outcome === 'ack') this.#ack(queue, message)
        else if (outcome === 'release') this.#release(queue, message)
        else if (outcome === 'retry')
          this.#retry(queue, message, delayMs ?? this.#backoffMs(queue, message), reason ?? '')
        else {
          message.attempts++
          this.#die(queue, message, invalid ? 'invalid' : 'rejected', reason ?? '')
        }
      }
    }
    return stale
  }

  #ack(queue: ModelQueue, message: ModelMessage): void {
    queue.acked++
    this.#note(queue, message.offset, 'acked')
    this.#remove(queue, message)
    queue.done.push({ message, atMs: this.nowMs, isRetained: queue.options.retainAgeMs > 0 })
  }

  #release(queue: ModelQueue, message: ModelMessage): void {
    queue.counters.released++
    if (this.#isExpired(message)) {
      this.#expire(queue, message)
      return
    }
    const { sinceMs } = message.lease!
    this.#vacate(message)
    this.#enter(queue, message, sinceMs)
  }

  /** Wait before the next try, if the one that has just failed is counted. */
  #backoffMs(queue: ModelQueue, message: ModelMessage): number {
    const { retryInitialMs, retryMaxMs } = queue.options
    const nominal = Math.min(retryInitialMs * 2 ** message.attempts, retryMaxMs)
    return Math.min(Math.round(nominal * (0.8 + 0.4 * this.chance)), retryMaxMs)
  }

  #retry(queue: ModelQueue, message: ModelMessage, delayMs: number, reason: string | undefined): void {
    message.attempts++
    message.suspect = false
    message.silentDeaths = 0
    const { maxDeliveries } = queue.options
    if (maxDeliveries !== 'unlimited' && message.attempts >= maxDeliveries) {
      this.#die(queue, message, 'maxDeliveries', reason)
      return
    }
    if (this.#isExpired(message)) {
      this.#expire(queue, message)
      return
    }
    this.#count('retried')
    message.lineMs = this.nowMs + delayMs
    const { attempts } = message
    this.#note(queue, message.offset, 'retried', { attempts, dueMs: message.lineMs, ...textOf(reason) })
    this.#comeAtLineTime(queue, message)
  }

  #die(queue: ModelQueue, message: ModelMessage, death: DeathName, reason: string | undefined): void {
    this.#count(`dead ${death}`)
    const { attempts } = message
    const tries = attempts > 0 ? { attempts } : {}
    this.#note(queue, message.offset, 'dead', { ...tries, ...textOf(reason) })
    message.death = death
    message.diedMs = this.nowMs
    message.reason = reason
    message.suspect = false
    message.silentDeaths = 0
    this.#leave(queue, message, 'dead')
    message.isMoving = queue.options.deadLetter !== ''
    this.#move(queue, message)
  }

  // A dead message goes to the dead-letter queue of its own.
  #move(queue: ModelQueue, message: ModelMessage): void {
    const to = this.queues.get(queue.options.deadLetter)
    if (to !== undefined && message.isMoving) this.transfers.push({ kind: 'moved', from: queue, to, message })
  }

  // There may be a dead-letter queue now for those that had none when they died.
  #moveWaiting(queue: ModelQueue): void {
    const onTheWay = this.transfers.map(({ message }) => message)
    for (const message of queue.messages)
      if (message.state === 'dead' && !onTheWay.includes(message)) this.#move(queue, message)
  }

  /** In order: nobody is to blame. Returns how many messages were held. */
  unsubscribe(subscription: ModelSubscription): number {
    const held = [...subscription.held.values()]
    for (const message of held) this.#release(subscription.queue, message)
    this.#over(subscription)
    return held.length
  }

  #over(subscription: ModelSubscription): void {
    subscription.isOpen = false
    const { queue } = subscription
    queue.subscriptions = queue.subscriptions.filter((other) => other !== subscription)
  }

  /** The connection died. */
  disconnect(subscriptions: readonly ModelSubscription[]): void {
    const held = subscriptions.flatMap(({ queue, held: messages }) =>
      [...messages.values()].map((message) => ({ queue, message, lease: message.lease! })),
    )
    const started = held.filter(({ lease }) => lease.started)
    const isCharged = (one: (typeof held)[number]): boolean =>
      started.length === 1 ? one.lease.started : started.length === 0 && one.lease.alone && held.length === 1
    for (const one of held) {
      if (isCharged(one)) {
        this.#count('charged')
        this.#retry(one.queue, one.message, this.#backoffMs(one.queue, one.message), undefined)
        continue
      }
      if (started.length > 1 && one.lease.started) one.message.suspect = true
      if (started.length === 0 && ++one.message.silentDeaths >= 3) one.message.suspect = true
      if (one.message.suspect) this.#count('suspect')
      this.#release(one.queue, one.message)
    }
    for (const subscription of subscriptions) this.#over(subscription)
  }

  // --- single messages ---

  /**
   * The message that an offset or an id names. More than one can have an id: `answer` is the offset of the one that the
   * product took; undefined where it refused.
   * @throws Refused
   */
  #find(
    queue: ModelQueue,
    offset: number | undefined,
    id: string | undefined,
    answer: number | undefined,
  ): ModelMessage {
    let found = queue.messages.filter((message) => message.offset === offset)
    if (id !== undefined) {
      const withId = queue.messages.filter((message) => message.content.id === id && message.state !== 'dead')
      const known = this.#firstOffset(queue, id, [])
      const must = withId.filter(
        (message) =>
          message.offset === known ||
          (message.state === 'scheduled' &&
            message.attempts === 0 &&
            (message.content.delayMs ?? message.content.atMs) !== undefined &&
            queue.options.unique === 'window'),
      )
      const answered = withId.filter((message) => message.offset === answer)
      found = answered.length > 0 ? answered : must
      // Which of several is meant is not said, nor whether it is found once the window has forgotten the id.
      if (answered.length === 0 && withId.some(({ state }) => state === 'leased'))
        throw new Refused(must.length === 0 ? ['MESSAGE_LEASED', 'MESSAGE_NOT_FOUND'] : ['MESSAGE_LEASED'])
    }
    const message = found.find(({ state }) => state !== 'dead')
    if (message === undefined) throw new Refused(['MESSAGE_NOT_FOUND'])
    if (message.state === 'leased') throw new Refused(['MESSAGE_LEASED'])
    return message
  }

  cancel(
    name: string,
    offset: number | undefined,
    id: string | undefined,
    answer: number | undefined,
  ): number {
    const queue = this.queue(name)
    const message = this.#find(queue, offset, id, answer)
    queue.counters.cancelled++
    this.#note(queue, message.offset, 'cancelled')
    this.#remove(queue, message)
    return message.offset
  }

  reschedule(
    name: string,
    offset: number | undefined,
    id: string | undefined,
    delayMs: number | undefined,
    atMs: number | undefined,
    answer: number | undefined,
  ): { offset: number; dueMs: number } {
    const codes: string[] = []
    if (atMs !== undefined && atMs < this.nowMs - LIMITS.atPastMsMax) codes.push('AT_IN_THE_PAST')
    const queue = this.queues.get(name)
    if (queue === undefined) throw new Refused([...codes, 'QUEUE_NOT_FOUND'])
    let message: ModelMessage | undefined
    try {
      message = this.#find(queue, offset, id, answer)
    } catch (error) {
      if (!(error instanceof Refused)) throw error
      codes.push(...error.codes)
    }
    if (message === undefined || codes.length > 0) throw new Refused(codes)
    const dueMs = Math.max(this.nowMs + (delayMs ?? 0), atMs ?? 0)
    if (message.attempts === 0 && message.expiresMs !== 0) message.expiresMs += dueMs - message.lineMs
    message.lineMs = dueMs
    this.#note(queue, message.offset, 'rescheduled', { dueMs })
    this.#comeAtLineTime(queue, message)
    return { offset: message.offset, dueMs }
  }

  /** What the filter leaves of the messages in `state` from `from` on, up to `end`. */
  select(
    queue: ModelQueue,
    state: MessageState | undefined,
    from: number,
    end: number,
    filter: MessageFilter,
  ): ModelMessage[] {
    return queue.messages.filter((message) => {
      const { content, offset, attempts } = message
      const isDead = message.state === 'dead'
      const ageMs = this.nowMs - (isDead ? message.diedMs : message.publishedMs)
      return (
        offset >= from &&
        offset < end &&
        (state === undefined || message.state === state) &&
        (filter.reason === undefined || (isDead && message.death === filter.reason)) &&
        (filter.error === undefined || (isDead && (message.reason ?? '').includes(filter.error))) &&
        (filter.key === undefined || content.key === filter.key) &&
        (filter.id === undefined || content.id === filter.id) &&
        Object.entries(filter.headers ?? {}).every(([name, value]) => content.headers[name] === value) &&
        (filter.minAttempts === undefined || attempts >= filter.minAttempts) &&
        (filter.olderThanMs === undefined || ageMs >= filter.olderThanMs) &&
        (filter.youngerThanMs === undefined || ageMs <= filter.youngerThanMs)
      )
    })
  }

  #dead(
    queue: ModelQueue,
    { from, limit, offsets, filter }: DeadSelection,
    next: number | null,
  ): ModelMessage[] {
    const all = this.select(queue, 'dead', from, Infinity, filter).filter(
      ({ offset }) => offsets === undefined || offsets.includes(offset),
    )
    const page = all.filter(({ offset }) => next === null || offset < next)
    if (page.length > limit)
      throw new Difference(`a page of ${page.length} was taken, at most ${limit} were asked for`)
    return page
  }

  /**
   * `next` is where the product's page ended: of what stands before it, nothing may have been passed over.
   */
  redrive(
    request: DeadSelection & { readonly to?: string | undefined; readonly force: boolean },
    next: number | null,
  ): { matched: number; redriven: number; guarded: number } {
    const queue = this.queue(request.name)
    const to = this.queue(request.to ?? request.name)
    const matched = this.#dead(queue, request, next)
    const allowed = this.#mayReturn(queue, to, matched, request)
    if (!request.dryRun) {
      for (const message of allowed) {
        this.#count('redriven')
        if (to !== queue) {
          this.transfers.push({ kind: 'redriven', from: queue, to, message })
          continue
        }
        this.returning.push({ queue, message })
      }
    }
    const guarded = matched.length - allowed.length
    return { matched: matched.length, redriven: allowed.length, guarded }
  }

  // Those that were not brought back too often and, where only one of an id may be pending, are not in the way of it.
  #mayReturn(
    queue: ModelQueue,
    to: ModelQueue,
    matched: readonly ModelMessage[],
    { dryRun, force }: { readonly dryRun: boolean; readonly force: boolean },
  ): ModelMessage[] {
    const pending = this.#knownIds(queue, [])
    return matched.filter((message) => {
      const { id } = message.content
      const isBarred =
        to === queue && queue.options.unique === 'pending' && id !== undefined && pending.has(id)
      const redrives = redrivesOf(message)
      if (isBarred || (redrives >= LIMITS.redrivesMax && !force)) return false
      // A dry run does not tell that one of them would be in the way of another.
      if (id !== undefined && !dryRun) pending.add(id)
      return true
    })
  }

  discard(request: DeadSelection, next: number | null): { matched: number; discarded: number } {
    const queue = this.queue(request.name)
    const matched = this.#dead(queue, request, next)
    if (!request.dryRun) {
      for (const message of matched) {
        queue.counters.discarded++
        this.#note(queue, message.offset, 'discarded')
        this.#remove(queue, message)
      }
    }
    return { matched: matched.length, discarded: matched.length }
  }

  /**
   * The first of those that are redriven into their own queue is back. They come one after the other, and something can
   * be handed out between them.
   */
  returned(): void {
    const { queue, message } = this.returning.shift()!
    queue.counters.redriven++
    this.#note(queue, message.offset, 'redriven')
    message.earlierAttempts += message.attempts
    message.attempts = 0
    message.redrives++
    message.lineMs = this.nowMs
    message.expiresMs = 0
    message.marked = 'yes'
    message.death = undefined
    message.isMoving = false
    this.#enter(queue, message, this.nowMs)
  }

  /** The product shows the message in its new queue: gone here, new there. */
  transferred(transfer: Transfer, content: Content): void {
    this.#count(transfer.kind)
    const { from, to, message, kind } = transfer
    this.transfers = this.transfers.filter((other) => other !== transfer)
    from.counters[kind]++
    this.#note(from, message.offset, kind, kind === 'moved' ? { text: to.name } : {})
    this.#remove(from, message)
    this.#append(to, content)
  }

  /** Another message that the broker itself puts into a queue, from what it retained. */
  replayed(name: string, content: Content): void {
    this.#count('replayed')
    this.#append(this.queue(name), content)
  }

  // --- restarts ---

  /** The broker begins anew: leases are over, nobody is charged, lines are built from what is durable. */
  restart(isCrash: boolean): void {
    this.lost = []
    this.ended = []
    for (const queue of this.queues.values()) {
      for (const subscription of queue.subscriptions) subscription.isOpen = false
      queue.subscriptions = []
      for (const message of queue.messages) {
        message.suspect = false
        message.silentDeaths = 0
        message.lease = undefined
        if (isCrash) message.marked = 'yes'
        else if (message.marked === 'no' && message.offset < queue.deliveredBelow) message.marked = 'maybe'
        if (message.state === 'leased') message.state = 'ready'
        if (message.state === 'scheduled' && message.lineMs <= this.nowMs) message.state = 'ready'
      }
      this.#lineUp(queue)
    }
  }
}

/** How often a message was brought back, over all queues that it has been in. */
export function redrivesOf({ redrives, content }: ModelMessage): number {
  return redrives + Number(content.headers[ORIGIN_HEADERS.redrives] ?? 0)
}

/** What a consumer said, where it said anything. */
function textOf(reason: string | undefined): Partial<ModelEvent> {
  return reason === undefined || reason === '' ? {} : { text: reason }
}

/** The order in which eligible messages go. */
function byTurn(a: ModelMessage, b: ModelMessage): number {
  return b.content.priority - a.content.priority || a.sinceMs! - b.sinceMs! || a.offset - b.offset
}

interface Plan {
  /** Index among the contents of this queue → offset of the first. */
  readonly duplicates: ReadonlyMap<number, number>
  readonly replaced: readonly ModelMessage[]
  readonly victims: readonly ModelMessage[]
}

function shownOf(value: ModelMessage | ModelSubscription | undefined): string {
  if (value === undefined) return 'unknown'
  if ('held' in value) {
    const { creditMessages, creditBytes, limit, delivered, held } = value
    return JSON.stringify({ creditMessages, creditBytes, limit, delivered, held: held.size })
  }
  const { offset, state, lineMs, sinceMs, expiresMs, attempts, suspect, content } = value
  const { priority, key, id, size } = content
  return JSON.stringify({
    offset,
    state,
    priority,
    key,
    id,
    lineMs,
    sinceMs,
    expiresMs,
    attempts,
    suspect,
    size,
  })
}
