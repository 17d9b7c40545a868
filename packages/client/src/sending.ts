/**
 * A sending: a batch or an atomic step. A producer sends it under one number, and the broker answers with that number.
 * A sending has callers, each with a deadline and perhaps a signal. It is sent as one frame, which is kept byte for
 * byte until the answer.
 */
import type { Duplicates, SluiceError, SluiceErrorNames } from '@sluice/protocol'
import { addAbortListener, removeAbortListener } from './aborts.js'
import type { Connection } from './connection.js'
import { fail } from './failure.js'

/** The result of a publish. */
export interface Receipt {
  /** Position of the message in its queue, from 0. */
  readonly offset: number
  /** Whether a message with the same id was accepted earlier; if so, `offset` is the offset of the earlier message. */
  readonly duplicate: boolean
  /** Set if this message replaced an earlier one with the same id, which is cancelled; see `onDuplicate`. */
  readonly replaced?: true
}

/** How a publish is sent. */
export interface Dispatch {
  readonly timeoutMs: number
  readonly signal: AbortSignal | undefined
  readonly failsOffline: boolean
}

export type Resolve = (result: Receipt | Receipt[]) => void

export interface Watch {
  sending: Sending
  readonly signal: AbortSignal
  readonly onAbort: () => void
}

export abstract class Sending {
  /** The unfinished frame, until the sending is sent. Afterwards, all frames that were sent together with it. */
  bytes: Buffer
  /** Position of the frame of this sending in `bytes`. */
  at = 0
  /** Length of the frame so far. */
  end: number
  /** Number of messages. */
  count = 0
  /** Memory that this sending takes while it waits, in bytes; 0 once it is sent. */
  waitingBytes = 0
  /** Number of the sending; 0 if it is not sent yet. */
  number = 0
  /** Set if the sending was refused on this connection and is sent again under a new number: each message by itself, or as a whole. */
  goesAgain: 'split' | 'whole' | undefined
  /** Whether further messages may join. */
  open = true
  // Resolve functions of the callers; undefined at the index of a caller that no longer waits.
  resolves: (Resolve | undefined)[] = []
  deadlines: number[] = []
  nextDeadlineMs = Infinity
  /** Number of callers that stopped waiting before the sending was sent. */
  withdrawn = 0
  /** Callers with a signal, by their resolve function. An index would change when other callers withdraw. */
  watches: Map<Resolve, Watch> | undefined
  /** Callers that do not wait for a connection; only kept until the sending is sent. */
  failsOffline: Set<Resolve> | undefined

  constructor(bytes: Buffer, end: number) {
    this.bytes = bytes
    this.end = end
  }

  /** Adds a caller that waits until `deadlineMs`. */
  addCaller(resolve: Resolve, deadlineMs: number): void {
    if (deadlineMs < this.nextDeadlineMs) this.nextDeadlineMs = deadlineMs
    if (this.callers === 0) {
      // V8 gives an empty array room for 17 items at the first push. With many queues, most batches have one caller.
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

  /** Number of callers that wait. */
  get live(): number {
    let callers = 0
    for (const resolve of this.resolves) if (resolve !== undefined) callers++
    return callers
  }

  /**
   * Calls `gone` when the signal of this caller is aborted. The arguments are the sending that holds the caller at that
   * time, and the index of the caller in that sending.
   */
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

  /** Called when the sending is refused or given up: rejects the promises of all callers. */
  refuse(error: SluiceError): void {
    this.unwatch()
    for (const resolve of this.resolves) if (resolve !== undefined) fail(resolve, error, this.names)
    this.resolves.fill(undefined)
    this.hadNoEffect()
  }

  /** Called when one caller stops waiting. Returns whether nothing is left to send: the sending was not sent, and no other caller waits. */
  giveUp(index: number, error: SluiceError): boolean {
    const resolve = this.resolves[index]
    if (resolve === undefined) return false
    this.resolves[index] = undefined
    const isWithdrawn = this.number === 0 && ++this.withdrawn === this.callers
    if (isWithdrawn) this.hadNoEffect()
    const watch = this.watches?.get(resolve)
    if (watch !== undefined) {
      removeAbortListener(watch.signal, watch.onAbort)
      this.watches?.delete(resolve)
    }
    fail(resolve, error, this.names)
    return isWithdrawn
  }

  /** Removes withdrawn messages before the sending is sent. Returns false if nothing is left. */
  abstract compact(): boolean

  /** Names the queue in the callers' errors. */
  abstract readonly names: SluiceErrorNames

  /** Returns the error that keeps the sending from this connection; undefined if it can be sent. */
  abstract obstacle(connection: Connection): SluiceError | undefined

  /**
   * Writes the numbered frame to `frames` at position `at`, just before it is sent. `unansweredBelow` is the correlation
   * of the frame.
   */
  seal(frames: Buffer, at: number, unansweredBelow: number): void {
    this.write(frames, at, unansweredBelow)
    this.bytes = frames
    this.at = at
  }

  /** Called when the sending was refused because of an earlier refusal, and is sent again under another number. */
  unsend(): void {
    this.number = 0
    this.withdrawn = this.callers - this.live
    this.unwritten()
  }

  /** Restores the unfinished frame from the one that was sent. */
  protected abstract unwritten(): void

  /** Whether a refusal splits this sending: its messages are then sent again one by one. */
  abstract readonly maySplit: boolean

  protected abstract write(frames: Buffer, at: number, unansweredBelow: number): void

  /** Whether the frame names subscriptions of the connection on which it was first sent. */
  abstract readonly isBound: boolean

  /** Called when the sending was refused, withdrawn or given up. One that was given up may have taken effect. */
  abstract hadNoEffect(): void
}

export function receipt(baseOffset: number, index: number, duplicates: Duplicates | undefined): Receipt {
  const first = duplicates?.get(index)
  if (first === undefined) return { offset: baseOffset + index, duplicate: false }
  return first === baseOffset + index
    ? { offset: first, duplicate: false, replaced: true }
    : { offset: first, duplicate: true }
}
