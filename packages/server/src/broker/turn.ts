/**
 * One turn of the event loop: its time, the queues that may have something to deliver, and the deadlines at which a
 * turn is due even if nothing arrives. Sessions and the listener begin a turn, and the broker ends it. A change of a
 * queue that may cause facts, moves, a deadline or deliveries is followed by a call of `changed`, or of the parts of
 * `changed` that apply.
 *
 * Invariant: `nextDeadline` is never later than the deadline of any queue or timer.
 */
import { SluiceError } from '@sluice/protocol'
import { Timer, type Budget, type Hold, type Queue } from '../queue/index.js'
import type { Observer } from './observer.js'
import { Timers } from './timers.js'

/**
 * Maximum number of messages whose time has come that one turn handles, for all queues together: due messages that become
 * ready, and expired messages that are removed. Handling 8,192 messages takes about 10 ms.
 */
const DUE_MAX = 8_192
/**
 * Maximum number of messages that enter groups in one turn, for all groups together. The last step of the turn can
 * exceed it. A message with a key takes about 2 µs.
 */
const ENTERED_MAX = 8_192

export interface TurnOptions {
  readonly now: () => number
  readonly defer: (endTurn: () => void) => void
  /** Tests use a smaller value than DUE_MAX. */
  readonly dueMax?: number
  /** Tests use a smaller value than ENTERED_MAX. */
  readonly enteredMax?: number
  readonly observer?: Observer | undefined
}

/** Receives each queue that changed. */
export interface QueueSink {
  note(queue: Queue): void
}

/** The parts of the broker that a turn calls. */
export interface TurnParts {
  /** Writes the facts of queues. */
  readonly writer: QueueSink
  /** Routes dead messages to other queues. */
  readonly moves: QueueSink
  /** Reports that retention waits for groups. */
  readonly holds: { note(stream: Queue, hold: Hold, nowMs: number): void }
  /** Called when the deadline of the queue has passed. */
  due(queue: Queue): void
  /** Called at the end of the turn. */
  end(): void
}

export class Turn {
  /** Time of everything that happens in this turn, in milliseconds since the epoch. */
  nowMs: number
  readonly #options: TurnOptions
  readonly #timers = new Timers()
  readonly #active: Queue[] = []
  /** The group that used up `enterBudget` and has more to deliver. */
  #unfinished: Queue | undefined
  /** Queues with messages whose time has come and that earlier turns have not handled. */
  readonly #behind = new Set<Queue>()
  readonly #dueMax: number
  readonly budget: Budget
  readonly #enteredMax: number
  readonly enterBudget: Budget
  /** Number of messages that were accepted since `continueDue` was last called and can have a due or expiry time. */
  #accepted = 0
  #parts!: TurnParts
  #isDue = false
  #isStopped = false

  constructor(options: TurnOptions, nowMs: number) {
    this.#options = options
    this.nowMs = nowMs
    this.#dueMax = options.dueMax ?? DUE_MAX
    this.budget = { left: this.#dueMax }
    this.#enteredMax = options.enteredMax ?? ENTERED_MAX
    this.enterBudget = { left: this.#enteredMax }
  }

  /** Called once, before any queue changes. */
  connect(parts: TurnParts): void {
    this.#parts = parts
  }

  /** Time at which `tick` is due, in milliseconds since the epoch; Infinity when no timer is armed. */
  get nextDeadline(): number {
    return this.#timers.firstMs
  }

  /** Begins a turn. Called when input has arrived or a wait has ended. */
  begin(): void {
    // The clock of a machine can be behind the log that its broker continues, but broker time never goes back.
    this.nowMs = Math.max(this.nowMs, this.#options.now())
  }

  /**
   * Like `begin`, for the code that continues after a wait.
   * @throws SluiceError SHUTTING_DOWN when nothing may be written any more
   */
  beginAgain(): void {
    if (this.#isStopped)
      throw new SluiceError('SHUTTING_DOWN', 'The broker is stopping.', { scope: 'request' })
    this.begin()
  }

  /** Resolves when all input that had arrived has been served. The caller then calls `beginAgain`. */
  pass(): Promise<void> {
    return new Promise((resolve) => this.#options.defer(resolve))
  }

  /** Schedules the end of the turn. */
  wake(): void {
    if (this.#isDue || this.#isStopped) return
    this.#isDue = true
    this.#options.defer(() => this.#parts.end())
  }

  /** Takes the time for the end of the turn. Returns false if the broker has stopped and must do nothing more. */
  beginEnd(): boolean {
    this.#isDue = false
    if (this.#isStopped) return false
    this.begin()
    this.budget.left = this.#dueMax
    this.enterBudget.left = this.#enteredMax
    return true
  }

  /** Stops the turns. After this call no turn ends, and no waiting request continues. */
  stop(): void {
    this.#isStopped = true
  }

  /** Runs the timers that are due. */
  tick(): void {
    this.begin()
    while (this.#timers.firstMs <= this.nowMs) this.#timers.shift().run()
    this.wake()
  }

  // --- queues ---

  /**
   * Called when the queue has changed. It may have facts to write, a new deadline, and messages to move or to
   * deliver.
   */
  changed(queue: Queue): void {
    const { writer, moves } = this.#parts
    writer.note(queue)
    if (queue.movingCount > 0) moves.note(queue)
    this.armQueue(queue)
    this.activate(queue)
    this.wake()
  }

  /** Called when messages were added to a stream. */
  activateGroups({ groups }: Queue): void {
    for (const group of groups) this.activate(group as Queue)
  }

  /** Notes that the queue may have messages to deliver. */
  activate(queue: Queue): void {
    if (queue.active || queue.listeners === 0) return
    queue.active = true
    this.#active.push(queue)
    this.wake()
  }

  get hasActive(): boolean {
    return this.#active.length > 0
  }

  /** Calls `each` for the queues that may have something to deliver, in the order of `activate`. */
  eachActive(each: (queue: Queue) => void): void {
    for (const queue of this.#active.splice(0)) {
      queue.active = false
      each(queue)
    }
    const unfinished = this.#unfinished
    this.#unfinished = undefined
    if (unfinished !== undefined) this.activate(unfinished)
  }

  /**
   * Called while `eachActive` runs, when `enterBudget` is used up and the group may have more to deliver. A later turn
   * continues. The group that used up the budget follows those that got none of it, so that groups take turns.
   */
  continueEntering(group: Queue, hasEntered: boolean): void {
    if (hasEntered) this.#unfinished = group
    else this.activate(group)
  }

  /**
   * Makes due messages ready and removes expired messages, before a decision that depends on these messages. Unless
   * `budget` is given, it handles as many messages as are left for this turn.
   */
  catchUp(queue: Queue, budget = this.budget): void {
    const { observer } = this.#options
    observer?.looked(queue)
    queue.catchUp(this.nowMs, budget)
    this.follow(queue)
    observer?.caughtUp(queue)
  }

  /**
   * Makes due messages ready, removes expired ones and ends the retention of others, up to the number that is left for this
   * turn. Later turns continue.
   */
  advance(queue: Queue): void {
    this.#options.observer?.looked(queue)
    queue.advance(this.nowMs, this.budget)
    // Their facts are written before those of the stream: groups lose messages before the stream releases them.
    for (const group of queue.groups) this.changed(group as Queue)
    if (queue.hold !== undefined) this.#parts.holds.note(queue, queue.hold, this.nowMs)
    this.follow(queue)
  }

  /** If the queue has messages left whose time has come, later turns handle them. */
  follow(queue: Queue): void {
    if (!queue.hasMoreDue && !queue.hasMoreExpired) return
    this.#behind.add(queue)
    this.wake()
  }

  /**
   * Called when messages with options, or of a queue whose options set a time to live or limits, were accepted. Each of
   * them becomes due at most once, and expires at most once.
   */
  accepted(messages: number): void {
    this.#accepted += messages
  }

  /**
   * Continues with the messages that earlier turns could not handle. In addition to its budget, a turn handles as many
   * messages as were accepted since the last turn. Otherwise more messages could arrive in each turn than it handles, and
   * nothing of their queue would ever be delivered.
   */
  continueDue(): void {
    this.budget.left += this.#accepted
    this.#accepted = 0
    for (const queue of this.#behind) {
      if (this.budget.left <= 0) break
      this.#behind.delete(queue)
      // If the queue still has such messages, this call adds the queue again at the end of the set.
      this.#parts.due(queue)
    }
    this.budget.left = Math.min(this.budget.left, this.#dueMax)
    if (this.#behind.size > 0) this.wake()
  }

  // --- deadlines ---

  /** Returns a new timer, which calls `run` at its deadline. Without `run`, it wakes the broker. */
  timer(run = (): void => this.wake()): Timer {
    return new Timer(run)
  }

  arm(timer: Timer, deadlineMs: number): void {
    this.#timers.arm(timer, deadlineMs)
  }

  /** Arms the queue's timer if the next deadline of the queue is earlier than the armed deadline. */
  armQueue(queue: Queue): void {
    const deadlineMs = queue.nextDeadline
    const armedMs = queue.timer === undefined ? Infinity : queue.timer.deadlineMs
    // If the armed deadline is too early, the timer runs once for nothing. Moving the timer to a later deadline would
    // cost as much on each settle.
    if (deadlineMs >= armedMs && armedMs > this.nowMs) return
    queue.timer ??= new Timer(() => this.#parts.due(queue))
    this.#timers.arm(queue.timer, deadlineMs)
  }

  /** Called when the queue was deleted. */
  forget(queue: Queue): void {
    this.#behind.delete(queue)
    if (queue.timer !== undefined) this.#timers.arm(queue.timer, Infinity)
  }
}
