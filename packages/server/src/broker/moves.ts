/**
 * Moves dead messages from queue to queue: to the dead-letter queue at the end of a turn, and to another queue when an
 * operator redrives them.
 *
 * Invariant: the fact that a message left its queue and the batch that adds the message to the other queue are in one
 * entry, so after any crash the message is in exactly one of the two queues.
 */
import { SluiceError } from '@sluice/protocol'
import { FactBuffer, type Queue, type Timer } from '../queue/index.js'
import type { State } from '../state/state.js'
import type { Intake } from './intake.js'
import type { Observer } from './observer.js'
import { movedBatch } from './origin.js'
import { redrivesOf, type Records } from './records.js'
import type { Turn } from './turn.js'

/** Maximum number of messages moved in one turn; further messages are moved in later turns. */
const TURN_MESSAGES = 256
/** Time after which a move is tried again when the log had no room. */
const RETRY_MS = 1_000

export class Moves {
  readonly #state: State
  readonly #intake: Intake
  readonly #records: Records
  readonly #turn: Turn
  readonly #observer: Observer | undefined
  /** Timer for the next try; armed while the log has no room. */
  readonly #retry: Timer
  /** Queues with messages to move. */
  readonly #queues = new Set<Queue>()
  /** Queues that have messages to move, but whose dead-letter queue does not exist. */
  readonly #stranded = new Set<Queue>()
  /** Queues whose next message to move is being read from disk. */
  readonly #loading = new Set<Queue>()

  constructor(state: State, intake: Intake, records: Records, turn: Turn, observer: Observer | undefined) {
    this.#state = state
    this.#intake = intake
    this.#records = records
    this.#turn = turn
    this.#retry = turn.timer()
    this.#observer = observer
    for (const queue of state.queues.values()) this.note(queue)
  }

  /** Notes the queue for `step` if it has messages to move and names a dead-letter queue. */
  note(queue: Queue): void {
    if (queue.movingCount > 0 && queue.options.deadLetter !== '') this.#queues.add(queue)
  }

  /** Called when a queue was created. Messages that waited for a queue of this name can now be moved. */
  made(name: string): void {
    for (const queue of this.#stranded) {
      // Deleted queues are removed from the set only here.
      if (queue.options.deadLetter !== name && this.#state.has(queue)) continue
      this.#stranded.delete(queue)
      this.note(queue)
    }
  }

  /** Whether `step` has something to do. */
  get isWanted(): boolean {
    return this.#queues.size > 0
  }

  /** Moves the messages that can be moved now. */
  step(): void {
    let left = TURN_MESSAGES
    this.#turn.arm(this.#retry, Infinity)
    for (const queue of [...this.#queues]) {
      if (this.#loading.has(queue)) continue
      const target = this.#state.queues.get(queue.options.deadLetter)
      const exists = this.#state.has(queue)
      if (target === undefined || !exists) {
        // The messages stay in the queue until the dead-letter queue is created.
        this.#queues.delete(queue)
        if (exists) this.#stranded.add(queue)
        continue
      }
      left = this.#moveFrom(queue, target, left)
      if (left === 0) {
        this.#turn.wake()
        return
      }
    }
  }

  // Moves at most `most` messages. Returns how many more messages may be moved in this turn.
  #moveFrom(queue: Queue, target: Queue, most: number): number {
    let left = most
    let done = 0
    for (const offset of queue.moving.offsets) {
      if (left === 0) break
      const record = queue.deadAt(offset)?.isMoving === true ? this.#find(queue, offset) : 'none'
      if (record === 'loading') break
      if (record !== 'none') {
        if (!this.#tryMove(queue, offset, record, target)) {
          this.#turn.arm(this.#retry, this.#turn.nowMs + RETRY_MS)
          break
        }
        left--
      }
      done++
    }
    queue.moving.pass(done, queue.deadCount)
    if (queue.movingCount === 0) this.#queues.delete(queue)
    return left
  }

  // Moves the message. Returns false if the log has no room. A message that is refused for another reason stays in its
  // queue.
  #tryMove(queue: Queue, offset: number, record: Uint8Array, target: Queue): boolean {
    try {
      this.move(queue, offset, record, target, 'move')
      return true
    } catch (error) {
      if (!(error instanceof SluiceError)) throw error
      return !error.retryable
    }
  }

  // Returns the record of a message to move. Returns 'none' if the record is damaged: the message then stays in its
  // queue, and the next message is moved.
  #find(queue: Queue, offset: number): Uint8Array | 'loading' | 'none' {
    try {
      const record = this.#records.find(queue, offset)
      if (record !== undefined) return record
    } catch (error) {
      if (!(error instanceof SluiceError)) throw error
      return 'none'
    }
    this.#load(queue, offset)
    return 'loading'
  }

  #load(queue: Queue, offset: number): void {
    this.#loading.add(queue)
    const done = (): void => {
      this.#loading.delete(queue)
      this.#turn.wake()
    }
    this.#records.read(queue, offset).then(done, (error: unknown) => {
      // A damaged message stays in its queue. After READ_FAILED the move is tried again.
      if (!(error instanceof SluiceError) || error.code !== 'READ_FAILED') queue.moving.skip(offset)
      done()
    })
  }

  /**
   * Moves the dead message at `offset` to `target`. The kind `carry` is a redrive to another queue.
   * @throws SluiceError DISK_LOW; then nothing has changed
   */
  move(queue: Queue, offset: number, record: Uint8Array, target: Queue, kind: 'move' | 'carry'): void {
    const dead = queue.deadAt(offset)!
    const chunk = queue.chunkAt(offset)!
    const bytes = movedBatch(record, {
      queue: queue.name,
      offset,
      publishedMs: chunk.publishedAt(offset - chunk.base),
      attempts: queue.redriveHistory(offset).attempts + dead.attempts,
      redrives: redrivesOf(queue, offset, record) + (kind === 'carry' ? 1 : 0),
      dead,
    })
    const facts = new FactBuffer()
    facts.move(kind, offset, target.name)
    const batch = { bytes, at: 0, end: bytes.length }
    const { baseOffset } = this.#intake.take(target, batch, 'moved', { queue, facts })
    queue.moved(offset, kind === 'carry')
    this.#observer?.moved(queue, offset, kind === 'carry', target, baseOffset, dead.reason)
    this.#turn.changed(queue)
  }
}
