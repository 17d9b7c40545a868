/**
 * What a producer sends under a number and is answered for by that number: a batch, or an atomic step. It has callers,
 * each with a deadline and perhaps a signal, and is one frame that is kept byte for byte until the answer.
 */
import type { Duplicates, SluiceError, SluiceErrorNames } from '@sluice/protocol'
import { addAbortListener, removeAbortListener } from './aborts.js'
import type { Connection } from './connection.js'
import { fail } from './failure.js'

/** Where a confirmed message stands. */
export interface Receipt {
  /** Its place in the queue. */
  readonly offset: number
  /** A message with the same id was accepted before; `offset` is that one's. */
  readonly duplicate: boolean
  /** It took the place of a message with the same id that waited; that one is gone. */
  readonly replaced?: true
}

export type Resolve = (result: Receipt | Receipt[]) => void

export interface Watch {
  sending: Sending
  readonly signal: AbortSignal
  readonly onAbort: () => void
}

export abstract class Sending {
  /** Before it is sent: the frame in the making. After: the frames that were sent together, of which it is one. */
  bytes: Buffer
  /** Where its frame begins there. */
  at = 0
  /** Bytes of the frame, as far as it has come. */
  end: number
  /** Messages. */
  count = 0
  /** What it counts among what waits. */
  waitingBytes = 0
  /** 0: not sent yet. */
  number = 0
  /** It was refused on this connection, and goes again under a new number: each of its messages by itself, or whole. */
  goesAgain: 'split' | 'whole' | undefined
  /** Whether further messages may join. */
  open = true
  // A hole means that the caller has had its answer.
  resolves: (Resolve | undefined)[] = []
  deadlines: number[] = []
  nextDeadlineMs = Infinity
  /** Callers that have gone before it was sent. */
  withdrawn = 0
  /** Callers that gave a signal, by their resolve function: an index changes when others withdraw. */
  watches: Map<Resolve, Watch> | undefined
  /** Callers that do not wait for a connection, until it is sent. */
  failsOffline: Set<Resolve> | undefined

  constructor(bytes: Buffer, end: number) {
    this.bytes = bytes
    this.end = end
  }

  /** Somebody waits for it, until `deadlineMs`. */
  addCaller(resolve: Resolve, deadlineMs: number): void {
    if (deadlineMs < this.nextDeadlineMs) this.nextDeadlineMs = deadlineMs
    if (this.callers === 0) {
      // An empty list takes room for seventeen with its first item, and with many queues most batches have one caller.
      this.resolves = [resolve]
      this.deadlines = [deadlineMs]
      return
    }
    this.resolves.push(resolve)
    this.deadlines.push(deadlineMs)
  }

  get callers(): number {
    return this.resolves.length
  }

  /** Callers that wait for an answer. */
  get live(): number {
    let callers = 0
    for (const resolve of this.resolves) if (resolve !== undefined) callers++
    return callers
  }

  /** `gone` is called when the signal of this caller is aborted: with what it waits for by then, and its index there. */
  watch(
    resolve: Resolve,
    signal: AbortSignal,
    gone: (sending: Sending, index: number, signal: AbortSignal) => void,
  ): void {
    const watch: Watch = {
      sending: this,
      signal,
      onAbort: () => {
        const { sending } = watch
        const index = sending.resolves.indexOf(resolve)
        if (index >= 0) gone(sending, index, signal)
      },
    }
    addAbortListener(signal, watch.onAbort)
    this.watches ??= new Map()
    this.watches.set(resolve, watch)
  }

  unwatch(): void {
    if (this.watches === undefined) return
    for (const { signal, onAbort } of this.watches.values()) removeAbortListener(signal, onAbort)
    this.watches = undefined
  }

  /** It has no effect: tells all that wait. */
  refuse(error: SluiceError): void {
    this.unwatch()
    for (const resolve of this.resolves) if (resolve !== undefined) fail(resolve, error, this.names)
    this.resolves.fill(undefined)
    this.refused()
  }

  /** One caller has its answer. Returns whether that withdraws it: it was not sent, and no other caller waits. */
  giveUp(index: number, error: SluiceError): boolean {
    const resolve = this.resolves[index]
    if (resolve === undefined) return false
    this.resolves[index] = undefined
    const isWithdrawn = this.number === 0 && ++this.withdrawn === this.callers
    if (isWithdrawn) this.refused()
    const watch = this.watches?.get(resolve)
    if (watch !== undefined) {
      removeAbortListener(watch.signal, watch.onAbort)
      this.watches?.delete(resolve)
    }
    fail(resolve, error, this.names)
    return isWithdrawn
  }

  /** Takes out what was withdrawn before it is sent. False: nothing is left of it. */
  abstract compact(): boolean

  /** What its callers are told that it was about. */
  abstract readonly names: SluiceErrorNames

  /** Why it cannot be sent, on this connection. */
  abstract obstacle(connection: Connection): SluiceError | undefined

  /** Writes the frame, which is going to be sent now, with its number, from `frames[at]`; `below` goes into the correlation. */
  seal(frames: Buffer, at: number, below: number): void {
    this.write(frames, at, below)
    this.bytes = frames
    this.at = at
  }

  /** It was not accepted, because an earlier one was refused: it goes again, under another number. */
  unsend(): void {
    this.number = 0
    this.withdrawn = this.callers - this.live
    this.unwritten()
  }

  /** The frame that was sent is taken back. */
  protected abstract unwritten(): void

  /** Whether its messages go by themselves when it is refused. */
  abstract readonly isSplit: boolean

  protected abstract write(frames: Buffer, at: number, below: number): void

  /** Refers to subscriptions of the connection that it was first sent on. */
  abstract readonly isBound: boolean

  /** It has no effect: it was refused, or withdrawn before it was sent. */
  abstract refused(): void
}

export function receipt(baseOffset: number, index: number, duplicates: Duplicates | undefined): Receipt {
  const first = duplicates?.get(index)
  if (first === undefined) return { offset: baseOffset + index, duplicate: false }
  return first === baseOffset + index
    ? { offset: first, duplicate: false, replaced: true }
    : { offset: first, duplicate: true }
}
