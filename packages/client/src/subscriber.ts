/**
 * Subscribers: consumers of all topics that match a pattern. Each has a temporary queue at the broker, which is bound to the
 * pattern, and a worker that consumes it. The queue outlives its last consumer by `expires`, so a reconnect loses nothing.
 *
 * Invariant: until a subscriber is closed, its queue exists, is being made, or is found missing by its worker, which
 * waits for it.
 */
import { randomBytes } from 'node:crypto'
import { headerMatch, SluiceError, type BindingHeaders } from '@sluice/protocol'
import { addAbortListener, removeAbortListener } from './aborts.js'
import type { Duration } from './duration.js'
import { onlyKnown, workerSettings, type ConsumeOptions, type QueueRef } from './options.js'
import type { Queues } from './queues.js'
import { backoffMs } from './reconnect.js'
import { RENEWAL } from './renewal.js'
import type { ConsumerWaiting } from './session.js'
import { patternOf, type Topic, type Topics } from './topics.js'
import type { Handler, Worker } from './worker.js'

const EXPIRES_DEFAULT = '1m'
const SUBSCRIBE_OPTIONS = [
  'concurrency',
  'prefetch',
  'prefetchBytes',
  'processingTimeout',
  'ordering',
  'signal',
  'headers',
  'expires',
]

/** Options of `subscribe`: those of `consume`, except `batch` and `missing`, and two more. */
export interface SubscribeOptions extends Omit<ConsumeOptions, 'batch' | 'missing'> {
  /** Headers that a message must have; see `topics.bind`. */
  readonly headers?: BindingHeaders
  /** How long the queue of the subscriber exists without a connection. From 1 s. Default 1 min. */
  readonly expires?: Duration
}

/** A running subscriber, made by `subscribe`. */
export interface Subscriber extends AsyncDisposable {
  readonly pattern: string
  /** Name of the temporary queue. */
  readonly queue: string
  /** Resolves when the queue is bound: messages that are published from now on arrive. It is safe not to await this promise. */
  readonly ready: Promise<void>
  /** Resolves once the subscriber is closed. Rejects with the SluiceError that ended it. It is safe not to await this promise. */
  readonly closed: Promise<void>
  /**
   * Ends the subscription as `worker.close` ends a worker, and deletes the queue with the messages that have no handler.
   * @throws SluiceError TIMEOUT, INVALID_ARGUMENT
   */
  close(options?: { readonly timeout?: Duration }): Promise<void>
}

/**
 * The queue of a subscriber was gone, for example because there was no connection for longer than `expires`, and was made
 * again. Messages that were published in the meantime are lost to the subscriber.
 */
export interface Resubscribed {
  readonly pattern: string
  readonly queue: string
}

/** What subscribers use of their client. */
interface Context {
  readonly queues: Queues
  readonly topics: Topics
  readonly isConnected: () => boolean
  readonly consume: (ref: QueueRef, options: ConsumeOptions, handler: Handler) => Worker
  readonly resubscribed: (event: Resubscribed) => void
  /** Reports an error that no call reports. */
  readonly report: (error: SluiceError) => void
}

export class Subscribers {
  readonly #context: Context
  readonly #all = new Map<string, TemporarySubscriber>()

  constructor(context: Context) {
    this.#context = context
  }

  /** @throws SluiceError INVALID_PATTERN, INVALID_ARGUMENT */
  add(of: string | Topic, handler: Handler, options: SubscribeOptions): Subscriber {
    onlyKnown('subscribe', options, SUBSCRIBE_OPTIONS)
    const { headers, expires = EXPIRES_DEFAULT, signal, ...consuming } = options
    const pattern = patternOf(of)
    headerMatch(headers)
    // Refuses wrong options at once, and not when the queue has been made.
    workerSettings(consuming)
    const queue = `subscribe/${randomBytes(8).toString('hex')}`
    const schema = typeof of === 'string' ? undefined : of.schema
    const ref = { name: queue, schema }
    const { consume } = this.#context
    const subscriber = new TemporarySubscriber(
      this.#context,
      { pattern, queue, headers, expires },
      () => consume(ref, consuming, handler),
      () => this.#all.delete(queue),
    )
    this.#all.set(queue, subscriber)
    subscriber.start(signal)
    return subscriber
  }

  /** Called when a consumer waits. Returns whether the consumer is that of a subscriber, which makes its queue again. */
  renews({ queue, error }: ConsumerWaiting): boolean {
    const isGone = error.code === 'QUEUE_NOT_FOUND' || error.code === 'QUEUE_DELETED'
    const subscriber = this.#all.get(queue)
    if (subscriber === undefined || !isGone) return false
    void subscriber.renew()
    return true
  }

  /** Closes all subscribers. */
  close(timeoutMs: number): Promise<void>[] {
    return [...this.#all.values()].map((subscriber) => subscriber.close({ timeout: timeoutMs }))
  }
}

interface Terms {
  readonly pattern: string
  readonly queue: string
  readonly headers: BindingHeaders | undefined
  readonly expires: Duration
}

class TemporarySubscriber implements Subscriber {
  readonly pattern: string
  readonly queue: string
  readonly ready: Promise<void>
  readonly closed: Promise<void>
  readonly #context: Context
  readonly #terms: Terms
  readonly #consume: () => Worker
  readonly #forget: () => void
  /** Aborted by `close`, so that nothing is made any more. */
  readonly #ending = new AbortController()
  /** The making of the queue, while it is under way. It rejects only if the queue cannot be made. */
  #making: Promise<void> | undefined
  #worker: Worker | undefined
  #closing: Promise<void> | undefined
  #resolveReady!: () => void
  #rejectReady!: (error: unknown) => void
  #resolveClosed!: () => void
  #rejectClosed!: (error: unknown) => void

  constructor(context: Context, terms: Terms, consume: () => Worker, forget: () => void) {
    this.#context = context
    this.#terms = terms
    this.pattern = terms.pattern
    this.queue = terms.queue
    this.#consume = consume
    this.#forget = forget
    this.ready = new Promise((resolve, reject) => {
      this.#resolveReady = resolve
      this.#rejectReady = reject
    })
    this.closed = new Promise((resolve, reject) => {
      this.#resolveClosed = resolve
      this.#rejectClosed = reject
    })
    for (const promise of [this.ready, this.closed]) promise.catch(() => {})
  }

  start(signal: AbortSignal | undefined): void {
    const close = (): void => {
      this.close().catch((error: unknown) => this.#context.report(error as SluiceError))
    }
    if (signal?.aborted === true) close()
    else if (signal !== undefined) {
      addAbortListener(signal, close)
      const remove = (): void => removeAbortListener(signal, close)
      this.closed.then(remove, remove)
    }
    void this.#start()
  }

  async #start(): Promise<void> {
    if (!(await this.#make())) return
    const worker = this.#consume()
    this.#worker = worker
    // The worker ends by itself only if an operator closes it.
    worker.closed.then(
      () => {},
      (error: unknown) => this.#fail(error),
    )
    this.#resolveReady()
  }

  /** Makes the queue again. The worker finds it within two seconds. */
  async renew(): Promise<void> {
    if (this.#making !== undefined || !(await this.#make())) return
    this.#context.resubscribed({ pattern: this.pattern, queue: this.queue })
  }

  // Returns whether the queue is made and bound, and the subscriber is not closing.
  async #make(): Promise<boolean> {
    const { signal } = this.#ending
    const making = this.#attempts(signal)
    this.#making = making
    try {
      await making
      return !signal.aborted
    } catch (error) {
      if (!signal.aborted) this.#fail(error)
      return false
    } finally {
      this.#making = undefined
    }
  }

  // Tries until it succeeds or cannot.
  async #attempts(signal: AbortSignal): Promise<void> {
    const { queues, topics } = this.#context
    const { pattern, queue, headers, expires } = this.#terms
    for (let failures = 1; ; failures++) {
      try {
        await queues.ensure(queue, { expires }, { signal })
        await topics.bind(pattern, queue, headers === undefined ? {} : { headers }, { signal })
        return
      } catch (error) {
        // The queue can expire or be deleted between the two calls.
        const isGone = (error as SluiceError).code === 'QUEUE_NOT_FOUND'
        if (!(error as SluiceError).retryable && !isGone) throw error
      }
      await pause(backoffMs(RENEWAL, failures, Math.random()), signal)
    }
  }

  #fail(reason: unknown): void {
    this.#rejectReady(reason)
    this.#rejectClosed(reason)
    if ((reason as SluiceError).code !== 'CLOSED') this.#context.report(reason as SluiceError)
    this.close().catch(() => {})
  }

  close(options: { readonly timeout?: Duration } = {}): Promise<void> {
    this.#closing ??= this.#close(options)
    return this.#closing
  }

  async #close(options: { readonly timeout?: Duration }): Promise<void> {
    this.#ending.abort()
    this.#rejectReady(new SluiceError('CLOSED', `The subscriber of ${this.pattern} was closed.`))
    try {
      await this.#making?.catch(() => {})
      await this.#worker?.close(options)
      // Otherwise the broker deletes the queue when it expires.
      if (options.timeout !== 0 && this.#context.isConnected())
        await this.#context.queues.delete(this.queue, options).catch(() => {})
    } finally {
      this.#forget()
      this.#resolveClosed()
    }
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.close()
  }
}

function pause(ms: number, signal: AbortSignal): Promise<void> {
  return new Promise((resolve, reject) => {
    const end = (): void => {
      clearTimeout(timer)
      reject(signal.reason as Error)
    }
    const timer = setTimeout(() => {
      removeAbortListener(signal, end)
      resolve()
    }, ms)
    if (signal.aborted) end()
    else addAbortListener(signal, end)
  })
}
