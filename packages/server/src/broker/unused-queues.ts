/**
 * The queues with `expiresMs`: deletes a queue once it had no consumer, no reader and no call for that time, and got no
 * messages under its name. Sessions report each call that names a queue, `Leases` the end of each consumer, `Readers` the
 * end of each reader, and `Intake` the messages that the broker itself puts into a queue. Messages that reach a queue
 * through a binding do not count as a use. Otherwise a queue whose subscriber has left would exist as long as messages
 * are published to its topic.
 *
 * Invariant: a queue is never deleted early. It is deleted in the first turn after its time, or in one of the next turns
 * if many queues are due at once. The last use is not stored, so that a use writes nothing: after a start of the broker,
 * the time of each queue starts again from zero.
 */
import type { Queue, Timer } from '../queue/index.js'
import type { State } from '../state/state.js'
import type { Turn } from './turn.js'

/** Maximum number of queues that are deleted at one time. After a start, all unused queues can be due at once. */
const DELETIONS_MAX = 256

interface Unused {
  readonly timer: Timer
  usedMs: number
}

export class UnusedQueues {
  readonly #state: State
  readonly #turn: Turn
  readonly #delete: (queue: Queue) => void
  /** Exactly the queues with `expiresMs`. */
  readonly #queues = new Map<Queue, Unused>()
  #deletedAtMs = 0
  #deleted = 0

  constructor(state: State, turn: Turn, remove: (queue: Queue) => void) {
    this.#state = state
    this.#turn = turn
    this.#delete = remove
  }

  /** Called at the start of the broker, and when a queue was created or its options have changed. */
  watch(queue: Queue): void {
    const unused = this.#queues.get(queue)
    if (queue.options.expiresMs > 0) {
      if (unused === undefined) {
        const timer = this.#turn.timer(() => this.#due(queue))
        this.#queues.set(queue, { timer, usedMs: this.#turn.nowMs })
      }
      this.#arm(queue)
    } else if (unused !== undefined) this.forget(queue)
  }

  /** Called when the queue was deleted. */
  forget(queue: Queue): void {
    const unused = this.#queues.get(queue)
    if (unused === undefined) return
    this.#turn.arm(unused.timer, Infinity)
    this.#queues.delete(queue)
  }

  /**
   * Called when a call has named the queue, messages arrived under its name, or a consumer or reader of the queue has
   * ended.
   */
  used(queue: Queue): void {
    const unused = this.#queues.get(queue)
    // The timer is not moved: when it runs too early, it is armed again.
    if (unused !== undefined) unused.usedMs = this.#turn.nowMs
  }

  /** Like `used`. The name comes from a client, and is of any type. */
  usedName(name: unknown): void {
    if (this.#queues.size === 0 || typeof name !== 'string') return
    const queue = this.#state.queues.get(name)
    if (queue !== undefined) this.used(queue)
  }

  /** Called when the clock was set forward by `byMs`. The skipped time does not count. */
  clockStepped(byMs: number): void {
    for (const unused of this.#queues.values()) unused.usedMs += byMs
  }

  #arm(queue: Queue): void {
    const { timer, usedMs } = this.#queues.get(queue)!
    this.#turn.arm(timer, usedMs + queue.options.expiresMs)
  }

  #due(queue: Queue): void {
    const { nowMs } = this.#turn
    const unused = this.#queues.get(queue)!
    if (queue.listeners > 0) unused.usedMs = nowMs
    if (unused.usedMs + queue.options.expiresMs > nowMs) {
      this.#arm(queue)
      return
    }
    if (this.#deletedAtMs !== nowMs) {
      this.#deletedAtMs = nowMs
      this.#deleted = 0
    }
    if (this.#deleted++ < DELETIONS_MAX) this.#delete(queue)
    else this.#turn.arm(unused.timer, nowMs + 1)
  }
}
