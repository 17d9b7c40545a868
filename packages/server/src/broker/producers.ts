/**
 * Attaches a connection to the producer of its identity, and detaches it when the connection ends. Called by sessions.
 *
 * Invariant: a producer without connections stays in the table, together with the results that its client may request
 * again, until it has been idle for 7 days (see state/checkpoint.ts). In a full table the producer that has been
 * disconnected longest is evicted.
 */
import { SluiceError } from '@sluice/protocol'
import { PRODUCERS_MAX } from '../state/directory.js'
import type { Producer } from '../state/producers.js'
import type { State } from '../state/state.js'
import type { Observer } from './observer.js'
import type { Turn } from './turn.js'

export interface ProducersOptions {
  readonly producersMax?: number
  readonly observer?: Observer | undefined
}

export class Producers {
  readonly #state: State
  readonly #producersMax: number
  readonly #turn: Turn
  readonly #observer: Observer | undefined

  constructor(state: State, turn: Turn, { producersMax = PRODUCERS_MAX, observer }: ProducersOptions) {
    this.#state = state
    this.#producersMax = producersMax
    this.#turn = turn
    this.#observer = observer
  }

  /**
   * Returns the producer with this identity, which is created if it is not known. A new producer gets its id and is
   * written to the log when its first batch is accepted.
   * @throws SluiceError PRODUCER_UNKNOWN when `acceptedNumber` was confirmed but is not in this log;
   * TOO_MANY_CONNECTIONS
   */
  attach(identity: string, acceptedNumber: number): Producer {
    let producer = this.#state.producers.get(identity)
    if (acceptedNumber > (producer?.highest ?? 0)) {
      throw new SluiceError(
        'PRODUCER_UNKNOWN',
        `Batch ${acceptedNumber} of this producer was confirmed, but the highest number known to the broker is ${producer?.highest ?? 0}.`,
      )
    }
    if (producer === undefined) {
      this.#makeRoom()
      producer = this.#state.newProducer(0, identity)
      this.#state.addProducer(producer)
    }
    producer.connections++
    producer.lastUsedMs = this.#turn.nowMs
    return producer
  }

  /**
   * Called when a connection of the producer has ended. `hasLeft` says that the client will never request a result
   * again.
   */
  detach(producer: Producer, hasLeft = false): void {
    producer.connections--
    producer.lastUsedMs = this.#turn.nowMs
    if (producer.connections > 0) return
    if (hasLeft) producer.forgetAll()
    producer.shrink()
    if (producer.id === 0) this.#state.removeProducer(producer)
    else this.#state.used(producer)
    this.#observer?.detached(producer)
  }

  #makeRoom(): void {
    const { producers } = this.#state
    if (producers.size < this.#producersMax) return
    for (const producer of producers.values()) {
      if (producer.connections > 0) continue
      this.#state.removeProducer(producer)
      return
    }
    throw new SluiceError(
      'TOO_MANY_CONNECTIONS',
      `${producers.size} producers are connected; at most ${this.#producersMax} can be connected.`,
    )
  }
}
