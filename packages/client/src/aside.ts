/**
 * Messages of one subscription that cannot start yet because a handler is still running in this process under an earlier
 * lease: a handler of the same message or, where keys are ordered, of another message with its key (see `Orphans`). Each
 * message waits until that handler ends. If that takes too long, the message is released, so that another consumer can
 * get it.
 *
 * Invariant: these messages are delivered and unsettled, and not in the buffer. The wake-up callback of each message is
 * registered with the orphans.
 */
import { readRecordOptions, RECORD_FLAG, recordFlags, scatteredOffset, Timer } from '@sluice/protocol'
import type { Held, Orphans } from './orphans.js'
import type { Run } from './run.js'

interface Waiting {
  /** A run of one message. */
  readonly run: Run
  /** Releases the message. */
  readonly timer: Timer
  held: Held
  readonly wake: () => void
}

export class Aside {
  readonly #queue: string
  readonly #orphans: Orphans
  readonly #resumed: (run: Run) => void
  readonly #released: (run: Run) => void
  readonly #waiting = new Set<Waiting>()

  /**
   * `resumed` is called for each message whose handler has ended, and `released` for each message that waited too long.
   * By then the message is no longer set aside.
   */
  constructor(queue: string, orphans: Orphans, resumed: (run: Run) => void, released: (run: Run) => void) {
    this.#queue = queue
    this.#orphans = orphans
    this.#resumed = resumed
    this.#released = released
  }

  get count(): number {
    return this.#waiting.size
  }

  /**
   * Returns the offset of the message whose record is at `at` if a handler of an earlier lease holds that offset;
   * otherwise its key if such a handler holds the key; otherwise undefined.
   */
  heldBy(offset: number, records: Uint8Array, at: number): Held | undefined {
    const orphans = this.#orphans
    if (orphans.holds(this.#queue, offset)) return offset
    if ((recordFlags(records, at) & RECORD_FLAG.key) === 0) return undefined
    const { key } = readRecordOptions(records, at)
    return key !== undefined && orphans.holds(this.#queue, key) ? key : undefined
  }

  /** Sets a message aside until no handler holds `held`. */
  add(run: Run, held: Held): void {
    const orphans = this.#orphans
    const waiting: Waiting = {
      run,
      timer: new Timer(() => this.#release(waiting), orphans.patienceMs(this.#queue, held)),
      held,
      wake: () => this.#resume(waiting),
    }
    this.#waiting.add(waiting)
    orphans.wait(this.#queue, held, waiting.wake)
  }

  #resume(waiting: Waiting): void {
    if (!this.#waiting.has(waiting)) return
    const { run } = waiting
    const offset = run.gap === 0 ? run.firstOffset : scatteredOffset(run.records, 0)
    const held = this.heldBy(offset, run.records, run.gap)
    if (held !== undefined) {
      waiting.held = held
      this.#orphans.wait(this.#queue, held, waiting.wake)
      return
    }
    waiting.timer.cancel()
    this.#waiting.delete(waiting)
    this.#resumed(run)
  }

  #release(waiting: Waiting): void {
    this.#forget(waiting)
    this.#released(waiting.run)
  }

  releaseAll(): void {
    for (const waiting of this.#waiting) this.#release(waiting)
  }

  /**
   * Drops the messages that have one of `tags`. Removes the tags of these messages from `tags`, and returns the removed
   * tags.
   */
  drop(tags: Set<number>): readonly number[] {
    const dropped: number[] = []
    for (const waiting of this.#waiting) {
      const { firstTag } = waiting.run
      if (!tags.delete(firstTag)) continue
      dropped.push(firstTag)
      this.#forget(waiting)
    }
    return dropped
  }

  /** Drops all messages that are set aside. */
  clear(): void {
    for (const waiting of this.#waiting) this.#forget(waiting)
  }

  #forget(waiting: Waiting): void {
    this.#waiting.delete(waiting)
    waiting.timer.cancel()
    this.#orphans.released(this.#queue, waiting.held, waiting.wake)
  }
}
