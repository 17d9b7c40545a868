/**
 * Publishes the messages that an iterable yields. The number of unconfirmed messages is bounded, so memory does not
 * grow with the length of the iterable. Messages that the broker refuses because it is full are published again, in
 * their order, before more messages are read.
 */
import { SluiceError, type ErrorCode } from '@sluice/protocol'
import { addAbortListener, removeAbortListener } from './aborts.js'
import { attempt, promiseOf, thenOf } from './endings.js'
import type { PublishAllResult } from './options.js'

/** Refusals for lack of room. They end when consumers drain the queue, or when an operator makes room. */
const FULL: ReadonlySet<ErrorCode> = new Set<ErrorCode>([
  'QUEUE_FULL',
  'DEDUP_FULL',
  'DISK_LOW',
  'MEMORY_FULL',
  'TOO_MANY_WAITING',
])

const PAUSE_MS_FIRST = 50
const PAUSE_MS_MAX = 5_000
/** Number of confirmed messages between two calls of `onProgress`. */
const PROGRESS_MESSAGES = 1_000

interface Refused<Message> {
  /** Position of the message in the order of reading. */
  readonly index: number
  readonly message: Message
}

export interface FeedOptions<Message> {
  readonly publish: (message: Message) => Promise<{ readonly duplicate: boolean }>
  /** Maximum number of unconfirmed messages. */
  readonly concurrency: number
  readonly signal: AbortSignal | undefined
  /** Makes the error of the feed when its signal is aborted. */
  readonly aborted: (isUnderWay: boolean) => SluiceError
  readonly onProgress: ((progress: PublishAllResult) => void) | undefined
  readonly random: () => number
}

export class Feed<Message> {
  readonly #options: FeedOptions<Message>
  #published = 0
  #duplicates = 0
  #reported = 0
  #index = 0
  #underWay = 0
  #refused: Refused<Message>[] = []
  #retryAfterMs = 0
  #pauseMs = PAUSE_MS_FIRST
  #failure: { readonly error: unknown } | undefined
  #wake: (() => void) | undefined

  constructor(options: FeedOptions<Message>) {
    this.#options = options
  }

  /**
   * Resolves when everything that `source` yields is accepted. Rejects with the first failure, once nothing is
   * unconfirmed or the signal is aborted.
   */
  async run(source: Iterable<Message> | AsyncIterable<Message>): Promise<PublishAllResult> {
    const { signal } = this.#options
    const onAbort = (): void => this.#fail(this.#options.aborted(this.#underWay > 0))
    if (signal?.aborted === true) onAbort()
    else if (signal !== undefined) addAbortListener(signal, onAbort)
    try {
      await this.#read(source)
      this.#progress(0)
      if (this.#failure !== undefined) throw this.#failure.error
      return this.#result
    } finally {
      removeAbortListener(signal, onAbort)
    }
  }

  async #read(source: Iterable<Message> | AsyncIterable<Message>): Promise<void> {
    const iterator = iteratorOf(source)
    let isExhausted = false
    let isReading = false
    /** Holds the result of a read until its message is published; otherwise empty. */
    const read: IteratorResult<Message>[] = []
    try {
      while (this.#failure === undefined) {
        if (this.#refused.length > 0) {
          if (this.#underWay > 0) await this.#change()
          else await this.#again()
        } else if (read.length > 0) {
          const result = read.pop()!
          if (result.done === true) isExhausted = true
          else this.#publish({ index: this.#index++, message: result.value })
        } else if (isReading) await this.#change()
        else if (!isExhausted && this.#underWay < this.#options.concurrency) {
          const next: unknown = iterator.next()
          const then = thenOf(next)
          if (then === undefined) read.push(next as IteratorResult<Message>)
          else {
            // The read is not awaited, so that refused messages are published again even while the source is slow.
            isReading = true
            promiseOf(next, then).then(
              (result) => {
                isReading = false
                read.push(result as IteratorResult<Message>)
                this.#wake?.()
              },
              (error: unknown) => {
                isReading = false
                isExhausted = true
                this.#fail(error)
              },
            )
          }
        } else if (this.#underWay > 0) await this.#change()
        else return
      }
    } catch (error) {
      isExhausted = true
      this.#fail(error)
    }
    if (!isExhausted) leave(iterator)
    while (this.#underWay > 0 && this.#options.signal?.aborted !== true) await this.#change()
  }

  get #result(): PublishAllResult {
    return { published: this.#published, duplicates: this.#duplicates }
  }

  #publish(item: Refused<Message>): void {
    this.#underWay++
    this.#options.publish(item.message).then(
      ({ duplicate }) => this.#accepted(duplicate),
      (error: unknown) => this.#rejected(item, error),
    )
  }

  #accepted(duplicate: boolean): void {
    if (duplicate) this.#duplicates++
    else this.#published++
    this.#pauseMs = PAUSE_MS_FIRST
    this.#progress(PROGRESS_MESSAGES)
    this.#settled()
  }

  #rejected(item: Refused<Message>, error: unknown): void {
    if (error instanceof SluiceError && FULL.has(error.code)) {
      this.#refused.push(item)
      this.#retryAfterMs = error.retryAfterMs
    } else this.#fail(error)
    this.#settled()
  }

  #settled(): void {
    this.#underWay--
    const isHalfFree = this.#refused.length === 0 && this.#underWay <= this.#options.concurrency / 2
    if (isHalfFree || this.#underWay === 0) this.#wake?.()
  }

  #fail(error: unknown): void {
    this.#failure ??= { error }
    this.#wake?.()
  }

  #progress(everyMessages: number): void {
    const confirmed = this.#published + this.#duplicates
    if (confirmed === this.#reported || confirmed - this.#reported < everyMessages) return
    this.#reported = confirmed
    const { onProgress } = this.#options
    if (onProgress === undefined) return
    attempt(
      () => onProgress(this.#result),
      (error) => this.#fail(error),
    )
  }

  /** Publishes the refused messages again, after a pause that doubles while nothing is accepted. */
  async #again(): Promise<void> {
    const pauseMs = Math.max(this.#retryAfterMs, this.#pauseMs * (0.5 + this.#options.random() / 2))
    this.#pauseMs = Math.min(this.#pauseMs * 2, PAUSE_MS_MAX)
    let timer: NodeJS.Timeout | undefined
    const pause = new Promise<void>((resolve) => {
      timer = setTimeout(resolve, Math.min(pauseMs, PAUSE_MS_MAX))
    })
    await this.#orFailure(pause)
    clearTimeout(timer)
    if (this.#failure !== undefined) return
    const refused = this.#refused.toSorted((a, b) => a.index - b.index)
    this.#refused = []
    for (const item of refused) this.#publish(item)
    while (this.#underWay > 0 && this.#failure === undefined) await this.#change()
  }

  /**
   * Resolves when the source has yielded, when few enough messages are unconfirmed (half of `concurrency`, or none
   * after a refusal), or when something has failed.
   */
  #change(): Promise<void> {
    return new Promise((resolve) => {
      this.#wake = () => {
        this.#wake = undefined
        resolve()
      }
    })
  }

  /** The result of `promise`, or undefined once something has failed. */
  async #orFailure<Result>(promise: Promise<Result>): Promise<Result | undefined> {
    const failed = new Promise<undefined>((resolve) => {
      this.#wake = () => {
        if (this.#failure !== undefined) resolve(undefined)
      }
      if (this.#failure !== undefined) resolve(undefined)
    })
    const result = await Promise.race([promise, failed])
    this.#wake = undefined
    return result
  }
}

type Source<Message> = Iterator<Message> | AsyncIterator<Message>

/** @throws SluiceError INVALID_ARGUMENT */
function iteratorOf<Message>(source: Iterable<Message> | AsyncIterable<Message>): Source<Message> {
  if ((typeof source === 'object' || typeof source === 'function') && source !== null) {
    if (Symbol.asyncIterator in source) return source[Symbol.asyncIterator]()
    if (Symbol.iterator in source) return source[Symbol.iterator]()
  }
  throw new SluiceError(
    'INVALID_ARGUMENT',
    '`publishAll` takes an iterable or an async iterable of messages, such as an array or a generator.',
  )
}

// Ends the iterator as `break` ends a loop. A generator ends after its pending `await`; the feed does not wait for that.
function leave(iterator: Source<unknown>): void {
  // A failure of `return` is ignored: the caller gets the failure that ended the feed.
  attempt(
    () => iterator.return?.(),
    () => {},
  )
}
