/**
 * Sends everything that one turn of the event loop has collected, in one socket write: publishes, then settles, then
 * the announcements of the messages that start next. This happens in the check phase, after all promise continuations
 * of the turn.
 *
 * Invariant: within a turn, settles follow the publishes that were sent. An acknowledgement can overtake a publish that
 * still waits to be sent (because the window is full, for example), unless the handler awaited that publish. Handlers run
 * only after the write that announces their messages, so that after a crash the broker knows which handlers were running.
 */

export interface Settling {
  /** Writes the gathered settles to the outbox. Only the turn calls this; see `settleNow`. */
  flushSettles(): void
}

export interface Starting {
  /** Announces the messages whose handlers `startHandlers` calls. */
  announce(): void
  startHandlers(): void
}

/**
 * How long acknowledgements are gathered if no caller waits for them and they are made while a turn calls handlers. At a
 * moderate rate, several messages then need only one frame, one commit and one answer.
 */
const GATHER_MS = 4

export class Turn {
  readonly #flushPublishes: () => void
  readonly #write: () => void
  #settling: Settling[] = []
  #starting: Starting[] = []
  #scheduled = false
  #gathering: Settling[] = []
  #gatherTimer: NodeJS.Timeout | undefined
  /**
   * Whether the turn is calling handlers. A settle at that time comes from a handler that has not returned yet, or from
   * the end of a synchronous handler.
   */
  isCallingHandlers = false

  constructor(flushPublishes: () => void, write: () => void) {
    this.#flushPublishes = flushPublishes
    this.#write = write
  }

  schedule(): void {
    if (this.#scheduled) return
    this.#scheduled = true
    setImmediate(this.#run)
  }

  /** Sends the settles of `settling` at the end of this turn. Call it at most once per turn. */
  settle(settling: Settling): void {
    this.#settling.push(settling)
    this.schedule()
  }

  /**
   * Writes the publishes of this turn and then the settles of `settling` to the outbox. Called before a frame that must
   * follow these settles.
   */
  settleNow(settling: Settling): void {
    this.#flushPublishes()
    settling.flushSettles()
  }

  /** Sends the settles of `settling` after GATHER_MS at the latest. */
  gather(settling: Settling): void {
    this.#gathering.push(settling)
    this.#gatherTimer ??= setTimeout(this.#gathered, GATHER_MS)
  }

  readonly #gathered = (): void => this.flushAll()

  /** Sends everything now, including settles that are still gathered. */
  flushAll(): void {
    clearTimeout(this.#gatherTimer)
    this.#gatherTimer = undefined
    for (const settling of this.#gathering) this.#settling.push(settling)
    this.#gathering = []
    this.flush()
  }

  /** Calls `announce` and `startHandlers` at the end of this turn. Call it at most once per turn. */
  start(starting: Starting): void {
    this.#starting.push(starting)
    this.schedule()
  }

  readonly #run = (): void => {
    this.#scheduled = false
    this.flush()
  }

  /** Sends the publishes of this turn now, and everything else at the end of the turn. */
  sendAhead(): void {
    this.#flushPublishes()
    this.#write()
  }

  /** Sends what this turn has collected, and then calls the handlers. */
  flush(): void {
    this.#flushPublishes()
    const settling = this.#settling
    this.#settling = []
    for (const each of settling) each.flushSettles()
    const starting = this.#starting
    this.#starting = []
    for (const each of starting) each.announce()
    this.#write()
    this.isCallingHandlers = true
    try {
      for (const each of starting) each.startHandlers()
    } finally {
      this.isCallingHandlers = false
    }
  }
}
