/**
 * One turn of the event loop: its time, the queues that changed in it, those that may have something to deliver, and
 * the deadlines at which the next one is due although nothing arrives.
 *
 * Whatever changes a queue calls `changed`; the end of the turn, which the broker does, takes what that gathered.
 * Invariant: while a queue or anything else has a deadline, `nextDeadline` is no later.
 */
import { SluiceError } from '@sluice/protocol'
import { Timer, type Queue } from '../queue/index.js'
import type { Observer } from './observer.js'
import { Timers } from './timers.js'

export interface TurnOptions {
  readonly now: () => number
  readonly defer: (endTurn: () => void) => void
  readonly observer?: Observer | undefined
}

/** Takes note of a queue that changed. */
export interface Noting {
  note(queue: Queue): void
}

/** What a turn leads to. */
export interface TurnParts {
  /** Writes the facts that the queue gathered. */
  readonly facts: Noting
  /** Routes its dead messages that are to go elsewhere. */
  readonly moves: Noting
  /** The deadline of the queue has passed. */
  due(queue: Queue): void
  /** The turn ends. */
  end(): void
}

export class Turn {
  /** Time of this turn, ms since the epoch: all of it happens at this time. */
  nowMs: number
  readonly #options: TurnOptions
  readonly #timers = new Timers()
  readonly #active: Queue[] = []
  #parts!: TurnParts
  #isDue = false
  #isStopped = false

  constructor(options: TurnOptions, nowMs: number) {
    this.#options = options
    this.nowMs = nowMs
  }

  /** Called once, before anything changes. */
  connect(parts: TurnParts): void {
    this.#parts = parts
  }

  /** The next time at which `tick` has something to do, ms since the epoch; Infinity when there is none. */
  get nextDeadline(): number {
    return this.#timers.firstMs
  }

  /** Something arrived, or a wait is over. */
  begin(): void {
    // A machine's clock can be behind the log that its broker continues: what comes next is not older than what is there.
    this.nowMs = Math.max(this.nowMs, this.#options.now())
  }

  /** As `begin`, for what was waited for. @throws SluiceError SHUTTING_DOWN when nothing may be written any more */
  beginAgain(): void {
    if (this.#isStopped)
      throw new SluiceError('SHUTTING_DOWN', 'The broker is stopping.', { scope: 'request' })
    this.begin()
  }

  /** The turn will be ended. */
  wake(): void {
    if (this.#isDue || this.#isStopped) return
    this.#isDue = true
    this.#options.defer(() => this.#parts.end())
  }

  /** The turn ends now; false: there are no more turns. */
  finish(): boolean {
    this.#isDue = false
    if (this.#isStopped) return false
    this.begin()
    return true
  }

  /** No turn ends any more. */
  stop(): void {
    this.#isStopped = true
  }

  /** Time passed: what was due by now happens. */
  tick(): void {
    this.begin()
    while (this.#timers.firstMs <= this.nowMs) this.#timers.shift().run()
    this.wake()
  }

  // --- queues ---

  /** Facts of the queue may wait to be written, its line may have moved, and its next deadline with it. */
  changed(queue: Queue): void {
    const { facts, moves } = this.#parts
    facts.note(queue)
    if (queue.moving.length > 0) moves.note(queue)
    this.armQueue(queue)
    this.activate(queue)
    this.wake()
  }

  /** The queue may have something to deliver. */
  activate(queue: Queue): void {
    if (queue.active || queue.subscriptions.length === 0) return
    queue.active = true
    this.#active.push(queue)
    this.wake()
  }

  get hasActive(): boolean {
    return this.#active.length > 0
  }

  /** Calls `each` for the queues that may have something to deliver, in the order in which they came to. */
  eachActive(each: (queue: Queue) => void): void {
    for (const queue of this.#active.splice(0)) {
      queue.active = false
      each(queue)
    }
  }

  /** What is due becomes ready, and what has expired goes: for decisions that depend on what there is. */
  settleTime(queue: Queue): void {
    const { observer } = this.#options
    observer?.looked(queue)
    queue.settleTime(this.nowMs)
    observer?.timeSettled(queue)
  }

  // --- deadlines ---

  /** A timer that wakes the broker. */
  timer(): Timer {
    return new Timer(() => this.wake())
  }

  arm(timer: Timer, deadlineMs: number): void {
    this.#timers.arm(timer, deadlineMs)
  }

  /** The next deadline of the queue may be another one. */
  armQueue(queue: Queue): void {
    const deadlineMs = queue.nextDeadline
    const armedMs = queue.timer === undefined ? Infinity : queue.timer.deadlineMs
    // One that is too near costs a look, where arming it anew would cost as much each time that something is settled.
    if (deadlineMs >= armedMs && armedMs > this.nowMs) return
    queue.timer ??= new Timer(() => this.#parts.due(queue))
    this.#timers.arm(queue.timer, deadlineMs)
  }

  /** The queue was deleted. */
  forget(queue: Queue): void {
    if (queue.timer !== undefined) this.#timers.arm(queue.timer, Infinity)
  }
}
