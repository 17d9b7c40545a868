/**
 * Publishes messages. Records are encoded into the open batch of their queue. At the end of the turn, batches are
 * numbered, sealed and sent, as far as the window allows. Atomic steps are sent among them, in order.
 *
 * Invariant: a batch or step is in `#waiting`, oldest first, until it is sent, and then in `#inFlight`. A deadline or a
 * signal withdraws messages only from `#waiting`.
 */
import {
  BATCH_HEADER_BYTES,
  decodeAtomicOk,
  decodePublishErr,
  decodePublishOk,
  isTopicAddress,
  LIMITS,
  PRODUCER_IDENTITY_BYTES,
  queueName,
  SluiceError,
  type Duplicates,
  type HelloOk,
  type RecordOptions,
  sizeText,
} from '@sluice/protocol'
import { randomBytes } from 'node:crypto'
import { Batch, ENVELOPE_BYTES, type Lane } from './batch.js'
import type { Connection } from './connection.js'
import type { Deadlines } from './deadlines.js'
import { contentTypeOf, Drafts, payloadOf, reserve } from './drafts.js'
import { Fifo } from './fifo.js'
import { InFlight } from './in-flight.js'
import type { Settings } from './options.js'
import { aborted, isAboutOneMessage, noConnection, overdue, refusal, unknownOutcome } from './outcomes.js'
import type { Receipt, Resolve, Sending } from './sending.js'
import { Step } from './step.js'
import { Waiters } from './waiters.js'

/**
 * When one turn has published this many bytes, they are sent before the end of the turn, so that the broker parses and
 * writes them while the rest is encoded. With 1,000 messages of 128 bytes in flight, this gave 5 % more publishes per
 * second than one write per turn. A limit of 16 KiB gave fewer publishes per second, because each write is one more
 * commit.
 */
const AHEAD_BYTES = 48 * 1024
/** Memory of a waiting caller besides the bytes of its message: a promise, its functions, its deadline. */
const CALLER_BYTES = 512
/** Maximum number of lanes that are kept while nothing is published to them. */
const QUEUES_KEPT = 16_384

// The promise executor of every publish. All publishes share it, so that no closure is made per message.
let takenResolve: Resolve
const take = (resolve: Resolve): void => {
  takenResolve = resolve
}
const newPromise = (): Promise<unknown> => new Promise(take as never)

export class Producer {
  readonly #settings: Settings
  readonly #deadlines: Deadlines
  readonly #schedule: () => void
  readonly #sendAhead: () => void
  /** Bytes published since the last `flush`. */
  #gatheredBytes = 0
  #identity = randomBytes(PRODUCER_IDENTITY_BYTES)
  readonly #inFlight: InFlight
  /** Sendings that are not sent yet, oldest first. */
  readonly #waiting = new Fifo<Sending>()
  #waitingBytes = 0
  /** Whether some of `#waiting` have no caller left. */
  #hasWithdrawn = false
  /**
   * Lanes by queue. A lane without an open batch is kept, because making a lane takes longer than publishing a message.
   */
  readonly #lanes = new Map<string, Lane>()
  #lanesMax = QUEUES_KEPT
  #last: Batch | undefined
  readonly #drafts = new Drafts()
  /** Time of this turn; 0 if the clock was not read yet in this turn. */
  #turnMs = 0
  #frameBytesMax: number = LIMITS.frameBytesMax
  #batchBytes: number = LIMITS.batchBytesTarget
  readonly #batchCount: number
  #closed: SluiceError | undefined
  readonly #idle = new Waiters()

  /** `schedule` requests a `flush` at the end of the turn, and `sendAhead` requests a `flush` now. */
  constructor(settings: Settings, deadlines: Deadlines, schedule: () => void, sendAhead: () => void) {
    this.#settings = settings
    this.#deadlines = deadlines
    this.#schedule = schedule
    this.#sendAhead = sendAhead
    this.#inFlight = new InFlight(settings.maxInFlight, settings.maxInFlightBytes)
    this.#batchCount = Math.min(LIMITS.batchCountMax, settings.maxInFlight)
    deadlines.add((nowMs) => this.#sweep(nowMs))
  }

  get identity(): Uint8Array {
    return this.#identity
  }

  /** Highest number that the broker has confirmed. */
  get acceptedNumber(): number {
    return this.#inFlight.acceptedNumber
  }

  /** Number of unanswered publishes, sent or not. */
  get pending(): number {
    let callers = 0
    for (const sending of this.#inFlight.values()) callers += sending.live
    for (const sending of this.#waiting) callers += sending.live
    return callers
  }

  /** Publishes one message. The answer of the broker settles the promise. @throws SluiceError INVALID_NAME among others */
  publish(
    queue: string,
    body: unknown,
    options: RecordOptions | undefined,
    timeoutMs: number,
    signal: AbortSignal | undefined,
    failsOffline = false,
  ): Promise<Receipt> {
    // Reading a body can call user code, which may publish or close. So the body is read first, before the state of
    // this producer.
    const contentType = contentTypeOf(body)
    const payload = payloadOf(body, contentType)
    this.#admit(signal)
    let batch = this.#last
    if (batch === undefined || !batch.open || batch.queue !== queue) batch = this.#openBatch(queue)
    const before = batch.end
    let end: number
    try {
      end = this.#drafts.append(batch, payload, contentType, options)
    } catch (error) {
      if (batch.count === 0) this.#discard(batch)
      throw error
    }
    const bytesMax = this.#recordsBytesMax(options)
    if (batch.count > 0 && end - batch.recordsAt > bytesMax) {
      // The record does not fit, and becomes the first record of the next batch.
      const full = batch
      this.#closeBatch(full)
      batch = this.#openBatch(queue)
      reserve(batch, end - before)
      full.bytes.copy(batch.bytes, batch.end, before, end)
      batch.end += end - before
    } else batch.end = end
    batch.count++
    if (batch.count >= this.#batchCount || batch.end - batch.recordsAt >= bytesMax) this.#closeBatch(batch)
    const promise = this.#addCaller(batch, timeoutMs, signal, failsOffline) as Promise<Receipt>
    this.#countWaiting(batch, end - before)
    this.#gatheredBytes += end - before
    if (this.#gatheredBytes >= AHEAD_BYTES) this.#sendAhead()
    return promise
  }

  // Maximum size of the records of a batch whose last message has these options; the batch is then closed.
  #recordsBytesMax(options: RecordOptions | undefined): number {
    const isScheduled = options !== undefined && (options.delayMs !== undefined || options.atMs !== undefined)
    return (isScheduled ? LIMITS.batchBytesScheduledTarget : this.#batchBytes) - BATCH_HEADER_BYTES
  }

  /** Publishes messages that are accepted or refused together. @throws SluiceError */
  publishBatch(
    queue: string,
    messages: readonly { readonly body: unknown; readonly options: RecordOptions | undefined }[],
    timeoutMs: number,
    signal: AbortSignal | undefined,
    failsOffline: boolean,
  ): Promise<Receipt[]> {
    if (messages.length > LIMITS.batchCountMax) {
      throw new SluiceError(
        'BATCH_TOO_LARGE',
        `The batch has ${messages.length} messages; it must have at most ${LIMITS.batchCountMax}.`,
      )
    }
    const batch = new Batch(queue, true, this.#drafts.take())
    for (const { body, options } of messages) {
      const contentType = contentTypeOf(body)
      batch.end = this.#drafts.append(batch, payloadOf(body, contentType), contentType, options)
      batch.count++
      const bytes = batch.end - batch.recordsAt + BATCH_HEADER_BYTES
      if (messages.length > 1 && bytes > LIMITS.batchBytesMax) {
        this.#drafts.give(batch.bytes)
        throw new SluiceError(
          'BATCH_TOO_LARGE',
          `The first ${batch.count} of ${messages.length} messages take ${bytes} bytes; a batch takes at most ${sizeText(LIMITS.batchBytesMax)}.`,
        )
      }
    }
    if (batch.end > this.#frameBytesMax) throw this.#tooLarge(batch)
    this.#admit(signal)
    return this.#enqueue(batch, [queue], timeoutMs, signal, failsOffline) as Promise<Receipt[]>
  }

  /** Sends an atomic step. @throws SluiceError */
  perform(
    step: Step,
    timeoutMs: number,
    signal: AbortSignal | undefined,
    failsOffline: boolean,
  ): Promise<Receipt[]> {
    this.#admit(signal)
    if (step.end > this.#frameBytesMax) throw this.#tooLarge(step)
    return this.#enqueue(step, step.queues, timeoutMs, signal, failsOffline) as Promise<Receipt[]>
  }

  #admit(signal: AbortSignal | undefined): void {
    if (this.#closed !== undefined) throw this.#closed.with({})
    if (this.#waitingBytes > this.#settings.maxWaitingBytes) throw this.#tooManyWaiting()
    if (signal?.aborted === true) throw aborted(signal, false)
  }

  #tooManyWaiting(): SluiceError {
    return new SluiceError(
      'TOO_MANY_WAITING',
      `Publishes that take ${this.#waitingBytes} bytes wait to be sent; \`maxWaitingBytes\` is ${sizeText(this.#settings.maxWaitingBytes)}.`,
    )
  }

  /** Counts `bytes` more bytes of `sending` as waiting. */
  #countWaiting(sending: Sending, bytes: number): void {
    const more = bytes + CALLER_BYTES
    sending.waitingBytes += more
    this.#waitingBytes += more
  }

  #left(sending: Sending): void {
    this.#waitingBytes -= sending.waitingBytes
    sending.waitingBytes = 0
  }

  #enqueue(
    sending: Sending,
    queues: Iterable<string>,
    timeoutMs: number,
    signal: AbortSignal | undefined,
    failsOffline: boolean,
  ): Promise<unknown> {
    // Batches that were opened earlier are sent first.
    for (const queue of queues) {
      const earlier = this.#lanes.get(queue)?.openBatch
      if (earlier !== undefined) this.#closeBatch(earlier)
    }
    sending.open = false
    this.#countWaiting(sending, sending.end)
    this.#waiting.push(sending)
    return this.#addCaller(sending, timeoutMs, signal, failsOffline)
  }

  /** Encodes a single record, for an atomic step. @throws SluiceError */
  record(body: unknown, options: RecordOptions | undefined): Uint8Array {
    return this.#drafts.record(body, options)
  }

  #addCaller(
    sending: Sending,
    timeoutMs: number,
    signal: AbortSignal | undefined,
    failsOffline: boolean,
  ): Promise<unknown> {
    if (this.#turnMs === 0) this.#turnMs = performance.now()
    const deadlineMs = this.#turnMs + timeoutMs
    const promise = newPromise()
    if (deadlineMs < sending.nextDeadlineMs) this.#deadlines.arm(deadlineMs)
    sending.addCaller(takenResolve, deadlineMs)
    if (signal !== undefined) sending.watch(takenResolve, signal, this.#aborted)
    if (failsOffline) (sending.failsOffline ??= new Set()).add(takenResolve)
    this.#schedule()
    return promise
  }

  #openBatch(queue: string): Batch {
    const lane = this.#lanes.get(queue) ?? this.#newLane(queue)
    let batch = lane.openBatch
    if (batch === undefined) {
      batch = new Batch(lane.queue, false, this.#drafts.take(), lane)
      lane.openBatch = batch
      this.#waiting.push(batch)
    }
    this.#last = batch
    return batch
  }

  // @throws SluiceError INVALID_NAME
  #newLane(name: string): Lane {
    const queue = isTopicAddress(name) ? name : queueName(name)
    const lane: Lane = { queue, openBatch: undefined, leader: 0 }
    if (this.#lanes.size >= this.#lanesMax) {
      for (const [queue, { openBatch, leader }] of this.#lanes)
        if (openBatch === undefined && this.#inFlight.get(leader) === undefined) this.#lanes.delete(queue)
      this.#lanesMax = Math.max(QUEUES_KEPT, this.#lanes.size * 2)
    }
    this.#lanes.set(name, lane)
    return lane
  }

  // Closes `sending` if it is an open batch. A step is never open here.
  #closeBatch(sending: Sending): void {
    if (!sending.open || !(sending instanceof Batch)) return
    sending.open = false
    if (sending.lane !== undefined) sending.lane.openBatch = undefined
    if (this.#last === sending) this.#last = undefined
  }

  // Discards a batch that was opened for a refused message. The batch is empty and would wait endlessly.
  #discard(batch: Batch): void {
    this.#closeBatch(batch)
    this.#waiting.pop()
    this.#drafts.give(batch.bytes)
  }

  #tooLarge(sending: Sending): SluiceError {
    const [code, what] =
      sending instanceof Batch
        ? (['BATCH_TOO_LARGE', 'A batch'] as const)
        : (['TRANSACTION_TOO_LARGE', 'An atomic step'] as const)
    return new SluiceError(
      code,
      `${what} takes a frame of ${sending.end} bytes; the broker accepts at most ${sizeText(this.#frameBytesMax)}.`,
    )
  }

  /** Applies the limits of a new connection, and sends everything unanswered again before anything new. */
  attach(connection: Connection, ok: HelloOk): void {
    this.#frameBytesMax = ok.frameBytesMax
    this.#drafts.messageBytesMax = ok.messageBytesMax
    this.#batchBytes = Math.min(LIMITS.batchBytesTarget, ok.frameBytesMax - ENVELOPE_BYTES)
    this.#inFlight.attach(connection, ok)
  }

  /** Sends everything that the window admits, as one chunk. */
  flush(connection: Connection | undefined): void {
    this.#turnMs = 0
    this.#gatheredBytes = 0
    if (connection === undefined || !connection.takesWork) {
      this.#dropWithdrawn()
      return
    }
    const inFlight = this.#inFlight
    if (!inFlight.resume(connection)) return
    this.#requeueRefused()
    const sendings: Sending[] = []
    let bytes = 0
    while (this.#waiting.length > 0) {
      const sending = this.#waiting.at(0)!
      if (sending.withdrawn > 0 && !sending.compact()) {
        this.#closeBatch(sending)
        this.#drafts.give(sending.bytes)
        this.#shiftWaiting()
        continue
      }
      if (!inFlight.admits(sending)) break
      this.#shiftWaiting()
      this.#closeBatch(sending)
      let obstacle = sending.obstacle(connection)
      if (sending.end > this.#frameBytesMax) obstacle ??= this.#tooLarge(sending)
      if (obstacle !== undefined) {
        sending.refuse(obstacle)
        continue
      }
      inFlight.add(sending)
      this.#chain(sending)
      bytes += sending.end
      sendings.push(sending)
    }
    if (sendings.length === 0) {
      this.#notifyIdle()
      return
    }
    const frames = Buffer.allocUnsafe(bytes)
    let at = 0
    for (const sending of sendings) {
      const scratch = sending.bytes
      sending.seal(frames, at, inFlight.unansweredBelow(sending.number))
      this.#drafts.give(scratch)
      at += sending.end
    }
    connection.sendFrames(frames)
  }

  /**
   * Sets the batch that `sending` follows in its queue: the latest batch that would be split if it were refused, or that
   * itself follows another batch. The broker refuses whatever follows a refused batch, so that nothing overtakes messages
   * that are sent again. If a step follows a batch in one of its queues, later batches of all its queues follow the step.
   */
  #chain(sending: Sending): void {
    const { number } = sending
    if (sending instanceof Batch) {
      const lane = sending.lane ?? this.#lanes.get(sending.queue)
      if (lane === undefined) return
      sending.follows = this.#distance(lane, number)
      if (sending.maySplit || sending.follows > 0) lane.leader = number
    } else if (sending instanceof Step) {
      const lanes = this.#lanes
      const follows = sending.follow((queue) => {
        const lane = lanes.get(queue)
        return lane === undefined ? 0 : this.#distance(lane, number)
      })
      if (follows)
        for (const queue of sending.queues) (lanes.get(queue) ?? this.#newLane(queue)).leader = number
    }
  }

  #distance({ leader }: Lane, number: number): number {
    return leader > 0 && this.#inFlight.get(leader) !== undefined ? number - leader : 0
  }

  #shiftWaiting(): void {
    this.#left(this.#waiting.shift()!)
  }

  /** @throws SluiceError MALFORMED_FRAME */
  publishOk(bytes: Uint8Array, start: number, end: number): void {
    decodePublishOk(bytes, start, end, this.#confirm)
    this.#answered()
  }

  readonly #confirm = (number: number, baseOffset: number, duplicates: Duplicates | undefined): void => {
    const batch = this.#inFlight.get(number)
    if (batch === undefined) return
    if (!(batch instanceof Batch)) {
      throw new SluiceError(
        'MALFORMED_FRAME',
        `PUBLISH_OK names number ${number}, which belongs to an atomic step.`,
      )
    }
    if (!Number.isSafeInteger(baseOffset)) {
      throw new SluiceError(
        'MALFORMED_FRAME',
        `PUBLISH_OK has the offset ${baseOffset}, which is above 2^53.`,
      )
    }
    this.#inFlight.accept(batch)
    batch.unwatch()
    batch.confirm(baseOffset, duplicates)
  }

  /** @throws SluiceError MALFORMED_FRAME */
  atomicOk(bytes: Uint8Array, start: number, end: number): void {
    const { number, places } = decodeAtomicOk(bytes, start, end)
    const step = this.#inFlight.get(number)
    if (step === undefined) return
    if (!(step instanceof Step) || !step.takes(places)) {
      throw new SluiceError('MALFORMED_FRAME', `ATOMIC_OK does not match the step with number ${number}.`)
    }
    this.#inFlight.accept(step)
    step.unwatch()
    step.confirm(places)
    this.#answered()
  }

  /** @throws SluiceError MALFORMED_FRAME */
  publishErr(bytes: Uint8Array, start: number, end: number): void {
    const { batchNumber, fault } = decodePublishErr(bytes, start, end)
    const sending = this.#inFlight.get(batchNumber)
    if (sending === undefined) return
    const isSplit = sending.maySplit && isAboutOneMessage(fault)
    if (isSplit || fault.code === 'EARLIER_REFUSED')
      this.#inFlight.sendAgain(sending, isSplit ? 'split' : 'whole')
    else {
      this.#inFlight.forget(sending)
      sending.refuse(refusal(fault))
    }
    this.#answered()
  }

  /**
   * Puts refused sendings back in the waiting list, ahead of all new sendings. The refused sendings are in the order of
   * their numbers, which is the order of the calls.
   */
  #requeueRefused(): void {
    const refused = this.#inFlight.takeRefused()
    if (refused.length === 0) return
    const again: Sending[] = []
    for (const { sending, goesAgain } of refused) {
      if (goesAgain === 'split' && sending instanceof Batch) again.push(...sending.split())
      else if (sending.live === 0) sending.hadNoEffect()
      else {
        sending.unsend()
        again.push(sending)
      }
    }
    for (const sending of again) this.#countWaiting(sending, sending.end)
    this.#waiting.replace([...again, ...this.#waiting])
  }

  // Called after an answer: the window may have room now, or everything may be answered.
  #answered(): void {
    if (this.#waiting.length > 0 || this.#inFlight.isBehind) this.#schedule()
    else this.#notifyIdle()
  }

  /**
   * Called when one caller stops waiting. If `sending` was sent, it stays in the window. If it was not sent, the
   * message of the caller is withdrawn.
   */
  #giveUp(sending: Sending, index: number, error: SluiceError): void {
    if (!sending.giveUp(index, error)) return
    this.#hasWithdrawn = true
    this.#schedule()
  }

  readonly #aborted = (sending: Sending, index: number, signal: AbortSignal): void =>
    this.#giveUp(sending, index, aborted(signal, sending.number !== 0))

  /** Called when no connection accepts work: fails unsent publishes whose caller does not wait for a connection. */
  offline(): void {
    for (const sending of this.#waiting) {
      const { failsOffline } = sending
      if (failsOffline === undefined) continue
      sending.failsOffline = undefined
      sending.resolves.forEach((resolve, index) => {
        if (resolve !== undefined && failsOffline.has(resolve)) this.#giveUp(sending, index, noConnection())
      })
    }
  }

  #sweep(nowMs: number): number {
    let nextMs = Infinity
    for (const sending of this.#inFlight.values())
      nextMs = Math.min(nextMs, this.#sweepSending(sending, nowMs))
    for (const sending of this.#waiting) nextMs = Math.min(nextMs, this.#sweepSending(sending, nowMs))
    this.#dropWithdrawn()
    if (this.#waiting.length > 0) this.#schedule()
    return nextMs
  }

  // Removes withdrawn sendings. Without a connection, nothing else would remove them from memory.
  #dropWithdrawn(): void {
    if (!this.#hasWithdrawn) return
    this.#hasWithdrawn = false
    const isOver = (sending: Sending): boolean => sending.callers > 0 && sending.withdrawn === sending.callers
    const waiting = [...this.#waiting]
    const left = waiting.filter((sending) => !isOver(sending))
    if (left.length === waiting.length) return
    for (const sending of waiting) {
      if (!isOver(sending)) continue
      this.#closeBatch(sending)
      this.#left(sending)
    }
    this.#waiting.replace(left)
    this.#notifyIdle()
  }

  #sweepSending(sending: Sending, nowMs: number): number {
    if (sending.nextDeadlineMs > nowMs) return sending.nextDeadlineMs
    let nextMs = Infinity
    for (let i = 0; i < sending.callers; i++) {
      if (sending.resolves[i] === undefined) continue
      if (sending.deadlines[i]! > nowMs) nextMs = Math.min(nextMs, sending.deadlines[i]!)
      else this.#giveUp(sending, i, overdue(sending.number !== 0))
    }
    sending.nextDeadlineMs = nextMs
    return nextMs
  }

  /**
   * Called when the broker has lost the numbers of this producer. The broker would not recognize batches that are sent
   * again.
   */
  renew(): void {
    // The refused sendings were certainly not accepted, so they are sent again although the broker has lost their
    // numbers.
    this.#requeueRefused()
    const sent = this.#inFlight.drain()
    this.#inFlight.restart()
    this.#identity = randomBytes(PRODUCER_IDENTITY_BYTES)
    for (const lane of this.#lanes.values()) lane.leader = 0
    for (const sending of sent)
      sending.refuse(unknownOutcome('the broker no longer knows the numbers of this client'))
    this.#answered()
  }

  /** Resolves when nothing waits and nothing is unanswered. */
  idle(): Promise<void> {
    if (this.#inFlight.size === 0 && this.#waiting.length === 0) return Promise.resolve()
    return this.#idle.wait()
  }

  #notifyIdle(): void {
    if (this.#inFlight.size === 0 && this.#waiting.length === 0) this.#idle.notify()
  }

  /** Counts everything again and compares the results. @throws Error naming what differs */
  invariants(): void {
    this.#drafts.invariants()
    this.#inFlight.invariants()
    const { lastNumber } = this.#inFlight
    const sent = [...this.#inFlight.values()]
    const waiting = [...this.#waiting]
    const waitingBytes = waiting.reduce((sum, sending) => sum + sending.waitingBytes, 0)
    compare('bytes wait', this.#waitingBytes, waitingBytes)
    for (const sending of waiting) {
      const { number, withdrawn, callers, live } = sending
      if (number !== 0) differs(`a sending waits, but it has the number ${number}`)
      if (withdrawn !== callers - live)
        differs(`${withdrawn} of ${callers} callers have gone, but ${live} wait`)
    }
    const resolves = [...sent, ...waiting].flatMap((sending) =>
      sending.resolves.filter((one) => one !== undefined),
    )
    compare('callers wait', new Set(resolves).size, resolves.length)
    let open = 0
    for (const lane of this.#lanes.values()) {
      if (lane.leader > lastNumber)
        differs(`the leader of ${lane.queue} is ${lane.leader}, above the last number ${lastNumber}`)
      const { openBatch } = lane
      if (openBatch === undefined) continue
      open++
      if (!openBatch.open || openBatch.lane !== lane || !waiting.includes(openBatch))
        differs(`the open batch of ${lane.queue} is not open, or does not wait`)
    }
    compare('batches are open', waiting.filter((sending) => sending.open).length, open)
    if (this.#last?.open === false) differs('the last batch is closed')
    if (this.#idle.any && sent.length + waiting.length === 0)
      differs('nothing waits or is unanswered, but a waiter was not notified')
  }

  /** Rejects all pending publishes, and all later ones. */
  close(error: SluiceError): void {
    if (this.#closed !== undefined) return
    this.#closed = error
    const unknown = new SluiceError(error.code, error.message, { cause: error, outcome: 'unknown' })
    for (const sending of this.#inFlight.drain())
      sending.refuse(sending.goesAgain === undefined ? unknown : error)
    for (const sending of this.#waiting.drain()) sending.refuse(error)
    this.#waitingBytes = 0
    this.#lanes.clear()
    this.#last = undefined
    this.#drafts.clear()
    this.#notifyIdle()
  }
}

function differs(what: string): never {
  throw new Error(`producer: ${what}`)
}

function compare(what: string, kept: number, counted: number): void {
  if (kept !== counted) differs(`${kept} ${what}, counted ${counted}`)
}
