/** The session of a client: what its consumers and requests use of it. */
import type { SluiceError } from '@sluice/protocol'
import type { Connection } from './connection.js'
import type { Deadlines } from './deadlines.js'
import type { Events } from './events.js'
import { Isolation } from './isolation.js'
import type { LeaseLoss } from './losses.js'
import { Orphans } from './orphans.js'
import type { Producer } from './producer.js'
import { Replies } from './replies.js'
import type { Consumer, ConsumerWaiting, HandlerFailure, Session } from './session.js'
import type { Turn } from './turn.js'

/** The parts of a client, and what a session asks of it. */
export interface ClientParts {
  readonly turn: Turn
  readonly deadlines: Deadlines
  readonly timeoutMs: number
  readonly producer: Producer
  readonly events: Events
  readonly isClosed: () => boolean
  readonly connection: () => Connection | undefined
  /** Whether the consumer that waits gets its queue again without an event. */
  readonly renews: (event: ConsumerWaiting) => boolean
}

export class ClientSession implements Session {
  readonly turn: Turn
  readonly deadlines: Deadlines
  readonly timeoutMs: number
  readonly isolation = new Isolation()
  readonly orphans = new Orphans()
  readonly retired = new Set<Consumer>()
  readonly replies: Replies
  readonly #parts: ClientParts

  constructor(parts: ClientParts) {
    this.#parts = parts
    this.turn = parts.turn
    this.deadlines = parts.deadlines
    this.timeoutMs = parts.timeoutMs
    this.replies = new Replies(this, parts.producer)
  }

  get isClosed(): boolean {
    return this.#parts.isClosed()
  }

  get connection(): Connection | undefined {
    return this.#parts.connection()
  }

  report(error: SluiceError): void {
    this.#parts.events.emit('error', error)
  }

  handlerFailed(failure: HandlerFailure): void {
    this.#parts.events.emit('handlerError', failure)
  }

  leaseLost(loss: LeaseLoss): void {
    this.#parts.events.emit('leaseLost', loss)
  }

  waiting(event: ConsumerWaiting): void {
    if (!this.#parts.renews(event)) this.#parts.events.emit('waiting', event)
  }
}
