/**
 * Gathers what one turn of the event loop wants to send, so that it leaves in one socket write: publishes, then
 * settles (so that an acknowledgement never overtakes what its handler published before it), then the names of the
 * messages whose handlers run next. Those handlers run only after the write: a process that dies in one of them has
 * said which.
 *
 * It runs in the check phase, after all promise continuations of the turn.
 */

export interface Settling {
  /** Puts the turn's settles into the outbox. */
  flushSettles(): void
}

export interface Starting {
  /** Names the messages that `startHandlers` is going to hand out. */
  announce(): void
  startHandlers(): void
}

/**
 * Acknowledgements that nobody waits for, by handlers that ended as soon as they began, are gathered for so long: at a
 * moderate rate that is one frame, one commit and one answer for several messages instead of one.
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
  /** Handlers are being called: what is settled now was settled by one before it returned. */
  isStarting = false

  constructor(flushPublishes: () => void, write: () => void) {
    this.#flushPublishes = flushPublishes
    this.#write = write
  }

  schedule(): void {
    if (this.#scheduled) return
    this.#scheduled = true
    setImmediate(this.#run)
  }

  /** At most once a turn for each; the caller remembers that it is listed. */
  settle(settling: Settling): void {
    this.#settling.push(settling)
    this.schedule()
  }

  /** Its settles may wait a little for others; `settle` is for when they may not. */
  gather(settling: Settling): void {
    this.#gathering.push(settling)
    this.#gatherTimer ??= setTimeout(this.#gathered, GATHER_MS)
  }

  readonly #gathered = (): void => this.flushAll()

  /** Sends at once everything, also what was still being gathered. */
  flushAll(): void {
    clearTimeout(this.#gatherTimer)
    this.#gatherTimer = undefined
    for (const settling of this.#gathering) this.#settling.push(settling)
    this.#gathering = []
    this.flush()
  }

  /** At most once a turn for each; the caller remembers that it is listed. */
  start(starting: Starting): void {
    this.#starting.push(starting)
    this.schedule()
  }

  readonly #run = (): void => {
    this.#scheduled = false
    this.flush()
  }

  /** Sends the publishes of the turn so far; the rest follows at its end. */
  sendAhead(): void {
    this.#flushPublishes()
    this.#write()
  }

  /** Sends at once what has been gathered. */
  flush(): void {
    this.#flushPublishes()
    const settling = this.#settling
    this.#settling = []
    for (const each of settling) each.flushSettles()
    const starting = this.#starting
    this.#starting = []
    for (const each of starting) each.announce()
    this.#write()
    this.isStarting = true
    try {
      for (const each of starting) each.startHandlers()
    } finally {
      this.isStarting = false
    }
  }
}
